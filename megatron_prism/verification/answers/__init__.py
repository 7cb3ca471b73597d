"""Finding the answer in a completion and comparing it with the reference."""
