"""The one way that a model is written: read back, compared, and only then kept."""
