"""A checkpoint as files, without a live model."""
