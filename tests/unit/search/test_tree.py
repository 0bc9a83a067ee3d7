from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from encore.arrays import jit
from encore.arrays.ranked import Ranked
from encore.search import index, kernel, tree
from encore.search.kernel import Items
from encore.search.tree import LEAF, NODE, Tree
from tests.reference import top_k_slow
from tests.unit.search.test_kernel import pairs, problems

LANES = 16
LIMIT_SCORED, LIMIT_BOUNDED = 0.032, 0.27


def brute(queries: np.ndarray, ids: np.ndarray, items: np.ndarray, k: object) -> Ranked:
    return kernel.search(queries, Items.prepare(ids, items), k, query_block=64, item_block=10**6)  # type: ignore[arg-type]


def assert_same(found: Ranked, expected: Ranked) -> None:
    assert found.ids.offsets.tolist() == expected.ids.offsets.tolist()
    assert found.ids.values.tolist() == expected.ids.values.tolist()
    assert (found.ids.values.dtype, found.scores.dtype) == (np.dtype(np.int32), np.dtype(np.float32))
    # as bits, so that -0.0 is not 0.0
    assert found.scores.view(np.int32).tolist() == expected.scores.view(np.int32).tolist()


def clustered(n: int, d: int, seed: int, clusters: int = 300) -> np.ndarray:
    centres = np.random.default_rng(d).standard_normal((clusters, d))
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, clusters, n)] + 0.4 * rng.standard_normal((n, d))).astype(np.float32)


