"""Model search: gradient descent and random search."""
