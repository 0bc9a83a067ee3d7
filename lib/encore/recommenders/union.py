"""The union of what several models recommend, with the score and the rank that each gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np
from numpy.typing import NDArray

from encore.arrays.jit import compilation_cache
from encore.arrays.ragged import Ragged, offsets_of
from encore.arrays.ranked import Ranked

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Union:
    """Tracks that at least one of P models recommends for each of n queries, T in all.

    `ids`: n rows, ascending. `scores` float32 (T, P): the model's score, clipped at 0 and divided by the greatest in
    the query, so 0 to 1; 0 where the model does not recommend the track. `ranks` int32 (T, P): from 1, 0 likewise.
    """

    ids: Ragged
    scores: F32
    ranks: I32

    @classmethod
    def of(cls, found: Sequence[Ranked]) -> Union:
        """The union of P rankings of the same n queries, P at least 1."""
        n, p = len(found[0]), len(found)
        starts = np.concatenate([[0], np.cumsum([len(one.scores) for one in found])])
        offsets = np.stack([one.ids.offsets + start for one, start in zip(found, starts, strict=False)])
        ids = np.concatenate([one.ids.values for one in found])
        scores = np.concatenate([one.scores for one in found])
        lengths = np.zeros(n, np.int64)
        room = offsets_of(np.sum([one.ids.lengths for one in found], axis=0))
        out_ids = np.empty(room[-1], np.int32)
        out_scores, out_ranks = np.zeros((room[-1], p), np.float32), np.zeros((room[-1], p), np.int32)
        _union(offsets, ids, scores, room, out_ids, out_scores, out_ranks, lengths)
        kept = np.arange(room[-1]) - np.repeat(room[:-1], np.diff(room)) < np.repeat(lengths, np.diff(room))
        return cls(Ragged.from_lengths(lengths, out_ids[kept]), out_scores[kept], out_ranks[kept])


def best(ids: Ragged, scores: F32, n: I64) -> Ranked:
    """The n[i] tracks of row i with the highest scores, best first, equal scores by id; `scores` has one per track."""
    lengths = np.minimum(ids.lengths, n)
    room = offsets_of(lengths)
    out_ids, out_scores = np.empty(room[-1], np.int32), np.empty(room[-1], np.float32)
    _best(ids.offsets, ids.values, scores, room, out_ids, out_scores)
    return Ranked(Ragged(room, out_ids), out_scores)


def gains(ids: Ragged, scores: F32, is_hit: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """The DCG of the k tracks with the highest scores in each row, float64 (n,): see evaluation.metrics.

    `scores` and `is_hit`: one per track; equal scores are ordered by id.
    """
    found = np.zeros(len(ids))
    _gains(ids.offsets, scores, is_hit, 1 / np.log2(np.arange(2.0, k + 2)), found)
    return found


@lru_cache(maxsize=1)
def load_loops() -> None:
    """Compile this module's loops, or wait until another process on this machine has compiled them."""
    with compilation_cache():
        one = Ranked(Ragged.from_lists([[0]]), np.ones(1, np.float32))
        found = Union.of([one])
        best(found.ids, found.scores[:, 0].copy(), np.ones(1, np.int64))
        gains(found.ids, found.scores[:, 0].copy(), np.ones(1, np.bool_), 1)


@numba.njit(cache=True, nogil=True)
def _union(
    offsets: I64,
    ids: I32,
    scores: F32,
    room: I64,
    out_ids: I32,
    out_scores: F32,
    out_ranks: I32,
    lengths: I64,
) -> None:
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
def _best(offsets: I64, ids: I32, scores: F32, room: I64, out_ids: I32, out_scores: F32) -> None:
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
def _gains(
    offsets: I64, scores: F32, is_hit: NDArray[np.bool_], discount: NDArray[np.float64], out: NDArray[np.float64]
) -> None:
    for q in range(len(out)):
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
                out[q] += discount[k]


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
