"""Exact top-k by inner product: Encore's index against plain blocks (float32 BLAS, then a partial sort of each row).

Two kinds of vectors, both of 2.26 million items:

- `factors`: implicit ALS, fitted here on 20,000 generated playlists (see `_fitted`), gives the factors of 292 thousand
  tracks, and those of playlists as queries. Items are drawn from the tracks with replacement; the direction of each is
  mixed with that of another random track, weights sqrt(3/4) and 1/2, and its norm multiplied by a lognormal factor of
  sigma .1. That keeps norms and spectrum: 59 % of these tracks occur once, and norms grow with popularity
  (correlation of the logarithms .93).
- `sphere`: normally distributed directions with equal norms, and such queries: norms rule out nothing. It is the worst
  case that is not made of equal items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from encore.arrays.ragged import Ragged
from encore.arrays.ranked import Ranked
from encore.search import inner
from encore.search.inner import InnerIndex
from encore.synthetic.generate import draw_slice
from tests.bench.data import _GENERATOR, CACHE, SEED, _digest, _save
from tests.bench.figures import Check, Figure, Found, figure, ratio
from tests.bench.timing import Timed, check_threads, timed
from tests.bench.topk import MIN_RECALL, limited

F32 = NDArray[np.float32]

SCORE_TOLERANCE = 1e-5
"""Maximum difference between scores of blocks and ours, relative to |q| and the largest |x|: blocks use float32."""
_UNOBSERVED, _REGULARISATION = 0.02, 0.003
_ITERATIONS, _STEPS = 4, 3
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Sizes:
    """`slices` of 1,000 playlists are fitted. `queries` for the index, `few` in a single call, `blocks` for plain
    blocks, of `batch` at a time."""

    items: int = 2_260_000
    slices: int = 20
    cases: tuple[tuple[str, int], ...] = (("factors", 64), ("factors", 128), ("sphere", 128))
    k: tuple[int, ...] = (500, 750)
    queries: int = 2048
    few: int = 64
    blocks: int = 64
    batch: int = 64
    repeats: int = 3
    seconds: float = 15.0


QUICK = Sizes(items=50_000, slices=1, cases=(("factors", 16), ("sphere", 16)), queries=256)


def run(sizes: Sizes) -> Found:
    """Figures inner.<case>.d<d>.<who>.k<k>.t<threads> in ms per query, with .cpu in CPU time, which other programs
    affect less; .build in s; ratios .ours_over.blocks. Facts: bytes per item, the share of items that are multiplied.
    """
    inner.load_loops()
    found = Found(facts={"inner.instructions": inner.load_loops().INSTRUCTION})
    for case, d in sizes.cases:
        items, queries = case_data(case, d, sizes)
        found += _case(f"inner.{case}.d{d}", items, queries, sizes)
        del items
    return found


def case_data(case: str, d: int, sizes: Sizes) -> tuple[F32, F32]:
    """Items float32 (V, d) and queries float32 (q, d) of a case of the module docstring."""
    rng = np.random.default_rng(SEED)
    if case == "sphere":
        items = rng.standard_normal((sizes.items, d), dtype=np.float32)
        items /= np.linalg.norm(items, axis=1, keepdims=True)
        return items, rng.standard_normal((sizes.queries, d), dtype=np.float32)
    tracks, playlists = _fitted(sizes.slices, d)
    norms = np.linalg.norm(tracks, axis=1, keepdims=True)
    units = tracks / np.maximum(norms, 1e-12)
    items = np.empty((sizes.items, d), np.float32)
    for start in range(0, sizes.items, _CHUNK):
        n = len(items[start : start + _CHUNK])
        own, other = rng.integers(0, len(tracks), (2, n))
        mixed = np.sqrt(0.75) * units[own] + 0.5 * units[other]
        mixed /= np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-12)
        items[start : start + n] = mixed * norms[own] * np.exp(0.1 * rng.standard_normal((n, 1)))
    return items, playlists[np.sort(rng.choice(len(playlists), min(sizes.queries, len(playlists)), replace=False))]


def _fitted(slices: int, d: int) -> tuple[F32, F32]:
    """Factors of tracks and playlists, cached: implicit ALS by conjugate gradients, each playlist finally folded in.

    The confidence of a track in a playlist is (pop / mean)^-1/4 (length / mean)^-1/4.
    """
    key = _digest(*_GENERATOR)
    files = [CACHE / f"als-{side}-{slices}-{d}-{key}.npy" for side in ("tracks", "playlists")]
    if not all(file.is_file() for file in files):
        draws = [draw_slice(SEED, i) for i in range(slices)]
        ids, index = np.unique(np.concatenate([draw.tracks for draw in draws]), return_inverse=True)
        lengths = np.concatenate([np.diff(draw.offsets) for draw in draws])
        lists = Ragged.from_lengths(lengths, index.astype(np.int32)).distinct()
        popularity = np.bincount(lists.values, minlength=len(ids))
        weights = (popularity / popularity.mean())[lists.values] * (lists.lengths / lists.lengths.mean())[lists.rows]
        confidence = sparse.csr_matrix(
            ((weights**-0.25).astype(np.float32), lists.values, lists.offsets), shape=(len(lists), len(ids))
        )
        by_track = confidence.T.tocsr()
        rng = np.random.default_rng(SEED)
        playlists, tracks = (
            (0.1 / np.sqrt(d) * rng.standard_normal((n, d))).astype(np.float32) for n in confidence.shape
        )
        for _ in range(_ITERATIONS):
            _half_step(confidence, tracks, playlists)
            _half_step(by_track, playlists, tracks)
        _half_step(confidence, tracks, playlists)
        for file, array in zip(files, (tracks, playlists), strict=True):
            _save(file, array)
    tracks, playlists = (np.load(file) for file in files)
    return tracks, playlists


def _half_step(confidence: sparse.csr_matrix, other: F32, solved: F32) -> None:
    """A few steps of conjugate gradients towards the least squares solution of each row, in place."""
    gram = np.float32(_UNOBSERVED) * (other.T @ other)
    for start, stop in pairwise([*range(0, len(solved), _CHUNK), len(solved)]):
        rows = confidence[start:stop]
        shrink = _REGULARISATION * (np.asarray(rows.sum(axis=1)) + np.float32(_UNOBSERVED * len(other)))
        x = solved[start:stop]
        residual = rows @ other - _applied(rows, other, gram, shrink, x)
        direction, squares = residual.copy(), _squares(residual)
        for _ in range(_STEPS):
            image = _applied(rows, other, gram, shrink, direction)
            step = squares / np.maximum((direction * image).sum(axis=1, keepdims=True), 1e-20)
            x += step * direction
            residual -= step * image
            before, squares = squares, _squares(residual)
            direction = residual + squares / np.maximum(before, 1e-20) * direction


def _squares(matrix: F32) -> F32:
    total: F32 = (matrix * matrix).sum(axis=1, keepdims=True)
    return total


def _applied(rows: sparse.csr_matrix, other: F32, gram: F32, shrink: F32, x: F32) -> F32:
    """The matrix of each row's normal equations, times its vector in x."""
    at, products = np.repeat(np.arange(len(x)), np.diff(rows.indptr)), np.empty(rows.nnz, np.float32)
    for start in range(0, rows.nnz, _CHUNK):
        part = slice(start, start + _CHUNK)
        products[part] = np.einsum("ij,ij->i", x[at[part]], other[rows.indices[part]])
    weighted = sparse.csr_matrix((rows.data * products, rows.indices, rows.indptr), shape=rows.shape)
    image: F32 = x @ gram + shrink * x + weighted @ other
    return image.astype(np.float32)


