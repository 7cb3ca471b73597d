"""Running programs that a model wrote, isolated, and judging them by tests."""
