"""Exact top-k by inner product in some hundred dimensions: items by descending norm, compared as 8-bit integers first.

The score of float32 vectors q and x is their inner product in float64, rounded to float32. Products are exact in
float64. With both vectors padded with zeros to a multiple of eight dimensions, there are eight partial sums: the
product of dimension c goes to partial sum c mod 8, in ascending order of c. Then partial sum i + 4 is added to i, for
i < 4; i + 2 to i, for i < 2; and 1 to 0. Scores beyond the range of float32 are infinite, and -0.0 is 0.0. Results are
ordered by score, descending, then by id, ascending. The number of queries in a call, their order, threads and the CPU
affect the running time, never the result.

**The index.** Items are sorted by norm, descending, and divided into tiles of 64. A tile has a scale s, its largest
absolute value divided by 127; an item x of the tile is stored as float32 and as integers X = round(x / s). For each
tile the index has n, the largest norm of its items, and r, the largest |x - s X|. A query q likewise has a scale t, its
largest absolute value divided by 64, and integers Q = round(q / t). Such integers need a quarter of the memory, and
CPUs multiply two to four times as many of them at once.

**The bound.** Let I = Q . X, computed without error, e = |q - t Q| and m = |t Q|. Since

    q . x - t s I = (q - t Q) . x + t Q . (x - s X),

the Cauchy-Schwarz inequality gives |q . x - t s I| <= E = e n + m r. If k items have scores of at least L, then an item
with t s I + E < L is not among the k best, and neither is any item from a tile with |q| n < L on. For vectors of 128
independent dimensions, E is about 2 % of |q| n.

**Rounding.** Let u = 2^-53, and d <= 4096 the number of dimensions after padding. The float64 score is off by less than
d u |q| |x|. Computed norms have a relative error of less than d u; the differences in e and r have errors of at most u
for each operation, together less than 4 u |q| and 4 u |x|, because |t Q| <= 2 |q| and |s X| <= 2 |x|. With 2^-40 >=
2 d u, computed values of n, m and |q| are multiplied by 1 + 2^-40, and e and r also increased by 2^-40 |q| and
2^-40 n. That covers all of this, and the rounding of E and t s I. Float64 neither overflows nor underflows here: all
values are products of at most three float32 values and their reciprocals.

Rounding to float32 is monotonic, but may make different scores equal. Therefore the limit is not L but
L - |L| 2^-22 - 2^-148, which is at least two units in the last place below L; a score below that limit is below L in
float32 too. L is at most 2^127 there, and below -2^127 nothing is ruled out, so that infinite scores are compared by
id.

**Integers compared with integers.** For each query and tile, I is compared with floor((limit - E) / (t s)) - 1. As
|I| <= 127 * 64 d < 2^26 and E / (t s) < 2^20, the error of this quotient in float64 is less than 1 if it lies between
-2^40 and 2^40, and beyond that only its sign matters.

**Order of work.** Large norms come first, and with them most of the best items, so that the limit is soon high; a
query is finished at the first tile with |q| n < L. In factors of implicit ALS, norms grow with popularity and most
tracks are rare: a query multiplies about a tenth of the items. If all norms are equal, it multiplies all of them.
Queries pass over the tiles in groups, so that each tile is read once for many queries. Items that reach the limit go to
the query's list with their I. When a list is full, the k-th largest t s I - E raises the limit; if that does not
shorten the list, exact scores do. What remains in the end gets its exact score. The result is exact for any input; many
equal items only cost time. A query of only zeros scores 0 with every item, and gets the lowest ids without a search.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encore.arrays.jit import compilation_cache
from encore.arrays.ragged import NamedArrays, Ragged, offsets_of
from encore.arrays.ranked import Ranked
from encore.search import kernel
from encore.search.kernel import F32, F64, I32, I64
from encore.search.tree import _each, read_only

_GROUP = 256
"""Queries that pass over the tiles together."""
_GROUP_BYTES = 1 << 26
"""Upper bound on the lists of a group, in bytes: with a very large k, groups are smaller."""
_ROOM_BYTES = 16
"""Bytes that a query's list takes per element."""


