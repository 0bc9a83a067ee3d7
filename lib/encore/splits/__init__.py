"""Holdouts: which tracks of a playlist are withheld to test the models."""
