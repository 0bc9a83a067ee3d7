from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encore.arrays.ragged import Ragged
from encore.evaluation import rows
from encore.evaluation.beyond_accuracy import (
    POPULARITY,
    BeyondAccuracy,
    TrackFacts,
    beyond_accuracy,
    gini,
    popularity_groups,
    track_facts,
)
from encore.evaluation.metrics import find_hits, score

TRACKS = 30
N_PLAYLISTS = 64
COUNTS = np.array([2 ** (t % 7) if t % 5 else 0 for t in range(TRACKS)])
ARTISTS = np.array([(t * 7) % 9 - 1 for t in range(TRACKS)], dtype=np.int32)
FACTS = track_facts(ARTISTS, COUNTS, N_PLAYLISTS)
track_lists = st.lists(st.integers(0, TRACKS - 1), unique=True, max_size=25)
cases = st.lists(st.tuples(track_lists, track_lists.filter(bool)), max_size=8)


def found(lists: list[list[int]], truth: list[list[int]], k: int = 500, facts: TrackFacts = FACTS) -> BeyondAccuracy:
    test = Ragged.from_lists(truth)
    return beyond_accuracy(find_hits(Ragged.from_lists(lists), test, k=k), test, facts)


@given(cases, st.integers(1, 25))
def test_every_metric_follows_from_its_definition(cases: list[tuple[list[int], list[int]]], k: int) -> None:
    beyond = found([r for r, _ in cases], [g for _, g in cases], k)
    for i, (listed, truth) in enumerate(cases):
        page = listed[:k][:10]
        bits = [-math.log2(max(1, COUNTS[t]) / N_PLAYLISTS) for t in page]
        assert beyond.novelty[i] == pytest.approx(sum(bits) / len(bits) if bits else math.nan, nan_ok=True)
        artists = [int(ARTISTS[t]) for t in page if ARTISTS[t] >= 0]
        diversity = len(set(artists)) / len(artists) if artists else math.nan
        assert beyond.artist_diversity[i] == pytest.approx(diversity, nan_ok=True)
        for p in range(len(POPULARITY)):
            own = {t for t in truth if FACTS.popularity[t] == p}
            assert beyond.popularity_test[i, p] == len(own)
            assert beyond.popularity_hits[i, p] == len(own & set(listed[:k]))
            assert beyond.popularity_early[i, p] == len(own & set(listed[:k][: len(truth)]))


def test_popularity_groups_divide_the_training_rows_into_thirds() -> None:
    # 30 rows: half of the first 9 are .15, 9 and half of the next 8 are .43, 17 and half of the last 13 are .78
    assert popularity_groups(np.array([4, 9, 0, 4, *[1] * 13])).tolist() == [1, 0, 3, 1, *[2] * 13]
    assert popularity_groups(np.array([0, 5, 5])).tolist() == [3, 1, 1]
    assert popularity_groups(np.zeros(2, np.int64)).tolist() == [3, 3]
    counts = (100 * np.random.default_rng(0).random(5000) ** 4).astype(np.int64)
    groups = popularity_groups(counts)
    for count, group in zip(counts.tolist(), groups.tolist(), strict=True):
        share = (counts[counts > count].sum() + counts[counts == count].sum() / 2) / counts.sum()
        assert group == (min(2, int(3 * share)) if count else POPULARITY.index("unseen"))
    shares = np.bincount(groups, weights=counts, minlength=4) / counts.sum()
    assert shares.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=0.1)


def test_a_track_in_no_training_playlist_counts_as_one_in_a_single_one() -> None:
    facts = track_facts(np.zeros(4, np.int32), np.array([0, 1, 4, 8]), 8)
    assert facts.information.tolist() == [3, 3, 1, 0]
    assert track_facts(np.zeros(2, np.int32), np.array([0, 0]), 0).information.tolist() == [0, 0]


def test_only_the_first_page_counts() -> None:
    facts = track_facts(np.arange(30, dtype=np.int32), np.array([8] * 10 + [1] * 20), 8)
    assert found([list(range(30))], [[29]], facts=facts).novelty.tolist() == [0]


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=30))
def test_gini_is_half_the_relative_mean_difference(counts: list[int]) -> None:
    value, n, total = gini(np.array(counts)), len(counts), sum(counts)
    if total == 0:
        assert value is None
        return
    # all pairs of different tracks, each in both orders
    difference = sum(abs(a - b) for a in counts for b in counts) / (n * (n - 1))
    assert value == pytest.approx(difference / (2 * total / n))


def test_gini_at_the_edges() -> None:
    assert gini(np.array([5, 5, 5])) == 0
    assert gini(np.array([0, 0, 7])) == 1
    assert gini(np.array([7])) is None
    assert gini(np.zeros(0, np.int64)) is None
    # a million playlists with 500 recommendations over two million tracks
    assert gini(np.full(2_000_000, 250)) == 0


def test_rows_of_the_table_keep_everything_and_undefined_values_are_null() -> None:
    lists, truth = Ragged.from_lists([[1, 2, 0], []]), Ragged.from_lists([[2, 5], [3]])
    hits = find_hits(lists, truth, k=500)
    metrics, beyond = score(hits, truth, k=500, artist_of=ARTISTS), beyond_accuracy(hits, truth, FACTS)
    kinds, n_train = np.array([-1, 0], np.int8), np.array([4, 0], np.int32)
    table = pa.table(rows.columns(metrics, beyond, n_train, lists.lengths, kinds))
    assert set(table.column_names) == set(rows.COLUMNS)
    assert table["novelty"].null_count == table["artist_diversity"].null_count == 1
    exposure = np.bincount(lists.values, minlength=TRACKS)
    figures = rows.summary(table, exposure).figures()
    assert figures["novelty"] == pytest.approx(beyond.novelty[0])
    # rows that were written before these columns existed
    for name in BeyondAccuracy._fields:
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.nulls(2, table.schema.field(name).type))
    older = rows.summary(table, exposure).figures()
    assert set(figures) - set(older) == {
        name for name in figures if name.startswith("popularity_") or name in ("novelty", "artist_diversity")
    }
    assert {name: figures[name] for name in older} == older
