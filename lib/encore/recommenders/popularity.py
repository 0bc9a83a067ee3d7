"""popularity: the tracks that most playlists have, the same for every playlist."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import Ragged, offsets_of
from encore.arrays.ranked import Ranked
from encore.config import RecommendConfig
from encore.recommenders.base import Arrays, Fitted, Model, Train


class Popularity:
    """The score is the number of playlists that have the track in train; tracks that none has come last.

    Arrays: `order` int32 (m,): the m listed tracks, best first; `scores` float32 (m,): their scores.
    """

    def __init__(self, arrays: Arrays, config: RecommendConfig) -> None:
        self.arrays = arrays

    def candidates(self, pids: NDArray[np.int64], seeds: Ragged, n: NDArray[np.int64]) -> Ranked:
        """See Fitted."""
        order, scores = self.arrays["order"], self.arrays["scores"]
        lengths = np.minimum(n, len(order))
        offsets = offsets_of(lengths)
        places = np.arange(offsets[-1], dtype=np.int64) - np.repeat(offsets[:-1], lengths)
        return Ranked(Ragged(offsets, order[places]), scores[places])


def fit(train: Train, config: RecommendConfig) -> Fitted:
    """Order the catalogue. Raises ValueError where there is not one count, at least 0, for each track."""
    if train.counts.shape != (train.n_tracks,) or (train.counts < 0).any():
        raise ValueError(f"counts: {train.n_tracks} numbers of at least 0 expected, {train.counts.shape} found")
    ids = train.listed
    scores = train.counts[ids].astype(np.float32)
    # by the score as it is stored: counts from 2**24 on may share one
    order = np.argsort(-scores, kind="stable")
    return Popularity({"order": ids[order], "scores": scores[order]}, config)


MODEL = Model(name="popularity", needs=("counts",), fit=fit, load=Popularity)