def _case(name: str, items: F32, queries: F32, sizes: Sizes) -> Found:
    ids = np.arange(len(items), dtype=np.int32)
    built = timed(lambda: InnerIndex.build(ids, items), 1)
    index: InnerIndex = built.result
    what = f"{len(items):,} items, d = {items.shape[1]}"
    found = Found(
        [
            figure(f"{name}.build", "s", built.seconds, work=what),
            figure(f"{name}.build.cpu", "s", built.cpu, work=what),
        ],
        facts={f"{name}.bytes_per_item": sum(array.nbytes for array in index.arrays.values()) / len(items)},
    )
    for k in sizes.k:
        for threads in (1, 2):
            work = f"{what}, k = {k}"
            many = timed(partial(index.search_with_stats, queries, k, threads=threads), sizes.repeats)
            found += _times(f"{name}.ours.k{k}.t{threads}", many, len(queries), work)
            few = timed(partial(index.search, queries[: sizes.few], k, threads=threads), sizes.repeats)
            found += _times(f"{name}.ours_few.k{k}.t{threads}", few, len(queries[: sizes.few]), work)
            found += Found(
                checks=[check_threads(f"{name}.ours.k{k}.t{threads}", many, threads)],
                facts={f"{name}.k{k}.share_multiplied": many.result[1].share},
            )
            some = queries[: sizes.blocks]
            with limited(threads):
                theirs = timed(partial(blocks, some, items, k, sizes.batch), sizes.repeats, at_most=sizes.seconds)
            found += _times(f"{name}.blocks.k{k}.t{threads}", theirs, len(some), work)
            for end in ("", ".cpu"):
                above, below = (found[f"{name}.{who}.k{k}.t{threads}{end}"] for who in ("blocks", "ours"))
                found += Found([ratio(f"{name}.ours_over.blocks.k{k}.t{threads}{end}", above, below)])
            if threads == 1:
                found += Found(checks=[_agreement(name, k, some, items, theirs.result, index.search(some, k))])
    return found


