"""random: a pseudo-random order of the catalogue for each playlist, a pure function of the seed, the pid and the
listed tracks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from encore.arrays import hashing
from encore.arrays.ragged import NamedArrays, Ragged, offsets_of
from encore.arrays.ranked import Ranked
from encore.recommenders.base import Model, Parts, Queries, Tools, TrainingData

if TYPE_CHECKING:
    from encore.config import RecommendConfig

_MAX_TRACKS = 2**23
"""Up to this rank, 1 / rank differs from its neighbours in float32."""


class Uniform:
    """The score is 1 / i for the track at rank i (from 1) in the playlist's order.

    The order is (a j + b) mod p for j = 0, 1, ..., skipping values of n_tracks or more. p is the smallest prime that is
    at least n_tracks; a in 1..p-1 and b in 0..p-1 are hashes of the seed and the pid. The map is a permutation, so no
    track is repeated, and over all pids every track is equally likely at each rank. If some tracks are not listed,
    n_tracks is the number of listed tracks, and the values are positions among them instead of ids.

    Arrays: `catalogue` int64 (2,): the number of listed tracks and p; `ids` int32 (m,): the listed tracks, ascending,
    or empty if all tracks are listed.
    """

    def __init__(self, arrays: NamedArrays, config: RecommendConfig, parts: Parts) -> None:
        self.arrays = arrays
        self._n_tracks, self._prime = (int(number) for number in arrays["catalogue"])
        self._seed = config.seed

    def candidates(self, queries: Queries, n: NDArray[np.int64]) -> Ranked:
        """See FittedModel. Raises ValueError for more than 2**23 tracks per playlist, whose scores would tie."""
        lengths = np.minimum(n, self._n_tracks)
        if (lengths > _MAX_TRACKS).any():
            raise ValueError(f"random: expected at most {_MAX_TRACKS} tracks per playlist, found {lengths.max()}")
        state = hashing.mix(self._seed, queries.pids)
        prime = np.uint64(self._prime)
        a = hashing.extend(state, np.zeros(1, dtype=np.int64)) % (prime - np.uint64(1)) + np.uint64(1)
        b = hashing.extend(state, np.ones(1, dtype=np.int64)) % prime
        # enough terms even if all the skipped values came first; products stay below 2**63
        terms = np.where(lengths > 0, lengths + (self._prime - self._n_tracks), 0)
        offsets = offsets_of(terms)
        j = (np.arange(offsets[-1], dtype=np.int64) - np.repeat(offsets[:-1], terms)).astype(np.uint64)
        values = (np.repeat(a, terms) * j + np.repeat(b, terms)) % prime
        ids = Ragged(offsets, values.astype(np.int64)).where(values < np.uint64(self._n_tracks))
        if len(self.arrays["ids"]):
            ids = Ragged(ids.offsets, self.arrays["ids"][ids.values])
        scores = (1.0 / (ids.positions + 1)).astype(np.float32)
        return Ranked(Ragged(ids.offsets, ids.values.astype(np.int32)), scores)


def smallest_prime(least: int) -> int:
    """The smallest prime that is at least `least`."""
    candidate = max(2, least)
    while any(candidate % divisor == 0 for divisor in range(2, math.isqrt(candidate) + 1)):
        candidate += 1
    return candidate


def fit(train: TrainingData, config: RecommendConfig, parts: Parts, tools: Tools) -> NamedArrays:
    """Learns only which tracks are listed."""
    n_listed = train.n_tracks - len(train.orphaned)
    catalogue = np.array([n_listed, smallest_prime(n_listed)], dtype=np.int64)
    return {"catalogue": catalogue, "ids": train.listed if len(train.orphaned) else train.orphaned}


MODEL = Model(name="random", needs=(), fit=fit, load=Uniform, settings=("seed",))
