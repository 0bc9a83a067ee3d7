"""Generator of synthetic playlists in the format of the Million Playlist Dataset."""
