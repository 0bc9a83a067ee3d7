"""popularity: recommends the tracks that occur in the most playlists, the same for every playlist."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import NamedArrays, Ragged, offsets_of
from encore.arrays.ranked import Ranked
from encore.recommenders.base import Model, Parts, Queries, Tools, TrainingData

if TYPE_CHECKING:
    from encore.config import RecommendConfig


class Popularity:
    """The score is the number of playlists with the track among their training tracks; tracks with none come last.

    Arrays: `order` int32 (m,): the m listed tracks, best first; `scores` float32 (m,): their scores.
    """

    def __init__(self, arrays: NamedArrays, config: RecommendConfig, parts: Parts) -> None:
        self.arrays = arrays

    def candidates(self, queries: Queries, n: NDArray[np.int64]) -> Ranked:
        """See FittedModel."""
        order, scores = self.arrays["order"], self.arrays["scores"]
        lengths = np.minimum(n, len(order))
        offsets = offsets_of(lengths)
        positions = np.arange(offsets[-1], dtype=np.int64) - np.repeat(offsets[:-1], lengths)
        return Ranked(Ragged(offsets, order[positions]), scores[positions])


def fit(train: TrainingData, config: RecommendConfig, parts: Parts, tools: Tools) -> NamedArrays:
    """Rank the catalogue. Raises ValueError unless there is one non-negative count per track."""
    if train.counts.shape != (train.n_tracks,) or (train.counts < 0).any():
        raise ValueError(f"counts: expected {train.n_tracks} numbers of at least 0, found {train.counts.shape}")
    return ranked_by(train.counts, train.listed)


def ranked_by(counts: NDArray[np.int64], ids: NDArray[np.int32]) -> NamedArrays:
    """The arrays of Popularity: `ids`, ascending, ranked by the counts of all tracks (n_tracks,)."""
    scores = counts[ids].astype(np.float32)
    # rank by the score as stored: counts of 2**24 or more may round to the same float32
    order = np.argsort(-scores, kind="stable")
    return {"order": ids[order], "scores": scores[order]}


MODEL = Model(name="popularity", needs=("counts",), fit=fit, load=Popularity)
