"""Converts playlists of other formats to slices in the dataset's format: `encore import`."""
