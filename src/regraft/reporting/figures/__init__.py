"""How each experiment's result is drawn."""
