"""Exact top-k search by cosine similarity."""
