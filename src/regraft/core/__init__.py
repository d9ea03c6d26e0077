"""What every room may use; nothing here knows of a model."""
