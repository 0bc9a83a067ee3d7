"""An index for exact top-k by cosine: a tree where it is faster, brute force otherwise, with identical results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import NamedArrays, Ragged, offsets_of
from encore.arrays.ranked import Ranked
from encore.search import kernel, tree
from encore.search.kernel import F32, I64, Items
from encore.search.tree import Tree

Method = Literal["tree", "brute"]

MIN_TREE_ITEMS = 4096
"""Below this, brute force takes less than a second for thousands of queries and needs no compiled code."""
MAX_TREE_DIMENSIONS = 512
"""Above this, no tree is built: caps rule out almost nothing, and BLAS is faster than the tree's loops."""
SORT_COST = 100
"""Cost of writing, comparing and sorting an item in brute force, in multiplications, besides computing its score."""

_SAMPLE = 256
_SAMPLE_K = 100
_QUERY_BLOCK = 256
_ITEM_BLOCK = 65536
_MERGED_VALUES = 1 << 20


@dataclass(frozen=True, eq=False)
class Index:
    """An index of items.

    `arrays`: the complete state, for `load`; `reason`: why this method was chosen; the two block sizes bound the memory
    of brute force, see kernel.search.
    """

    arrays: NamedArrays
    method: Method
    reason: str
    query_block: int = _QUERY_BLOCK
    item_block: int = _ITEM_BLOCK

    @classmethod
    def load(cls, arrays: NamedArrays, *, query_block: int = _QUERY_BLOCK, item_block: int = _ITEM_BLOCK) -> Index:
        """Restore an index from its arrays, possibly memory-mapped; other entries are ignored."""
        method: Method = "tree" if "leaves" in arrays else "brute"
        return cls(arrays, method, "as it was built", query_block, item_block)

    @cached_property
    def _items(self) -> Tree | Items:
        if self.method == "tree":
            return Tree.load(self.arrays)
        return Items(*(self.arrays[name] for name in ("ids", "vectors", "units", "norms")))

    def __len__(self) -> int:
        return len(self.arrays["ids"])

    def search(self, queries: F32, k: int | NDArray[Any], *, threads: int = 1) -> Ranked:
        """The k items with the highest cosine for each query, as defined by kernel.search.

        Only a tree uses `threads`. See tree.search and kernel.search for shapes, errors and memory.
        """
        items = self._items
        if isinstance(items, Tree):
            return tree.search(queries, items, k, threads=threads)
        return kernel.search(queries, items, k, query_block=self.query_block, item_block=self.item_block)


def build(
    ids: NDArray[Any],
    vectors: NDArray[Any],
    method: Literal["auto", "tree", "brute"] = "auto",
    *,
    query_block: int = _QUERY_BLOCK,
    item_block: int = _ITEM_BLOCK,
) -> Index:
    """Build an index of ids int32 (V,), strictly ascending, and vectors float32 (V, d), finite.

    "auto" decides by counts, never by timing, so it makes the same choice on every machine. A tree takes 60 bytes per
    item for d = 12 (see Tree), brute force 8 d + 12, and building either takes as much again. Raises ValueError for
    other shapes, types or numbers.
    """
    kernel.check_items(ids, vectors)
    n, d = vectors.shape
    if method == "auto":
        if n < MIN_TREE_ITEMS:
            return _brute(ids, vectors, f"{n} items, fewer than {MIN_TREE_ITEMS}", query_block, item_block)
        if d > MAX_TREE_DIMENSIONS:
            return _brute(ids, vectors, f"{d} dimensions, more than {MAX_TREE_DIMENSIONS}", query_block, item_block)
    elif method == "brute":
        return _brute(ids, vectors, "requested", query_block, item_block)
    built = Tree.build(ids, vectors)
    reason = "requested"
    if method == "auto":
        share, most = scored_share(built, vectors), 0.9 * (d + SORT_COST) / d
        reason = f"{share:.1%} of the items are scored per sample query; a tree pays off up to {most:.0%}"
        if share > most:
            return _brute(ids, vectors, reason, query_block, item_block)
    return Index(built.arrays, "tree", reason, query_block, item_block)


