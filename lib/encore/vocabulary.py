"""The audio features: names that settings, tables and providers share."""

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
"""The eleven audio features, in the order in which every matrix and vector holds them."""

RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(FEATURES, (0, 1)),
    "key": (-1, 11),
    "loudness": (-100, 20),
    "tempo": (0, 400),
}
"""Least and greatest value of each feature, both allowed; units as in the table audio_features."""
