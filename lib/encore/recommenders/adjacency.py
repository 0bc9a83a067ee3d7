"""adjacency: recommends the tracks that are close to the seeds in other playlists (positional co-occurrence).

    score_j = pop_j^-track_damping  sum over seeds i  pop_i^-seed_damping  sum over playlists u with both
              1 / (1 + |index_i - index_j|),    |index_i - index_j| <= reach

index: the place in the playlist's training tracks; pop: in how many playlists a track is. It is strong where the hidden
tracks were between the seeds, and weaker where the seeds are the first tracks of the playlist.

Source: co-occurrence damped by popularity is the item neighbourhood of Deshpande and Karypis, Item-Based Top-N
Recommendation Algorithms (TOIS 2004); the weight of nearby places is that of harmonic windows in word vectors, as in
Pennington et al., GloVe (EMNLP 2014).

Cost: a query with s seeds visits at most s * postings playlists and 2 * reach + 1 tracks in each; fitting computes
tables of N numbers. Memory: the interactions, mapped, and 12 M bytes in each thread; neither grows with the queries.

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


class Adjacency:
    """Arrays, all float32: `seed_weight` and `track_weight`, by the count of a track; `closeness` (reach + 1,), by
    distance."""

    def __init__(self, arrays: NamedArrays, config: RecommendConfig, parts: Parts) -> None:
        self.arrays = arrays
        self._of: Interactions = parts["interactions"]
        self._postings = config.adjacency.postings

    def candidates(self, queries: Queries, n: NDArray[np.int64]) -> Ranked:
        """See FittedModel."""
        own, lists = self.arrays, self._of
        return lists.run(
            load_loops().adjacency,
            n,
            *lists.of_queries(queries),
            *lists.both_ways,
            lists.arrays["rows"],
            lists.arrays["places"],
            own["seed_weight"],
            own["track_weight"],
            own["closeness"],
            self._postings,
        )


def fit(train: TrainingData, config: RecommendConfig, parts: Parts, tools: Tools) -> NamedArrays:
    """Compute the tables of weights."""
    largest, settings = parts["interactions"].largest_count, config.adjacency
    return {
        "seed_weight": powers(largest, -settings.seed_damping),
        "track_weight": powers(largest, -settings.track_damping),
        "closeness": powers(settings.reach + 1, -1)[1:],
    }


MODEL = Model(
    name="adjacency",
    needs=(),
    fit=fit,
    load=Adjacency,
    settings=("adjacency",),
    parts=("interactions",),
    tunable={"reach": Space(2, 60, is_log=True), "seed_damping": Space(0.0, 1.0), "track_damping": Space(0.0, 1.0)},
)
