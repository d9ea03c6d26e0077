"""Compression: six codecs behind one frame, one interface and one command."""
