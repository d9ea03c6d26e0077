"""Parts that stand in the place of a model's own."""
