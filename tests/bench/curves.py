"""How exact top-k grows with tracks M, dimensions d, results k and threads: the curves of the page on scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encore.search import tree
from encore.search.tree import Tree
from tests.bench.data import Search, search_data
from tests.bench.figures import Figure, Found, figure
from tests.bench.timing import timed

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Sizes:
    """Slices that give the items, queries, and where the curves are measured; d with so many items only."""

    slices: int = 1000
    queries: int = 8192
    items: tuple[int, ...] = (125_000, 250_000, 500_000, 1_000_000, 2_000_000)
    ks: tuple[int, ...] = (10, 50, 100, 500, 1000, 2000)
    dimensions: tuple[int, ...] = (2, 4, 8, 12, 16, 24, 48)
    few_items: int = 250_000
    repeats: int = 2


QUICK = Sizes(slices=10, queries=512, items=(10_000, 20_000), ks=(10, 100), dimensions=(4, 12, 24), few_items=10_000)


def run(sizes: Sizes) -> Found:
    """Figures curve.M<items>, curve.d<dimensions> and curve.k<results>, ms a query in one thread, with the share of the
    items that are scored; and curve.threads<n>."""
    tree.loops()
    data = search_data(sizes.slices, sizes.queries)
    everything = Tree.of(data.ids, data.vectors)
    found: list[Figure] = []
    for n in sizes.items:
        rows = _spread(len(data.vectors), n)
        some = Tree.of(np.arange(len(rows), dtype=np.int32), np.ascontiguousarray(data.vectors[rows]))
        found.append(_point(f"curve.M{n}", data.queries, some, 500, sizes))
    for k in sizes.ks:
        found.append(_point(f"curve.k{k}", data.queries, everything, k, sizes))
    for d in sizes.dimensions:
        made = _of_dimension(data, d, sizes.few_items)
        few = Tree.of(made.ids, made.vectors)
        found.append(_point(f"curve.d{d}", made.queries, few, 500, sizes))
    for threads in (1, 2):
        found.append(_point(f"curve.threads{threads}", data.queries, everything, 500, sizes, threads))
    return Found(found)


def _point(name: str, queries: F32, index: Tree, k: int, sizes: Sizes, threads: int = 1) -> Figure:
    many: Any = timed(lambda: tree.search_counted(queries, index, k, threads=threads), sizes.repeats)
    work = f"{len(index.ids):,} items, d = {queries.shape[1]}, k = {k}, {len(queries):,} queries"
    share = many.result[1].share
    values = [seconds / len(queries) * 1e3 for seconds in many.seconds]
    return figure(name, "ms/query", values, work=work, note=f"{work}: {share:.2%} of the items scored")


def _spread(n: int, wanted: int) -> NDArray[np.int64]:
    """Rows evenly spread over n, frequent tracks and rare ones as in the whole."""
    return np.unique(np.linspace(0, n - 1, min(n, wanted)).astype(np.int64))


def _of_dimension(data: Search, d: int, n: int) -> Search:
    """Items and queries of d dimensions: columns of those that are there, and beyond those the same columns of other
    rows, so that each dimension is distributed as in the data and independent of the others."""
    rows, width = _spread(len(data.vectors), n), data.vectors.shape[1]
    parts, asked = [], []
    rng = np.random.default_rng(0)
    for start in range(0, d, width):
        order = rng.permutation(len(rows)) if start else np.arange(len(rows))
        again = rng.permutation(len(data.queries)) if start else np.arange(len(data.queries))
        take = min(width, d - start)
        parts.append(data.vectors[rows[order], :take])
        asked.append(data.queries[again, :take])
    return Search(np.ascontiguousarray(np.hstack(parts)), np.ascontiguousarray(np.hstack(asked)))
