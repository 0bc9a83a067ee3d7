"""artist: recommends the most popular tracks by the artists of the seeds.

    score_j = n_a^seeds_power  rows_a^-rows_damping  pop_j^popularity_power,    a: the artist of j

n_a: how many distinct seeds are by the artist; rows_a: how many rows of playlists are; pop: in how many playlists a
track is. Tracks without a known artist, and those that no playlist has, are not recommended.

Source: tuned on playlists of the dataset; teams of the RecSys Challenge 2018 used the artist in the same way, such as
Creamy Fireflies: Antenucci et al., Artist-driven layering and user's behaviour impact on recommendations.

Cost: a query visits at most n + s tracks of each artist of its s seeds; fitting sorts the M tracks. Memory: 12 M + 16 A
bytes in each thread for A artists, and 12 M mapped; neither grows with the queries.

A playlist of the training data is left out of all counts of its own query, so the query gets the row that it would get
if the playlist had never been trained on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import NamedArrays, offsets_of
from encore.arrays.ranked import Ranked
from encore.recommenders.base import Model, Parts, Queries, Space, Tools, TrainingData
from encore.recommenders.interactions import Interactions, load_loops, powers

if TYPE_CHECKING:
    from encore.config import RecommendConfig

_MOST_SEEDS: Final = 10_000
"""From this number of seeds by an artist on, more of them count no more."""


class Artist:
    """Arrays: `artist_of` int32 (M,), -1 without a known artist; of each of the A artists, `artist_offsets` int64
    (A + 1,) and `artist_tracks` int32: the tracks that occur in playlists, most popular first; `artist_rows` int64
    (A,). Float32 tables: `seeds_weight` by n_a, `rows_weight` by rows_a, `track_weight` by the count of a track."""

    def __init__(self, arrays: NamedArrays, config: RecommendConfig, parts: Parts) -> None:
        self.arrays = arrays
        self._of: Interactions = parts["interactions"]

    def candidates(self, queries: Queries, n: NDArray[np.int64]) -> Ranked:
        """See FittedModel."""
        own, lists = self.arrays, self._of
        return lists.run(
            load_loops().by_artist,
            n,
            *lists.of_queries(queries),
            *lists.both_ways,
            own["artist_of"],
            own["artist_offsets"],
            own["artist_tracks"],
            own["artist_rows"],
            own["seeds_weight"],
            own["rows_weight"],
            own["track_weight"],
        )


def fit(train: TrainingData, config: RecommendConfig, parts: Parts, tools: Tools) -> NamedArrays:
    """Sort the tracks of each artist."""
    lists, settings, artist_of = parts["interactions"], config.artist, train.artist_of
    counts = lists.counts
    n_artists = int(artist_of.max(initial=-1)) + 1
    track_weight = powers(lists.largest_count, settings.popularity_power)
    tracks = np.flatnonzero((artist_of >= 0) & (counts > 0))
    order = np.lexsort((tracks, -counts[tracks], artist_of[tracks]))
    rows = np.zeros(n_artists, np.int64)
    np.add.at(rows, artist_of[tracks], counts[tracks])
    return {
        "artist_of": artist_of,
        "artist_offsets": offsets_of(np.bincount(artist_of[tracks], minlength=n_artists)),
        "artist_tracks": tracks[order].astype(np.int32),
        "artist_rows": rows,
        "seeds_weight": powers(_MOST_SEEDS, settings.seeds_power),
        "rows_weight": powers(int(rows.max(initial=0)), -settings.rows_damping),
        "track_weight": track_weight,
    }


MODEL = Model(
    name="artist",
    needs=("artist_of",),
    fit=fit,
    load=Artist,
    settings=("artist",),
    parts=("interactions",),
    tunable={"seeds_power": Space(0.2, 2.0), "rows_damping": Space(0.0, 1.0), "popularity_power": Space(0.1, 1.5)},
)
