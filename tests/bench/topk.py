"""Exact top-k by cosine: Encore's tree against scikit-learn, faiss, SciPy, and Encore's own brute force in NumPy.

All run in one process, on the same vectors and with the same number of threads. Peers are exact too: checking their
results against ours, in the same run, is what makes their times comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ranked import Ranked
from encore.search import kernel, tree
from encore.search.kernel import Items
from encore.search.tree import Tree
from tests.bench.data import Search, search_data
from tests.bench.figures import Check, Found, figure, ratio
from tests.bench.machine import blas, cores
from tests.bench.timing import check_threads, timed

F32 = NDArray[np.float32]
Ids = NDArray[np.int64]

SCORE_TOLERANCE = 1e-6
"""Maximum difference between the sorted scores of two results, in float64 as `kernel` defines them."""
MIN_RECALL = 0.999
"""Peers compute in float32 or by another formula, so ids whose scores are within rounding of the last may differ."""


@dataclass(frozen=True)
class Sizes:
    """The size of the search: slices of 1,000 playlists that provide the items, and queries for each contender.

    scikit-learn is fastest with 2,048 queries at a time, faiss on two threads with 1,024. `seconds`: no repeat starts
    after this time.
    """

    slices: int = 1000
    k: int = 500
    queries: int = 65536
    small: int = 256
    batch: int = 2048
    faiss: int = 1024
    kernel: int = 128
    kdtree: int = 32
    repeats: int = 3
    seconds: float = 10.0


QUICK = Sizes(slices=10, queries=4096, batch=512, faiss=512, kernel=128, kdtree=32, seconds=5.0)


@dataclass(frozen=True)
class Peer:
    """A contender. `build(data)` makes its index; `search(index, queries, k, threads)` returns ids int64 (q, k), in any
    order. `queries`: how many it is timed with."""

    name: str
    label: str
    queries: int
    build: Callable[[Search], Any]
    search: Callable[[Any, F32, int, int], Ids]


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Limit every BLAS and OpenMP library in this process to `threads` threads."""
    import faiss
    from threadpoolctl import threadpool_limits

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        faiss.omp_set_num_threads(before)


def unit(vectors: F32) -> F32:
    """Rows scaled to unit length; zero rows stay zero."""
    norms = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    return (vectors / np.where(norms == 0, 1.0, norms)).astype(np.float32)


def _sklearn(metric: str) -> tuple[Callable[[Search], Any], Callable[[Any, F32, int, int], Ids]]:
    def build(data: Search) -> Any:
        from sklearn.neighbors import NearestNeighbors

        return NearestNeighbors(algorithm="brute", metric=metric).fit(unit(data.vectors))

    def search(index: Any, queries: F32, k: int, threads: int) -> Ids:
        found: Ids = index.kneighbors(unit(queries), n_neighbors=k, return_distance=False)
        return found

    return build, search


def _faiss_build(data: Search) -> Any:
    import faiss

    index = faiss.IndexFlatIP(data.vectors.shape[1])
    index.add(unit(data.vectors))
    return index


def _faiss_search(index: Any, queries: F32, k: int, threads: int) -> Ids:
    found: Ids = index.search(unit(queries), k)[1]
    return found


def _kdtree_build(data: Search) -> Any:
    from scipy.spatial import cKDTree

    return cKDTree(unit(data.vectors), leafsize=32)


def _kdtree_search(index: Any, queries: F32, k: int, threads: int) -> Ids:
    found: Ids = index.query(unit(queries), k=k, workers=threads)[1]
    return found


def _kernel_build(data: Search) -> Any:
    return Items.prepare(data.ids, data.vectors)


def _kernel_search(index: Any, queries: F32, k: int, threads: int) -> Ids:
    found = kernel.search(queries, index, k, query_block=256, item_block=65536)
    return found.ids.values.reshape(len(queries), -1).astype(np.int64)


def peers(sizes: Sizes, metric: str) -> list[Peer]:
    """The peers, scikit-learn with the given metric."""
    return [
        Peer("sklearn", f"scikit-learn brute, {metric}", sizes.batch, *_sklearn(metric)),
        Peer("faiss", "faiss IndexFlatIP", sizes.faiss, _faiss_build, _faiss_search),
        Peer("kernel", "Encore's own NumPy blocks", sizes.kernel, _kernel_build, _kernel_search),
        Peer("kdtree", "SciPy cKDTree", sizes.kdtree, _kdtree_build, _kdtree_search),
    ]


