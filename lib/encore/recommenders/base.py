"""The interface of all models, and what is done once for all of them: exclusion of seeds, cut and order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import Ragged
from encore.arrays.ranked import Ranked
from encore.config import RecommendConfig

Arrays = dict[str, NDArray[Any]]

_ROWS = 16_384
"""Playlists that are worked on at a time, so that memory does not grow with the number asked for at once: with 500
tracks and some dozens of seeds each, 75 MB. A search shares work among neighbours, so fewer would cost more."""


@dataclass(frozen=True, eq=False)
class Train:
    """What models are fitted on: the catalogue of tracks 0..n_tracks - 1 and what train lists and features
    say of it.

    `counts` int64 (n_tracks,): playlists that have the track in train. `vector_ids` int32 (V,), ascending,
    and `vectors` float32 (V, d): the tracks that have a vector. Fields that a model does not name in `needs`
    may be empty. `orphaned` int32, ascending: tracks that no playlist holds any more, which are never recommended.
    """

    n_tracks: int
    counts: NDArray[np.int64]
    vector_ids: NDArray[np.int32]
    vectors: NDArray[np.float32]
    orphaned: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))

    @property
    def listed(self) -> NDArray[np.int32]:
        """The tracks that may be recommended, ascending: all but the orphaned ones."""
        return np.delete(np.arange(self.n_tracks, dtype=np.int32), self.orphaned)


class Fitted(Protocol):
    """A model that was fitted. It knows nothing of the playlists it was fitted on: any seeds will do."""

    arrays: Arrays
    """Everything it needs, to be saved as .npy files and given to Model.load, memory-mapped if wished."""

    def candidates(self, pids: NDArray[np.int64], seeds: Ragged, n: NDArray[np.int64]) -> Ranked:
        """The n[i] best tracks of playlist pids[i] with these seeds, or all there are; more do no harm.

        Best first, equal scores by id; seeds are not taken out. A row depends on its own pid and seeds only.
        Unknown seeds (ids outside the catalogue) are passed over. Nothing to say: an empty row.
        """


@dataclass(frozen=True)
class Model:
    """An entry of the registry.

    `needs` names the fields of Train that `fit` reads, besides n_tracks and orphaned. `fit` learns; `load` makes
    the same of the arrays of what was fitted. Both are given the settings; `settings` names those, besides k, on
    which the model's rows depend.
    """

    name: str
    needs: tuple[str, ...]
    fit: Callable[[Train, RecommendConfig], Fitted]
    load: Callable[[Arrays, RecommendConfig], Fitted]
    settings: tuple[str, ...] = ()


def recommend(fitted: Fitted, pids: NDArray[np.int64], seeds: Ragged, k: int) -> Ranked:
    """At most k tracks for each playlist: none of its seeds, no repeats, best first, equal scores by id.

    `pids` int64 (n,), `seeds` n rows of track ids (integers of at most 32 bits; repeats and unknown ids do no
    harm). Where the model has nothing to say, and for an empty catalogue, the row is empty. Raises ValueError
    where lengths differ or k is less than 1.
    """
    if len(pids) != len(seeds):
        raise ValueError(f"{len(pids)} pids but {len(seeds)} rows of seeds")
    if k < 1:
        raise ValueError(f"k: at least 1 expected, {k} found")
    # compiled code is loaded where it runs: commands that import this module need not wait for it
    from encore.recommenders.cut import without_seeds

    parts = [Ranked.empty(0)]
    for start in range(0, len(pids), _ROWS):
        stop = min(start + _ROWS, len(pids))
        own = seeds.slice(start, stop)
        # so many more than k are enough even if every seed is among the best
        found = fitted.candidates(pids[start:stop], own, k + own.distinct().lengths)
        parts.append(without_seeds(found, own, k))
    return Ranked.concat(parts)
