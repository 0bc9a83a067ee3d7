"""item_knn: recommends the tracks that occur in the same playlists as the seeds (item-based neighbourhoods).

    score_j = sum over seeds i  c_ij / (pop_i^seed_damping pop_j^track_damping)

c_ij: how many playlists have both tracks; pop: in how many playlists a track is. With both dampings .5, the default,
the terms are the cosines of the tracks' columns in the matrix of playlists and tracks.

Source: Sarwar et al., Item-Based Collaborative Filtering Recommendation Algorithms (WWW 2001); Deshpande and Karypis,
Item-Based Top-N Recommendation Algorithms (TOIS 2004). No neighbour is pruned: instead of a table of the nearest
neighbours, the sum is taken over the playlists of the seeds, each of which adds the same to all of its tracks.

Cost: a query with s seeds visits at most s * postings playlists, and once all tracks of each that it has reached;
fitting computes tables of N numbers. Memory: the interactions, mapped, and 12 M + 12 N bytes in each thread; neither
grows with the queries.

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


class ItemKnn:
    """Arrays, all float32: `seed_weight` and `track_weight`, by the count of a track; `length_weight`: all 1, by the
    length of a playlist."""

    def __init__(self, arrays: NamedArrays, config: RecommendConfig, parts: Parts) -> None:
        self.arrays = arrays
        self._of: Interactions = parts["interactions"]
        self._postings = config.item_knn.postings

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
            0,
            1,
            self._postings,
        )


def fit(train: TrainingData, config: RecommendConfig, parts: Parts, tools: Tools) -> NamedArrays:
    """Compute the tables of weights."""
    lists, settings = parts["interactions"], config.item_knn
    return {
        "seed_weight": powers(lists.largest_count, -settings.seed_damping),
        "length_weight": powers(lists.longest, 0),
        "track_weight": powers(lists.largest_count, -settings.track_damping),
    }


MODEL = Model(
    name="item_knn",
    needs=(),
    fit=fit,
    load=ItemKnn,
    settings=("item_knn",),
    parts=("interactions",),
    tunable={"seed_damping": Space(0.0, 1.0), "track_damping": Space(0.0, 1.0)},
)
