"""Rows of different lengths as two flat arrays: the form in which kernels take array columns of tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

if TYPE_CHECKING:
    import pyarrow as pa

I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]
NamedArrays = dict[str, NDArray[Any]]

BLOCK_VALUES = 1 << 15
"""How many values are sorted or looked up at a time: few enough for all temporaries to fit in the L2 cache."""


def offsets_of(lengths: NDArray[Any]) -> I64:
    """Offsets, int64 (n + 1,), of rows with the given lengths (n,)."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different lengths: row i is values[offsets[i]:offsets[i + 1]].

    `offsets` is int64 (n + 1,), non-decreasing, starting at 0; `values` is one-dimensional with offsets[-1]
    elements of any type. Both may be views of memory owned elsewhere, so nothing here writes to them.
    Raises ValueError if the two do not fit together.
    """

    offsets: I64
    values: NDArray[Any]

    def __post_init__(self) -> None:
        if self.offsets.dtype != np.int64 or self.offsets.ndim != 1 or len(self.offsets) == 0:
            raise ValueError(
                f"offsets: expected int64 of shape (n + 1,), found {self.offsets.dtype} {self.offsets.shape}"
            )
        if self.values.ndim != 1:
            raise ValueError(f"values: expected one dimension, found {self.values.ndim}")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.values) or (self.lengths < 0).any():
            raise ValueError(
                f"offsets: expected non-decreasing from 0 to {len(self.values)}, "
                f"found {self.offsets[0]} to {self.offsets[-1]}"
            )

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[Any]], dtype: DTypeLike = np.int32) -> Ragged:
        """From Python lists; for tests and single requests, not for bulk data."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        return cls(offsets_of(lengths), np.array([value for row in rows for value in row], dtype=dtype))

    @classmethod
    def from_lengths(cls, lengths: NDArray[Any], values: NDArray[Any]) -> Ragged:
        """From the length of each row (n,) and all values in the order of the rows."""
        return cls(offsets_of(lengths), values)

    @classmethod
    def empty(cls, n: int, dtype: DTypeLike = np.int32) -> Ragged:
        """n empty rows."""
        return cls(np.zeros(n + 1, dtype=np.int64), np.zeros(0, dtype=dtype))

    @classmethod
    def concat(cls, parts: Sequence[Ragged]) -> Ragged:
        """The rows of all parts, in order. Raises ValueError if there are no parts or their value types differ."""
        if not parts:
            raise ValueError("concat: expected at least one part")
        types = {part.values.dtype for part in parts}
        if len(types) > 1:
            raise ValueError(f"concat: expected one value type, found {sorted(map(str, types))}")
        lengths = np.concatenate([part.lengths for part in parts])
        return cls.from_lengths(lengths, np.concatenate([part.values for part in parts]))

    @classmethod
    def from_arrow(cls, array: pa.Array | pa.ChunkedArray) -> Ragged:
        """From a list or large-list column of numbers, sliced or not; a single chunk is not copied.

        Raises ValueError if the column has another type, or if a row or a value is null.
        """
        import pyarrow as pa

        if isinstance(array, pa.ChunkedArray):
            # an empty chunk beside the only full one must not cost a copy
            full = [chunk for chunk in array.chunks if len(chunk)]
            array = full[0] if len(full) == 1 else pa.concat_arrays(full or [pa.array([], array.type)])
        if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
            raise ValueError(f"expected a column of lists, found {array.type}")
        if array.null_count:
            raise ValueError(f"expected no null lists, found {array.null_count} of {len(array)}")
        offsets = array.offsets.to_numpy().astype(np.int64)
        first, last = int(offsets[0]), int(offsets[-1])
        inner = array.values.slice(first, last - first)
        if inner.null_count:
            raise ValueError(f"expected no null values in lists, found {inner.null_count}")
        return cls(offsets - first, inner.to_numpy(zero_copy_only=True))

    def to_arrow(self) -> pa.ListArray:
        """As a list array with the same value type; the values are not copied.

        Raises ValueError for 2**31 values or more, which such an array cannot hold.
        """
        import pyarrow as pa

        if self.offsets[-1] >= 2**31:
            raise ValueError(f"a list array holds fewer than 2**31 values, found {self.offsets[-1]}")
        return pa.ListArray.from_arrays(pa.array(self.offsets.astype(np.int32)), pa.array(self.values))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[Any]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @cached_property
    def lengths(self) -> I64:
        """Number of values in each row, int64 (n,)."""
        # not by numpy.diff, which takes several times as long for a few rows
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def rows(self) -> I64:
        """Index of the row of each value, int64, as long as `values`."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    @property
    def positions(self) -> I64:
        """Position of each value within its row, from 0, int64, as long as `values`."""
        return np.arange(len(self.values), dtype=np.int64) - np.repeat(self.offsets[:-1], self.lengths)

    def tolist(self) -> list[list[Any]]:
        """As Python lists; for tests and single requests, not for bulk data."""
        return [self[row].tolist() for row in range(len(self))]

    def slice(self, start: int, stop: int) -> Ragged:
        """Rows start to stop - 1, without copying their values."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start} to {stop} of {len(self)}")
        first, last = self.offsets[start], self.offsets[stop]
        return Ragged(self.offsets[start : stop + 1] - first, self.values[first:last])

    def take(self, rows: NDArray[Any]) -> Ragged:
        """The rows with the given indices (any order, repeats allowed), copied."""
        starts = self.offsets[rows]
        lengths = self.offsets[np.asarray(rows) + 1] - starts
        offsets = offsets_of(lengths)
        positions = np.arange(offsets[-1], dtype=np.int64) + np.repeat(starts - offsets[:-1], lengths)
        return Ragged(offsets, self.values[positions])

    def where(self, mask: Mask) -> Ragged:
        """Only the values for which `mask` (as long as `values`) is true; the number of rows stays the same."""
        if mask.shape != self.values.shape:
            raise ValueError(f"mask: expected shape {self.values.shape}, found {mask.shape}")
        kept = np.zeros(len(mask) + 1, dtype=np.int64)
        np.cumsum(mask, out=kept[1:])
        return Ragged(kept[self.offsets], self.values[mask])

    def head(self, n: int | NDArray[Any]) -> Ragged:
        """The first n values of each row (n[i] of row i if `n` is an array); shorter rows stay as they are."""
        return self.where(self.positions < (n if isinstance(n, int) else np.repeat(n, self.lengths)))

    def blocks(self, values: int = BLOCK_VALUES) -> Iterator[tuple[int, int]]:
        """Consecutive ranges (start, stop) that cover all rows, with about `values` values each; no row is split."""
        targets = np.arange(values, int(self.offsets[-1]), values, dtype=np.int64)
        bounds = np.unique(np.concatenate([[0], np.searchsorted(self.offsets, targets), [len(self)]]))
        return zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)

    def is_first(self) -> Mask:
        """Whether each value is its first occurrence in its row, bool, as long as `values`. Integers only."""
        if self.values.dtype.kind not in "iu":
            raise ValueError(f"expected integers, found {self.values.dtype}")
        first = np.empty(len(self.values), dtype=np.bool_)
        for start, stop in self.blocks():
            block = self.slice(start, stop)
            first[self.offsets[start] : self.offsets[stop]] = _is_first(block)
        return first

    def distinct(self) -> Ragged:
        """Each row without repeats: first occurrences, in order. Integers only."""
        return self.where(self.is_first())

    def isin(self, other: Ragged) -> Mask:
        """Whether each value occurs in the corresponding row of `other`, bool, as long as `values`.

        Both sides hold integers of at most 32 bits. Raises ValueError if the numbers of rows or the types do not fit.
        """
        if len(self) != len(other):
            raise ValueError(f"isin: expected {len(self)} rows, found {len(other)}")
        for kind in (self.values.dtype, other.values.dtype):
            if kind.kind not in "iu" or kind.itemsize > 4:
                raise ValueError(f"isin: expected integers of at most 32 bits, found {kind}")
        found = np.zeros(len(self.values), dtype=np.bool_)
        for start, stop in self.blocks():
            block = _isin(self.slice(start, stop), other.slice(start, stop))
            found[self.offsets[start] : self.offsets[stop]] = block
        return found


