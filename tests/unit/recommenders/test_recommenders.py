"""The contract of all models, and the properties of each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encore.arrays import hashing
from encore.arrays.ragged import Ragged
from encore.arrays.ranked import Ranked
from encore.config import RecommendConfig
from encore.errors import ConfigError
from encore.recommenders import base
from encore.recommenders.base import FittedModel, TrainingData, recommend
from encore.recommenders.registry import MODELS, model
from encore.recommenders.uniform import smallest_prime
from tests.reference import centroid_slow, mix_slow, top_k_slow

CONFIG = RecommendConfig(
    models=tuple(MODELS), k=5, seed=42, train_on_challenge=False, query_block=3, item_block=8, index_items=1000
)
N_TRACKS = 60
RNG = np.random.default_rng(0)
VECTOR_IDS = np.flatnonzero(np.arange(N_TRACKS) % 5 != 0).astype(np.int32)
TRAIN = TrainingData(
    n_tracks=N_TRACKS,
    counts=RNG.integers(0, 6, N_TRACKS),
    vector_ids=VECTOR_IDS,
    vectors=RNG.integers(-2, 3, (len(VECTOR_IDS), 3)).astype(np.float32),
)
SEEDS = st.lists(st.tuples(st.integers(0, 2**62), st.lists(st.integers(-2, N_TRACKS + 3), max_size=70)), max_size=8)
every_model = pytest.mark.parametrize("name", sorted(MODELS))

LEARNS_CHECKERBOARD = {
    "cosine": None,
    "popularity": "knows how many playlists have a track, not which",
    "random": "knows nothing",
}
"""Why a model does not have to find the withheld square; None: it must. Lists every model."""


def fitted(name: str, train: TrainingData = TRAIN, config: RecommendConfig = CONFIG) -> FittedModel:
    return model(name).fit(train, config)


def rows(found: Ranked) -> list[list[tuple[int, float]]]:
    scores = Ragged(found.ids.offsets, found.scores)
    return [list(zip(found.ids[i].tolist(), scores[i].tolist(), strict=True)) for i in range(len(found))]


def arrays_of(cases: list[tuple[int, list[int]]]) -> tuple[np.ndarray, Ragged]:
    return np.array([pid for pid, _ in cases], dtype=np.int64), Ragged.from_lists([row for _, row in cases])


@every_model
@settings(max_examples=40)
@given(cases=SEEDS, k=st.integers(1, 90))
def test_lists_honour_the_contract(name: str, cases: list[tuple[int, list[int]]], k: int) -> None:
    pids, seeds = arrays_of(cases)
    found = recommend(fitted(name), pids, seeds, k)
    assert len(found) == len(cases)
    assert (found.ids.values.dtype, found.scores.dtype) == (np.dtype(np.int32), np.dtype(np.float32))
    assert np.isfinite(found.scores).all()
    for (_, own), row in zip(cases, rows(found), strict=True):
        ids = [i for i, _ in row]
        assert len(set(ids)) == len(ids) <= k
        assert not set(ids) & set(own)
        assert set(ids) <= set(range(N_TRACKS))
        assert row == sorted(row, key=lambda pair: (-pair[1], pair[0]))
        sayable = set(range(N_TRACKS)) if name != "cosine" else set(VECTOR_IDS.tolist())
        if name != "cosine" or sayable & set(own):
            assert len(ids) == min(k, len(sayable - set(own)))
        else:
            assert ids == []


@every_model
@settings(max_examples=25)
@given(cases=SEEDS, data=st.data())
def test_any_partition_gives_the_same_rows(name: str, cases: list[tuple[int, list[int]]], data: st.DataObject) -> None:
    pids, seeds = arrays_of(cases)
    whole = rows(recommend(fitted(name), pids, seeds, 7))
    order = np.array(data.draw(st.permutations(range(len(cases)))), dtype=np.int64)
    cut = data.draw(st.integers(0, len(cases)))
    again = fitted(name, config=CONFIG.model_copy(update={"query_block": 100, "item_block": 3, "index_items": 7}))
    for part in (order[:cut], order[cut:]):
        assert rows(recommend(again, pids[part], seeds.take(part), 7)) == [whole[i] for i in part]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_ROWS", 2)
        assert rows(recommend(again, pids, seeds, 7)) == whole


@every_model
def test_a_longer_list_starts_with_the_shorter_one(name: str) -> None:
    pids, seeds = arrays_of([(1, [3, 4, 9]), (2, [1])])
    longest = rows(recommend(fitted(name), pids, seeds, N_TRACKS))
    for k in (1, 5, 30):
        assert rows(recommend(fitted(name), pids, seeds, k)) == [row[:k] for row in longest]


@every_model
def test_order_repeats_and_unknown_tracks_do_not_matter(name: str) -> None:
    there = fitted(name)
    expected = rows(recommend(there, np.array([8]), Ragged.from_lists([[1, 2, 3]]), 10))
    strange = Ragged.from_lists([[1, 2, 3, N_TRACKS, 2**31 - 1, -1]])
    assert rows(recommend(there, np.array([8]), strange, 10)) == expected
    unknown = rows(recommend(there, np.array([8]), Ragged.from_lists([[N_TRACKS + 1]]), 10))
    assert unknown == rows(recommend(there, np.array([8]), Ragged.from_lists([[]]), 10))


@every_model
@pytest.mark.parametrize("train", [TRAIN, TrainingData(0, TRAIN.counts[:0], VECTOR_IDS[:0], TRAIN.vectors[:0])])
def test_save_and_load_give_the_same_rows(name: str, train: TrainingData, tmp_path: Path) -> None:
    there = fitted(name, train)
    for key, array in there.arrays.items():
        np.save(tmp_path / f"{key}.npy", array, allow_pickle=False)
    arrays = {path.stem: np.load(path, mmap_mode="r" if train.n_tracks else None) for path in tmp_path.glob("*.npy")}
    back = model(name).load(arrays, CONFIG)
    pids, seeds = arrays_of([(1, [1, 2]), (2, []), (3, [7, 11, 13])])
    assert rows(recommend(back, pids, seeds, 9)) == rows(recommend(there, pids, seeds, 9))
    assert set(back.arrays) == set(there.arrays)
    if not train.n_tracks:
        assert rows(recommend(back, pids, seeds, 9)) == [[], [], []]


@every_model
def test_fields_that_are_not_needed_may_be_empty(name: str) -> None:
    empty = TrainingData(N_TRACKS, TRAIN.counts[:0], VECTOR_IDS[:0], TRAIN.vectors[:0])
    needed = replace(empty, **{field: getattr(TRAIN, field) for field in model(name).needs})
    pids, seeds = arrays_of([(1, [1, 2])])
    expected = rows(recommend(fitted(name), pids, seeds, 9))
    assert rows(recommend(fitted(name, needed), pids, seeds, 9)) == expected


@every_model
def test_checkerboard(name: str) -> None:
    reason = LEARNS_CHECKERBOARD[name]
    if reason is not None:
        pytest.skip(reason)
    # tracks 0-29 and 30-59 are two squares far from each other; playlists have a third of theirs
    square = np.arange(N_TRACKS) // 30
    vectors = np.where(square[:, None] == 0, [10.0, 0.0, 0.0], [0.0, 10.0, 0.0])
    vectors = (vectors + np.random.default_rng(1).uniform(-1, 1, (N_TRACKS, 3))).astype(np.float32)
    seeds = Ragged.from_lists([list(range(30 * (pid % 2), 30 * (pid % 2) + 10)) for pid in range(6)])
    counts = np.bincount(seeds.values, minlength=N_TRACKS)
    train = TrainingData(N_TRACKS, counts, np.arange(N_TRACKS, dtype=np.int32), vectors)
    found = recommend(fitted(name, train), np.arange(6), seeds, 20)
    for pid in range(6):
        assert set(found.ids[pid].tolist()) == set(range(30 * (pid % 2) + 10, 30 * (pid % 2) + 30))


def test_every_model_declares_whether_it_learns_the_checkerboard() -> None:
    assert set(LEARNS_CHECKERBOARD) == set(MODELS)
    assert all(entry.name == name for name, entry in MODELS.items())
    assert {"cosine", "popularity", "random"} <= set(MODELS)


def test_an_unknown_model_raises_and_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no model 'nope'") as caught:
        model("nope")
    assert caught.value.remedy == "one of: cosine, popularity, random"


def test_recommend_with_invalid_arguments_raises() -> None:
    with pytest.raises(ValueError, match="1 pids but 2 rows"):
        recommend(fitted("popularity"), np.array([1]), Ragged.empty(2), 5)
    with pytest.raises(ValueError, match="k: expected at least 1"):
        recommend(fitted("popularity"), np.array([1]), Ragged.empty(1), 0)


@settings(max_examples=40)
@given(cases=SEEDS)
def test_cosine_matches_brute_force_without_the_seeds(cases: list[tuple[int, list[int]]]) -> None:
    pids, seeds = arrays_of(cases)
    known = dict(zip(VECTOR_IDS.tolist(), TRAIN.vectors.tolist(), strict=True))
    for (_, own), row in zip(cases, rows(recommend(fitted("cosine"), pids, seeds, 9)), strict=True):
        mean, count = centroid_slow(own, known, 3)
        others = {track: vector for track, vector in known.items() if track not in own}
        expected = top_k_slow([mean], list(others.values()), list(others), [9])[0] if count else []
        assert row == expected


def test_cosine_rejects_vectors_of_unknown_tracks() -> None:
    with pytest.raises(ValueError, match="vector ids: expected 0 to 4"):
        fitted("cosine", replace(TRAIN, n_tracks=5))


def test_popularity_counts_and_breaks_ties_by_id() -> None:
    train = replace(TRAIN, n_tracks=5, counts=np.array([1, 3, 0, 3, 0]))
    found = recommend(fitted("popularity", train), np.array([1, 2]), Ragged.from_lists([[], [3]]), 4)
    assert rows(found) == [[(1, 3.0), (3, 3.0), (0, 1.0), (2, 0.0)], [(1, 3.0), (0, 1.0), (2, 0.0), (4, 0.0)]]
    # from 2**24 on float32 does not tell neighbours apart: the scores that are stored decide
    close = replace(TRAIN, n_tracks=2, counts=np.array([2**24, 2**24 + 1]))
    assert recommend(fitted("popularity", close), np.array([1]), Ragged.empty(1), 2).ids.tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="counts: expected 5 numbers"):
        fitted("popularity", replace(train, counts=np.array([1])))


@every_model
def test_orphaned_tracks_are_never_recommended(name: str) -> None:
    orphaned = np.array([0, 7, 31, N_TRACKS - 1], np.int32)
    kept = ~np.isin(TRAIN.vector_ids, orphaned)
    train = replace(TRAIN, orphaned=orphaned, vector_ids=TRAIN.vector_ids[kept], vectors=TRAIN.vectors[kept])
    found = recommend(fitted(name, train), np.arange(30), Ragged.from_lists([[i, i + 1] for i in range(30)]), N_TRACKS)
    assert len(found.ids.values)
    assert not np.isin(found.ids.values, orphaned).any()
    if name != "cosine":
        others = [{t for t in range(N_TRACKS) if t not in orphaned} - {i, i + 1} for i in range(30)]
        assert [set(row) for row in found.ids.tolist()] == others


@pytest.mark.parametrize("n_tracks", [1, 2, 3, 24, 25, 97])
def test_random_matches_its_documented_permutation(n_tracks: int) -> None:
    train = replace(TRAIN, n_tracks=n_tracks)
    prime = smallest_prime(n_tracks)
    found = recommend(fitted("random", train), np.array([0, 5, 2**62]), Ragged.empty(3), 500)
    for pid, row in zip((0, 5, 2**62), rows(found), strict=True):
        a = 1 + mix_slow(42, pid, 0) % (prime - 1)
        b = mix_slow(42, pid, 1) % prime
        order = [t for t in ((a * j + b) % prime for j in range(prime)) if t < n_tracks]
        assert sorted(order) == list(range(n_tracks))
        assert row == [(t, float(np.float32(1 / (i + 1)))) for i, t in enumerate(order)]


def test_random_is_uniform_and_depends_on_seed() -> None:
    pids = np.arange(20000)
    there = fitted("random")
    found = recommend(there, pids, Ragged.empty(len(pids)), 3)
    counts = np.bincount(found.ids.values, minlength=N_TRACKS)
    # 60000 draws over 60 tracks: 1000 each, deviation below 32
    assert np.abs(counts - 1000).max() < 5 * 32
    other = fitted("random", config=CONFIG.model_copy(update={"seed": 43}))
    again = recommend(other, pids, Ragged.empty(len(pids)), 3)
    assert abs((again.ids.values == found.ids.values).mean() - 1 / N_TRACKS) < 0.01


def test_random_does_not_overflow_in_a_catalogue_of_any_size() -> None:
    n_tracks = 2**31 - 1
    train = replace(TRAIN, n_tracks=n_tracks)
    found = recommend(fitted("random", train), np.arange(50), Ragged.empty(50), 1000)
    assert found.ids.lengths.tolist() == [1000] * 50
    ids = found.ids.values.astype(np.int64)
    assert 0 <= ids.min() <= ids.max() < n_tracks
    assert abs(ids.mean() / n_tracks - 0.5) < 0.02
    a, b = (int(hashing.mix(42, np.array([3]), np.array([which]))[0]) for which in (0, 1))
    a, b = 1 + a % (n_tracks - 1), b % n_tracks
    assert found.ids[3].tolist() == [(a * j + b) % n_tracks for j in range(1000)]
    there = fitted("random", train)
    with pytest.raises(ValueError, match="at most 8388608"):
        there.candidates(np.array([1]), Ragged.empty(1), np.array([2**23 + 1]))


def test_smallest_prime() -> None:
    assert [smallest_prime(n) for n in (0, 1, 2, 3, 4, 90, 2**31 - 1)] == [2, 2, 2, 3, 5, 97, 2**31 - 1]
