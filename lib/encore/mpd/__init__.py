"""The Million Playlist Dataset: generated data of its format."""
