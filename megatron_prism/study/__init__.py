"""What the recipes in `recipes/` are made of: the phases of the study, and how a recipe is found and called."""
