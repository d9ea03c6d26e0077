"""Weights in few bits: our own rounding, and other libraries' quantizers."""
