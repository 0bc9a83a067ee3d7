"""The contract of all models, and the properties of those that learn nothing from playlists."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encore.arrays import hashing
from encore.arrays.ragged import Ragged
from encore.arrays.ranked import Ranked
from encore.config import RecommendConfig
from encore.errors import ConfigError
from encore.lake.tables import HOLDOUT, TRACKS, Table, arrow_schema
from encore.recommenders import base
from encore.recommenders.base import NO_PID, FittedModel, Queries, TrainingData, recommend
from encore.recommenders.registry import MODELS, model, with_parts
from encore.recommenders.training import training_data
from encore.recommenders.uniform import smallest_prime
from tests.reference import centroid_slow, mix_slow, top_k_slow
from tests.unit.recommenders.cases import (
    CONFIG,
    N_PLAYLISTS,
    N_TRACKS,
    SPLIT,
    TITLES,
    TRAIN,
    Query,
    fitted,
    fitted_parts,
    queries,
    rows,
)

VECTOR_IDS = TRAIN.vector_ids


@dataclass(frozen=True)
class Traits:
    """What a model promises besides the contract. A text says why it does not promise something; None: it does."""

    not_the_checkerboard: str | None = None
    not_its_own_row: str | None = None
    """Why a query's row may depend on the tracks of its own playlist in the training data."""
    ranks_everything: bool = False
    """Every row has all tracks that may be recommended."""
    uses_titles: bool = False
    uses_seeds: bool = True
    counts_repeats: bool = False
    """A seed that is given twice counts twice."""
    uses_order: bool = False
    """The last seeds count more than the first."""
    leaves_out_exactly: bool = True
    """Leaving a playlist out gives the very numbers of a model that was trained without it."""


TRAITS = {
    "adjacency": Traits(),
    "artist": Traits(),
    "cosine": Traits(not_its_own_row="learns from vectors, not from playlists", counts_repeats=True),
    "fusion": Traits(
        not_its_own_row="combines ials and popularity, which do not leave it out",
        ranks_everything=True,
        uses_titles=True,
    ),
    "ials": Traits(
        not_its_own_row="the factors of items are learnt from all playlists, and its own factors are not used",
        uses_titles=True,
    ),
    "item_knn": Traits(),
    "playlist_knn": Traits(),
    "popularity": Traits(
        not_the_checkerboard="knows how many playlists have a track, not which",
        not_its_own_row="counts every playlist, and ranks the same for all",
        ranks_everything=True,
        uses_seeds=False,
    ),
    "random": Traits(
        not_the_checkerboard="knows nothing",
        not_its_own_row="knows nothing",
        ranks_everything=True,
        uses_seeds=False,
    ),
    "ranker": Traits(
        not_its_own_row="orders what fusion recommends, which does not leave it out",
        ranks_everything=True,
        uses_titles=True,
        uses_order=True,
    ),
    "title": Traits(uses_titles=True, uses_seeds=False, leaves_out_exactly=False),
}
"""Lists every model."""

SEEDS = st.lists(st.integers(-2, N_TRACKS + 3), max_size=30)
PIDS = st.sampled_from([NO_PID, 0, 2**62, *TRAIN.pids.tolist()])
CASES = st.lists(st.tuples(PIDS, SEEDS, st.sampled_from([*TITLES, "zzz", "", "rocket"])), max_size=6)
every_model = pytest.mark.parametrize("name", sorted(MODELS))


def ask(there: FittedModel, cases: list[Query], k: int) -> list[list[tuple[int, float]]]:
    return rows(recommend(there, queries(cases), k))


def some_queries() -> list[Query]:
    """Queries of all sorts: of playlists in the training data and others, with and without seeds and titles."""
    own = [
        (pid, TRAIN.lists[i].tolist(), TRAIN.titles[i]) for i, pid in enumerate(TRAIN.pids.tolist()) if not i % 4 // 2
    ]
    part = [(pid, seeds[::3], title) for pid, seeds, title in own]
    return [*own, *part, (NO_PID, [], None), (NO_PID, [], "rock"), (NO_PID, [17], None), (5, [40, 2, 31], "rap")]


