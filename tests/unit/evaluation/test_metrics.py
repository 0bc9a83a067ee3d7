from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encore.arrays.ragged import Ragged
from encore.evaluation.metrics import Metrics, evaluate
from tests.reference import metrics_slow

TRACKS = 40
ARTISTS = np.array([(t * 7) % 9 - 1 for t in range(TRACKS)], dtype=np.int32)
ARTIST_OF = {track: artist for track, artist in enumerate(ARTISTS.tolist()) if artist >= 0}
track_lists = st.lists(st.integers(0, TRACKS - 1), unique=True, max_size=30)
cases = st.lists(st.tuples(track_lists, track_lists.filter(bool)), max_size=10)


def one(recommended: list[int], truth: list[int], k: int = 500, artist_of: np.ndarray | None = None) -> Metrics:
    return evaluate(Ragged.from_lists([recommended]), Ragged.from_lists([truth]), k=k, artist_of=artist_of)


@given(cases, st.integers(1, 40), st.booleans())
def test_metrics_match_the_challenge(cases: list[tuple[list[int], list[int]]], k: int, artists: bool) -> None:
    found = evaluate(
        Ragged.from_lists([r for r, _ in cases]),
        Ragged.from_lists([g for _, g in cases]),
        k=k,
        artist_of=ARTISTS if artists else None,
    )
    expected = [metrics_slow(r, g, k, ARTIST_OF if artists else {}) for r, g in cases]
    for name in Metrics._fields:
        values = [getattr(row, name) for row in expected]
        np.testing.assert_allclose(getattr(found, name), values, rtol=0, atol=1e-12, err_msg=name)
    for name in ("n_test", "n_hits", "clicks"):
        assert getattr(found, name).dtype == np.int32
    for name in ("r_precision", "ndcg", "r_precision_artist"):
        assert getattr(found, name).dtype == np.float64


@given(cases, st.data())
def test_a_row_depends_only_on_itself(cases: list[tuple[list[int], list[int]]], data: st.DataObject) -> None:
    recommended, truth = Ragged.from_lists([r for r, _ in cases]), Ragged.from_lists([g for _, g in cases])
    whole = evaluate(recommended, truth, k=20, artist_of=ARTISTS)
    cut = data.draw(st.integers(0, len(cases)))
    parts = [
        evaluate(recommended.slice(a, b), truth.slice(a, b), k=20, artist_of=ARTISTS)
        for a, b in ((0, cut), (cut, len(cases)))
    ]
    for name in Metrics._fields:
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(getattr(whole, name), joined)


def test_a_worked_example() -> None:
    # artists: 10 and 11 have artist 0, 20 and 21 artist 1, 30 artist 2
    artist_of = np.full(40, -1, dtype=np.int32)
    artist_of[[10, 11, 12, 20, 21, 30]] = [0, 0, 0, 1, 1, 2]
    found = one([11, 12, 30, 10, 21], [10, 20, 21], artist_of=artist_of)
    assert (found.n_test[0], found.n_hits[0], found.clicks[0]) == (3, 2, 0)
    assert found.r_precision[0] == 0
    # 11 and 12 share an artist with 10, who counts once; 30's artist has no test track; 21 comes too late
    assert found.r_precision_artist[0] == pytest.approx(0.25 / 3)
    dcg = 1 / math.log2(5) + 1 / math.log2(6)
    assert found.ndcg[0] == pytest.approx(dcg / (1 + 1 / math.log2(3) + 1 / math.log2(4)))


def test_the_ideal_list_scores_one() -> None:
    for n in (1, 2, 7, 30, 499, 500, 800):
        found = one(list(range(n)), list(range(n))[::-1])
        assert (found.r_precision[0], found.ndcg[0], found.clicks[0]) == (min(n, 500) / n, 1.0, 0)


def test_an_empty_list_counts_as_no_hit() -> None:
    found = one([], [1, 2], artist_of=ARTISTS)
    assert [column.tolist() for column in found] == [[2], [0], [0.0], [0.0], [51], [0.0]]


@pytest.mark.parametrize(
    ("rank", "k", "clicks"),
    [
        (1, 500, 0),
        (10, 500, 0),
        (11, 500, 1),
        (500, 500, 49),
        (501, 500, 51),
        (501, 600, 51),
        (520, 600, 51),
        (3, 2, 51),
    ],
)
def test_clicks_at_the_edges(rank: int, k: int, clicks: int) -> None:
    recommended = list(range(1000, 1000 + rank - 1)) + [7]
    assert one(recommended, [7], k).clicks[0] == clicks


def test_unknown_artists_earn_no_credit() -> None:
    artist_of = np.array([-1, -1, 5, 5], dtype=np.int32)
    assert one([1], [0], artist_of=artist_of).r_precision_artist[0] == 0
    assert one([3], [2], artist_of=artist_of).r_precision_artist[0] == 0.25
    assert one([99], [98], artist_of=artist_of).r_precision_artist[0] == 0


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ValueError, match="1 playlists have no test tracks"):
        one([1], [])
    with pytest.raises(ValueError, match="repeats a test track"):
        one([1], [2, 2])
    with pytest.raises(ValueError, match="recommended twice"):
        one([1, 1], [1, 2])
    with pytest.raises(ValueError, match="2 lists but 1 playlists"):
        evaluate(Ragged.empty(2), Ragged.from_lists([[1]]), k=5, artist_of=None)
    with pytest.raises(ValueError, match="k: expected at least 1"):
        one([1], [1], 0)
