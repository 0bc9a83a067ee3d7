from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encore.arrays.ragged import Ragged
from encore.arrays.ranked import Ranked
from encore.search import inner
from encore.search.inner import InnerIndex, padded
from tests.unit.search.test_kernel import problems
from tests.unit.search.test_tree import adversarial, assert_same

TILE = 64
NO_LIMIT = np.float32(-np.inf)


def scores_of(queries: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Scores as `inner` defines them, float32 (q, V), one sum after the other."""
    width = padded(queries.shape[1])
    q, x = (np.pad(a.astype(np.float64), ((0, 0), (0, width - a.shape[1]))) for a in (queries, items))
    partial = np.zeros((len(q), len(x), 8))
    for c in range(width):
        partial[:, :, c % 8] += q[:, None, c] * x[None, :, c]
    for half in (4, 2, 1):
        partial = partial[:, :, :half] + partial[:, :, half:]
    with np.errstate(over="ignore"):
        scores: np.ndarray = partial[:, :, 0].astype(np.float32) + np.float32(0)
    return scores


def brute(
    queries: np.ndarray, ids: np.ndarray, items: np.ndarray, k: Any, threshold: np.ndarray | None = None
) -> Ranked:
    return best(scores_of(queries, items), ids, k, threshold)


def best(scores: np.ndarray, ids: np.ndarray, k: Any, threshold: np.ndarray | None = None) -> Ranked:
    counts, kept = np.broadcast_to(k, len(scores)), []
    least = np.full(len(scores), NO_LIMIT) if threshold is None else threshold
    for row, n, low in zip(scores, counts, least, strict=True):
        order = np.lexsort((ids, -row))[:n]
        kept.append(order[row[order] >= low])
    lengths = np.array([len(order) for order in kept], dtype=np.int64)
    flat = np.concatenate([np.zeros(0, np.int64), *kept])
    rows = np.repeat(np.arange(len(scores)), lengths)
    return Ranked(Ragged.from_lengths(lengths, ids[flat].astype(np.int32)), scores[rows, flat])


def factors(n: int, d: int, seed: int) -> np.ndarray:
    """Vectors like those of implicit ALS: few of them are long."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) * rng.gamma(0.5, size=(n, 1))).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(problems(), st.data())
def test_search_equals_brute_force_to_the_bit(problem: tuple[np.ndarray, ...], data: st.DataObject) -> None:
    queries, items, ids, k = problem
    built = InnerIndex.build(ids, items)
    expected = brute(queries, ids, items, k)
    assert_same(built.search(queries, k), expected)
    limits = st.sampled_from([NO_LIMIT, np.float32(np.inf), np.float32(0), *expected.scores])
    threshold = np.array([data.draw(limits) for _ in queries], dtype=np.float32)
    assert_same(built.search(queries, k, threshold=threshold), brute(queries, ids, items, k, threshold))


@pytest.mark.parametrize("d", [1, 2, 13, 128])
def test_results_do_not_depend_on_groups_and_threads(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 3000
    ids = np.arange(n, dtype=np.int32) * 7 - 9000
    for items in (adversarial(n, d), factors(n, d, seed=3)):
        queries = np.concatenate([items[:40], np.random.default_rng(1).standard_normal((40, d)).astype(np.float32)])
        built, scores = InnerIndex.build(ids, items), scores_of(queries, items)
        mixed = np.random.default_rng(2).integers(0, 400, len(queries))
        for k in (0, 1, 70, n - 1, n + 5, mixed):
            assert_same(built.search(queries, k), best(scores, ids, k))
        expected = best(scores, ids, mixed)
        for group, threads in ((1, 1), (13, 2), (50, 3)):
            monkeypatch.setattr(inner, "_GROUP", group)
            assert_same(built.search(queries, mixed, threads=threads), expected)
        monkeypatch.setattr(inner, "_GROUP", 256)
        for size in (1, 7, 64):
            parts = [built.search(queries[i : i + size], mixed[i : i + size]) for i in range(0, len(queries), size)]
            assert_same(Ranked.concat(parts), expected)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 16 * TILE, 16 * TILE + 1])
