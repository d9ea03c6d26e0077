"""A live checkpoint seen as parts."""