def _times(name: str, many: Timed, n: int, work: str) -> Found:
    def per_query(name: str, seconds: list[float]) -> Figure:
        return figure(name, "ms/query", [s / n * 1e3 for s in seconds], work=f"{work}, {n:,} queries")

    return Found([per_query(name, many.seconds), per_query(f"{name}.cpu", many.cpu)])


def blocks(queries: F32, items: F32, k: int, batch: int) -> NDArray[np.int64]:
    """The k best of all items for each query, best first, int64 (q, k), by float32 BLAS and a partial sort."""
    return np.concatenate(list(_blocks(queries, items, k, batch)))


def _blocks(queries: F32, items: F32, k: int, batch: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(queries), batch):
        for scores in queries[start : start + batch] @ items.T:
            best = np.argpartition(scores, len(scores) - k)[len(scores) - k :]
            yield best[np.argsort(-scores[best])][None]


def _agreement(name: str, k: int, queries: F32, items: F32, theirs: NDArray[Any], ours: Ranked) -> Check:
    """Whether the blocks have the same scores as ours, up to rounding, and the same ids up to ties at the end."""
    mine, scores = ours.ids.values.reshape(theirs.shape), ours.scores.reshape(theirs.shape)
    largest = float(np.sqrt(np.einsum("ij,ij->i", items, items).max()))
    off = max(
        float(np.abs(np.sort(items[chosen].astype(np.float64) @ query)[::-1] - score).max() / np.linalg.norm(query))
        for chosen, query, score in zip(theirs, queries.astype(np.float64), scores, strict=True)
    )
    shared = sum(len(np.intersect1d(a, b, assume_unique=True)) for a, b in zip(theirs, mine, strict=True))
    recall = shared / theirs.size
    ok = off <= SCORE_TOLERANCE * largest and recall >= MIN_RECALL
    return Check(f"{name}.k{k}.agrees", ok, f"scores within {off:.1e}, {recall:.6f} of the ids, {len(queries)} queries")
