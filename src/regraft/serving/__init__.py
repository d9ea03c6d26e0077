"""Models with adapters served by other engines."""
