"""playlist_knn: recommends the tracks of the playlists that are most similar to the seeds (user-based neighbourhoods).

    sim_u   = sum over seeds i in playlist u  1 / ((pop_i - 1)^idf_power + 1)  /  len_u^length_damping
    score_j = pop_j^-track_damping  sum over the `neighbours` most similar playlists u with j  sim_u^similarity_power

pop: in how many playlists a track is; len: the number of a playlist's training tracks. Equally similar playlists rank
by pid.

Source: the kNN of team Definitive Turtles, Kelen et al., Efficient K-NN for Playlist Continuation (RecSys Challenge
2018).

Cost: a query with s seeds visits at most s * postings playlists, then all tracks of its neighbours; fitting computes
tables of N numbers. Memory: the interactions, mapped, and 12 M + 12 N bytes in each thread; neither grows with the
queries.

A playlist of the training data is left out of all counts and sums of its own query, so the query gets the row that it
would get if the playlist had never been trained on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import NamedArrays
from encore.arrays.ranked import Ranked
from encore.recommenders.base import Model, Parts, Queries, Space, Tools, TrainingData
from encore.recommenders.interactions import Interactions, load_loops, powers

if TYPE_CHECKING:
    from encore.config import RecommendConfig


class PlaylistKnn:
    """Arrays, all float32: `seed_weight` and `track_weight`, by the count of a track; `length_weight`, by the length of
    a playlist."""

    def __init__(self, arrays: NamedArrays, config: RecommendConfig, parts: Parts) -> None:
        self.arrays = arrays
        self._of: Interactions = parts["interactions"]
        self._settings = config.playlist_knn

    def candidates(self, queries: Queries, n: NDArray[np.int64]) -> Ranked:
        """See FittedModel."""
        own, lists = self.arrays, self._of
        return lists.run(
            load_loops().neighbours,
            n,
            *lists.of_queries(queries),
            *lists.both_ways,
            lists.arrays["rows"],
            own["seed_weight"],
            own["length_weight"],
            own["track_weight"],
            self._settings.neighbours,
            self._settings.similarity_power,
            self._settings.postings,
        )


def fit(train: TrainingData, config: RecommendConfig, parts: Parts, tools: Tools) -> NamedArrays:
    """Compute the tables of weights."""
    lists, settings = parts["interactions"], config.playlist_knn
    others = np.arange(lists.largest_count, dtype=np.float64)
    seed_weight = np.zeros(lists.largest_count + 1, np.float32)
    seed_weight[1:] = 1 / (others**settings.idf_power + 1)
    return {
        "seed_weight": seed_weight,
        "length_weight": powers(lists.longest, -settings.length_damping),
        "track_weight": powers(lists.largest_count, -settings.track_damping),
    }


MODEL = Model(
    name="playlist_knn",
    needs=(),
    fit=fit,
    load=PlaylistKnn,
    settings=("playlist_knn",),
    parts=("interactions",),
    tunable={
        "neighbours": Space(50, 2000, is_log=True),
        "idf_power": Space(0.0, 1.5),
        "length_damping": Space(0.0, 1.0),
        "similarity_power": Space(1, 4),
        "track_damping": Space(0.0, 0.6),
    },
)
