from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encore.arrays.ragged import Ragged
from encore.arrays.ranked import Ranked
from encore.search import kernel
from encore.search.kernel import Items
from tests.reference import centroid_slow, top_k_float64, top_k_slow


def top_k(queries: np.ndarray, items: np.ndarray, ids: np.ndarray, k: int | np.ndarray, **blocks: int) -> Ranked:
    return kernel.search(queries, Items.prepare(ids, items), k, **blocks)


# few distinct numbers, so that vectors are often equal, parallel, opposite or zero; and any finite float32
coarse = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 3.0, 1e-30, 1e30])
wild = st.floats(width=32, allow_nan=False, allow_infinity=False)
numbers = coarse | st.floats(-3, 3, width=32) | wild


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    d = draw(st.integers(1, 5))
    vector = st.lists(numbers, min_size=d, max_size=d)
    pool = draw(st.lists(vector, min_size=1, max_size=5))
    items = draw(st.lists(st.sampled_from(pool) | vector, max_size=25))
    queries = draw(st.lists(st.sampled_from(pool) | vector, max_size=6))
    ids = sorted(draw(st.sets(st.integers(0, 10**6), min_size=len(items), max_size=len(items))))
    k = draw(st.lists(st.integers(0, 30), min_size=len(queries), max_size=len(queries)))
    return (
        np.array(queries, dtype=np.float32).reshape(-1, d),
        np.array(items, dtype=np.float32).reshape(-1, d),
        np.array(ids, dtype=np.int32),
        np.array(k, dtype=np.int64),
    )


def pairs(found: Ranked) -> list[list[tuple[int, float]]]:
    scores = Ragged(found.ids.offsets, found.scores)
    return [list(zip(found.ids[i].tolist(), scores[i].tolist(), strict=True)) for i in range(len(found))]


@pytest.fixture
def prune_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_MIN_KEPT", 0)


@settings(max_examples=150)
@given(problems(), st.integers(1, 8), st.integers(1, 30), st.sampled_from([0, 3, 1 << 16]))
def test_top_k_equals_brute_force_to_the_bit(
    problem: tuple[np.ndarray, ...], query_block: int, item_block: int, least: int
) -> None:
    queries, items, ids, k = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "_MIN_KEPT", least)
        patch.setattr(kernel, "_RESCORED_VALUES", 7 if least else 1 << 18)
        found = top_k(queries, items, ids, k, query_block=query_block, item_block=item_block)
    assert pairs(found) == top_k_slow(queries.tolist(), items.tolist(), ids.tolist(), k.tolist())
    assert (found.ids.values.dtype, found.scores.dtype) == (np.dtype(np.int32), np.dtype(np.float32))
    assert not np.signbit(found.scores[found.scores == 0]).any()


