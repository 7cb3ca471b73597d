"""Recipes: which stages make a study, in which order, with which numbers. One module per recipe."""
