"""The correctly rounded weighted sum: the result of exact rational arithmetic, rounded once, at the speed of floats."""
