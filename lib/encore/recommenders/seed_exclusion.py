"""The last step of every model, in compiled code: exclude the playlist's own tracks and keep the k best."""

from __future__ import annotations

from functools import lru_cache

import numba
import numpy as np
from numpy.typing import NDArray

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
    _exclude(found.ids.values, found.scores, found.ids.offsets, own, seeds.offsets, room, k, ids, scores, lengths)
    return Ranked.packed(room, lengths, ids, scores)


@lru_cache(maxsize=1)
def load_loops() -> None:
    """Compile this module's loops, or wait until another process on this machine has compiled them."""
    with compilation_cache():
        row = Ragged.from_lists([[0]])
        exclude_seeds(Ranked(row, np.zeros(1, np.float32)), row, 1)


@numba.njit(cache=True, nogil=True)
def _slot(number: int, shift: int) -> int:
    """A multiplicative hash of 32 - shift bits (Knuth, TAOCP 3, 6.4).

    It uses int64 throughout: numba converts operations on signed and unsigned integers to float.
    """
    return int((np.int64(number) * 0x9E3779B1) & 0xFFFFFFFF) >> shift


@numba.njit(cache=True, nogil=True)
def _exclude(
    found: NDArray[np.int32],
    scores: NDArray[np.float32],
    offsets: NDArray[np.int64],
    seeds: NDArray[np.int32],
    seed_offsets: NDArray[np.int64],
    room: NDArray[np.int64],
    k: int,
    out_ids: NDArray[np.int32],
    out_scores: NDArray[np.float32],
    lengths: NDArray[np.int64],
) -> None:
    """Write the results of each row from position room[row] on, and their number to `lengths`.

    Seeds go into a hash table with open addressing and at least four slots per seed, so nearly every look-up takes one
    probe.
    """
    longest = 1
    for row in range(len(lengths)):
        longest = max(longest, seed_offsets[row + 1] - seed_offsets[row])
    bits = 3
    while (1 << bits) < 4 * longest:
        bits += 1
    table = np.empty(1 << bits, np.int32)
    filled = np.zeros(1 << bits, np.uint8)
    for row in range(len(lengths)):
        own = seed_offsets[row + 1] - seed_offsets[row]
        bits = 3
        while (1 << bits) < 4 * own:
            bits += 1
        mask = (1 << bits) - 1
        shift = 32 - bits
        filled[: mask + 1] = 0
        for i in range(seed_offsets[row], seed_offsets[row + 1]):
            at = _slot(seeds[i], shift)
            while filled[at] and table[at] != seeds[i]:
                at = (at + 1) & mask
            table[at] = seeds[i]
            filled[at] = 1
        end = room[row]
        for i in range(offsets[row], offsets[row + 1]):
            if end - room[row] == k:
                break
            at = _slot(found[i], shift)
            while filled[at] and table[at] != found[i]:
                at = (at + 1) & mask
            if not filled[at]:
                out_ids[end] = found[i]
                out_scores[end] = scores[i]
                end += 1
        lengths[row] = end - room[row]
