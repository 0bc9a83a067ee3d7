"""Exact search for the most similar vectors."""
