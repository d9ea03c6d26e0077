"""Models larger than memory: how much is held, how much is read, how fast."""
