"""Compiled loops of `track_keys`. Import only through `track_keys.load_loops()`: numba is slow to import."""

# numba infers the types of these functions
# mypy: ignore-errors
from __future__ import annotations

import numpy as np
from numba import njit

_COMPILED = {"cache": True, "nogil": True}


@njit(**_COMPILED)
def pack(strings, skip, allowed, words):
    """Pack 22 bytes of each row of `strings`, starting at `skip`, into three big-endian numbers: `words` (n, 3).

    Returns False, leaving `words` undefined, if a byte is not `allowed`.
    """
    for i in range(len(strings)):
        at = skip
        for w in range(3):
            word = np.uint64(0)
            for _ in range(8 if w < 2 else 6):
                byte = strings[i, at]
                if not allowed[byte]:
                    return False
                word = (word << np.uint64(8)) | np.uint64(byte)
                at += 1
            words[i, w] = word
    return True


@njit(**_COMPILED)
def _slot(a, b, c, mask):
    """A hash of three words, 0 to `mask`."""
    h = a * np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(32))) + b
    h = h * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(29))) + c
    h = h * np.uint64(0x94D049BB133111EB)
    return (h ^ (h >> np.uint64(32))) & mask


@njit(**_COMPILED)
def fill(slots, words, n):
    """Insert codes 0 to n - 1 into `slots`, all empty (-1); their number is a power of two and above n."""
    mask = np.uint64(len(slots) - 1)
    for code in range(n):
        at = _slot(words[code, 0], words[code, 1], words[code, 2], mask)
        while slots[at] >= 0:
            at = (at + np.uint64(1)) & mask
        slots[at] = code


@njit(**_COMPILED)
def look_up(slots, words, n, keys, add, codes):
    """Write the code of each of `keys` (m, 3) to `codes`; returns the number of distinct keys afterwards.

    A missing key gets -1 or, if `add`, is added with the next code: n, n + 1 and so on.
    """
    mask = np.uint64(len(slots) - 1)
    for i in range(len(keys)):
        a, b, c = keys[i, 0], keys[i, 1], keys[i, 2]
        at = _slot(a, b, c, mask)
        code = slots[at]
        while code >= 0 and (words[code, 0] != a or words[code, 1] != b or words[code, 2] != c):
            at = (at + np.uint64(1)) & mask
            code = slots[at]
        if code < 0 and add:
            words[n, 0], words[n, 1], words[n, 2] = a, b, c
            slots[at] = code = n
            n += 1
        codes[i] = code
    return n


@njit(**_COMPILED)
def keep_best(codes, missing, pids, counts, start, best_missing, best_pid, best_row, n_rows):
    """Update the best row of each code: the fewest `missing`, then the lowest pid, then the earliest row.

    The rows are numbered start, start + 1 and so on; best_row is -1 for a code without a row. `counts` are added to
    n_rows.
    """
    for i in range(len(codes)):
        code = codes[i]
        n_rows[code] += counts[i]
        if (
            best_row[code] < 0
            or missing[i] < best_missing[code]
            or (missing[i] == best_missing[code] and pids[i] < best_pid[code])
        ):
            best_missing[code], best_pid[code], best_row[code] = missing[i], pids[i], start + i
