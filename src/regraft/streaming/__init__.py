"""A model whose blocks live on disk: filled when they run, emptied behind that."""
