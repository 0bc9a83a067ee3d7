"""The interface of all models, and what they have in common: excluding seeds, truncating and ordering lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import NamedArrays, Ragged
from encore.arrays.ranked import Ranked
from encore.config import RecommendConfig

_ROWS = 16_384
"""Playlists processed at a time, so that memory does not grow with the size of a request: 75 MB with 500 tracks and a
few dozen seeds each. A search shares work between neighbours, so smaller batches would take longer."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What models are fitted on: the catalogue of tracks 0..n_tracks - 1, their training counts and their vectors.

    `counts` int64 (n_tracks,): in how many playlists the track is a training track. `vector_ids` int32 (V,), ascending,
    and `vectors` float32 (V, d): the tracks that have a vector. `orphaned` int32, ascending: tracks that no longer
    occur in any playlist, which are never recommended. Fields that a model does not list in `needs` may be empty.
    """

    n_tracks: int
    counts: NDArray[np.int64]
    vector_ids: NDArray[np.int32]
    vectors: NDArray[np.float32]
    orphaned: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))

    @property
    def listed(self) -> NDArray[np.int32]:
        """The ids of the tracks that may be recommended, ascending: all except the orphaned ones."""
        return np.delete(np.arange(self.n_tracks, dtype=np.int32), self.orphaned)


class FittedModel(Protocol):
    """A fitted model. It keeps no state about individual playlists, so it accepts any seeds."""

    arrays: NamedArrays
    """The complete fitted state: saved as .npy files and passed to Model.load, possibly memory-mapped."""

    def candidates(self, pids: NDArray[np.int64], seeds: Ragged, n: NDArray[np.int64]) -> Ranked:
        """At least the n[i] best tracks for playlist pids[i] and its seeds, or all tracks if there are fewer.

        Best first, equal scores by id; seeds are not excluded. A row depends only on its own pid and seeds. Unknown
        seeds (ids outside the catalogue) are ignored. A row is empty if the model has no candidates.
        """


@dataclass(frozen=True)
class Model:
    """An entry of the registry.

    `needs` lists the fields of TrainingData that `fit` reads besides n_tracks and orphaned. `fit` learns; `load`
    restores a fitted model from its arrays. Both take the settings; `settings` lists those, besides k, on which the
    model's rows depend.
    """

    name: str
    needs: tuple[str, ...]
    fit: Callable[[TrainingData, RecommendConfig], FittedModel]
    load: Callable[[NamedArrays, RecommendConfig], FittedModel]
    settings: tuple[str, ...] = ()


def recommend(fitted: FittedModel, pids: NDArray[np.int64], seeds: Ragged, k: int) -> Ranked:
    """At most k tracks for each playlist: none of its seeds, no repeats, best first, equal scores by id.

    `pids` int64 (n,), `seeds` n rows of track ids (integers of at most 32 bits; repeats and unknown ids are allowed).
    A row is empty if the model has no candidates or the catalogue is empty. Raises ValueError if the lengths differ or
    k is less than 1.
    """
    if len(pids) != len(seeds):
        raise ValueError(f"{len(pids)} pids but {len(seeds)} rows of seeds")
    if k < 1:
        raise ValueError(f"k: expected at least 1, found {k}")
    # compiled code is loaded on use: commands that only import this module do not wait for it
    from encore.recommenders.seed_exclusion import exclude_seeds

    parts = [Ranked.empty(0)]
    for start in range(0, len(pids), _ROWS):
        stop = min(start + _ROWS, len(pids))
        own = seeds.slice(start, stop)
        # enough even if every seed is among the best
        found = fitted.candidates(pids[start:stop], own, k + own.distinct().lengths)
        parts.append(exclude_seeds(found, own, k))
    return Ranked.concat(parts)