def _bits(largest: int) -> int:
    """Number of bits needed for 0 to `largest`."""
    return max(0, largest).bit_length()


def _is_first(block: Ragged) -> Mask:
    """`Ragged.is_first` for a block that is small enough to sort at once.

    One sort of 64-bit keys (row, value, position in the block) is several times faster than a lexsort.
    """
    size = len(block.values)
    first = np.zeros(size, dtype=np.bool_)
    if size == 0:
        return first
    low = int(block.values.min())
    row_bits, value_bits = _bits(len(block) - 1), _bits(int(block.values.max()) - low)
    position_bits = _bits(size - 1)
    if row_bits + value_bits + position_bits > 64:
        order = np.lexsort((block.values, block.rows))
        rows, values = block.rows[order], block.values[order]
        new = np.ones(size, dtype=np.bool_)
        # lexsort is stable, so the first of equal values is the first in the row
        new[1:] = (rows[1:] != rows[:-1]) | (values[1:] != values[:-1])
        first[order[new]] = True
        return first
    row_keys = np.arange(len(block), dtype=np.uint64) << np.uint64(value_bits + position_bits) if row_bits else None
    keys = (block.values.astype(np.int64) - low).astype(np.uint64) << np.uint64(position_bits)
    if row_keys is not None:
        keys |= np.repeat(row_keys, block.lengths)
    keys |= np.arange(size, dtype=np.uint64)
    keys.sort()
    rows_and_values = keys >> np.uint64(position_bits)
    new = np.ones(size, dtype=np.bool_)
    np.not_equal(rows_and_values[1:], rows_and_values[:-1], out=new[1:])
    positions = keys & np.uint64((1 << position_bits) - 1)
    first[positions[new].astype(np.int64)] = True
    return first


