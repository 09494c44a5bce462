"""The outer layer: the public side."""
