"""Audio features of tracks: providers, validation, and conversion to vectors."""
