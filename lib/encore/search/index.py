"""An index for exact top-k by cosine: a tree where it pays, brute force elsewhere, the same rows from both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import Ragged, offsets_of
from encore.arrays.ranked import Ranked
from encore.search import kernel, tree
from encore.search.kernel import F32, I64, Items
from encore.search.tree import Arrays, Tree

Method = Literal["tree", "brute"]

FEWEST_ITEMS = 4096
"""Below this, brute force takes less than a second for thousands of queries, and nothing has to be compiled."""
MOST_DIMENSIONS = 512
"""Above this no tree is tried: caps rule out next to nothing there, and BLAS is faster than the tree's loops."""
SORTING = 100
"""What brute force spends on an item besides its score, in multiplications: it writes, compares and sorts."""

_SAMPLE = 256
_SAMPLE_K = 100
_QUERY_BLOCK = 256
_ITEM_BLOCK = 65536
_MERGED_VALUES = 1 << 20


@dataclass(frozen=True, eq=False)
class Index:
    """Items ready to be searched. `arrays` is all there is of it, for `load`; `reason` says why it is the method
    that it is; the two blocks bound the memory of brute force, see kernel.top_k."""

    arrays: Arrays
    method: Method
    reason: str
    query_block: int = _QUERY_BLOCK
    item_block: int = _ITEM_BLOCK

    @classmethod
    def load(cls, arrays: Arrays, *, query_block: int = _QUERY_BLOCK, item_block: int = _ITEM_BLOCK) -> Index:
        """The index of these arrays, memory-mapped or not; other entries may stand beside them."""
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
        """The k items of highest cosine for each query, as kernel.search defines them; `threads` are used by a
        tree. See tree.search and kernel.search for shapes, errors and memory."""
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
    """An index of ids int32 (V,), strictly ascending, and vectors float32 (V, d), finite.

    "auto" chooses by counts, never by time, so that it chooses the same everywhere. A tree takes 60 bytes an item
    for d = 12 (see Tree), brute force 8 d + 12, and building either as much again. Raises ValueError for other
    shapes, types or numbers.
    """
    kernel.check_items(ids, vectors)
    n, d = vectors.shape
    if method == "auto":
        if n < FEWEST_ITEMS:
            return _brute(ids, vectors, f"{n} items, fewer than {FEWEST_ITEMS}", query_block, item_block)
        if d > MOST_DIMENSIONS:
            return _brute(ids, vectors, f"{d} dimensions, more than {MOST_DIMENSIONS}", query_block, item_block)
    elif method == "brute":
        return _brute(ids, vectors, "asked for", query_block, item_block)
    built = Tree.of(ids, vectors)
    reason = "asked for"
    if method == "auto":
        share, most = scored_share(built, vectors), 0.9 * (d + SORTING) / d
        reason = f"{share:.1%} of the items are scored for one of a sample, at most {most:.0%} would pay"
        if share > most:
            return _brute(ids, vectors, reason, query_block, item_block)
    return Index(built.arrays, "tree", reason, query_block, item_block)


def scored_share(built: Tree, vectors: F32) -> float:
    """The share of the items that a search scores, where every so many-th item of `vectors` is a query."""
    sample = np.ascontiguousarray(vectors[:: max(1, len(vectors) // _SAMPLE)])
    return tree.search_counted(sample, built, _SAMPLE_K)[1].share


def _brute(ids: NDArray[Any], vectors: NDArray[Any], reason: str, query_block: int, item_block: int) -> Index:
    items = Items.of(ids, vectors)
    arrays: Arrays = {"ids": items.ids, "vectors": items.vectors, "units": items.units, "norms": items.norms}
    return Index(arrays, "brute", reason, query_block, item_block)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Items in several indexes, which are searched one after the other: memory is that of one index, and 24 bytes for
    each of the best that are known. Arrays that are mapped are read as they are needed, and leave as memory is needed.
    """

    indexes: tuple[Index, ...]

    @classmethod
    def load(cls, arrays: Arrays, *, query_block: int = _QUERY_BLOCK, item_block: int = _ITEM_BLOCK) -> Blocks:
        """The indexes of the `arrays` of others, memory-mapped or not; other entries may stand beside them."""
        parts: dict[int, Arrays] = {}
        for name, array in arrays.items():
            number, dot, rest = name.partition(".")
            if dot and number.isdecimal():
                parts.setdefault(int(number), {})[rest] = array
        return cls(
            tuple(Index.load(parts[i], query_block=query_block, item_block=item_block) for i in sorted(parts)),
        )

    @property
    def arrays(self) -> Arrays:
        """All there is of them, for `load`: names are <number>.<name in the index>."""
        return {f"{i}.{name}": array for i, index in enumerate(self.indexes) for name, array in index.arrays.items()}

    def __len__(self) -> int:
        return sum(map(len, self.indexes))

    def search(self, queries: F32, k: int | NDArray[Any], *, threads: int = 1) -> Ranked:
        """As Index.search, of the items of all."""
        wanted = kernel.check_queries(queries, queries.shape[-1], np.iinfo(np.int64).max, k)
        best = Ranked.empty(len(queries))
        for index in self.indexes:
            best = _merged(best, index.search(queries, wanted, threads=threads), wanted)
        return best


def build_blocks(
    blocks: Iterable[tuple[NDArray[Any], NDArray[Any]]],
    method: Literal["auto", "tree", "brute"] = "auto",
    *,
    query_block: int = _QUERY_BLOCK,
    item_block: int = _ITEM_BLOCK,
    keep: Callable[[Arrays], Arrays] = dict,
) -> Blocks:
    """An index for each block of ids and vectors. Ids ascend within a block, and none is in two.

    `keep` may put the arrays of an index elsewhere, such as into mapped files, before the next is built. Raises
    ValueError as `build` does.
    """
    made = []
    for ids, vectors in blocks:
        built = build(ids, vectors, method, query_block=query_block, item_block=item_block)
        made.append(Index(keep(built.arrays), built.method, built.reason, query_block, item_block))
    return Blocks(tuple(made))


def _merged(one: Ranked, other: Ranked, k: I64) -> Ranked:
    """The k[i] best of row i of both."""
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
