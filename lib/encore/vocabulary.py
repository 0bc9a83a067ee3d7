"""Names that several parts share: the audio features with their ranges, and the kinds of the challenge protocol."""

from __future__ import annotations

from typing import NamedTuple

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


class Kind(NamedTuple):
    """A kind of playlist in the RecSys Challenge 2018: what is known of it, and how long such playlists are.

    `n_seeds` tracks are known, the first ones or random ones, and the title if `has_title`. The whole playlist has
    `low` to `high` tracks.
    """

    name: str
    has_title: bool
    n_seeds: int
    is_random: bool
    low: int
    high: int


KINDS: tuple[Kind, ...] = (
    Kind("title", True, 0, False, 10, 50),
    Kind("title_first_1", True, 1, False, 10, 50),
    Kind("title_first_5", True, 5, False, 10, 100),
    Kind("first_5", False, 5, False, 10, 100),
    Kind("title_first_10", True, 10, False, 40, 100),
    Kind("first_10", False, 10, False, 40, 100),
    Kind("title_first_25", True, 25, False, 101, 250),
    Kind("title_random_25", True, 25, True, 101, 250),
    Kind("title_first_100", True, 100, False, 150, 250),
    Kind("title_random_100", True, 100, True, 150, 250),
)
"""The ten kinds of the official challenge set, with the lengths of its playlists (the mean of the first two kinds is
29 and 24)."""
