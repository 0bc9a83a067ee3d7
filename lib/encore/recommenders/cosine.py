"""cosine: recommends the tracks whose audio vectors are most similar to the mean vector of the playlist's tracks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from encore import temporary
from encore.arrays.ragged import NamedArrays, Ragged
from encore.arrays.ranked import Ranked
from encore.recommenders.base import Model, Parts, Queries, Tools, TrainingData
from encore.search import index, kernel

if TYPE_CHECKING:
    from encore.config import RecommendConfig


class Cosine:
    """The score is the cosine of centroid and vector, as `kernel` defines both; without vectors, the row is empty.

    Arrays: those of index.BlockedIndex; `vectors` float32 (V, d); `row_of` int32 (n_tracks,): the row of each track in
    `vectors`, or -1.
    """

    def __init__(self, arrays: NamedArrays, config: RecommendConfig, parts: Parts) -> None:
        self.arrays = arrays
        self._index = index.BlockedIndex.load(arrays, query_block=config.query_block, item_block=config.item_block)

    def candidates(self, queries: Queries, n: NDArray[np.int64]) -> Ranked:
        """See FittedModel."""
        means, counts = kernel.centroids(queries.seeds, self.arrays["row_of"], self.arrays["vectors"])
        return self.nearest(means, np.where(counts > 0, n, 0))

    def nearest(self, centroids: NDArray[np.float32], n: NDArray[np.int64]) -> Ranked:
        """The n[i] tracks most similar to centroid i of float32 (rows, d)."""
        if len(self._index) == 0:
            return Ranked.empty(len(centroids))
        active = np.flatnonzero(n > 0)
        found = self._index.search(centroids[active], n[active])
        lengths = np.zeros(len(n), dtype=np.int64)
        lengths[active] = found.ids.lengths
        return Ranked(Ragged.from_lengths(lengths, found.ids.values), found.scores)


def fit(train: TrainingData, config: RecommendConfig, parts: Parts, tools: Tools) -> NamedArrays:
    """Build the index. Raises ValueError if vectors are not finite, or if their ids are not ascending or unknown."""
    ids = train.vector_ids
    if len(ids) and not 0 <= int(ids[0]) <= int(ids[-1]) < train.n_tracks:
        raise ValueError(f"vector ids: expected 0 to {train.n_tracks - 1}, found {ids[0]} to {ids[-1]}")
    step = config.index_items
    blocks = ((ids[i : i + step], train.vectors[i : i + step]) for i in range(0, len(ids), step))
    keep = _mapped if len(ids) > step else dict
    built = index.build_blocked(blocks, query_block=config.query_block, item_block=config.item_block, keep=keep)
    row_of = np.full(train.n_tracks, -1, dtype=np.int32)
    row_of[ids] = np.arange(len(ids), dtype=np.int32)
    return {**built.arrays, "vectors": train.vectors, "row_of": row_of}


def _mapped(arrays: NamedArrays) -> NamedArrays:
    """The same arrays, memory-mapped from temporary files that are deleted when this process ends."""
    folder = temporary.new_folder("index")
    found = dict(arrays)
    for name, array in arrays.items():
        # an empty file cannot be mapped, and holds nothing worth moving out of memory
        if array.size:
            np.save(f"{folder}/{name}.npy", array)
            found[name] = np.load(f"{folder}/{name}.npy", mmap_mode="r")
    return found


MODEL = Model(name="cosine", needs=("vector_ids", "vectors"), fit=fit, load=Cosine)
