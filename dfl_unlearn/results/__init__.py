"""Views over finished work, which plots and reports read."""
