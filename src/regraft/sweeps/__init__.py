"""Many variants of one forward pass."""
