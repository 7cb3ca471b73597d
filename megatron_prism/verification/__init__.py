"""Grading an answer (math, multiple choice, code) in a killable process; knows nothing of models."""