@pytest.mark.parametrize("d", [1, 2, 12, 13, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("prune_at_once")
def test_results_do_not_depend_on_block_sizes(d: int) -> None:
    rng = np.random.default_rng(d)
    items = rng.standard_normal((3000, d)).astype(np.float32)
    items[rng.integers(0, 3000, 900)] = items[rng.integers(0, 20, 900)]
    items[rng.integers(0, 3000, 100)] = 0
    queries = np.concatenate([items[:20], rng.standard_normal((19, d)).astype(np.float32), items[:1] * 0])
    ids = np.sort(rng.choice(10**7, 3000, replace=False))
    expected_ids, expected_scores = top_k_float64(queries, items, ids, 70)
    for query_block, item_block in itertools.product((1, 7, 64), (1, 100, 1024, 10**6)):
        if (query_block, item_block) == (1, 1):
            continue
        found = top_k(queries, items, ids.astype(np.int32), 70, query_block=query_block, item_block=item_block)
        assert found.ids.tolist() == expected_ids
        assert Ragged(found.ids.offsets, found.scores).tolist() == expected_scores


def test_scores_closer_than_float32_can_tell() -> None:
    # all items lie within 1e-6 of one direction: the approximate order is noise, the exact one is not
    rng = np.random.default_rng(9)
    items = (1 + 1e-6 * rng.standard_normal((4000, 12))).astype(np.float32)
    queries = (1 + 1e-6 * rng.standard_normal((20, 12))).astype(np.float32)
    ids = np.arange(4000, dtype=np.int32)
    expected_ids, expected_scores = top_k_float64(queries, items, ids, 50)
    found = top_k(queries, items, ids, 50, query_block=8, item_block=300)
    assert found.ids.tolist() == expected_ids
    assert Ragged(found.ids.offsets, found.scores).tolist() == expected_scores


@pytest.mark.parametrize("d", [1, 3, 12, 64, 1000, pytest.param(4096, marks=pytest.mark.slow)])
def test_the_proved_bound_holds_where_it_is_tightest(d: int) -> None:
    rng = np.random.default_rng(d)
    matrices = [
        rng.standard_normal((20, d)),
        np.abs(rng.standard_normal((20, d))),
        np.ones((20, d)) + 1e-3 * rng.random((20, d)),
        rng.standard_normal((20, d)) * 10.0 ** rng.integers(-30, 30, (20, 1)),
    ]
    vectors = np.concatenate(matrices).astype(np.float32)
    items = Items.prepare(np.arange(80, dtype=np.int32), vectors)
    found = kernel.search(vectors, items, 80, query_block=64, item_block=99)
    exact = np.array([[score for _, score in sorted(row)] for row in pairs(found)])
    assert np.abs(items.units.T @ items.units - exact).max() <= kernel.error(d)
    # and in the worst order of summation, one after the other in float32
    one_by_one = np.add.accumulate(items.units.T[:5, None, :] * items.units.T[None], axis=2)[:, :, -1]
    assert one_by_one.dtype == np.float32
    assert np.abs(one_by_one - exact[:5]).max() <= kernel.error(d)


@pytest.mark.usefixtures("prune_at_once")
def test_thousands_of_equal_items_keep_memory_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    original = kernel._best

    def watched(queries, norms, items, kept, k):  # type: ignore[no-untyped-def]
        nonlocal largest
        largest = max(largest, len(kept.rows))
        return original(queries, norms, items, kept, k)

    monkeypatch.setattr(kernel, "_best", watched)
    items = np.tile(np.array([[1, 2, 3]], dtype=np.float32), (20000, 1))
    items[15000:15005] = [3, 2, 1]
    queries = np.array([[1, 2, 3], [3, 2, 1], [-1, 0, 0]], dtype=np.float32)
    ids = np.arange(0, 60000, 3, dtype=np.int32)
    found = top_k(queries, items, ids, 10, query_block=3, item_block=100)
    expected_ids, expected_scores = top_k_float64(queries, items, ids, 10)
    assert found.ids.tolist() == expected_ids
    assert Ragged(found.ids.offsets, found.scores).tolist() == expected_scores
    assert largest <= 2 * 30 + 300


def test_zero_vectors_score_zero_and_rank_by_id() -> None:
    items = np.array([[0, 0], [1, 0], [-1, 0], [0, 0], [0, 5]], dtype=np.float32)
    found = top_k(
        np.array([[0, 0], [2, 0]], dtype=np.float32),
        items,
        np.arange(5, dtype=np.int32),
        9,
        query_block=2,
        item_block=2,
    )
    assert pairs(found) == [
        [(0, 0.0), (1, 0.0), (2, 0.0), (3, 0.0), (4, 0.0)],
        [(1, 1.0), (0, 0.0), (3, 0.0), (4, 0.0), (2, -1.0)],
    ]


@pytest.mark.parametrize(("q", "v", "k"), [(0, 5, 3), (4, 0, 3), (0, 0, 3), (4, 5, 0)])
def test_nothing_to_do(q: int, v: int, k: int) -> None:
    found = top_k(
        np.ones((q, 2), dtype=np.float32),
        np.ones((v, 2), dtype=np.float32),
        np.arange(v, dtype=np.int32),
        k,
        query_block=2,
        item_block=2,
    )
    assert found.ids.tolist() == [[]] * q
    assert (found.scores.dtype, found.scores.shape) == (np.dtype(np.float32), (0,))


def test_memory_mapped_items_work(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(2)
    items = Items.prepare(np.arange(500, dtype=np.int32), rng.standard_normal((500, 4)).astype(np.float32))
    mapped = {}
    for name in ("ids", "vectors", "units", "norms"):
        np.save(tmp_path / f"{name}.npy", getattr(items, name))
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    queries = rng.standard_normal((9, 4)).astype(np.float32)
    first, second = (kernel.search(queries, it, 20, query_block=4, item_block=64) for it in (items, Items(**mapped)))
    assert pairs(first) == pairs(second)


def test_invalid_arguments_raise() -> None:
    good = np.ones((3, 2), dtype=np.float32)
    ids = np.arange(3, dtype=np.int32)
    blocks = {"query_block": 2, "item_block": 2}
    bad: Any
    bad_ids: Any
    for bad in (good.astype(np.float64), good[0], good[:, :0], np.full((3, 2), np.nan, dtype=np.float32)):
        with pytest.raises(ValueError, match="items"):
            top_k(good, bad, ids, 1, **blocks)
        with pytest.raises(ValueError, match="queries"):
            top_k(bad, good, ids, 1, **blocks)
    for bad_ids in (ids[::-1], ids * 0, ids[:2], ids.astype(np.int64)):
        with pytest.raises(ValueError, match="item_ids"):
            top_k(good, good, bad_ids, 1, **blocks)
    with pytest.raises(ValueError, match="k: expected at least 0"):
        top_k(good, good, ids, -1, **blocks)
    with pytest.raises(ValueError, match="expected 2 dimensions like the items"):
        top_k(good[:, :1], good, ids, 1, **blocks)
    with pytest.raises(ValueError, match="blocks"):
        top_k(good, good, ids, 1, query_block=0, item_block=1)
    with pytest.raises(ValueError, match="scores"):
        Ranked(Ragged.empty(1), np.zeros(1, dtype=np.float32))


@given(st.lists(st.lists(st.integers(-2, 9), max_size=9), max_size=9), st.integers(1, 4), st.integers(1, 20))
def test_centroids_equal_their_definition_to_the_bit(rows: list[list[int]], d: int, block: int) -> None:
    rng = np.random.default_rng(d)
    vectors = (rng.standard_normal((5, d)) * 10.0 ** rng.integers(-8, 8, (5, 1))).astype(np.float32)
    row_of = np.array([3, -1, 0, 4, -1, 1, 2], dtype=np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ragged.blocks, "__defaults__", (block,))
        means, counts = kernel.centroids(Ragged.from_lists(rows), row_of, vectors)
    known = {track: vectors[row].tolist() for track, row in enumerate(row_of.tolist()) if row >= 0}
    expected = [centroid_slow(row, known, d) for row in rows]
    assert means.tolist() == [mean for mean, _ in expected]
    assert counts.tolist() == [count for _, count in expected]
    assert (means.dtype, counts.dtype) == (np.dtype(np.float32), np.dtype(np.int32))


def test_centroids_add_in_the_order_of_the_row() -> None:
    # in float64, each 1 is lost beside 1e17, but not where ones are added up first
    vectors = np.array([[1e17], [1.0], [-1e17]], dtype=np.float32)
    rows = [[0] + [1] * 64 + [2], [0, 2] + [1] * 64, [1] * 64 + [0, 2]]
    means, _ = kernel.centroids(Ragged.from_lists(rows), np.array([0, 1, 2], dtype=np.int32), vectors)
    known = {track: vector for track, vector in enumerate(vectors.tolist())}
    assert means.tolist() == [centroid_slow(row, known, 1)[0] for row in rows]
    assert means[0] == 0 < means[1]


def test_a_score_that_rounds_to_zero_from_below_ties_with_zero() -> None:
    items = np.array([[-1e-30, 1e30], [0, 1], [1e-30, 1e30]], dtype=np.float32)
    query = np.array([[1, 0]], dtype=np.float32)
    found = top_k(query, items, np.arange(3, dtype=np.int32), 3, query_block=1, item_block=1)
    assert pairs(found) == [[(0, 0.0), (1, 0.0), (2, 0.0)]]
    assert not np.signbit(found.scores).any()
