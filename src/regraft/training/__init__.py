"""One trainer, and what it is given to train."""
