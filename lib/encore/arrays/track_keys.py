"""Spotify ids as numbers, and tables that give each distinct one a small code.

An id is 22 letters and digits, held as three 64-bit numbers that are ordered as the texts are. A set of two million
takes 130 MB here, and finding one takes a fifth of a microsecond; both are several times more as Python strings, or
where a library's dictionary is made anew for each batch.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encore.arrays.jit import prepared

U64 = NDArray[np.uint64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

ID_LENGTH = 22
URI_PREFIX = "spotify:track:"

_ALLOWED = np.zeros(256, np.bool_)
_ALLOWED[[ord(sign) for sign in "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"]] = True


@lru_cache(maxsize=1)
def loops() -> ModuleType:
    """`encore.arrays.track_key_loops`, with everything in it compiled."""
    with prepared():
        from encore.arrays import track_key_loops

        words, one = np.zeros((1, 3), np.uint64), np.zeros(1, np.int64)
        slots, codes = np.full(4, -1, np.int32), np.zeros(1, np.int32)
        track_key_loops.pack(np.full((1, ID_LENGTH), ord("0"), np.uint8), 0, _ALLOWED, words)
        track_key_loops.fill(slots, words, 1)
        track_key_loops.look_up(slots, words, 1, words, False, codes)
        track_key_loops.keep_best(codes, np.zeros(1, np.int8), one, codes, 0, np.zeros(1, np.int8), one, one, one)
    return track_key_loops


def id_words(texts: pa.Array | pa.ChunkedArray, prefix: str = URI_PREFIX) -> U64 | None:
    """Ids as uint64 (n, 3), of texts that are `prefix` and an id each; None where any is something else or null."""
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks() if texts.num_chunks != 1 else texts.chunk(0)
    if not pa.types.is_string(texts.type):
        texts = texts.cast(pa.string())
    if texts.null_count:
        return None
    n, skip = len(texts), len(prefix)
    words = np.empty((n, 3), np.uint64)
    if n == 0:
        return words
    offsets = np.frombuffer(texts.buffers()[1], np.int32, n + 1, texts.offset * 4)
    length = skip + ID_LENGTH
    if offsets[-1] - offsets[0] != n * length or (np.diff(offsets) != length).any():
        return None
    bytes_ = np.frombuffer(texts.buffers()[2], np.uint8, n * length, int(offsets[0])).reshape(n, length)
    if skip and (bytes_[:, :skip] != np.frombuffer(prefix.encode(), np.uint8)).any():
        return None
    return words if loops().pack(bytes_, skip, _ALLOWED, words) else None


class KeyTable:
    """Distinct ids, numbered 0, 1, 2, ... in the order in which they were added."""

    def __init__(self) -> None:
        self._n = 0
        self._words: U64 = np.empty((1 << 10, 3), np.uint64)
        self._slots: I32 = np.full(1 << 11, -1, np.int32)

    def __len__(self) -> int:
        return self._n

    @property
    def words(self) -> U64:
        """The ids by code, uint64 (n, 3); a view."""
        return self._words[: self._n]

    def add(self, words: U64) -> I32:
        """The code of each of these ids, int32 (m,); new ones get the next codes in the order in which they come."""
        self._make_room(len(words))
        codes = np.empty(len(words), np.int32)
        self._n = loops().look_up(self._slots, self._words, self._n, words, True, codes)
        return codes

    def find(self, words: U64) -> I32:
        """The code of each of these ids, int32 (m,), -1 where it was not added."""
        codes = np.empty(len(words), np.int32)
        loops().look_up(self._slots, self._words, self._n, words, False, codes)
        return codes

    def _make_room(self, more: int) -> None:
        """Room for so many more, half of the slots staying empty: then few look-ups need a second try."""
        wanted = self._n + more
        if wanted > len(self._words):
            self._words = grown(self._words, wanted, 0)
        if 2 * wanted > len(self._slots):
            self._slots = np.full(1 << (2 * wanted - 1).bit_length(), -1, np.int32)
            loops().fill(self._slots, self._words, self._n)


def grown(array: NDArray[Any], wanted: int, fill: int) -> NDArray[Any]:
    """The array with room for at least `wanted` rows, twice what it had if that is more; new ones are `fill`."""
    longer = np.full((max(wanted, 2 * len(array)), *array.shape[1:]), fill, array.dtype)
    longer[: len(array)] = array
    return longer


def is_new(codes: I32, before: int) -> NDArray[np.bool_]:
    """Which of the codes that `add` gave, there being `before` then, are of an id that had not been there, also not
    earlier in the same call."""
    highest = np.maximum.accumulate(np.concatenate([[before - 1], codes]))
    return np.asarray(codes > highest[:-1])


class BestRecords:
    """Distinct ids of records that come in batches, and which record describes each of them best.

    That is the one with the fewest fields missing, of those the one of the lowest pid, of those the first. Records
    are numbered from 0 in the order in which they are added.
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
        """By code: `missing` int8 and `pid` int64 of the best record, its number `row` int64, and `n_rows` int64, how
        often the id occurs; views, until the next `add`."""
        return self._columns[name][: len(self.keys)]

    def add(self, words: U64, missing: NDArray[np.int8], pids: I64, counts: NDArray[np.int32] | None = None) -> I32:
        """Records of these ids, arrays of one length; `counts`: how many occurrences each stands for, 1 where not
        given. Returns their codes, int32."""
        codes = self.keys.add(words)
        if len(self.keys) > len(self._columns["row"]):
            self._columns = {
                name: grown(array, len(self.keys), -1 if name == "row" else 0) for name, array in self._columns.items()
            }
        held = self._columns
        loops().keep_best(
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
