"""What is worth knowing of a graphics card, in one script of at most nine minutes."""
