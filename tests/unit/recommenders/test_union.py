from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from encore.arrays.ragged import Ragged
from encore.arrays.ranked import Ranked
from encore.recommenders.union import Union, best, gains

SCORES = st.lists(st.sampled_from([-1.5, -0.0, 0.0, 0.25, 0.5, 1.0, 3.0]), max_size=6)
QUERIES = st.lists(st.lists(SCORES, min_size=2, max_size=2), min_size=1, max_size=4)


def ranked(rows: list[list[float]], rng: np.random.Generator) -> tuple[Ranked, list[dict[int, float]]]:
    """A ranking with the given scores, best first, of random tracks."""
    lists, scores, found = [], [], []
    for row in rows:
        ids = rng.permutation(9)[: len(row)]
        pairs = sorted(zip(ids.tolist(), row, strict=True), key=lambda pair: (-pair[1], pair[0]))
        lists.append([track for track, _ in pairs])
        scores += [score for _, score in pairs]
        found.append(dict(pairs))
    return Ranked(Ragged.from_lists(lists), np.array(scores, np.float32)), found


@given(QUERIES, st.integers(0, 99))
def test_the_union_has_each_track_once_with_scores_and_ranks(queries: list[list[list[float]]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    models = [ranked([query[m] for query in queries], rng) for m in range(2)]
    union = Union.of([one for one, _ in models])
    for q in range(len(queries)):
        own = [found[q] for _, found in models]
        tracks = sorted({track for one in own for track in one})
        assert union.ids[q].tolist() == tracks
        start = union.ids.offsets[q]
        for i, track in enumerate(tracks):
            for m, one in enumerate(own):
                greatest = max([*one.values(), 0])
                expected = max(one.get(track, 0), 0) / greatest if greatest else 0
                assert union.scores[start + i, m] == np.float32(expected)
                assert union.ranks[start + i, m] == (list(one).index(track) + 1 if track in one else 0)


@given(st.lists(SCORES, max_size=4), st.integers(0, 7), st.integers(0, 99))
def test_the_best_are_ordered_by_score_and_id(rows: list[list[float]], n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lists = [np.sort(rng.permutation(9)[: len(row)]).tolist() for row in rows]
    scores = np.array([score for row in rows for score in row], np.float32)
    found = best(Ragged.from_lists(lists), scores, np.full(len(rows), n))
    for q, (ids, row) in enumerate(zip(lists, rows, strict=True)):
        pairs = sorted(zip(ids, row, strict=True), key=lambda pair: (-pair[1], pair[0]))[:n]
        assert found.ids[q].tolist() == [track for track, _ in pairs]
        start = found.ids.offsets[q]
        assert found.scores[start : start + len(pairs)].tolist() == [score for _, score in pairs]


@given(st.lists(SCORES, max_size=4), st.integers(1, 4), st.integers(0, 99))
def test_gains_are_those_of_the_best(rows: list[list[float]], k: int, seed: int) -> None:
    ids = Ragged.from_lists([list(range(len(row))) for row in rows])
    scores = np.array([score for row in rows for score in row], np.float32)
    is_hit = np.random.default_rng(seed).random(len(scores)) < 0.5
    n_test = np.arange(1, len(rows) + 1)
    dcg, n_early = gains(ids, scores, is_hit, n_test, k)
    top = best(ids, scores, np.full(len(rows), k))
    for q in range(len(rows)):
        hits = [is_hit[ids.offsets[q] + track] for track in top.ids[q].tolist()]
        assert math.isclose(dcg[q], sum(1 / math.log2(i + 2) for i, hit in enumerate(hits) if hit))
        assert n_early[q] == sum(hits[: q + 1])