def test_every_model_declares_its_traits() -> None:
    assert set(TRAITS) == set(MODELS)
    assert all(entry.name == name for name, entry in MODELS.items())
    for entry in with_parts(MODELS):
        assert set(entry.settings) <= set(RecommendConfig.model_fields)
        assert set(entry.needs) <= set(TrainingData.__dataclass_fields__) - {"n_tracks", "orphaned"}


def test_the_ranker_has_trees() -> None:
    assert len(fitted("ranker").arrays["leaf_values"])


# --- lists ------------------------------------------------------------------------------------------------------


@every_model
@settings(max_examples=25)
@given(cases=CASES, k=st.integers(1, 90))
def test_lists_honour_the_contract(name: str, cases: list[Query], k: int) -> None:
    found = recommend(fitted(name), queries(cases), k)
    assert len(found) == len(cases)
    assert (found.ids.values.dtype, found.scores.dtype) == (np.dtype(np.int32), np.dtype(np.float32))
    assert np.isfinite(found.scores).all()
    for (_, own, title), row in zip(cases, rows(found), strict=True):
        ids = [i for i, _ in row]
        assert len(set(ids)) == len(ids) <= k
        assert not set(ids) & set(own)
        assert set(ids) <= set(range(N_TRACKS))
        assert row == sorted(row, key=lambda pair: (-pair[1], pair[0]))
        if TRAITS[name].ranks_everything:
            assert len(ids) == min(k, len(set(range(N_TRACKS)) - set(own)))
        elif not set(own) & set(range(N_TRACKS)) and not (title and TRAITS[name].uses_titles):
            assert ids == []


@every_model
def test_a_longer_list_starts_with_the_shorter_one(name: str) -> None:
    longest = ask(fitted(name), some_queries(), N_TRACKS)
    assert any(len(row) > 5 for row in longest)
    for k in (1, 5, 30):
        assert ask(fitted(name), some_queries(), k) == [row[:k] for row in longest]
    # candidates too, with different numbers for each query
    asked = queries(some_queries())
    n = np.arange(len(asked)) % 7 * 3
    whole = rows(fitted(name).candidates(asked, np.full(len(asked), N_TRACKS)))
    for row, wanted, all_of_it in zip(rows(fitted(name).candidates(asked, n)), n.tolist(), whole, strict=True):
        assert len(row) >= min(wanted, len(all_of_it))
        assert row == all_of_it[: len(row)]


@every_model
def test_order_repeats_and_unknown_tracks_do_not_matter(name: str) -> None:
    expected = ask(fitted(name), [(8, [1, 2, 3, 20], "rap")], 10)
    repeats = [] if TRAITS[name].counts_repeats else [2, 2]
    order = [1, 2, 3, 20] if TRAITS[name].uses_order else [20, 1, 3, 2]
    given = [*order[:3], N_TRACKS, order[3], 2**31 - 1, -1, *repeats]
    assert ask(fitted(name), [(8, given, "rap")], 10) == expected
    unknown = ask(fitted(name), [(8, [N_TRACKS + 1], None)], 10)
    assert unknown == ask(fitted(name), [(8, [], None)], 10)


@every_model
def test_queries_with_little(name: str) -> None:
    nothing, title_only, one_seed = ask(
        fitted(name), [(NO_PID, [], None), (NO_PID, [], "Summer"), (NO_PID, [17], None)], 10
    )
    traits = TRAITS[name]
    assert bool(nothing) == traits.ranks_everything
    assert bool(title_only) == (traits.ranks_everything or traits.uses_titles)
    assert bool(one_seed) == (traits.ranks_everything or traits.uses_seeds)


