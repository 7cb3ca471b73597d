"""Scoring a model: problem suites, sampling and grading, pass rates with confidence intervals."""
