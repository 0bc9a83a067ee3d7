"""Models that continue playlists, behind one interface."""