def test_the_last_tile_may_be_full_or_not(n: int) -> None:
    # all scores are negative, so that zeros that fill up the last tile would be the best
    items = -np.abs(factors(n, 5, seed=n)) - np.float32(1)
    ids = np.arange(n, dtype=np.int32)
    queries = np.abs(factors(9, 5, seed=2))
    assert_same(InnerIndex.build(ids, items).search(queries, 40), brute(queries, ids, items, 40))


def test_scores_closer_than_integers_can_tell() -> None:
    rng = np.random.default_rng(9)
    items = (1 + 1e-6 * rng.standard_normal((4000, 12))).astype(np.float32)
    queries = (1 + 1e-6 * rng.standard_normal((20, 12))).astype(np.float32)
    # far from the items, so that norms rule out nothing
    queries[:, ::2] = 0
    ids = np.arange(4000, dtype=np.int32)
    found, work = InnerIndex.build(ids, items).search_with_stats(queries, 50)
    assert_same(found, brute(queries, ids, items, 50))
    assert work.cuts > 0
    assert work.scored >= 20 * 4000, "no item can be ruled out by its integers"


def test_scores_that_are_equal_only_in_float32_are_ordered_by_id() -> None:
    # integers represent these vectors exactly, and the scores are integers above 2^24: only every second is a float32
    n, d = 130, 4096
    items = np.full((n, d), 127, dtype=np.float32)
    items[:, -1] = 127 - np.arange(n) % 127
    queries = np.full((1, d), 64, dtype=np.float32)
    queries[0, -1] = 1
    # the lowest id has the lowest float64 score
    ids = np.arange(n, dtype=np.int32)
    items = items[::-1].copy()
    expected = brute(queries, ids, items, n)
    assert len(np.unique(expected.scores)) < 70
    built = InnerIndex.build(ids, items)
    for k in (1, 2, 3, 30, n):
        assert_same(built.search(queries, k), expected.head(k))


def test_thousands_of_equal_items_are_cut_to_the_best_again_and_again() -> None:
    items = np.tile(np.array([[1, 2, 3]], dtype=np.float32), (20000, 1))
    items[15000:15005] = [3, 2, 1]
    items[17000:17005] = [9, -9, 9]
    queries = np.array([[1, 2, 3], [3, 2, 1], [-1, 0, 0], [0, 0, 0], [0, 1, 0]], dtype=np.float32)
    ids = np.arange(0, 60000, 3, dtype=np.int32)
    found, work = InnerIndex.build(ids, items).search_with_stats(queries, 10)
    assert_same(found, brute(queries, ids, items, 10))
    assert work.cuts > 20


def test_queries_of_only_zeros_get_the_lowest_ids_without_a_search() -> None:
    items, ids = factors(5000, 6, seed=1), np.arange(5000, dtype=np.int32) - 77
    queries = np.zeros((3, 6), dtype=np.float32)
    queries[2] = -0.0
    k, threshold = np.array([4, 0, 9]), np.array([0, 0, 1e-9], dtype=np.float32)
    built = InnerIndex.build(ids, items)
    found, work = built.search_with_stats(queries, k)
    assert found.ids.tolist() == [ids[:4].tolist(), [], ids[:9].tolist()]
    assert found.scores.view(np.int32).tolist() == [0] * 13
    assert (work.queries, work.multiplied, work.scored) == (2, 0, 0)
    assert built.search(queries, k, threshold=threshold).ids.tolist() == [ids[:4].tolist(), [], []]


def test_overflowing_scores_are_infinite_and_ordered_by_id() -> None:
    items = np.array([[1e30], [3e38], [2e38], [-3e38], [-1e30], [1], [-1], [0]], dtype=np.float32).repeat(200, axis=0)
    ids = np.arange(len(items), dtype=np.int32)
    queries = np.array([[3e38], [-1e20], [1], [1e-45]], dtype=np.float32)
    expected = brute(queries, ids, items, len(items))
    assert np.isposinf(expected.scores[:600]).all()
    assert np.isneginf(expected.scores[1200:1600]).all()
    for k in (1, 5, 300, 900, 1300, 1500, len(items)):
        assert_same(InnerIndex.build(ids, items).search(queries, k), expected.head(k))


