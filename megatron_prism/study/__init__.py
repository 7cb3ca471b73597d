"""The phases of a study, from which the recipes in `recipes/` are built, and the registry that finds a recipe."""
