"""Completes lists that a model leaves short, so that every playlist gets as many tracks as were asked for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import Ragged


def completed(lists: Ragged, seeds: Ragged, order: NDArray[np.int32], k: int) -> Ragged:
    """Each list followed by tracks of `order` that are neither in it nor among its seeds, up to k tracks.

    `lists`: n rows of at most k track ids without repeats or seeds; `seeds`: n rows; `order` int32 (m,): tracks to fall
    back on, best first, no repeats. A row is shorter than k only if `order` has too few tracks.
    """
    short = np.flatnonzero(lists.lengths < k)
    rows = [lists[i] for i in range(len(lists))]
    for i in short.tolist():
        known = np.concatenate([rows[i], seeds[i]])
        # enough even if all of them are known
        more = order[: k + len(known)]
        more = more[~np.isin(more, known)][: k - len(rows[i])]
        rows[i] = np.concatenate([rows[i], more])
    lengths = np.array([len(row) for row in rows], np.int64)
    return Ragged.from_lengths(lengths, np.concatenate([np.empty(0, np.int32), *rows]).astype(np.int32))
