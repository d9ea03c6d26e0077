"""What features of adapters stand for: where they are active, what they push, what they do to a
prediction."""
