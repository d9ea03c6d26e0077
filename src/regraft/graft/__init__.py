"""A part replaced, trained against the model that it came from, and proved."""
