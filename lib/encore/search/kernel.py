"""Exact top-k by cosine, on arrays: no Spark, memory bounded by the block sizes, results determined to the last bit.

The score of float32 vectors q and c is defined as

    dot = q_1 c_1 + ... + q_d c_d,  |q| = sqrt(q_1 q_1 + ... + q_d q_d),  |c| likewise,
    score = float32(dot / (|q| |c|)), and 0 where |q| or |c| is 0,

computed in float64, summed from left to right, without fused multiply-add. Results are ordered by score, descending,
then by id, ascending. Block sizes, BLAS, threads and partitions affect the running time, never the result.

For speed, float32 BLAS first rules out nearly all items. The following bound makes that safe. Let u = 2**-24, q' and
c' the vectors normalised in float64 and rounded to float32, and a = fl32(q' . c') summed in any order, fused or not.
Rounding q' and c' changes the exact cosine by at most 2u + u**2; the sum is off by at most g |q'| |c'| with
g = du / (1 - du) (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1) and
|q'|, |c'| <= 1 + u; the float64 cosine that is rounded to the score is off by less than (2d + 8) 2**-53; rounding to
the score adds u / 2. Underflow, flushed to zero or not, adds less than d 2**-125. Together, for d <= 4096,

    |a - score| <= error(d) = (d + 5) u.

Let t be the k-th largest a seen so far. Then k items have a score of at least t - error(d). An item with
a < t - 2 error(d) scores strictly less than all of them, regardless of ids, so it is not among the k best. All other
items are kept, and scored in float64 at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import Ragged, offsets_of
from encore.arrays.ranked import Ranked

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

MAX_DIMENSIONS = 4096
"""The error bound of the prefilter is proved up to here."""

_RESCORED_VALUES = 1 << 18
"""Matrix elements gathered at a time to compute scores in float64: few enough to fit in the caches."""
_TILE = 1 << 19
"""Approximate scores held at a time, even if larger blocks are allowed: few enough to fit in the caches."""
_MIN_KEPT = 1 << 16
"""Number of candidates of a query block below which pruning them is not worth the call."""


@dataclass(frozen=True, eq=False)
class Items:
    """Vectors to search, prepared once for any number of calls.

    `ids` int32 (V,), strictly ascending; `vectors` float32 (V, d), finite; `units` float32 (d, V): the vectors at unit
    length (zero stays zero), one row per dimension; `norms` float64 (V,). Arrays may be read-only memory maps.
    """

    ids: I32
    vectors: F32
    units: F32
    norms: F64

    @classmethod
    def prepare(cls, ids: NDArray[Any], vectors: NDArray[Any]) -> Items:
        """Prepare ids (V,) and vectors (V, d). Raises ValueError like `check_items`."""
        check_items(ids, vectors)
        norms = _norms(vectors)
        return cls(ids, vectors, np.ascontiguousarray(_units(vectors, norms).T), norms)


def check_items(ids: NDArray[Any], vectors: NDArray[Any]) -> None:
    """Raise ValueError unless ids are int32 (V,), strictly ascending, and vectors float32 (V, d), finite."""
    _check_matrix("items", vectors)
    if ids.shape != (len(vectors),) or ids.dtype != np.int32:
        raise ValueError(f"item_ids: expected int32 ({len(vectors)},), found {ids.dtype} {ids.shape}")
    if (ids[1:] <= ids[:-1]).any():
        raise ValueError("item_ids: expected strictly ascending ids")


def check_queries(queries: NDArray[Any], d: int, size: int, k: int | NDArray[Any]) -> I64:
    """The number of results of each query among `size` items, int64 (q,): min(k, size).

    Raises ValueError unless queries are float32 (q, d), finite, and k is one number or (q,), at least 0.
    """
    _check_matrix("queries", queries)
    if queries.shape[1] != d:
        raise ValueError(f"queries: expected {d} dimensions like the items, found {queries.shape[1]}")
    counts = np.broadcast_to(np.asarray(k), (len(queries),)).astype(np.int64)
    if (counts < 0).any():
        raise ValueError(f"k: expected at least 0, found {counts.min()}")
    return np.minimum(counts, size)


def _check_matrix(name: str, matrix: NDArray[Any]) -> None:
    if matrix.ndim != 2 or matrix.dtype != np.float32:
        raise ValueError(f"{name}: expected float32 with two dimensions, found {matrix.dtype} {matrix.shape}")
    if not 1 <= matrix.shape[1] <= MAX_DIMENSIONS:
        raise ValueError(f"{name}: expected 1 to {MAX_DIMENSIONS} columns, found {matrix.shape[1]}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name}: expected finite numbers")


def _norms(matrix: F32) -> F64:
    """|c| as defined in the module docstring, float64 (n,)."""
    total = np.zeros(len(matrix), dtype=np.float64)
    for column in range(matrix.shape[1]):
        values = matrix[:, column].astype(np.float64)
        total += values * values
    return np.sqrt(total)


def _units(matrix: F32, norms: F64) -> F32:
    """Rows at unit length, rounded to float32; zero rows stay zero."""
    units = np.empty_like(matrix)
    scale = np.where(norms == 0, 1.0, norms)
    for column in range(matrix.shape[1]):
        # one column at a time, to avoid a float64 copy of the whole matrix
        units[:, column] = matrix[:, column] / scale
    return units


def error(d: int) -> float:
    """The bound on |a - score| in the module docstring, for d dimensions."""
    return (d + 5) * 2.0**-24


def centroids(seeds: Ragged, row_of: NDArray[np.int32], vectors: NDArray[np.float32]) -> tuple[F32, I32]:
    """The mean vector of each row's tracks and the number of vectors in it: float32 (n, d), int32 (n,).

    `row_of` (M,) maps track ids to rows of `vectors` (V, d), -1 for tracks without a vector; ids outside 0..M-1 have
    no vector. Repeated tracks count each time. Sums are in float64, in the order of the row; the mean is rounded to
    float32. A row without any vector gets zeros and count 0.
    """
    means = np.zeros((len(seeds), vectors.shape[1]), dtype=np.float32)
    counts = np.zeros(len(seeds), dtype=np.int32)
    for start, stop in seeds.blocks():
        block = seeds.slice(start, stop)
        ids = block.values.astype(np.int64)
        inside = (ids >= 0) & (ids < len(row_of))
        found = np.full(len(ids), -1, dtype=np.int64)
        found[inside] = row_of[ids[inside]]
        known = found >= 0
        rows, gathered = block.rows[known], vectors[found[known]]
        n = np.bincount(rows, minlength=len(block))
        counts[start:stop] = n
        divisor = np.maximum(n, 1)
        for column in range(vectors.shape[1]):
            # bincount adds in the order of its input, unlike sum and reduceat, which add in pairs
            means[start:stop, column] = np.bincount(rows, gathered[:, column], len(block)) / divisor
    return means, counts


def search(
    queries: NDArray[np.float32], items: Items, k: int | NDArray[Any], *, query_block: int, item_block: int
) -> Ranked:
    """The k items with the highest cosine for each query; the module docstring defines score and order.

    `queries` float32 (q, d), `k` one number or an integer array (q,), at least 0. Returns min(k, V) ids per query, of
    V items. At most `query_block` x `item_block` scores are held at a time (fewer if that is faster), and about 2 k
    candidates per query of the block. Raises ValueError for other shapes, types or numbers.
    """
    d, size = items.units.shape
    n_results = check_queries(queries, d, size, k)
    if query_block < 1 or item_block < 1:
        raise ValueError(f"blocks: expected at least 1, found {query_block} and {item_block}")
    # 64-bit keys hold the row in the block, the score (32 bits) and the position of the item
    rows = min(query_block, 1 << (32 - max(1, (size - 1).bit_length())))
    parts = [
        _search_block(queries[start : start + rows], items, n_results[start : start + rows], item_block)
        for start in range(0, len(queries), rows)
    ]
    return Ranked.concat([Ranked.empty(0), *parts])


@dataclass(eq=False)
class _Kept:
    """Unordered candidates of a block of queries: row in the block, position of the item, approximate score a."""

    rows: I32
    positions: I32
    scores: F32

    def where(self, mask: NDArray[np.bool_]) -> _Kept:
        # convert the mask to indices once: three boolean selections would each scan it
        at = np.flatnonzero(mask)
        return _Kept(self.rows[at], self.positions[at], self.scores[at])


def _search_block(queries: F32, items: Items, k: I64, item_block: int) -> Ranked:
    """`search` for one block of queries; `k` (rows,) is at most the number of items."""
    d, size = items.units.shape
    norms = _norms(queries)
    units = _units(queries, norms)
    # every item of the first tile passes, and a tile is written, compared and scanned: small tiles are best
    width = min(item_block, size, max(1, _TILE // max(1, len(queries))))
    scores = np.empty((len(queries), width), dtype=np.float32)
    above = np.empty((len(queries), width), dtype=np.bool_)
    bounds = np.where(k > 0, -np.inf, np.inf).astype(np.float32)
    limit = max(2 * int(k.sum()), _MIN_KEPT)
    pending: list[_Kept] = []
    n_pending = 0
    for start in range(0, size, max(1, width)):
        stop = min(start + width, size)
        part, mask = scores[:, : stop - start], above[:, : stop - start]
        if stop - start < width:
            part, mask = (
                scores.ravel()[: part.size].reshape(part.shape),
                above.ravel()[: mask.size].reshape(mask.shape),
            )
        np.matmul(units, items.units[:, start:stop], out=part)
        np.greater_equal(part, bounds[:, None], out=mask)
        places = np.flatnonzero(mask)
        if len(places) == 0:
            continue
        rows, columns = np.divmod(places, stop - start)
        columns += start
        pending.append(_Kept(rows.astype(np.int32), columns.astype(np.int32), part.ravel()[places]))
        n_pending += len(places)
        if n_pending > limit:
            kept, bounds = _tighten(_joined(pending), k, error(d))
            if len(kept.rows) > limit:
                # too many candidates within the error of the k-th, probably equal items: compare their exact scores
                kept = _best(queries, norms, items, kept, k)
            pending, n_pending = [kept], len(kept.rows)
    if not pending:
        return Ranked.empty(len(queries))
    kept = _best(queries, norms, items, _tighten(_joined(pending), k, error(d))[0], k)
    return Ranked(Ragged.from_lengths(k, items.ids[kept.positions]), kept.scores)


def _joined(pending: list[_Kept]) -> _Kept:
    if len(pending) == 1:
        return pending[0]
    return _Kept(
        np.concatenate([part.rows for part in pending]),
        np.concatenate([part.positions for part in pending]),
        np.concatenate([part.scores for part in pending]),
    )


def _descending(scores: F32) -> U64:
    """32-bit sort keys that ascend as finite scores descend; 0.0 and -0.0 have the same key."""
    bits = (scores + np.float32(0)).view(np.uint32)
    negative = (bits >> np.uint32(31)).astype(np.bool_)
    return np.where(negative, bits, bits ^ np.uint32(0x7FFFFFFF)).astype(np.uint64)


def _ascending(numbers: U64) -> F32:
    """The inverse of `_descending`."""
    bits = numbers.astype(np.uint32)
    negative = (bits >> np.uint32(31)).astype(np.bool_)
    return np.where(negative, bits, bits ^ np.uint32(0x7FFFFFFF)).view(np.float32)


def _tighten(kept: _Kept, k: I64, margin: float) -> tuple[_Kept, F32]:
    """Drop candidates that can no longer be among the k best; returns the rest and new bounds, float32 (rows,)."""
    keys = _descending(kept.scores)
    keys |= kept.rows.astype(np.uint64) << np.uint64(32)
    keys.sort()
    counts = np.bincount(kept.rows, minlength=len(k))
    bounds = np.where(k > 0, -np.inf, np.inf)
    full = (counts >= k) & (k > 0)
    last = keys[offsets_of(counts)[:-1][full] + k[full] - 1]
    bounds[full] = _ascending(last & np.uint64(0xFFFFFFFF)).astype(np.float64) - 2 * margin
    # rounded down, so that the float32 bound never rules out more than the float64 bound
    rounded = np.nextafter(bounds.astype(np.float32), np.float32(-np.inf))
    return kept.where(kept.scores >= rounded[kept.rows]), rounded


def _best(queries: F32, norms: F64, items: Items, kept: _Kept, k: I64) -> _Kept:
    """The k best candidates of each row by exact score, ordered by row, score and position."""
    scores = _scores(queries, norms, items, kept)
    position_bits = np.uint64(max(1, (len(items.ids) - 1).bit_length()))
    keys = _descending(scores) << position_bits
    keys |= kept.rows.astype(np.uint64) << (position_bits + np.uint64(32))
    keys |= kept.positions.astype(np.uint64)
    keys.sort()
    rows = np.repeat(np.arange(len(k), dtype=np.int32), np.bincount(kept.rows, minlength=len(k)))
    starts = offsets_of(np.bincount(kept.rows, minlength=len(k)))[:-1]
    chosen = np.arange(len(rows)) - starts[rows] < k[rows]
    keys, rows = keys[chosen], rows[chosen]
    positions = (keys & ((np.uint64(1) << position_bits) - np.uint64(1))).astype(np.int32)
    return _Kept(rows, positions, _ascending((keys >> position_bits) & np.uint64(0xFFFFFFFF)))


def _scores(queries: F32, norms: F64, items: Items, kept: _Kept) -> F32:
    """The exact score of each candidate as defined in the module docstring, float32."""
    d = queries.shape[1]
    by_column = np.ascontiguousarray(queries.T, dtype=np.float64)
    scores = np.empty(len(kept.rows), dtype=np.float32)
    for piece in _pieces(len(scores), max(1, _RESCORED_VALUES // d)):
        rows, positions = kept.rows[piece], kept.positions[piece]
        vectors = items.vectors[positions]
        dot = np.zeros(len(rows), dtype=np.float64)
        for column in range(d):
            dot += by_column[column][rows] * vectors[:, column]
        length = norms[rows] * items.norms[positions]
        dot /= np.where(length == 0, 1.0, length)
        scores[piece] = dot
    return scores


def _pieces(size: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, size, step))