def scored_share(built: Tree, vectors: F32) -> float:
    """The share of the items that a search scores, measured with evenly spaced rows of `vectors` as queries."""
    sample = np.ascontiguousarray(vectors[:: max(1, len(vectors) // _SAMPLE)])
    return tree.search_with_stats(sample, built, _SAMPLE_K)[1].share


def _brute(ids: NDArray[Any], vectors: NDArray[Any], reason: str, query_block: int, item_block: int) -> Index:
    items = Items.prepare(ids, vectors)
    arrays: NamedArrays = {"ids": items.ids, "vectors": items.vectors, "units": items.units, "norms": items.norms}
    return Index(arrays, "brute", reason, query_block, item_block)


@dataclass(frozen=True, eq=False)
class BlockedIndex:
    """Items in several indexes that are searched one after the other.

    Memory: that of one index plus 24 bytes for each result so far. The operating system loads and evicts pages of
    memory-mapped arrays as needed.
    """

    indexes: tuple[Index, ...]

    @classmethod
    def load(
        cls, arrays: NamedArrays, *, query_block: int = _QUERY_BLOCK, item_block: int = _ITEM_BLOCK
    ) -> BlockedIndex:
        """Restore from `arrays`, possibly memory-mapped; other entries are ignored."""
        parts: dict[int, NamedArrays] = {}
        for name, array in arrays.items():
            number, dot, rest = name.partition(".")
            if dot and number.isdecimal():
                parts.setdefault(int(number), {})[rest] = array
        return cls(
            tuple(Index.load(parts[i], query_block=query_block, item_block=item_block) for i in sorted(parts)),
        )

    @property
    def arrays(self) -> NamedArrays:
        """The complete state, for `load`; names are <number of the index>.<name in the index>."""
        return {f"{i}.{name}": array for i, index in enumerate(self.indexes) for name, array in index.arrays.items()}

    def __len__(self) -> int:
        return sum(map(len, self.indexes))

    def search(self, queries: F32, k: int | NDArray[Any], *, threads: int = 1) -> Ranked:
        """Like Index.search, over the items of all indexes."""
        n_results = kernel.check_queries(queries, queries.shape[-1], np.iinfo(np.int64).max, k)
        best = Ranked.empty(len(queries))
        for index in self.indexes:
            best = _merged(best, index.search(queries, n_results, threads=threads), n_results)
        return best


def build_blocked(
    blocks: Iterable[tuple[NDArray[Any], NDArray[Any]]],
    method: Literal["auto", "tree", "brute"] = "auto",
    *,
    query_block: int = _QUERY_BLOCK,
    item_block: int = _ITEM_BLOCK,
    keep: Callable[[NamedArrays], NamedArrays] = dict,
) -> BlockedIndex:
    """Build an index for each block of ids and vectors. Ids ascend within a block; no id is in two blocks.

    `keep` may move the arrays of an index elsewhere, such as into memory-mapped files, before the next one is built.
    Raises ValueError like `build`.
    """
    made = []
    for ids, vectors in blocks:
        built = build(ids, vectors, method, query_block=query_block, item_block=item_block)
        made.append(Index(keep(built.arrays), built.method, built.reason, query_block, item_block))
    return BlockedIndex(tuple(made))


def _merged(one: Ranked, other: Ranked, k: I64) -> Ranked:
    """The k[i] best of row i of both rankings."""
    if len(one.scores) == 0:
        return other
    parts = [Ranked.empty(0)]
    both = Ragged.from_lengths(one.ids.lengths + other.ids.lengths, np.zeros(len(one.scores) + len(other.scores), "i1"))
    for start, stop in both.blocks(_MERGED_VALUES):
        pair = [(found.ids.slice(start, stop), found.scores[_span(found, start, stop)]) for found in (one, other)]
        rows = np.concatenate([ids.rows for ids, _ in pair])
        ids, scores = np.concatenate([ids.values for ids, _ in pair]), np.concatenate([scores for _, scores in pair])
        order = np.lexsort((ids, -scores, rows))
        lengths = np.bincount(rows, minlength=stop - start)
        ranked = Ranked(Ragged(offsets_of(lengths), ids[order]), scores[order])
        parts.append(ranked.head(k[start:stop]))
    return Ranked.concat(parts)


def _span(found: Ranked, start: int, stop: int) -> slice:
    return slice(found.ids.offsets[start], found.ids.offsets[stop])
