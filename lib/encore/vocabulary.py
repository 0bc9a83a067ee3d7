"""Names and ranges of the audio features, shared by settings, tables and providers."""

from __future__ import annotations

FEATURES = (
    "danceability",
    "energy",
    "key",
    "loudness",
    "mode",
    "speechiness",
    "acousticness",
    "instrumentalness",
    "liveness",
    "valence",
    "tempo",
)
"""The eleven audio features, in the order used by every matrix and vector."""

RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(FEATURES, (0, 1)),
    "key": (-1, 11),
    "loudness": (-100, 20),
    "tempo": (0, 400),
}
"""Minimum and maximum of each feature, both inclusive; units as in the table audio_features."""