@every_model
def test_orphaned_tracks_are_never_recommended(name: str) -> None:
    orphaned = np.array([0, 7, 31, N_TRACKS - 1], np.int32)
    kept = ~np.isin(TRAIN.vector_ids, orphaned)
    train = replace(TRAIN, orphaned=orphaned, vector_ids=TRAIN.vector_ids[kept], vectors=TRAIN.vectors[kept])
    found = ask(fitted(name, train), some_queries(), N_TRACKS)
    ids = {i for row in found for i, _ in row}
    assert ids
    assert not ids & set(orphaned.tolist())
    if TRAITS[name].ranks_everything:
        listed = set(range(N_TRACKS)) - set(orphaned.tolist())
        assert [len(row) for row in found] == [len(listed - set(own)) for _, own, _ in some_queries()]


# --- learning ---------------------------------------------------------------------------------------------------


@every_model
def test_checkerboard(name: str) -> None:
    reason = TRAITS[name].not_the_checkerboard
    if reason is not None:
        pytest.skip(reason)
    # tracks 0-29 and 30-59 are two squares far from each other; playlists have half of theirs
    rng = np.random.default_rng(1)
    square = (np.arange(N_TRACKS) // 30).astype(np.int32)
    vectors = np.where(square[:, None] == 0, [10.0, 0.0, 0.0], [0.0, 10.0, 0.0])
    lists = Ragged.from_lists([(rng.permutation(30)[:15] + 30 * (i % 2)).tolist() for i in range(40)])
    train = TrainingData(
        n_tracks=N_TRACKS,
        counts=np.bincount(lists.values, minlength=N_TRACKS),
        vector_ids=np.arange(N_TRACKS, dtype=np.int32),
        vectors=(vectors + rng.uniform(-1, 1, (N_TRACKS, 3))).astype(np.float32),
        pids=np.arange(40),
        lists=lists,
        titles=[("Left", "right!")[i % 2] for i in range(40)],
        artist_of=square,
        album_of=square,
    )
    asked: list[Query] = [(NO_PID, list(range(30 * i, 30 * i + 10)), ("left", "RIGHT")[i]) for i in (0, 1, 0)]
    for i, row in zip((0, 1, 0), ask(fitted(name, train), asked, 20), strict=True):
        assert {track for track, _ in row} == set(range(30 * i + 10, 30 * i + 30))


def without(train: TrainingData, at: int) -> TrainingData:
    """The same data as if a playlist had never been there."""
    kept = np.delete(np.arange(len(train.pids)), at)
    titles = [train.titles[i] for i in kept.tolist()]
    counts = train.counts - np.bincount(train.lists[at], minlength=train.n_tracks)
    return replace(train, pids=train.pids[kept], lists=train.lists.take(kept), titles=titles, counts=counts)


@every_model
@pytest.mark.parametrize("capped", [False, True])
def test_a_playlist_of_the_training_data_is_left_out_of_its_own_query(name: str, capped: bool) -> None:
    """Its row is that of a model which was trained without the playlist."""
    config = CONFIG
    if capped:
        sections = {key: getattr(CONFIG, key) for key in ("adjacency", "item_knn", "playlist_knn")}
        config = CONFIG.model_copy(
            update={key: section.model_copy(update={"postings": 3}) for key, section in sections.items()}
        )
    for at in (0, 1, 6, 11, 22, 39):
        pid, seeds, title = int(TRAIN.pids[at]), TRAIN.lists[at].tolist(), TRAIN.titles[at]
        # all of its tracks, and some of them with a strange one
        asked = [(pid, seeds, title), (pid, [*seeds[::2], 50], title)]
        found = ask(fitted(name, TRAIN, config), asked, N_TRACKS)
        expected = ask(fitted(name, without(TRAIN, at), config), asked, N_TRACKS)
        if TRAITS[name].leaves_out_exactly and TRAITS[name].not_its_own_row is None:
            assert found == expected
        elif name != "popularity":
            assert [{i for i, _ in row} for row in found] == [{i for i, _ in row} for row in expected]


@every_model
def test_a_playlist_does_not_find_tracks_through_itself_alone(name: str) -> None:
    reason = TRAITS[name].not_its_own_row
    if reason is not None:
        pytest.skip(reason)
    # the tracks 56 to 59 occur in the last playlist only, which alone has its title
    lists = Ragged.from_lists([*TRAIN.lists.tolist(), [1, 56, 2, 57, 3, 58, 16, 59]])
    train = replace(
        TRAIN,
        counts=np.bincount(lists.values, minlength=N_TRACKS),
        pids=np.append(TRAIN.pids, 1000),
        lists=lists,
        titles=[*TRAIN.titles, "xylophone"],
        artist_of=np.where(np.arange(N_TRACKS) >= 56, 0, TRAIN.artist_of).astype(np.int32),
    )
    seeds = [1, 2, 3, 16]
    own, other = ask(fitted(name, train), [(1000, seeds, "xylophone"), (NO_PID, seeds, "xylophone")], N_TRACKS)
    hidden = {56, 57, 58, 59}
    assert not {track for track, _ in own} & hidden
    # a model that did not know the pid would find them
    assert {track for track, _ in other} & hidden


# --- the same rows whatever the machine does ----------------------------------------------------------------------


@every_model
@settings(max_examples=15)
@given(cases=CASES, data=st.data())
def test_any_partition_gives_the_same_rows(name: str, cases: list[Query], data: st.DataObject) -> None:
    whole = ask(fitted(name), cases, 7)
    order = data.draw(st.permutations(range(len(cases))))
    cut = data.draw(st.integers(0, len(cases)))
    again = fitted(name, config=BLOCKS)
    for part in (order[:cut], order[cut:]):
        assert ask(again, [cases[i] for i in part], 7) == [whole[i] for i in part]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_ROWS", 2)
        assert ask(again, cases, 7) == whole


BLOCKS = CONFIG.model_copy(update={"query_block": 100, "item_block": 3, "index_items": 7})


@every_model
def test_threads_give_the_same_rows(name: str) -> None:
    there, cases = fitted(name), some_queries() * 20
    half = len(cases) // 2
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda part: ask(there, part, 9), (cases[:half], cases[half:]))
    assert first + second == ask(there, cases, 9)


