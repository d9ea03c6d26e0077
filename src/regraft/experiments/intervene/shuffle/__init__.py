"""The order of blocks, lost and found again."""
