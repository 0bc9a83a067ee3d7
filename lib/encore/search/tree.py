"""Exact top-k by cosine with a tree of spherical caps: the result of `kernel.search`, to the bit, with far less work.

Items are ordered by splitting them recursively at the median along their principal axis, into nodes of 256 and leaves
of 16. For each node and leaf the tree stores a small cap of the unit sphere that encloses all its items: a centre and
an angle b. A query visits only leaves whose cap it can reach, and scores all of their items.

**The bound.** Let t be a number that the query's score must reach, a its angle to a cap's centre, and T = arccos t
<= 90 degrees. An item in the cap with a score of at least t is within T of the query and within b of the centre,
so a <= b + T; since b + T <= 180 degrees, the cosine of a is at least cos(b + T), that is

    cos a - t cos b + sqrt(1 - t^2) sin b >= 0:

one dot product of (q, -t, sqrt(1 - t^2)) and (centre, cos b, sin b). Caps of more than 90 degrees are never ruled
out, and t <= 0 rules nothing out.

**Margins.** Let u = 2^-24, and a the approximate score of an item: the float32 sum of products of the query, at unit
length and rounded, and the item, in any order, fused or not, times 1 / |item|, rounded. As in `kernel`, |a - score| <=
error(d) = (d + 5) u: rounding the query costs u, the sum d u, the factor u and its product u, rounding the score
u / 2. That leaves 1.5 u for second-order terms, and for underflow as long as norms are between 2^-100 and 2^100; for
other norms the factor is NaN, and only float64 decides. If k items have a score of at least s, an item with a < s -
error(d) is not among the k best; if k items have a >= s, an item with a < s - 2 error(d) is not. `low` is such a
limit. An item with a >= low has a cosine of at least t = low - error(d). The sum above is off by at most (d + 3) u
times the lengths of its two vectors, sqrt(2) each, plus 4 u for rounding its factors, the query and the centre; so
caps are visited if it is at least -2 (d + 8) u. cos b is rounded down by more than float32 rounding, and sin b is
computed from the rounded value.

**Order of work.** The higher the limit, the less work remains, so each query first scores the leaves with the nearest
centres in the nearest nodes. (An upper bound on the scores in a leaf is the wrong criterion: it prefers wide leaves.)
All queries of a group then visit the nodes together, so that each node is read once for many queries. A few queries
alone share hardly any leaf, and would wait for memory most of the time: each lists the leaves that it visits, then
scores them, with the next ones on their way from memory. Items that reach the limit are immediately scored in float64,
while their leaf is in the cache, and kept as a 64-bit number of score and id. When a query's list is full, it keeps the
k best and raises its limit. The result is exact for any input; many equal items only cost time.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
from encore.search.kernel import F32, I32, I64

LEAF = 16
NODE = 256
SEED_SHARE = 0.7
"""Leaves that a query scores first, per item of its k."""

_MIN_SEEDS = 32
_GROUP = 1024
"""Queries that visit the nodes together."""
_GROUP_BYTES = 1 << 25
"""Upper bound on the result lists of a group, in bytes: with a very large k, groups are smaller."""


@dataclass(frozen=True)
class SearchStats:
    """How much work a search did, except for `queries` and `items` summed over all queries.

    `queries`: queries with k > 0; `items`: items in the tree; `scored`: items scored in float32; `bounded`: nodes whose
    leaf caps were compared; `nodes`: nodes whose caps were compared; `cuts`: how often a full list was cut to the k
    best.
    """

    queries: int
    items: int
    scored: int
    bounded: int
    nodes: int
    cuts: int

    @property
    def share(self) -> float:
        """The share of all (query, item) pairs that were scored."""
        return self.scored / max(1, self.queries * self.items)


@dataclass(frozen=True, eq=False)
class Tree:
    """Items in tree order. With d dimensions, w = d or d + 1 and c = d + 3 or d + 4, whichever is even:

    - `leaves` float32 (16 nodes, w + 1, 16): vectors, the items of a leaf side by side, then 1 / norm; padded with
      zeros after the last item;
    - `leaf_caps` float32 (nodes, c, 16): centre, cos b, sin b and 1 of a node's leaves, side by side;
    - `node_caps` float32 (nodes, c): the same for the nodes;
    - `ids` int32 (V,): the id of each item; `d` int64 (1,).

    4 (w + 1) + c / 4 + c / 64 + 4 bytes per item: 60 for d = 12, 136 MB for 2.26 million items. Building temporarily
    takes 3 times as much. Arrays may be read-only memory maps.
    """

    leaves: F32
    leaf_caps: F32
    node_caps: F32
    ids: I32
    d: int

    @classmethod
    def build(cls, ids: NDArray[Any], vectors: NDArray[Any]) -> Tree:
        """Build from ids int32 (V,), strictly ascending, and vectors float32 (V, d), finite.

        Raises ValueError for other shapes, types, order or numbers.
        """
        return cls.build_with(load_loops(), ids, vectors)

    @classmethod
    def build_with(cls, loops: Any, ids: NDArray[Any], vectors: NDArray[Any]) -> Tree:
        """`build` with the given compiled loops."""
        kernel.check_items(ids, vectors)
        norms = kernel._norms(vectors)
        n, d = vectors.shape
        width, cap_width, nodes = even(d), even(d + 3), -(-n // NODE)
        order = np.arange(n, dtype=np.int32)
        units = kernel._units(vectors, norms)
        loops.split(units, order, NODE, LEAF)
        del units
        leaves = np.zeros(nodes * NODE * (width + 1), dtype=np.float32)
        loops.fill(read_only(np.ascontiguousarray(vectors)), norms, order, width, leaves)
        leaf_caps = np.zeros(nodes * LEAF * cap_width, dtype=np.float32)
        node_caps = np.zeros((nodes, cap_width), dtype=np.float32)
        loops.enclose(leaves, norms[order], width, d, leaf_caps, node_caps)
        return cls(
            leaves.reshape(nodes * LEAF, width + 1, LEAF),
            leaf_caps.reshape(nodes, cap_width, LEAF),
            node_caps,
            ids[order],
            d,
        )

    @property
    def arrays(self) -> NamedArrays:
        """The complete state, for `load`."""
        return {
            "leaves": self.leaves,
            "leaf_caps": self.leaf_caps,
            "node_caps": self.node_caps,
            "ids": self.ids,
            "d": np.array([self.d], dtype=np.int64),
        }

    @classmethod
    def load(cls, arrays: NamedArrays) -> Tree:
        """Restore a tree from its arrays; other entries are ignored."""
        named = {name: arrays[name] for name in ("leaves", "leaf_caps", "node_caps", "ids")}
        return cls(**named, d=int(arrays["d"][0]))

    @cached_property
    def flat(self) -> tuple[NDArray[Any], ...]:
        """The arrays in the form that the compiled loops take: leaves, leaf_caps, node_caps, node_lanes, ids."""
        return (
            read_only(self.leaves.reshape(-1)),
            read_only(self.leaf_caps.reshape(-1)),
            read_only(self.node_caps),
            read_only(self._node_lanes),
            read_only(self.ids),
        )

    @property
    def _node_lanes(self) -> F32:
        """`node_caps` with sixteen nodes side by side, flat, filled up with zeros: of n groups, group i has nodes i,
        i + n, i + 2 n and so on, which are a sample of the tree."""
        nodes, width = self.node_caps.shape
        groups = -(-nodes // LEAF)
        padded = np.zeros((LEAF * groups, width), np.float32)
        padded[:nodes] = self.node_caps
        return np.ascontiguousarray(padded.reshape(LEAF, groups, width).transpose(1, 2, 0)).reshape(-1)


def even(n: int) -> int:
    """n rounded up to an even number."""
    return n + n % 2


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only plain ndarray of the same memory, which is what the loops are compiled for, memory-mapped or not."""
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def search(queries: F32, tree: Tree, k: int | NDArray[Any], *, threads: int = 1) -> Ranked:
    """The k items with the highest cosine for each query: the result of `kernel.search`, to the bit.

    `queries` float32 (q, d), finite, any norm; `k` one number or an integer array (q,), at least 0. Returns min(k, V)
    ids per query. Memory, besides the tree: 8 bytes per returned id, 8 d per query, and about 32 MB per thread. Raises
    ValueError for other shapes, types or numbers.
    """
    return search_with_stats(queries, tree, k, threads=threads)[0]


