"""Recommendations over HTTP: the bundle of a model version, the scorer that answers from it, and its page."""
