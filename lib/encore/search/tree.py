"""Exact top-k by cosine through a tree of caps: what `kernel.search` returns, to the bit, with far less work.

Items are ordered by splitting them again and again at the median along their principal axis, into nodes of 256
and leaves of 16. Of each node and leaf the tree keeps a small cap of the unit sphere around all its items: a
centre and an angle b. A query looks only into leaves whose cap it can reach, and scores all of their items.

**The bound.** Let t be a number that the query's score must reach, a its angle to a cap's centre, and T = arccos t
<= 90 degrees. An item of the cap with a score of at least t is within T of the query and within b of the centre,
so a <= b + T; and as b + T <= 180 degrees, the cosine of a is at least cos(b + T), that is

    cos a - t cos b + sqrt(1 - t^2) sin b >= 0:

one dot product of (q, -t, sqrt(1 - t^2)) and (centre, cos b, sin b). Caps of more than 90 degrees and t <= 0 rule
nothing out.

**Margins.** Let u = 2^-24, and a the approximate score of an item: the float32 sum of products of the query at unit
length, rounded, and the item, in any order, fused or not, times 1 / |item|, rounded. As in `kernel`, |a - score| <=
error(d) = (d + 5) u: the query's rounding costs u, the sum d u, the factor u and its product u, the score's rounding
u / 2. That leaves 1.5 u for terms of second order, and for underflow as long as norms are between 2^-100 and 2^100;
for others the factor is NaN, and float64 alone decides. If k items have a score of at least s, an item with a < s -
error(d) is not among the k best; if k items have a >= s, one with a < s - 2 error(d) is not. `low` is such a limit.
An item with a >= low has a cosine of at least t = low - error(d). The sum above is off by at most (d + 3) u times
the lengths of its two vectors, sqrt(2) each, plus 4 u for the rounding of its factors, of the query and of the
centre: so the caps for which it is at least -2 (d + 8) u are looked into. cos b is rounded down, by more than float32
rounds, and sin b follows from the rounded one.

**Order of work.** A search is as good as its limit, so each query first scores the leaves of the nearest centres
among the nearest nodes: an upper bound on what a leaf may hold is the wrong measure, it prefers wide ones. Queries
then go through all nodes together, so that each node is read once for many. Whatever reaches the limit is scored
in float64 on the spot, while its leaf is at hand, and kept as one 64-bit number of score and id. When a query has
too many of them, it keeps the k best and raises its limit. This is exact for any input: equal items cost time only.
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

from encore.arrays.jit import prepared
from encore.arrays.ragged import Ragged, offsets_of
from encore.arrays.ranked import Ranked
from encore.search import kernel
from encore.search.kernel import F32, I32, I64

LEAF = 16
NODE = 256
SEED_SHARE = 0.7
"""Leaves that a query scores first, for each of the k items it looks for."""

_LEAST_SEEDS = 32
_GROUP = 1024
"""Queries that go through the nodes together."""
_GROUP_BYTES = 1 << 25
"""Bytes of the lists of a group's best: with a very large k, groups are smaller."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Work:
    """What a search did, in pairs of a query and something.

    `queries` that asked for something, `items` there are; `scored`: items scored in float32; `bounded`: nodes
    whose leaves' caps were compared; `nodes`: nodes whose caps were compared; `cuts`: times that a list was full
    and was cut to the k best.
    """

    queries: int
    items: int
    scored: int
    bounded: int
    nodes: int
    cuts: int

    @property
    def share(self) -> float:
        """The share of all pairs of query and item that were scored."""
        return self.scored / max(1, self.queries * self.items)


@dataclass(frozen=True, eq=False)
class Tree:
    """Items in the order of the tree. With d dimensions, w = d or d + 1 and c = d + 3 or d + 4, whichever is even:

    - `leaves` float32 (16 nodes, w + 1, 16): vectors, a leaf's items side by side, then 1 / norm; zeros after the
      last item;
    - `leaf_caps` float32 (nodes, c, 16): centre, cos b, sin b and 1 of a node's leaves, side by side;
    - `node_caps` float32 (nodes, c): the same of the nodes;
    - `ids` int32 (V,): the id of each item; `d` int64 (1,).

    4 (w + 1) + c / 4 + c / 64 + 4 bytes an item: 60 for d = 12, 136 MB for 2.26 million. Building takes 3 times as
    much for a while. Arrays may be memory-mapped, read only.
    """

    leaves: F32
    leaf_caps: F32
    node_caps: F32
    ids: I32
    d: int

    @classmethod
    def of(cls, ids: NDArray[Any], vectors: NDArray[Any]) -> Tree:
        """Of ids int32 (V,), strictly ascending, and vectors float32 (V, d), finite.

        Raises ValueError where shapes, types or order are others, or where a number is not finite.
        """
        return cls.built_with(loops(), ids, vectors)

    @classmethod
    def built_with(cls, loops: Any, ids: NDArray[Any], vectors: NDArray[Any]) -> Tree:
        """`of` with the compiled loops given."""
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
    def arrays(self) -> Arrays:
        """All there is of it, for `load`."""
        return {
            "leaves": self.leaves,
            "leaf_caps": self.leaf_caps,
            "node_caps": self.node_caps,
            "ids": self.ids,
            "d": np.array([self.d], dtype=np.int64),
        }

    @classmethod
    def load(cls, arrays: Arrays) -> Tree:
        """The tree of these arrays, which other entries may stand beside."""
        named = {name: arrays[name] for name in ("leaves", "leaf_caps", "node_caps", "ids")}
        return cls(**named, d=int(arrays["d"][0]))

    @cached_property
    def flat(self) -> tuple[NDArray[Any], ...]:
        """The arrays as the loops take them."""
        return (
            read_only(self.leaves.reshape(-1)),
            read_only(self.leaf_caps.reshape(-1)),
            read_only(self.node_caps),
            read_only(self.ids),
        )


