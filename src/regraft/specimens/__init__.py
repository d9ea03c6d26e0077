"""Small trained models with known facts, and the almanac that they learnt them from."""
