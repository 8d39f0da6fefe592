"""Forget requests carried out on the network."""