def even(n: int) -> int:
    """n, or the next number if n is odd."""
    return n + n % 2


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A plain array of the same memory: loops are compiled for arrays that cannot be written, mapped or not."""
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def search(queries: F32, tree: Tree, k: int | NDArray[Any], *, threads: int = 1) -> Ranked:
    """The k items of highest cosine for each query, as `kernel.search` defines them, to the bit.

    `queries` float32 (q, d), finite, any norm; `k` one number or an integer array (q,), at least 0; min(k, V) ids
    come back. Memory, besides the tree: 8 bytes for each id that comes back, 8 d a query, and about 32 MB a
    thread. Raises ValueError for other shapes, types or numbers.
    """
    return search_counted(queries, tree, k, threads=threads)[0]


def search_counted(queries: F32, tree: Tree, k: int | NDArray[Any], *, threads: int = 1) -> tuple[Ranked, Work]:
    """`search`, and the work that it was."""
    return search_with(loops(), queries, tree, k, threads=threads)


def search_with(
    loops: Any, queries: F32, tree: Tree, k: int | NDArray[Any], *, threads: int = 1
) -> tuple[Ranked, Work]:
    """`search_counted` with the compiled loops given."""
    if threads < 1:
        raise ValueError(f"threads: at least 1 expected, {threads} found")
    wanted = kernel.check_queries(queries, tree.d, len(tree.ids), k)
    offsets = offsets_of(wanted)
    ids, scores = np.empty(offsets[-1], dtype=np.int32), np.empty(offsets[-1], dtype=np.float32)
    asked = np.flatnonzero(wanted > 0).astype(np.int32)
    counts = np.zeros(4, dtype=np.int64)
    if len(asked):
        prepared = _prepared(loops, queries, asked, wanted)
        group, room, seeds = _sizes(len(asked), int(wanted.max()), len(tree.ids))

        def run(first: int) -> I64:
            work = np.zeros(4, dtype=np.int64)
            loops.search_groups(
                first, first + 1, group, room, seeds, *_margins(tree.d),
                tree.flat, prepared, offsets, ids, scores, work,
            )  # fmt: skip
            return work

        for work in _each(run, -(-len(asked) // group), threads):
            counts += work
    work = Work(len(asked), len(tree.ids), LEAF * int(counts[0]), *(int(count) for count in counts[1:]))
    return Ranked(Ragged(offsets, ids), scores), work


def _prepared(loops: Any, queries: F32, asked: I32, wanted: I64) -> tuple[NDArray[Any], ...]:
    """The queries that ask for something as the loops take them: near each other in order, and at unit length."""
    norms = kernel._norms(queries)
    units = kernel._units(queries[asked], norms[asked])
    loops.split(units, asked, LEAF, LEAF)
    d = queries.shape[1]
    padded = np.zeros((len(units), even(d)), dtype=np.float32)
    padded[:, :d] = units
    return asked, padded, queries[asked], norms[asked], wanted[asked]


def _sizes(n: int, most: int, items: int) -> tuple[int, int, int]:
    """Queries in a group, numbers in the list of each, and leaves that each scores first."""
    room = min(most + most // 2, items) + 2 * NODE
    # groups of a few thousand queries: not so few that threads end far apart
    group = min(_GROUP, n, max(LEAF, _GROUP_BYTES // (8 * room)))
    seeds = min(max(_LEAST_SEEDS, int(SEED_SHARE * most)), -(-items // LEAF))
    return -(-group // LEAF) * LEAF, room, seeds


def _margins(d: int) -> tuple[np.float32, np.float32]:
    """error(d), rounded up, and the slack of a bound."""
    return np.float32(kernel.error(d) + 2.0**-24), np.float32(2 * (d + 8) * 2.0**-24)


def _each(run: Any, n: int, threads: int) -> Iterator[Any]:
    """run(0) to run(n - 1), in threads of which each takes the next when it is done."""
    if threads == 1 or n == 1:
        yield from map(run, range(n))
    else:
        with ThreadPoolExecutor(min(threads, n)) as pool:
            yield from pool.map(run, range(n))


@lru_cache(maxsize=1)
def loops() -> ModuleType:
    """`encore.search.loops`, with everything in it compiled: half a minute, once a machine, while others wait.

    Commands that search for nothing must not import numba, so the module is imported here and nowhere else.
    """
    with prepared():
        from encore.search import loops as module

        # called with arguments of the types that they have above
        vectors = np.eye(3, 2, dtype=np.float32)
        tree = Tree.built_with(module, np.arange(3, dtype=np.int32), vectors)
        search_with(module, vectors, tree, 1)
    return module