@every_model
@pytest.mark.parametrize("train", [TRAIN, TrainingData(0)], ids=["some", "none"])
def test_save_and_load_give_the_same_rows(name: str, train: TrainingData, tmp_path: Path) -> None:
    there = fitted(name, train)
    parts: dict[str, Any] = {}
    for entry in with_parts([name]):
        arrays = {}
        for key, array in fitted_parts(name, train)[entry.name].arrays.items():
            path = tmp_path / f"{entry.name}-{key}.npy"
            np.save(path, array, allow_pickle=False)
            # as in the lake: read-only, and mapped unless empty
            arrays[key] = np.load(path, mmap_mode="r" if array.size else None)
        parts[entry.name] = entry.load(arrays, CONFIG, parts)
    assert ask(parts[name], some_queries(), 9) == ask(there, some_queries(), 9)
    assert set(parts[name].arrays) == set(there.arrays)
    if not train.n_tracks:
        assert ask(parts[name], some_queries(), 9) == [[]] * len(some_queries())


@every_model
def test_fields_that_are_not_needed_may_be_empty(name: str) -> None:
    needs = {field for entry in with_parts([name]) for field in entry.needs}
    needed = replace(TrainingData(N_TRACKS), **{field: getattr(TRAIN, field) for field in needs})
    assert ask(fitted(name, needed), some_queries(), 9) == ask(fitted(name), some_queries(), 9)


