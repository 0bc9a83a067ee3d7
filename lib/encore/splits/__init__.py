"""Holdouts: which tracks of a playlist are kept back to test the models."""
