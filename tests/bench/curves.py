"""How the time of exact top-k grows with tracks M, dimensions d, results k and threads (deploy/docs/scaling.md)."""

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
    """Slices that provide the items, queries, and the points of the curves; d is measured with `few_items` items."""

    slices: int = 1000
    queries: int = 8192
    items: tuple[int, ...] = (125_000, 250_000, 500_000, 1_000_000, 2_000_000)
    ks: tuple[int, ...] = (10, 50, 100, 500, 1000, 2000)
    dimensions: tuple[int, ...] = (2, 4, 8, 12, 16, 24, 48)
    few_items: int = 250_000
    repeats: int = 2


QUICK = Sizes(slices=10, queries=512, items=(10_000, 20_000), ks=(10, 100), dimensions=(4, 12, 24), few_items=10_000)


def run(sizes: Sizes) -> Found:
    """Figures curve.M<items>, curve.d<dimensions> and curve.k<results>, in ms per query on one thread, with the share
    of items scored; and curve.threads<n>."""
    tree.load_loops()
    data = search_data(sizes.slices, sizes.queries)
    whole = Tree.build(data.ids, data.vectors)
    found: list[Figure] = []
    for n in sizes.items:
        rows = _spread(len(data.vectors), n)
        part = Tree.build(np.arange(len(rows), dtype=np.int32), np.ascontiguousarray(data.vectors[rows]))
        found.append(_point(f"curve.M{n}", data.queries, part, 500, sizes))
    for k in sizes.ks:
        found.append(_point(f"curve.k{k}", data.queries, whole, k, sizes))
    for d in sizes.dimensions:
        made = _with_dimensions(data, d, sizes.few_items)
        few = Tree.build(made.ids, made.vectors)
        found.append(_point(f"curve.d{d}", made.queries, few, 500, sizes))
    for threads in (1, 2):
        found.append(_point(f"curve.threads{threads}", data.queries, whole, 500, sizes, threads))
    return Found(found)


def _point(name: str, queries: F32, index: Tree, k: int, sizes: Sizes, threads: int = 1) -> Figure:
    many: Any = timed(lambda: tree.search_with_stats(queries, index, k, threads=threads), sizes.repeats)
    work = f"{len(index.ids):,} items, d = {queries.shape[1]}, k = {k}, {len(queries):,} queries"
    share = many.result[1].share
    values = [seconds / len(queries) * 1e3 for seconds in many.seconds]
    return figure(name, "ms/query", values, work=work, note=f"{work}: {share:.2%} of the items scored")


def _spread(n: int, count: int) -> NDArray[np.int64]:
    """`count` of n rows, evenly spaced, so that tracks are as frequent or rare as in the whole."""
    return np.unique(np.linspace(0, n - 1, min(n, count)).astype(np.int64))


def _with_dimensions(data: Search, d: int, n: int) -> Search:
    """`n` items and all queries with d dimensions: their own columns and, beyond those, the same columns of other rows,
    so that each added dimension is distributed as in the data and independent of the others."""
    rows, width = _spread(len(data.vectors), n), data.vectors.shape[1]
    items, queries = [], []
    rng = np.random.default_rng(0)
    for start in range(0, d, width):
        order = rng.permutation(len(rows)) if start else np.arange(len(rows))
        query_order = rng.permutation(len(data.queries)) if start else np.arange(len(data.queries))
        take = min(width, d - start)
        items.append(data.vectors[rows[order], :take])
        queries.append(data.queries[query_order, :take])
    return Search(np.ascontiguousarray(np.hstack(items)), np.ascontiguousarray(np.hstack(queries)))
