"""The last step of every model, in compiled code: exclude the playlist's own tracks and keep the k best."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import numpy as np

from encore.arrays.jit import compilation_cache
from encore.arrays.ragged import Ragged, offsets_of
from encore.arrays.ranked import Ranked


def exclude_seeds(found: Ranked, seeds: Ragged, k: int) -> Ranked:
    """The first k ids of each row that are not among the seeds of that row, with their scores.

    `found` and `seeds` have n rows; seeds are integers of at most 32 bits, repeats allowed. Raises ValueError if the
    numbers of rows differ or a type is not supported. Memory: the result, 8 bytes per id, in addition to `found`.
    """
    if len(found) != len(seeds):
        raise ValueError(f"{len(found)} rows of ids but {len(seeds)} of seeds")
    if found.ids.values.dtype != np.int32 or seeds.values.dtype.kind not in "iu" or seeds.values.dtype.itemsize > 4:
        raise ValueError(f"expected integers of at most 32 bits, found {found.ids.values.dtype}, {seeds.values.dtype}")
    own = seeds.values.astype(np.int32, copy=False)
    room = offsets_of(np.minimum(found.ids.lengths, k))
    ids, scores = np.empty(room[-1], np.int32), np.empty(room[-1], np.float32)
    lengths = np.zeros(len(found), np.int64)
    load_loops().exclude(
        found.ids.values, found.scores, found.ids.offsets, own, seeds.offsets, room, k, ids, scores, lengths
    )
    return Ranked.packed(room, lengths, ids, scores)


@lru_cache(maxsize=1)
def load_loops() -> ModuleType:
    """The compiled loop; compiles it, or waits until another process on this machine has compiled it."""
    with compilation_cache():
        from encore.recommenders import seed_exclusion_loops as loops

        ids, offsets, scores = np.zeros(1, np.int32), np.array([0, 1], np.int64), np.zeros(1, np.float32)
        loops.exclude(ids, scores, offsets, ids, offsets, offsets, 1, ids.copy(), scores.copy(), offsets[:1].copy())
    return loops