def adversarial(n: int, d: int) -> np.ndarray:
    """Items of which many are equal, zero, opposite, parallel, huge or tiny."""
    rng = np.random.default_rng(d)
    items = rng.standard_normal((n, d)).astype(np.float32)
    items[rng.integers(0, n, n // 3)] = items[rng.integers(0, 20, n // 3)]
    items[rng.integers(0, n, n // 20)] *= -1
    items[rng.integers(0, n, n // 20)] = 0
    some = rng.integers(0, n, n // 5)
    items[some] *= (10.0 ** rng.integers(-37, 37, (len(some), 1))).astype(np.float32)
    return items


@settings(max_examples=150, deadline=None)
@given(problems())
def test_search_equals_plain_python_to_the_bit(problem: tuple[np.ndarray, ...]) -> None:
    queries, items, ids, k = problem
    built = Tree.build(ids, items)
    expected = top_k_slow(queries.tolist(), items.tolist(), ids.tolist(), k.tolist())
    # few queries visit leaves one query after the other, many together
    for times in (1, 12):
        found = tree.search(np.tile(queries, (times, 1)), built, np.tile(k, times))
        assert pairs(found) == expected * times
        assert not np.signbit(found.scores[found.scores == 0]).any()


@pytest.mark.parametrize(
    "d", [1, 2, pytest.param(12, marks=pytest.mark.slow), 13, pytest.param(300, marks=pytest.mark.slow)]
)
def test_search_equals_brute_force_to_the_bit(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 3000 if d < 100 else 800
    items, ids = adversarial(n, d), np.arange(n, dtype=np.int32) * 7 - 9000
    queries = np.concatenate([items[:150], np.random.default_rng(1).standard_normal((150, d)).astype(np.float32)])
    built = Tree.build(ids, items)
    mixed = np.random.default_rng(2).integers(0, 900, len(queries))
    for k in (0, 1, 70, n - 1, n + 5, mixed):
        assert_same(tree.search(queries, built, k), brute(queries, ids, items, k))
    for group, threads in ((16, 1), (16, 2), (160, 3)):
        monkeypatch.setattr(tree, "_GROUP", group)
        assert_same(tree.search(queries, built, mixed, threads=threads), brute(queries, ids, items, mixed))


def test_results_do_not_depend_on_the_number_of_queries() -> None:
    items, ids = clustered(20000, 12, seed=5), np.arange(20000, dtype=np.int32)
    queries = clustered(500, 12, seed=6)
    built = Tree.build(ids, items)
    whole = tree.search(queries, built, 100)
    assert_same(whole, brute(queries, ids, items, 100))
    for size in (1, 16, 17, 333):
        parts = [tree.search(queries[start : start + size], built, 100) for start in range(0, 500, size)]
        assert_same(Ranked.concat(parts), whole)


@pytest.mark.parametrize("q", [1, 16, 17])
def test_scores_closer_than_float32_can_tell(q: int) -> None:
    # all items lie within 1e-6 of one direction: the approximate order is noise, the exact one is not
    rng = np.random.default_rng(9)
    items = (1 + 1e-6 * rng.standard_normal((4000, 12))).astype(np.float32)
    queries = (1 + 1e-6 * rng.standard_normal((q, 12))).astype(np.float32)
    ids = np.arange(4000, dtype=np.int32)
    found, work = tree.search_with_stats(queries, Tree.build(ids, items), 50)
    assert_same(found, brute(queries, ids, items, 50))
    assert work.cuts > 0


@pytest.mark.parametrize("times", [1, 5])
def test_thousands_of_equal_items_are_cut_to_the_best_again_and_again(times: int) -> None:
    items = np.tile(np.array([[1, 2, 3]], dtype=np.float32), (20000, 1))
    items[15000:15005] = [3, 2, 1]
    queries = np.tile(np.array([[1, 2, 3], [3, 2, 1], [-1, 0, 0], [0, 0, 0]], dtype=np.float32), (times, 1))
    ids = np.arange(0, 60000, 3, dtype=np.int32)
    found, work = tree.search_with_stats(queries, Tree.build(ids, items), 10)
    assert_same(found, brute(queries, ids, items, 10))
    assert work.cuts > 20


def test_a_tree_loaded_from_mapped_files_returns_the_same(tmp_path: Path) -> None:
    items, ids = clustered(5000, 12, seed=3), np.arange(5000, dtype=np.int32)
    built = Tree.build(ids, items)
    mapped = {}
    for name, array in built.arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    queries = clustered(40, 12, seed=4)
    assert_same(tree.search(queries, Tree.load(mapped), 30), tree.search(queries, built, 30))


@pytest.mark.parametrize("d", [1, 2, 12, 300])
def test_caps_enclose_their_items_in_float64(d: int) -> None:
    items = adversarial(3000, d)
    built = Tree.build(np.arange(3000, dtype=np.int32), items)
    ordered = items[built.ids].astype(np.float64)
    norms = np.linalg.norm(ordered, axis=1)
    leaf_caps = built.leaf_caps.transpose(0, 2, 1).reshape(-1, built.leaf_caps.shape[1])
    tightest = 1.0
    for caps, size in ((leaf_caps, LEAF), (built.node_caps, NODE)):
        for number in range(0, 3000 // size):
            at = slice(number * size, (number + 1) * size)
            own, lengths = ordered[at][norms[at] > 0], norms[at][norms[at] > 0]
            cap = caps[number].astype(np.float64)
            centre, cosine, sine = cap[:d], cap[d], cap[d + 1]
            assert cap[d + 2] == 1
            if cosine == -1:
                assert sine == 4
                continue
            assert cosine**2 + sine**2 == pytest.approx(1, abs=3e-7)
            if len(own):
                least = (own @ centre / (lengths * np.linalg.norm(centre))).min()
                assert least > cosine
                tightest = min(tightest, least - cosine)
    # and none is wider than rounding makes it
    assert tightest < 4e-7


@pytest.mark.parametrize("d", [1, 12, 64, 1000])
def test_the_proved_bound_on_scores_holds_where_it_is_tightest(d: int) -> None:
    rng = np.random.default_rng(d)
    vectors = np.concatenate(
        [
            np.ones((40, d)) + 1e-3 * rng.random((40, d)),
            rng.standard_normal((40, d)) * 10.0 ** rng.integers(-28, 28, (40, 1)),
        ]
    ).astype(np.float32)
    norms = kernel._norms(vectors)
    units, factors = kernel._units(vectors, norms), (1 / norms).astype(np.float32)
    # in the worst order of summation, one after the other in float32
    with np.errstate(under="ignore"):
        sums = np.add.accumulate(units[:, None, :] * vectors[None], axis=2)[:, :, -1] * factors
    assert sums.dtype == np.float32
    wide = vectors.astype(np.float64)
    exact = (np.add.accumulate(wide[:, None, :] * wide[None], axis=2)[:, :, -1] / (norms[:, None] * norms)).astype("f4")
    assert np.abs(sums.astype(np.float64) - exact).max() <= kernel.error(d)


@pytest.mark.parametrize("d", [2, 12, 14])
def test_primitives_equal_plain_python(d: int) -> None:
    import numba

    from encore.search import lanes

    @numba.njit
    def all_of(columns, at, rows, first, second, n, low):  # type: ignore[no-untyped-def]
        plain, scaled = np.empty(20, np.float32), np.empty(20, np.float32)
        lanes.dots(columns, at, rows, first, n, plain, 4)  # type: ignore[call-arg]
        lanes.scores(columns, at, rows, first, n, scaled, 4)
        reached = lanes.reached(columns, at, rows, first, n)
        return plain[4:], scaled[4:], reached, lanes.hits_of_two(columns, at, rows, first, second, n, low, low)

    rng = np.random.default_rng(d)
    columns, rows = rng.standard_normal(5 + LANES * (d + 1)).astype("f4"), rng.standard_normal(3 * d).astype("f4")
    columns[5 + LANES * d + 3] = np.nan
    plain, scaled, reached, hits = all_of(columns, 5, rows, d, 2 * d, d, np.float32(0.3))
    expected = [
        [sums_loop(columns, 5, rows[at : at + d], scaled=scaled) for scaled in (False, True)] for at in (d, 2 * d)
    ]
    np.testing.assert_allclose(plain, expected[0][0], atol=1e-5)
    np.testing.assert_allclose(scaled, expected[0][1], atol=1e-5)
    assert reached == bits(expected[0][0] >= 0)
    assert hits == bits(np.concatenate([~(both[1] < 0.3) for both in expected]))
    assert hits & hits >> 16 & 1 << 3, "what is not a number counts as a hit"


def sums_loop(columns: np.ndarray, at: int, row: np.ndarray, *, scaled: bool) -> np.ndarray:
    """The sums that the primitives of lanes.py compute, by numpy, float64 (16,)."""
    block = columns[at : at + LANES * (len(row) + 1)].reshape(len(row) + 1, LANES).astype(np.float64)
    sums: np.ndarray = block[:-1].T @ row.astype(np.float64)
    return sums * block[-1] if scaled else sums


def bits(mask: np.ndarray) -> int:
    return sum(1 << i for i in np.flatnonzero(mask).tolist())


def test_few_items_are_scored() -> None:
    n = 200_000
    items, ids = clustered(n, 12, seed=1), np.arange(n, dtype=np.int32)
    queries = clustered(1000, 12, seed=2)
    found, work = tree.search_with_stats(queries, Tree.build(ids, items), 100)
    assert_same(found.head(100), brute(queries, ids, items, 100))
    assert (work.queries, work.items, work.nodes) == (1000, n, 1000 * -(-n // NODE))
    assert 100 / n < work.share < LIMIT_SCORED
    assert work.bounded < LIMIT_BOUNDED * work.nodes
    assert work.cuts < 20


@pytest.mark.parametrize(("q", "v", "k"), [(0, 5, 3), (4, 0, 3), (0, 0, 3), (4, 5, 0)])
def test_nothing_to_do(q: int, v: int, k: int) -> None:
    built = Tree.build(np.arange(v, dtype=np.int32), np.ones((v, 2), dtype=np.float32))
    found = tree.search(np.ones((q, 2), dtype=np.float32), built, k)
    assert found.ids.tolist() == [[]] * q
    assert (found.scores.dtype, found.scores.shape) == (np.dtype(np.float32), (0,))


def test_invalid_arguments_raise() -> None:
    good, ids = np.ones((3, 2), dtype=np.float32), np.arange(3, dtype=np.int32)
    built = Tree.build(ids, good)
    bad: Any
    for bad in (good.astype(np.float64), good[0], good[:, :0], np.full((3, 2), np.nan, dtype=np.float32)):
        with pytest.raises(ValueError, match="items"):
            Tree.build(ids, bad)
        with pytest.raises(ValueError, match="queries"):
            tree.search(bad, built, 1)
    for bad_ids in (ids[::-1], ids * 0, ids[:2], ids.astype(np.int64)):
        with pytest.raises(ValueError, match="item_ids"):
            Tree.build(bad_ids, good)
    with pytest.raises(ValueError, match="k: expected at least 0"):
        tree.search(good, built, -1)
    with pytest.raises(ValueError, match="expected 2 dimensions like the items"):
        tree.search(good[:, :1], built, 1)
    with pytest.raises(ValueError, match="threads"):
        tree.search(good, built, 1, threads=0)


def test_numba_is_imported_only_to_search() -> None:
    code = (
        "import sys; from encore.search import index, kernel, tree; import encore.recommenders.registry;"
        "assert not {'numba', 'llvmlite'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_compiled_code_goes_to_a_writable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "named"))
    assert jit.cache_folder() == tmp_path / "named"
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    own = Path(jit.__file__).parent / "__pycache__"
    assert jit.cache_folder() == own
    writable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != own and writable(path, mode))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert jit.cache_folder() == tmp_path / f"encore-compiled-{os.getuid()}"


def test_one_process_compiles_and_others_wait(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = "import sys; from pathlib import Path; from encore.arrays import jit\n" + (
        "with jit.file_lock(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(path)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stdout.readline() == b"in\n"
    second = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    time.sleep(0.5)
    assert second.poll() is None
    first.communicate()
    assert second.communicate(timeout=20)[0] == b"in\n"


def test_an_index_explains_its_method(monkeypatch: pytest.MonkeyPatch) -> None:
    items, ids = clustered(8000, 12, seed=1), np.arange(8000, dtype=np.int32)
    chosen = index.build(ids, items)
    assert (chosen.method, "% of the items" in chosen.reason) == ("tree", True)
    few = index.build(ids[:100], items[:100])
    assert (few.method, few.reason) == ("brute", f"100 items, fewer than {index.MIN_TREE_ITEMS}")
    wide = np.random.default_rng(0).standard_normal((5000, index.MAX_TREE_DIMENSIONS + 1)).astype(np.float32)
    assert index.build(ids[:5000], wide).reason == "513 dimensions, more than 512"
    # of items without any order, a tree scores all: that pays only against the sorting of brute force
    scattered = np.ascontiguousarray(wide[:, :40])
    assert index.build(ids[:5000], scattered).method == "tree"
    monkeypatch.setattr(index, "SORT_COST", 0)
    assert index.build(ids[:5000], scattered).method == "brute"
    assert index.build(ids, clustered(8000, 3, seed=1)).method == "tree"
    assert [index.build(ids, items, method).method for method in ("tree", "brute")] == ["tree", "brute"]


@pytest.mark.parametrize("method", ["tree", "brute"])
def test_both_methods_return_the_same_before_and_after_loading(method: index.Method) -> None:
    items, ids = adversarial(3000, 5), np.arange(3000, dtype=np.int32) * 2
    built = index.build(ids, items, method, query_block=7, item_block=100)
    queries, k = items[:70], np.arange(70)
    expected = brute(queries, ids, items, k)
    loaded = index.Index.load({**built.arrays, "other": ids})
    assert (loaded.method, len(loaded)) == (method, 3000)
    for found in (built.search(queries, k), built.search(queries, k, threads=2), loaded.search(queries, k)):
        assert_same(found, expected)


@pytest.mark.parametrize("method", ["tree", "brute"])
def test_a_blocked_index_ranks_like_a_single_one(method: index.Method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_MERGED_VALUES", 100)
    items, ids = adversarial(2000, 4), np.arange(2000, dtype=np.int32) * 3
    queries, k = items[:50], np.arange(50) * 20
    # an id of a block may lie between two of another, and equal items in different blocks
    cuts = [slice(start, None, 5) for start in range(5)]
    blocks = [(ids[cut], np.ascontiguousarray(items[cut])) for cut in cuts]
    built = index.build_blocked(iter(blocks), method)
    assert [len(one) for one in built.indexes] == [400] * 5
    expected = brute(queries, ids, items, k)
    assert_same(built.search(queries, k), expected)
    assert_same(index.BlockedIndex.load({**built.arrays, "row_of": ids}).search(queries, k), expected)
    assert index.build_blocked(iter([])).search(queries, k).ids.tolist() == [[]] * 50
    with pytest.raises(ValueError, match="k: expected at least 0"):
        built.search(queries, -1)
