"""The generator of playlists in the dataset's format."""
