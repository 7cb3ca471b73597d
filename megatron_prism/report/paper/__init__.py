"""The page that shows a run in the forms of the paper's tables and figures, beside what the paper published."""