@every_model
def test_partitions_of_the_tables_do_not_matter(name: str) -> None:
    """The arrays are the same for any order and division of the rows of the tables."""
    needs = {field for entry in with_parts([name]) for field in entry.needs} - {"vector_ids", "vectors"}
    lists = TRAIN.lists
    holdout = pa.table({"pid": TRAIN.pids, "train": lists.to_arrow(), "title": pa.array(TRAIN.titles, pa.string())})
    holdout = holdout.append_column("kind", pa.nulls(N_PLAYLISTS, pa.string()))
    artists = pa.array([f"a{track % 11 * 7 % 5}" for track in range(N_TRACKS)])
    tracks = {"track_id": pa.array(range(N_TRACKS), pa.int32()), "artist_uri": artists, "album_uri": artists}
    tables = {HOLDOUT: holdout, TRACKS: pa.table({**tracks, "orphaned": pa.array([False] * N_TRACKS)})}

    def read(parts: int) -> TrainingData:
        def stream(table: Table, columns: Any) -> Any:
            whole = tables[table].select(list(columns)).cast(arrow_schema(table, columns))
            order = np.random.default_rng(parts).permutation(len(whole)) if parts > 1 else np.arange(len(whole))
            for chosen in np.array_split(order, parts):
                yield whole.take(pa.array(chosen))

        return training_data(stream, N_TRACKS, needs, SPLIT, trial_playlists=8)

    one, many = (fitted(name, replace(read(parts), **VECTORS)) for parts in (1, 5))
    assert one.arrays.keys() == many.arrays.keys()
    for key, array in one.arrays.items():
        assert array.dtype == many.arrays[key].dtype
        np.testing.assert_array_equal(array, many.arrays[key])
    assert ask(one, some_queries(), 9) == ask(many, some_queries(), 9)


VECTORS: dict[str, Any] = {"vector_ids": TRAIN.vector_ids, "vectors": TRAIN.vectors}


@pytest.mark.parametrize(
    "name",
    # many queries of a slow model take long
    [
        pytest.param(name, marks=pytest.mark.slow) if name in {"fusion", "ials", "ranker"} else name
        for name in sorted(MODELS)
    ],
)
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory can only be reset on Linux")
def test_memory_does_not_grow_with_the_number_of_queries(name: str) -> None:
    n_tracks, n_queries = 200_000, 512
    there = fitted(name, replace(TRAIN, n_tracks=n_tracks, **wider(n_tracks)))
    asked = queries([(NO_PID, [i % 50, i % 7], "rock") for i in range(n_queries)])
    recommend(there, asked.slice(0, 2), 10)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    recommend(there, asked, 10)
    # scores of all tracks for all queries would take 400 MB; those for one query take 0.8 MB
    assert memory("VmHWM") - before < 40e6


def wider(n_tracks: int) -> dict[str, Any]:
    more = n_tracks - N_TRACKS
    return {
        "counts": np.pad(TRAIN.counts, (0, more)),
        "artist_of": np.pad(TRAIN.artist_of, (0, more), constant_values=-1),
        "album_of": np.pad(TRAIN.album_of, (0, more), constant_values=-1),
    }


