"""Encore continues playlists: PySpark jobs over the Million Playlist Dataset, on Delta tables, with MLflow."""

__version__ = "0.1.0"
