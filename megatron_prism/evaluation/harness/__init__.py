"""The tasks of lm-evaluation-harness with our engines as its model."""
