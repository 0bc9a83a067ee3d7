"""random: for each playlist its own pseudo-random order of the catalogue, a fixed function of seed, pid and
track."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from encore.arrays import hashing
from encore.arrays.ragged import Ragged, offsets_of
from encore.arrays.ranked import Ranked
from encore.config import RecommendConfig
from encore.recommenders.base import Arrays, Fitted, Model, Train

_MOST = 2**23
"""Up to this place, 1 / place differs from its neighbours in float32."""


class Uniform:
    """The score is 1 / i for the track at place i (from 1) of the playlist's order.

    The order is (a j + b) mod p for j = 0, 1, ..., values from n_tracks on skipped. p is the smallest prime
    that is at least n_tracks; a in 1..p-1 and b in 0..p-1 are hashes of seed and pid. The map is a
    permutation, so that nothing is repeated, and over all pids each track is as likely as any other at each
    place. Where some tracks are not listed, places among the listed ones take the place of ids.

    Arrays: `catalogue` int64 (2,): the number of listed tracks and p; `ids` int32 (m,): the listed tracks,
    ascending, empty where all are.
    """

    def __init__(self, arrays: Arrays, config: RecommendConfig) -> None:
        self.arrays = arrays
        self._n_tracks, self._prime = (int(number) for number in arrays["catalogue"])
        self._seed = config.seed

    def candidates(self, pids: NDArray[np.int64], seeds: Ragged, n: NDArray[np.int64]) -> Ranked:
        """See Fitted. Raises ValueError where more than 2**23 tracks are asked for: scores would be equal."""
        wanted = np.minimum(n, self._n_tracks)
        if (wanted > _MOST).any():
            raise ValueError(f"random: at most {_MOST} tracks a playlist expected, {wanted.max()} asked for")
        state = hashing.mix(self._seed, pids)
        prime = np.uint64(self._prime)
        a = hashing.extend(state, np.zeros(1, dtype=np.int64)) % (prime - np.uint64(1)) + np.uint64(1)
        b = hashing.extend(state, np.ones(1, dtype=np.int64)) % prime
        # enough terms even if every value that is skipped were among the first; products stay below 2**63
        terms = np.where(wanted > 0, wanted + (self._prime - self._n_tracks), 0)
        offsets = offsets_of(terms)
        j = (np.arange(offsets[-1], dtype=np.int64) - np.repeat(offsets[:-1], terms)).astype(np.uint64)
        values = (np.repeat(a, terms) * j + np.repeat(b, terms)) % prime
        ids = Ragged(offsets, values.astype(np.int64)).where(values < np.uint64(self._n_tracks))
        if len(self.arrays["ids"]):
            ids = Ragged(ids.offsets, self.arrays["ids"][ids.values])
        scores = (1.0 / (ids.places + 1)).astype(np.float32)
        return Ranked(Ragged(ids.offsets, ids.values.astype(np.int32)), scores)


def smallest_prime(least: int) -> int:
    """The smallest prime that is at least `least`."""
    candidate = max(2, least)
    while any(candidate % divisor == 0 for divisor in range(2, math.isqrt(candidate) + 1)):
        candidate += 1
    return candidate


def fit(train: Train, config: RecommendConfig) -> Fitted:
    """Nothing is learnt but which tracks there are."""
    n_listed = train.n_tracks - len(train.orphaned)
    catalogue = np.array([n_listed, smallest_prime(n_listed)], dtype=np.int64)
    return Uniform({"catalogue": catalogue, "ids": train.listed if len(train.orphaned) else train.orphaned}, config)


MODEL = Model(name="random", needs=(), fit=fit, load=Uniform, settings=("seed",))