def memory(field: str) -> float:
    """A field of this process's memory status, in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


# --- arguments, and models that learn nothing from lists -----------------------------------------------------------


def ranked(there: FittedModel, pids: np.ndarray, seeds: Ragged, k: int) -> Ranked:
    return recommend(there, Queries.of(seeds, pids), k)


def test_an_unknown_model_raises_and_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no model 'nope'") as caught:
        model("nope")
    assert caught.value.remedy == f"one of: {', '.join(sorted(MODELS))}"


def test_recommend_with_invalid_arguments_raises() -> None:
    with pytest.raises(ValueError, match="1 pids but 2 rows"):
        ranked(fitted("popularity"), np.array([1]), Ragged.empty(2), 5)
    with pytest.raises(ValueError, match="k: expected at least 1"):
        ranked(fitted("popularity"), np.array([1]), Ragged.empty(1), 0)


@settings(max_examples=40)
@given(cases=CASES)
def test_cosine_matches_brute_force_without_the_seeds(cases: list[Query]) -> None:
    known = dict(zip(VECTOR_IDS.tolist(), TRAIN.vectors.tolist(), strict=True))
    for (_, own, _), row in zip(cases, ask(fitted("cosine"), cases, 9), strict=True):
        mean, count = centroid_slow(own, known, 3)
        others = {track: vector for track, vector in known.items() if track not in own}
        expected = top_k_slow([mean], list(others.values()), list(others), [9])[0] if count else []
        assert row == expected


def test_cosine_rejects_vectors_of_unknown_tracks() -> None:
    with pytest.raises(ValueError, match="vector ids: expected 0 to 4"):
        fitted("cosine", replace(TRAIN, n_tracks=5))


def test_popularity_counts_and_breaks_ties_by_id() -> None:
    train = replace(TRAIN, n_tracks=5, counts=np.array([1, 3, 0, 3, 0]))
    found = ranked(fitted("popularity", train), np.array([1, 2]), Ragged.from_lists([[], [3]]), 4)
    assert rows(found) == [[(1, 3.0), (3, 3.0), (0, 1.0), (2, 0.0)], [(1, 3.0), (0, 1.0), (2, 0.0), (4, 0.0)]]
    # from 2**24 on float32 does not tell neighbours apart: the scores that are stored decide
    close = replace(TRAIN, n_tracks=2, counts=np.array([2**24, 2**24 + 1]))
    assert ranked(fitted("popularity", close), np.array([1]), Ragged.empty(1), 2).ids.tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="counts: expected 5 numbers"):
        fitted("popularity", replace(train, counts=np.array([1])))


@pytest.mark.parametrize("n_tracks", [1, 2, 3, 24, 25, 97])
def test_random_matches_its_documented_permutation(n_tracks: int) -> None:
    train = replace(TRAIN, n_tracks=n_tracks)
    prime = smallest_prime(n_tracks)
    found = ranked(fitted("random", train), np.array([0, 5, 2**62]), Ragged.empty(3), 500)
    for pid, row in zip((0, 5, 2**62), rows(found), strict=True):
        a = 1 + mix_slow(42, pid, 0) % (prime - 1)
        b = mix_slow(42, pid, 1) % prime
        order = [t for t in ((a * j + b) % prime for j in range(prime)) if t < n_tracks]
        assert sorted(order) == list(range(n_tracks))
        assert row == [(t, float(np.float32(1 / (i + 1)))) for i, t in enumerate(order)]


def test_random_is_uniform_and_depends_on_seed() -> None:
    pids = np.arange(20000)
    there = fitted("random")
    found = ranked(there, pids, Ragged.empty(len(pids)), 3)
    counts = np.bincount(found.ids.values, minlength=N_TRACKS)
    # 60000 draws over 60 tracks: 1000 each, deviation below 32
    assert np.abs(counts - 1000).max() < 5 * 32
    other = fitted("random", config=CONFIG.model_copy(update={"seed": 43}))
    again = ranked(other, pids, Ragged.empty(len(pids)), 3)
    assert abs((again.ids.values == found.ids.values).mean() - 1 / N_TRACKS) < 0.01


def test_random_does_not_overflow_in_a_catalogue_of_any_size() -> None:
    n_tracks = 2**31 - 1
    train = replace(TRAIN, n_tracks=n_tracks)
    found = ranked(fitted("random", train), np.arange(50), Ragged.empty(50), 1000)
    assert found.ids.lengths.tolist() == [1000] * 50
    ids = found.ids.values.astype(np.int64)
    assert 0 <= ids.min() <= ids.max() < n_tracks
    assert abs(ids.mean() / n_tracks - 0.5) < 0.02
    a, b = (int(hashing.mix(42, np.array([3]), np.array([which]))[0]) for which in (0, 1))
    a, b = 1 + a % (n_tracks - 1), b % n_tracks
    assert found.ids[3].tolist() == [(a * j + b) % n_tracks for j in range(1000)]
    there = fitted("random", train)
    with pytest.raises(ValueError, match="at most 8388608"):
        there.candidates(Queries.of(Ragged.empty(1)), np.array([2**23 + 1]))


def test_smallest_prime() -> None:
    assert [smallest_prime(n) for n in (0, 1, 2, 3, 4, 90, 2**31 - 1)] == [2, 2, 2, 3, 5, 97, 2**31 - 1]