def _keys(block: Ragged) -> NDArray[np.uint64]:
    """Row and value of each value, packed into one 64-bit number."""
    values = block.values.astype(np.uint32).astype(np.uint64)
    values |= np.repeat(np.arange(len(block), dtype=np.uint64) << np.uint64(32), block.lengths)
    return values


def _slots(block: Ragged, bits: int) -> NDArray[np.uint32]:
    """A cheap hash of row and value, 0 to 2**bits - 1 (multiplicative: Knuth, TAOCP 3, 6.4)."""
    slots = block.values.astype(np.uint32)
    slots += np.repeat(np.arange(len(block), dtype=np.uint32) * np.uint32(0x85EBCA6B), block.lengths)
    slots *= np.uint32(0x9E3779B1)
    slots >>= np.uint32(32 - bits)
    return slots


def _isin(block: Ragged, other: Ragged) -> Mask:
    """`Ragged.isin` for one block: a bitmap of hashes rules out nearly all values, a binary search checks the rest."""
    if len(other.values) == 0 or len(block.values) == 0:
        return np.zeros(len(block.values), dtype=np.bool_)
    # sixteen slots per value: one in sixteen of the absent values passes the bitmap
    bits = min(26, max(8, _bits(len(other.values) - 1) + 4))
    marks = np.zeros(1 << bits, dtype=np.bool_)
    marks[_slots(other, bits)] = True
    found = marks[_slots(block, bits)]
    likely = np.flatnonzero(found)
    rows = np.searchsorted(block.offsets, likely, side="right") - 1
    keys = block.values[likely].astype(np.uint32).astype(np.uint64) | (rows.astype(np.uint64) << np.uint64(32))
    present = np.sort(_keys(other))
    at = np.minimum(np.searchsorted(present, keys), len(present) - 1)
    found[likely] = present[at] == keys
    return found
