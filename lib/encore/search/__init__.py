"""Exact cosine top-k."""
