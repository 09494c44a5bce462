"""The inner layer: the private side."""
