"""The Million Playlist Dataset: reading slices in its format."""
