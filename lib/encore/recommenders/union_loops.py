"""Compiled loops of encore.recommenders.union. Import only through `union.load_loops`: numba is slow to import."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@numba.njit(cache=True, nogil=True)
def union(
    offsets: I64,
    ids: I32,
    scores: F32,
    room: I64,
    out_ids: I32,
    out_scores: F32,
    out_ranks: I32,
    lengths: I64,
) -> None:
    """See Union.of: row q of model m has the entries offsets[m, q] to offsets[m, q + 1] - 1 of `ids` and `scores`."""
    p = len(offsets)
    for q in range(len(lengths)):
        total = room[q + 1] - room[q]
        keys = np.empty(total, np.int64)
        greatest = np.zeros(p, np.float32)
        at = 0
        for m in range(p):
            for i in range(offsets[m, q], offsets[m, q + 1]):
                # entries of a track are adjacent, and say which model they are of
                keys[at] = (np.int64(ids[i]) << 32) | i
                greatest[m] = max(greatest[m], scores[i])
                at += 1
        keys.sort()
        end = room[q] - 1
        for k in range(total):
            track, i = np.int32(keys[k] >> 32), keys[k] & 0xFFFFFFFF
            if k == 0 or track != np.int32(keys[k - 1] >> 32):
                end += 1
                out_ids[end] = track
            for m in range(p):
                if offsets[m, q] <= i < offsets[m, q + 1]:
                    if greatest[m] > 0:
                        out_scores[end, m] = max(scores[i], np.float32(0)) / greatest[m]
                    out_ranks[end, m] = i - offsets[m, q] + 1
        lengths[q] = end + 1 - room[q]


@numba.njit(cache=True, nogil=True)
def best(offsets: I64, ids: I32, scores: F32, room: I64, out_ids: I32, out_scores: F32) -> None:
    """See union.best."""
    for q in range(len(room) - 1):
        start, stop, n = offsets[q], offsets[q + 1], room[q + 1] - room[q]
        keys = np.empty(stop - start, np.uint64)
        for i in range(start, stop):
            keys[i - start] = (np.uint64(_descending(scores[i])) << np.uint64(32)) | np.uint64(i - start)
        if n < len(keys):
            keys = np.partition(keys, n)[:n]
        keys.sort()
        for k in range(n):
            i = start + np.int64(keys[k] & np.uint64(0xFFFFFFFF))
            out_ids[room[q] + k] = ids[i]
            out_scores[room[q] + k] = scores[i]


@numba.njit(cache=True, nogil=True)
def gains(
    offsets: I64, scores: F32, is_hit: NDArray[np.bool_], n_test: I64, discount: F64, dcg: F64, n_early: I64
) -> None:
    """See union.gains."""
    for q in range(len(dcg)):
        start, stop = offsets[q], offsets[q + 1]
        keys = np.empty(stop - start, np.uint64)
        for i in range(start, stop):
            keys[i - start] = (np.uint64(_descending(scores[i])) << np.uint64(32)) | np.uint64(i - start)
        n = min(len(discount), len(keys))
        if n < len(keys):
            keys = np.partition(keys, n)[:n]
        keys.sort()
        for k in range(n):
            if is_hit[start + np.int64(keys[k] & np.uint64(0xFFFFFFFF))]:
                dcg[q] += discount[k]
                if k < n_test[q]:
                    n_early[q] += 1


@numba.njit(cache=True, nogil=True)
def _descending(score: float) -> int:
    """The bits of a float32 as an integer that falls as the score rises."""
    one = np.empty(1, np.float32)
    # -0.0 + 0.0 is 0.0, so that the two zeros tie
    one[0] = score + np.float32(0)
    bits = one.view(np.uint32)[0]
    # the order of positive floats is that of their bits; that of negative ones is reversed
    ascending = bits | np.uint32(0x80000000) if bits < np.uint32(0x80000000) else ~bits
    return int(np.uint32(~ascending))
