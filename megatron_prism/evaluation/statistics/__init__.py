"""Numbers that an evaluation reports: rates with intervals, comparisons on the same problems, averages."""
