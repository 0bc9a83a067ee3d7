"""The compiled loop of `seed_exclusion`. Import only through `seed_exclusion.load_loops`: numba is slow to import."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True, nogil=True)
def _slot(number: int, shift: int) -> int:
    """A multiplicative hash of 32 - shift bits (Knuth, TAOCP 3, 6.4).

    It uses int64 throughout: numba converts operations on signed and unsigned integers to float.
    """
    return int((np.int64(number) * 0x9E3779B1) & 0xFFFFFFFF) >> shift


@numba.njit(cache=True, nogil=True)
def exclude(
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
