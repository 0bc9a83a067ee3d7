"""The protocols of the scorer: what a request's JSON asks, and the JSON of an answer. Pure functions."""
