"""Independent re-implementations of architectures, from the checkpoint's files alone, verified stage by
stage."""