def fastest_metric(data: Search, sizes: Sizes) -> tuple[str, dict[str, float]]:
    """scikit-learn's fastest metric for unit vectors on a few queries, and the ms per query of each metric.

    cosine, euclidean and sqeuclidean rank unit vectors in the same order, but are computed differently.
    """
    n = max(16, sizes.batch // 16)
    cost = {}
    for metric in ("cosine", "euclidean", "sqeuclidean"):
        build, search = _sklearn(metric)
        index = build(data)
        found = timed(partial(search, index, data.queries[:n], sizes.k, cores()), 1)
        cost[metric] = found.seconds[0] / n * 1e3
        del index
    return min(cost, key=lambda name: cost[name]), cost


def agreement(name: str, data: Search, queries: F32, ids: Ids, ours: Ranked) -> Check:
    """Whether a peer's results have the same scores as ours, and the same ids except for ties at the cut-off."""
    q, k = ids.shape
    theirs = np.sort(exact_scores(data.vectors, queries, ids), axis=1)[:, ::-1]
    scores, mine = ours.scores.reshape(q, k), ours.ids.values.reshape(q, k)
    off = float(np.abs(theirs - scores).max())
    shared = [len(np.intersect1d(a, b, assume_unique=True)) for a, b in zip(ids, mine, strict=True)]
    recall = sum(shared) / (q * k)
    ok = off <= SCORE_TOLERANCE and recall >= MIN_RECALL
    return Check(f"topk.{name}.agrees", ok, f"scores within {off:.1e}, {recall:.6f} of the ids, {q:,} queries")


def exact_scores(vectors: F32, queries: F32, ids: Ids) -> NDArray[np.float32]:
    """Cosines of each query with its ids (q, k), computed in float64 and rounded to float32."""
    found = np.empty(ids.shape, np.float32)
    norms = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1))
    for row, (query, chosen) in enumerate(zip(queries.astype(np.float64), ids, strict=True)):
        length = norms[chosen] * np.sqrt(query @ query)
        found[row] = np.where(length == 0, 0.0, vectors[chosen].astype(np.float64) @ query / np.maximum(length, 1e-300))
    return found


def equal(name: str, ours: Ranked, reference: Ids, reference_scores: NDArray[np.float32] | None = None) -> Check:
    """Whether our rows are bit-identical to those of the reference implementation."""
    same = np.array_equal(ours.ids.values, reference.reshape(-1))
    if reference_scores is not None:
        same = same and np.array_equal(ours.scores, reference_scores)
    return Check(name, same, f"{len(ours):,} rows {'equal' if same else 'DIFFERENT'}")


def run(sizes: Sizes) -> Found:
    """Figures topk.<who>.t<threads> in ms per query, topk.<who>.build in s, and ratios topk.ours_over.<who>.t<n>."""
    tree.load_loops()
    data = search_data(sizes.slices, sizes.queries)
    n_items, d = data.vectors.shape
    what = f"{n_items:,} items, d = {d}, k = {sizes.k}"
    found = Found()

    built = timed(lambda: Tree.build(data.ids, data.vectors), 2)
    index: Tree = built.result
    found += Found([figure("topk.ours.build", "s", built.seconds, work=what)])
    rng = np.random.default_rng(0)
    few = data.queries[np.sort(rng.choice(len(data.queries), sizes.small, replace=False))]
    few = few[rng.permutation(len(few))]
    for threads in (1, 2):
        found += _ours(data, index, few, sizes, threads, what)

    metric, cost = fastest_metric(data, sizes)
    found += Found(facts={"topk.sklearn_ms_by_metric": cost, "topk.blas": blas()})
    for peer in peers(sizes, metric):
        found += _peer(peer, data, index, sizes, what, found)
    return found


def _ours(data: Search, index: Tree, few: F32, sizes: Sizes, threads: int, what: str) -> Found:
    many = timed(
        lambda: tree.search_with_stats(data.queries, index, sizes.k, threads=threads), sizes.repeats, at_most=12
    )
    small = timed(lambda: tree.search(few, index, sizes.k, threads=threads), max(5, sizes.repeats))
    _, work = many.result
    facts = {"topk.ours.share_scored": work.share} if threads == 1 else {}
    return Found(
        [
            figure(
                f"topk.ours.t{threads}",
                "ms/query",
                [s / len(data.queries) * 1e3 for s in many.seconds],
                work=f"{what}, {len(data.queries):,} queries in the order of the playlists",
            ),
            figure(
                f"topk.ours_small.t{threads}",
                "ms/query",
                [s / len(few) * 1e3 for s in small.seconds],
                work=f"{what}, {len(few):,} queries in no order",
            ),
        ],
        [check_threads(f"topk.ours.t{threads}", many, threads)],
        facts,
    )


def _peer(peer: Peer, data: Search, index: Tree, sizes: Sizes, what: str, so_far: Found) -> Found:
    # a random sample in random order: brute force does not care, and a tree does not benefit from similar neighbours
    rng = np.random.default_rng(1)
    queries = data.queries[rng.choice(len(data.queries), peer.queries, replace=False)]
    with limited(cores()):
        built = timed(lambda: peer.build(data), 1)
    found = Found([figure(f"topk.{peer.name}.build", "s", built.seconds, work=f"{what}, {peer.label}")])
    for threads in (1, 2):
        with limited(threads):
            peer.search(built.result, queries[:8], sizes.k, threads)
            many = timed(
                partial(peer.search, built.result, queries, sizes.k, threads),
                sizes.repeats,
                at_most=sizes.seconds,
            )
        name = f"topk.{peer.name}.t{threads}"
        theirs = figure(
            name,
            "ms/query",
            [s / len(queries) * 1e3 for s in many.seconds],
            work=f"{what}, {len(queries):,} queries",
            note=peer.label,
        )
        ours = so_far[f"topk.ours.t{threads}"]
        found += Found([theirs, ratio(f"topk.ours_over.{peer.name}.t{threads}", theirs, ours, note=peer.label)])
        found += Found(checks=[check_threads(name, many, threads)])
    ours_same = tree.search(queries, index, sizes.k)
    if peer.name == "kernel":
        reference = kernel.search(queries, built.result, sizes.k, query_block=256, item_block=65536)
        return found + Found(checks=[equal("topk.kernel.equal", ours_same, reference.ids.values, reference.scores)])
    return found + Found(checks=[agreement(peer.name, data, queries, many.result, ours_same)])
