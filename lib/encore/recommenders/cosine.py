"""cosine: tracks whose audio vectors are most similar to the mean vector of the playlist's tracks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from encore import temporary
from encore.arrays.ragged import Ragged
from encore.arrays.ranked import Ranked
from encore.config import RecommendConfig
from encore.recommenders.base import Arrays, Fitted, Model, Train
from encore.search import index, kernel


class Cosine:
    """The score is the cosine of centroid and vector, as `kernel` defines both. Without any vector: an empty
    row.

    Arrays: those of index.Blocks; `vectors` float32 (V, d) and `row_of` int32 (n_tracks,): row of each track in
    `vectors`, -1 without.
    """

    def __init__(self, arrays: Arrays, config: RecommendConfig) -> None:
        self.arrays = arrays
        self._index = index.Blocks.load(arrays, query_block=config.query_block, item_block=config.item_block)

    def candidates(self, pids: NDArray[np.int64], seeds: Ragged, n: NDArray[np.int64]) -> Ranked:
        """See Fitted."""
        means, counts = kernel.centroids(seeds, self.arrays["row_of"], self.arrays["vectors"])
        return self.nearest(means, np.where(counts > 0, n, 0))

    def nearest(self, centroids: NDArray[np.float32], n: NDArray[np.int64]) -> Ranked:
        """The n[i] tracks most similar to centroid i, float32 (rows, d); 0 of them: an empty row."""
        if len(self._index) == 0:
            return Ranked.empty(len(centroids))
        asked = np.flatnonzero(n > 0)
        found = self._index.search(centroids[asked], n[asked])
        lengths = np.zeros(len(n), dtype=np.int64)
        lengths[asked] = found.ids.lengths
        return Ranked(Ragged.from_lengths(lengths, found.ids.values), found.scores)


def fit(train: Train, config: RecommendConfig) -> Fitted:
    """Prepare the vectors. Raises ValueError where they are not finite or their ids not ascending or not
    known."""
    ids = train.vector_ids
    if len(ids) and not 0 <= int(ids[0]) <= int(ids[-1]) < train.n_tracks:
        raise ValueError(f"vector ids: 0 to {train.n_tracks - 1} expected, {ids[0]} to {ids[-1]} found")
    step = config.index_items
    blocks = ((ids[i : i + step], train.vectors[i : i + step]) for i in range(0, len(ids), step))
    keep = _mapped if len(ids) > step else dict
    built = index.build_blocks(blocks, query_block=config.query_block, item_block=config.item_block, keep=keep)
    row_of = np.full(train.n_tracks, -1, dtype=np.int32)
    row_of[ids] = np.arange(len(ids), dtype=np.int32)
    return Cosine({**built.arrays, "vectors": train.vectors, "row_of": row_of}, config)


def _mapped(arrays: Arrays) -> Arrays:
    """The same arrays in files that are gone when this process ends."""
    folder = temporary.new_folder("index")
    found = dict(arrays)
    for name, array in arrays.items():
        # a file without a value cannot be mapped, and there is nothing to put away
        if array.size:
            np.save(f"{folder}/{name}.npy", array)
            found[name] = np.load(f"{folder}/{name}.npy", mmap_mode="r")
    return found


MODEL = Model(name="cosine", needs=("vector_ids", "vectors"), fit=fit, load=Cosine)
