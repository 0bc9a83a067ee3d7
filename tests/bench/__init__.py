"""Benchmarks: Encore against its peers, and the pipeline at up to a million playlists: `python -m tests.bench`."""
