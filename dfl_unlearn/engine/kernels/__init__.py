"""Local steps of a chunk of peers, one module per kernel shape."""
