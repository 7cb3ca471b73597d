"""The pass rate of models between and beyond those of a training run: W(a, b) of the paper (section 10.1)."""
