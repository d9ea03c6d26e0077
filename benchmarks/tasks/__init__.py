"""Eight tasks of people who write code, in regraft and in its two neighbours, with equal numbers."""