def search_with_stats(
    queries: F32, tree: Tree, k: int | NDArray[Any], *, threads: int = 1
) -> tuple[Ranked, SearchStats]:
    """`search`, and how much work it did."""
    return search_with(load_loops(), queries, tree, k, threads=threads)


def search_with(
    loops: Any, queries: F32, tree: Tree, k: int | NDArray[Any], *, threads: int = 1
) -> tuple[Ranked, SearchStats]:
    """`search_with_stats` with the given compiled loops."""
    if threads < 1:
        raise ValueError(f"threads: expected at least 1, found {threads}")
    n_results = kernel.check_queries(queries, tree.d, len(tree.ids), k)
    offsets = offsets_of(n_results)
    ids, scores = np.empty(offsets[-1], dtype=np.int32), np.empty(offsets[-1], dtype=np.float32)
    active_queries = np.flatnonzero(n_results > 0).astype(np.int32)
    counts = np.zeros(4, dtype=np.int64)
    if len(active_queries):
        prepared = _prepared(loops, queries, active_queries, n_results)
        group, room, seeds = _sizes(len(active_queries), int(n_results.max()), len(tree.ids))

        def run(first: int) -> I64:
            work = np.zeros(4, dtype=np.int64)
            loops.search_groups(
                first, first + 1, group, room, seeds, *_margins(tree.d),
                tree.flat, prepared, offsets, ids, scores, work,
            )  # fmt: skip
            return work

        for work in _each(run, -(-len(active_queries) // group), threads):
            counts += work
    work = SearchStats(len(active_queries), len(tree.ids), LEAF * int(counts[0]), *(int(count) for count in counts[1:]))
    return Ranked(Ragged(offsets, ids), scores), work


def _prepared(loops: Any, queries: F32, active_queries: I32, n_results: I64) -> tuple[NDArray[Any], ...]:
    """The queries with k > 0 in the form that the loops take: neighbours next to each other, at unit length."""
    norms = kernel._norms(queries)
    units = kernel._units(queries[active_queries], norms[active_queries])
    loops.split(units, active_queries, LEAF, LEAF)
    d = queries.shape[1]
    padded = np.zeros((len(units), even(d)), dtype=np.float32)
    padded[:, :d] = units
    return active_queries, padded, queries[active_queries], norms[active_queries], n_results[active_queries]


def _sizes(n: int, most: int, items: int) -> tuple[int, int, int]:
    """Queries per group, capacity of each query's list, and leaves that each query scores first."""
    room = min(most + most // 2, items) + 2 * NODE
    # groups small enough for threads to finish at about the same time
    group = min(_GROUP, n, max(LEAF, _GROUP_BYTES // (8 * room)))
    seeds = min(max(_MIN_SEEDS, int(SEED_SHARE * most)), -(-items // LEAF))
    return -(-group // LEAF) * LEAF, room, seeds


def _margins(d: int) -> tuple[np.float32, np.float32]:
    """error(d), rounded up, and the slack of the bound."""
    return np.float32(kernel.error(d) + 2.0**-24), np.float32(2 * (d + 8) * 2.0**-24)


def _each(run: Any, n: int, threads: int) -> Iterator[Any]:
    """The results of run(0) to run(n - 1), computed by a pool of threads."""
    if threads == 1 or n == 1:
        yield from map(run, range(n))
    else:
        with ThreadPoolExecutor(min(threads, n)) as pool:
            yield from pool.map(run, range(n))


@lru_cache(maxsize=1)
def load_loops() -> ModuleType:
    """Import `encore.search.loops` and compile everything in it: half a minute, once per machine, while others wait.

    Commands that do not search must not import numba, so the module is imported nowhere else.
    """
    with compilation_cache():
        from encore.search import loops as module

        # call them with the same argument types as above
        vectors = np.eye(3, 2, dtype=np.float32)
        tree = Tree.build_with(module, np.arange(3, dtype=np.int32), vectors)
        search_with(module, vectors, tree, 1)
    return module
