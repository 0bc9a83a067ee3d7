"""The weights of the fusion: learned from the trial, by number of seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from encore.arrays.ragged import NamedArrays, Ragged
from encore.arrays.ranked import Ranked
from encore.config import RecommendConfig, S3Config, load_config
from encore.recommenders import fusion
from encore.recommenders.base import Queries, Tools, TrainingData, Trial, recommend

N_TRACKS, N = 300, 120
CONFIG: RecommendConfig = load_config("local", []).recommend
TOOLS = Tools("unused", S3Config(endpoint=None, region=None, path_style=False))
EMPTY = Ranked.empty


class Fixed:
    """A model that recommends the same tracks for every query with at least `least` seeds."""

    def __init__(self, tracks: list[int], least: int = 0) -> None:
        self.arrays: NamedArrays = {}
        self._tracks, self._least = tracks, least

    def candidates(self, queries: Queries, n: np.ndarray) -> Ranked:
        rows = [self._tracks if length >= self._least else [] for length in queries.seeds.lengths.tolist()]
        scores = [2.0 - i / len(self._tracks) for row in rows for i in range(len(row))]
        return Ranked(Ragged.from_lists(rows), np.array(scores, np.float32)).head(n)


class Counts:
    """The part `interactions`, of which only the counts are used."""

    counts = np.arange(N_TRACKS, 0, -1)


def parts(**models: Any) -> dict[str, Any]:
    nothing = Fixed([], least=10**6)
    return {"interactions": Counts(), **dict.fromkeys(fusion.PARTS, nothing), **models}


def trial(n_seeds: int, truth: list[int]) -> Trial:
    seeds = Ragged.from_lists([list(range(200, 200 + n_seeds))] * N)
    return Trial(Queries.of(seeds), Ragged.from_lists([truth] * N))


def weights(own: dict[str, Any], hidden: Trial | None) -> np.ndarray:
    train = TrainingData(N_TRACKS, trial=hidden)
    return fusion.fit(train, CONFIG, own, TOOLS)["weights"]


def test_the_model_that_finds_the_hidden_tracks_gets_the_weight() -> None:
    own = parts(ials=Fixed([101, 102, 103]), adjacency=Fixed([111, 112, 113]))
    found = weights(own, trial(3, [111, 113]))
    best = [
        name for name, value in zip((*fusion.PARTS, "popularity"), found[3], strict=True) if value == found[3].max()
    ]
    assert "adjacency" in best
    assert "ials" not in best
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_two_models_that_know_different_tracks_are_combined() -> None:
    own = parts(ials=Fixed([101, 1, 2, 3]), artist=Fixed([111, 4, 5, 6]))
    train = TrainingData(N_TRACKS, trial=trial(3, [101, 111]))
    arrays = fusion.fit(train, CONFIG, own, TOOLS)
    there = fusion.Fusion(arrays, CONFIG, own)
    found = recommend(there, Queries.of(Ragged.from_lists([[200, 201, 202]])), 2)
    assert set(found.ids[0].tolist()) == {101, 111}


def test_a_bucket_with_few_queries_takes_the_weights_of_the_nearest() -> None:
    own = parts(ials=Fixed([101]), adjacency=Fixed([111]))
    found = weights(own, trial(30, [111]))
    assert (found == found[fusion.buckets_of(trial(30, [1]).queries)[0]]).all()


@pytest.mark.parametrize("hidden", [None, Trial(Queries.of(Ragged.empty(0)), Ragged.empty(0))])
def test_without_a_trial_all_weigh_the_same(hidden: Trial | None) -> None:
    assert weights(parts(), hidden) == pytest.approx(1 / (len(fusion.PARTS) + 1))


def test_popularity_is_there_for_a_playlist_of_which_nothing_is_known() -> None:
    own = parts()
    there = fusion.Fusion(fusion.fit(TrainingData(N_TRACKS), CONFIG, own, TOOLS), CONFIG, own)
    assert recommend(there, Queries.of(Ragged.empty(1)), 3).ids.tolist() == [[0, 1, 2]]


def test_scores_of_seeds_do_not_outweigh_those_of_other_tracks() -> None:
    """As in the trial: a model that ranks the seeds first counts as much as one that leaves them out."""
    one, other = Fixed([101, 102]), Fixed([7, 8, 9, 111])
    own = parts(ials=one, adjacency=other)
    there = fusion.Fusion(fusion.fit(TrainingData(N_TRACKS), CONFIG, own, TOOLS), CONFIG, own)
    found = recommend(there, Queries.of(Ragged.from_lists([[7, 8, 9]])), 2)
    assert set(found.ids[0].tolist()) == {101, 111}


def test_rows_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    own = parts(ials=Fixed([5, 7, 9]), artist=Fixed([9, 3], least=2))
    there = fusion.Fusion(fusion.fit(TrainingData(N_TRACKS), CONFIG, own, TOOLS), CONFIG, own)
    queries = Queries.of(Ragged.from_lists([[1], [1, 2], [], [3, 5], [7]]))
    expected = recommend(there, queries, 5)
    monkeypatch.setattr(fusion, "_QUERIES", 2)
    found = recommend(there, queries, 5)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.scores.tolist() == expected.scores.tolist()
