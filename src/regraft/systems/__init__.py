"""What a model costs while it runs: state, kernels, caches, and moving them."""
