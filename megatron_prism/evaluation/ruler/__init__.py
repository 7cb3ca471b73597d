"""RULER scores: string recall as in HELMET, per task and length, with confidence intervals."""
