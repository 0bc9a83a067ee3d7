"""Spotify ids as numbers, and hash tables that give each distinct id a small integer code.

An id is 22 letters and digits, stored as three 64-bit numbers that sort in the same order as the strings. A table of
two million ids takes 130 MB, and a look-up takes a fifth of a microsecond; both are several times more with Python
strings, or with a library's dictionary that is rebuilt for each batch.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encore.arrays.jit import compilation_cache

U64 = NDArray[np.uint64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

ID_LENGTH = 22
URI_PREFIX = "spotify:track:"

_ALLOWED = np.zeros(256, np.bool_)
_ALLOWED[[ord(sign) for sign in "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"]] = True


@lru_cache(maxsize=1)
def load_loops() -> ModuleType:
    """Import `encore.arrays.track_key_loops` and compile everything in it."""
    with compilation_cache():
        from encore.arrays import track_key_loops

        words, one = np.zeros((1, 3), np.uint64), np.zeros(1, np.int64)
        slots, codes = np.full(4, -1, np.int32), np.zeros(1, np.int32)
        track_key_loops.pack(np.full((1, ID_LENGTH), ord("0"), np.uint8), 0, _ALLOWED, words)
        track_key_loops.fill(slots, words, 1)
        track_key_loops.look_up(slots, words, 1, words, False, codes)
        track_key_loops.keep_best(codes, np.zeros(1, np.int8), one, codes, 0, np.zeros(1, np.int8), one, one, one)
    return track_key_loops


def id_words(strings: pa.Array | pa.ChunkedArray, prefix: str = URI_PREFIX) -> U64 | None:
    """The ids in strings of the form `prefix` + id, as uint64 (n, 3); None if any string is null or malformed."""
    if isinstance(strings, pa.ChunkedArray):
        strings = strings.combine_chunks() if strings.num_chunks != 1 else strings.chunk(0)
    if not pa.types.is_string(strings.type):
        strings = strings.cast(pa.string())
    if strings.null_count:
        return None
    n, skip = len(strings), len(prefix)
    words = np.empty((n, 3), np.uint64)
    if n == 0:
        return words
    offsets = np.frombuffer(strings.buffers()[1], np.int32, n + 1, strings.offset * 4)
    length = skip + ID_LENGTH
    if offsets[-1] - offsets[0] != n * length or (np.diff(offsets) != length).any():
        return None
    bytes_ = np.frombuffer(strings.buffers()[2], np.uint8, n * length, int(offsets[0])).reshape(n, length)
    if skip and (bytes_[:, :skip] != np.frombuffer(prefix.encode(), np.uint8)).any():
        return None
    return words if load_loops().pack(bytes_, skip, _ALLOWED, words) else None


class KeyTable:
    """Distinct ids with codes 0, 1, 2, ... in the order in which they were added."""

    def __init__(self) -> None:
        self._n = 0
        self._words: U64 = np.empty((1 << 10, 3), np.uint64)
        self._slots: I32 = np.full(1 << 11, -1, np.int32)

    def __len__(self) -> int:
        return self._n

    @property
    def words(self) -> U64:
        """The ids in the order of their codes, uint64 (n, 3); a view."""
        return self._words[: self._n]

    def add(self, words: U64) -> I32:
        """The code of each of these ids, int32 (m,); new ids get the next codes, in the order in which they occur."""
        self._reserve(len(words))
        codes = np.empty(len(words), np.int32)
        self._n = load_loops().look_up(self._slots, self._words, self._n, words, True, codes)
        return codes

    def find(self, words: U64) -> I32:
        """The code of each of these ids, int32 (m,), -1 for an id that was never added."""
        codes = np.empty(len(words), np.int32)
        load_loops().look_up(self._slots, self._words, self._n, words, False, codes)
        return codes

    def _reserve(self, n_new: int) -> None:
        """Make room for `n_new` more ids at a load factor of at most one half, so that few look-ups probe twice."""
        capacity = self._n + n_new
        if capacity > len(self._words):
            self._words = grow(self._words, capacity, 0)
        if 2 * capacity > len(self._slots):
            self._slots = np.full(1 << (2 * capacity - 1).bit_length(), -1, np.int32)
            load_loops().fill(self._slots, self._words, self._n)


def grow(array: NDArray[Any], n_rows: int, fill: int) -> NDArray[Any]:
    """A copy with at least `n_rows` rows, and at least twice as many as before; new elements are `fill`."""
    longer = np.full((max(n_rows, 2 * len(array)), *array.shape[1:]), fill, array.dtype)
    longer[: len(array)] = array
    return longer


class BestRecords:
    """Distinct ids of records that arrive in batches, and the best record of each id.

    The best record has the fewest missing fields; ties are broken by the lowest pid, then by the earliest record.
    Records are numbered from 0 in the order in which they are added.
    """

    def __init__(self) -> None:
        self.keys = KeyTable()
        self.n_records = 0
        self._columns: dict[str, NDArray[Any]] = {
            "missing": np.empty(0, np.int8),
            "pid": np.empty(0, np.int64),
            "row": np.empty(0, np.int64),
            "n_rows": np.empty(0, np.int64),
        }

    def __len__(self) -> int:
        return len(self.keys)

    def column(self, name: str) -> NDArray[Any]:
        """A column by code, as a view that is valid until the next `add`.

        `missing` int8, `pid` int64 and `row` int64 (its number) of the best record; `n_rows` int64: how often the id
        occurs.
        """
        return self._columns[name][: len(self.keys)]

    def add(self, words: U64, missing: NDArray[np.int8], pids: I64, counts: NDArray[np.int32] | None = None) -> I32:
        """Add records with these ids; returns their codes, int32.

        All arrays have the same length. `counts`: the number of occurrences that each record represents, 1 by default.
        """
        codes = self.keys.add(words)
        if len(self.keys) > len(self._columns["row"]):
            self._columns = {
                name: grow(array, len(self.keys), -1 if name == "row" else 0) for name, array in self._columns.items()
            }
        held = self._columns
        load_loops().keep_best(
            codes,
            missing,
            pids,
            np.ones(len(codes), np.int32) if counts is None else counts,
            self.n_records,
            held["missing"],
            held["pid"],
            held["row"],
            held["n_rows"],
        )
        self.n_records += len(codes)
        return codes
