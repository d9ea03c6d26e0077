"""Change one thing, measure."""
