"""A local page in which one plays with a model: `regraft studio`."""