def test_a_threshold_that_k_items_reach_changes_only_the_work() -> None:
    items, ids = factors(30000, 16, seed=5), np.arange(30000, dtype=np.int32)
    queries = np.random.default_rng(6).standard_normal((30, 16)).astype(np.float32)
    built = InnerIndex.build(ids, items)
    found, work = built.search_with_stats(queries, 100)
    kth = found.scores.reshape(30, 100)[:, -1].copy()
    again, less = built.search_with_stats(queries, 100, threshold=kth)
    assert_same(again, found)
    assert less.multiplied < work.multiplied
    assert less.scored < work.scored
    # and one that fewer reach shortens the rows
    higher = found.scores.reshape(30, 100)[:, 40].copy()
    assert_same(built.search(queries, 100, threshold=higher), brute(queries, ids, items, 100, higher))


@pytest.mark.parametrize("d", [1, 8, 100])
def test_bounds_hold_for_all_items_and_queries(d: int) -> None:
    items = np.concatenate([factors(500, d, seed=1), adversarial(500, d)])
    queries = np.concatenate([factors(20, d, seed=2), adversarial(20, d)])
    ids = np.arange(1000, dtype=np.int32)
    built = InnerIndex.build(ids, items)
    _, codes, t_and_bounds, shifts = built._prepared(inner.load_loops(), queries)
    width, tiles = padded(d), len(built.bounds)
    ordered = items[built.ids].astype(np.float64)
    norms = np.linalg.norm(ordered, axis=1)
    assert (np.diff(norms) <= 1e-12 * norms[:-1]).all()
    # groups of sixteen items, four dimensions at a time
    stored = built.codes.reshape(tiles * 4, width // 4, 16, 4).transpose(0, 2, 1, 3).reshape(tiles * TILE, width)
    assert stored.min() >= 1
    assert np.abs(codes.astype(np.int64)).max() <= 64
    integers = stored[:1000].astype(np.int64) - 128
    products = codes.astype(np.int64) @ stored[:1000].T.astype(np.int64) - shifts[:, None]
    assert (products == codes.astype(np.int64) @ integers.T).all()
    s, n, r = built.bounds[np.arange(1000) // TILE].T
    assert (n >= norms).all()
    assert (r >= np.linalg.norm(ordered - s[:, None] * integers[:, :d], axis=1)).all()
    t, length, e, m = t_and_bounds.T
    assert (length >= np.linalg.norm(queries.astype(np.float64), axis=1)).all()
    off = np.abs(queries.astype(np.float64) @ ordered.T - t[:, None] * s * products)
    bound = e[:, None] * n + m[:, None] * r
    assert (off <= bound).all()
    # the bound is useful: a few percent of |q| |x|, and some items come close to it
    usual = factors(500, d, seed=1)
    tight = InnerIndex.build(ids[:500], usual)
    assert (tight.bounds[:5, 2] <= 0.03 * tight.bounds[:5, 1]).all()


@pytest.mark.parametrize("d", [8, 24])
def test_all_instructions_give_the_same_sums(d: int) -> None:
    import numba

    loops = inner.load_loops()
    rng = np.random.default_rng(d)
    for name in loops.supported():
        tile_sums, n = loops.tile_sums_with(name), loops.INSTRUCTIONS[name][3]

        @numba.njit
        def call(codes, at, rows, row_at, width, limits, sums, masks, tile_sums=tile_sums):  # type: ignore[no-untyped-def]
            tile_sums(codes, at, rows, row_at, width, limits, 2, sums, masks)

        for extreme in (False, True):
            items = rng.choice([1, 255], (TILE, d)) if extreme else rng.integers(1, 256, (TILE, d))
            queries = rng.choice([-64, 64], (n, d)) if extreme else rng.integers(-64, 65, (n, d))
            if extreme:
                items[:2], queries[0] = [[1] * d, [255] * d], 64
            codes = np.zeros((TILE + 1) * d, np.uint8)
            codes[d:] = items.reshape(4, 16, d // 4, 4).transpose(0, 2, 1, 3).reshape(-1)
            rows = np.concatenate([np.zeros(d), queries.reshape(-1)]).astype(np.int8)
            expected = queries @ items.T
            limits = np.concatenate([[0, 0], expected[:, 3]]).astype(np.int32)
            sums, masks = np.zeros(n * TILE, np.int32), np.zeros(n, np.int64)
            call(codes, d, rows, d, d, limits, sums, masks)
            assert sums.reshape(n, TILE).tolist() == expected.tolist(), name
            reached = np.unpackbits(masks.view(np.uint8), bitorder="little").reshape(n, TILE).astype(bool)
            assert (reached == (expected >= expected[:, 3:4])).all(), name


def test_short_items_are_not_multiplied() -> None:
    n = 20000
    ids = np.arange(n, dtype=np.int32)
    queries = np.random.default_rng(2).standard_normal((20, 32)).astype(np.float32)
    items = factors(n, 32, seed=1)
    found, work = InnerIndex.build(ids, items).search_with_stats(queries, 50)
    assert_same(found, brute(queries, ids, items, 50))
    assert (work.queries, work.items) == (20, n)
    assert 50 / n < work.share < 0.35
    assert 50 <= work.scored / 20 < 300
    equal = items / np.linalg.norm(items, axis=1, keepdims=True)
    found, work = InnerIndex.build(ids, equal).search_with_stats(queries, 50)
    assert_same(found, brute(queries, ids, equal, 50))
    assert work.share == 1
    assert work.scored / 20 < 1500


def test_an_index_loaded_from_mapped_files_returns_the_same(tmp_path: Path) -> None:
    items, ids = factors(5000, 12, seed=3), np.arange(5000, dtype=np.int32)
    built = InnerIndex.build(ids, items)
    mapped = {}
    for name, array in built.arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    loaded = InnerIndex.load({**mapped, "other": ids})
    assert len(loaded) == 5000
    queries = factors(40, 12, seed=4)
    assert_same(loaded.search(queries, 30), built.search(queries, 30))
    size = sum(array.nbytes for array in InnerIndex.build(ids, factors(5000, 128, seed=3)).arrays.values())
    assert size < 5000 * 4 * 128 * 1.28


@pytest.mark.parametrize(("q", "v", "k"), [(0, 5, 3), (4, 0, 3), (0, 0, 3), (4, 5, 0)])
def test_nothing_to_do(q: int, v: int, k: int) -> None:
    built = InnerIndex.build(np.arange(v, dtype=np.int32), np.ones((v, 2), dtype=np.float32))
    found = built.search(np.ones((q, 2), dtype=np.float32), k)
    assert found.ids.tolist() == [[]] * q
    assert (found.scores.dtype, found.scores.shape) == (np.dtype(np.float32), (0,))


def test_invalid_arguments_raise() -> None:
    good, ids = np.ones((3, 2), dtype=np.float32), np.arange(3, dtype=np.int32)
    built = InnerIndex.build(ids, good)
    bad: Any
    for bad in (good.astype(np.float64), good[0], good[:, :0], np.full((3, 2), np.inf, dtype=np.float32)):
        with pytest.raises(ValueError, match="items"):
            InnerIndex.build(ids, bad)
        with pytest.raises(ValueError, match="queries"):
            built.search(bad, 1)
    with pytest.raises(ValueError, match="item_ids"):
        InnerIndex.build(ids[::-1], good)
    with pytest.raises(ValueError, match="k: expected at least 0"):
        built.search(good, -1)
    with pytest.raises(ValueError, match="expected 2 dimensions like the items"):
        built.search(good[:, :1], 1)
    with pytest.raises(ValueError, match="threads: expected at least 1"):
        built.search(good, 1, threads=0)
    for bad in (np.zeros(3), np.zeros(2, dtype=np.float32), np.array([0, np.nan, 0], dtype=np.float32)):
        with pytest.raises(ValueError, match="threshold: expected"):
            built.search(good, 1, threshold=bad)


def test_numba_is_imported_only_to_search() -> None:
    code = "import sys; from encore.search import inner; assert not {'numba', 'llvmlite'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