@dataclass(frozen=True)
class InnerStats:
    """How much work a search did, except for `queries` and `items` summed over all queries.

    `queries`: queries with k > 0; `items`: items in the index; `multiplied`: items compared as 8-bit integers;
    `scored`: items scored in float64; `cuts`: how often a full list was shortened.
    """

    queries: int
    items: int
    multiplied: int
    scored: int
    cuts: int

    @property
    def share(self) -> float:
        """The share of all (query, item) pairs that were multiplied."""
        return self.multiplied / max(1, self.queries * self.items)


@dataclass(frozen=True, eq=False)
class InnerIndex:
    """Items by descending norm, equal norms by id. With d dimensions and w, d rounded up to a multiple of eight:

    - `vectors` float32 (V, w): the items, padded with zeros;
    - `codes` uint8 (64 w tiles,): their integers plus 128, see `inner_loops.encode` for the order;
    - `bounds` float64 (tiles, 3): scale s, largest norm n and largest residual r of each tile;
    - `ids` int32 (V,): the id of each item; `d` int64 (1,).

    5 w + 4.4 bytes per item: 644 for d = 128, 1.26 times the float32 vectors. Building takes 12 bytes per item more,
    temporarily. Arrays may be read-only memory maps.
    """

    vectors: F32
    codes: NDArray[np.uint8]
    bounds: F64
    ids: I32
    d: int

    @classmethod
    def build(cls, ids: NDArray[Any], vectors: NDArray[Any]) -> InnerIndex:
        """Build from ids int32 (V,), strictly ascending, and vectors float32 (V, d), finite.

        Raises ValueError for other shapes, types, order or numbers.
        """
        return cls.build_with(load_loops(), ids, vectors)

    @classmethod
    def build_with(cls, loops: Any, ids: NDArray[Any], vectors: NDArray[Any]) -> InnerIndex:
        """`build` with the given compiled loops."""
        kernel.check_items(ids, vectors)
        n, d = vectors.shape
        width, tiles = padded(d), -(-n // loops.TILE)
        source = read_only(np.ascontiguousarray(vectors))
        norms = np.empty(n, dtype=np.float64)
        loops.norms_of(source, norms)
        # ids ascend, and a stable sort keeps them ascending where norms are equal
        order = np.argsort(-norms, kind="stable").astype(np.int32)
        ordered = np.zeros((n, width), dtype=np.float32)
        codes = np.empty(tiles * loops.TILE * width, dtype=np.uint8)
        bounds = np.empty((tiles, 3), dtype=np.float64)
        loops.encode(source, norms, order, ordered, codes, bounds)
        return cls(ordered, codes, bounds, ids[order], d)

    @property
    def arrays(self) -> NamedArrays:
        """The complete state, for `load`."""
        return {
            "vectors": self.vectors,
            "codes": self.codes,
            "bounds": self.bounds,
            "ids": self.ids,
            "d": np.array([self.d], dtype=np.int64),
        }

    @classmethod
    def load(cls, arrays: NamedArrays) -> InnerIndex:
        """Restore an index from its arrays, possibly memory-mapped; other entries are ignored."""
        named = {name: arrays[name] for name in ("vectors", "codes", "bounds", "ids")}
        return cls(**named, d=int(arrays["d"][0]))

    def __len__(self) -> int:
        return len(self.ids)

    def search(self, queries: F32, k: int | NDArray[Any], *, threshold: F32 | None = None, threads: int = 1) -> Ranked:
        """The k items with the highest inner product with each query, as defined in the module docstring.

        `queries` float32 (q, d), finite; `k` one number or an integer array (q,), at least 0; `threshold` float32 (q,),
        not NaN: only items with at least this score are returned. If it is known that k items reach it, it saves time
        and changes nothing. Returns min(k, V) ids per query, or fewer with a threshold. Memory, besides the index: 20
        bytes per returned id, 9 d per query, and per thread 64 MB or, for k above 300,000, about 200 k. Raises
        ValueError for other shapes, types or numbers.
        """
        return self.search_with_stats(queries, k, threshold=threshold, threads=threads)[0]

    def search_with_stats(
        self, queries: F32, k: int | NDArray[Any], *, threshold: F32 | None = None, threads: int = 1
    ) -> tuple[Ranked, InnerStats]:
        """`search`, and how much work it did."""
        return self.search_with(load_loops(), queries, k, threshold=threshold, threads=threads)

    def search_with(
        self, loops: Any, queries: F32, k: int | NDArray[Any], *, threshold: F32 | None = None, threads: int = 1
    ) -> tuple[Ranked, InnerStats]:
        """`search_with_stats` with the given compiled loops."""
        if threads < 1:
            raise ValueError(f"threads: expected at least 1, found {threads}")
        n_results = kernel.check_queries(queries, self.d, len(self), k)
        least = np.full(len(queries), -np.inf, np.float32) if threshold is None else threshold
        _check_threshold(least, len(queries))
        active = np.flatnonzero(n_results > 0)
        offsets = offsets_of(n_results[active])
        keys, counts = np.empty(offsets[-1], dtype=np.int64), np.zeros(len(active), dtype=np.int64)
        work = np.zeros(3, dtype=np.int64)
        if len(active):
            prepared = (*self._prepared(loops, queries[active]), n_results[active], least[active])
            lowest = self._lowest_ids(queries[active], n_results[active])
            size, room = _sizes(len(active), int(n_results.max()), threads, loops)

            def run(group: int) -> I64:
                done = np.zeros(3, dtype=np.int64)
                loops.search_group(group * size, size, room, self._flat, prepared, lowest, offsets, keys, counts, done)
                return done

            for done in _each(run, -(-len(active) // size), threads):
                work += done
        lengths = np.zeros(len(queries), dtype=np.int64)
        lengths[active] = counts
        found = Ragged(offsets, keys).head(counts).values
        ids, scores = np.empty(len(found), dtype=np.int32), np.empty(len(found), dtype=np.float32)
        loops.unpack(found, ids, scores.view(np.int32))
        stats = InnerStats(len(active), len(self), *(int(count) for count in work))
        return Ranked(Ragged.from_lengths(lengths, ids), scores), stats

    @cached_property
    def _flat(self) -> tuple[NDArray[Any], ...]:
        """The arrays in the form that the compiled loops take."""
        return (
            read_only(self.vectors.reshape(-1)),
            read_only(self.codes),
            read_only(self.bounds),
            read_only(self.ids),
        )

    def _prepared(self, loops: Any, queries: F32) -> tuple[NDArray[Any], ...]:
        """Queries as float64, their integers, bounds and shifts: see `inner_loops.prepare`."""
        n, width = len(queries), padded(self.d)
        rows, codes = np.empty((n, width), dtype=np.float64), np.empty((n, width), dtype=np.int8)
        factors, shifts = np.empty((n, 4), dtype=np.float64), np.empty(n, dtype=np.int32)
        loops.prepare(np.ascontiguousarray(queries), rows, codes, factors, shifts)
        return rows, codes, factors, shifts

    def _lowest_ids(self, queries: F32, k: I64) -> I32:
        """As many of the lowest ids, ascending, as queries of only zeros need."""
        zero = ~queries.any(axis=1)
        n = int(k[zero].max()) if zero.any() else 0
        return np.sort(np.partition(self.ids, n - 1)[:n]) if n else np.zeros(0, dtype=np.int32)


def padded(d: int) -> int:
    """d rounded up to a multiple of eight."""
    return -(-d // 8) * 8


def _check_threshold(threshold: NDArray[Any], n: int) -> None:
    if threshold.shape != (n,) or threshold.dtype != np.float32:
        raise ValueError(f"threshold: expected float32 ({n},), found {threshold.dtype} {threshold.shape}")
    if np.isnan(threshold).any():
        raise ValueError("threshold: expected numbers, found NaN")


def _sizes(n: int, most: int, threads: int, loops: Any) -> tuple[int, int]:
    """Queries per group, a multiple of loops.QUERIES, and capacity of each query's list."""
    room = 2 * most + 4 * loops.TILE
    size = min(_GROUP, -(-n // threads), max(1, _GROUP_BYTES // (_ROOM_BYTES * room)))
    return -(-size // loops.QUERIES) * loops.QUERIES, room


@lru_cache(maxsize=1)
def load_loops() -> ModuleType:
    """Import `encore.search.inner_loops` and compile everything in it: ten seconds, once per machine, while others
    wait.

    Commands that do not search must not import numba, so the module is imported nowhere else.
    """
    with compilation_cache():
        from encore.search import inner_loops as module

        # call them with the same argument types as above
        vectors = np.eye(3, 2, dtype=np.float32)
        built = InnerIndex.build_with(module, np.arange(3, dtype=np.int32), vectors)
        built.search_with(module, vectors, 1)
    return module
