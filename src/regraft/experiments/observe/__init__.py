"""Look, change nothing."""
