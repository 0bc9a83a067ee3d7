"""Benchmarks: Encore against its peers, and the whole line at sizes up to the million. Run `python -m tests.bench`."""
