"""Audio features of tracks: where they come from, how they are checked, and how they become vectors."""
