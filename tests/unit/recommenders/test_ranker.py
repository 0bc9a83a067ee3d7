"""The ranker: its trees are LightGBM's to the last bit, and it learns from the trial what fusion cannot."""

from __future__ import annotations

import importlib
import sys
from functools import lru_cache
from typing import Any

import lightgbm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encore.arrays.ragged import NamedArrays, Ragged
from encore.arrays.ranked import Ranked
from encore.config import RecommendConfig
from encore.errors import EnvironmentMissing
from encore.evaluation.metrics import evaluate
from encore.recommenders import fusion, ranker, ranker_training, ranker_trees
from encore.recommenders.base import FittedModel, Queries, TrainingData, Trial, recommend
from encore.recommenders.popularity import ranked_by
from encore.recommenders.ranker_features import FEATURES, Catalogue, candidates_of, features_of, log_table
from encore.recommenders.ranker_training import Examples
from encore.recommenders.ranker_trees import Trees, fit_trees
from encore.recommenders.union import Union
from tests.unit.recommenders.cases import CONFIG, new_tools, rows

SETTINGS = CONFIG.ranker.model_copy(update={"trees": 30, "least_in_leaf": 20, "leaves": 15})


# --- trees ------------------------------------------------------------------------------------------------------


def examples(n: int = 3000, n_features: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    found = rng.normal(size=(n, n_features)).astype(np.float32)
    # values on a grid are often equal to a threshold
    found[:, ::2] = np.round(found[:, ::2] * 4) / 4
    return found, rng.random(n) < 1 / (1 + np.exp(2 - found[:, 0] * found[:, 1] - found[:, 3]))


def booster(settings: dict[str, Any], n_trees: int) -> lightgbm.Booster:
    learned, is_hit = examples()
    parameters = {"objective": "binary", "verbosity": -1, "num_threads": 1, "use_missing": False, **settings}
    return lightgbm.train(parameters, lightgbm.Dataset(learned, is_hit.astype(float)), n_trees)


@pytest.mark.parametrize(("leaves", "n_trees"), [(2, 3), (15, 40), (32, 40)])
def test_trees_predict_what_lightgbm_predicts(leaves: int, n_trees: int) -> None:
    there = booster({"num_leaves": leaves, "min_data_in_leaf": 5}, n_trees)
    trees = Trees.of_dump(there.dump_model())
    assert len(trees) == n_trees
    asked = np.random.default_rng(1).normal(size=(700, 6)).astype(np.float32)
    # every threshold itself, and the numbers next to it
    for feature, threshold in zip(trees.node_feature, trees.node_threshold, strict=True):
        near = np.array([threshold, np.nextafter(threshold, np.float32(9)), np.nextafter(threshold, np.float32(-9))])
        # LightGBM takes smaller ones, which no feature is, for 0
        near = near[np.abs(near) > 1e-35]
        more = np.zeros((len(near), 6), np.float32)
        more[:, feature] = near
        asked = np.concatenate([asked, more])
    expected = there.predict(asked.astype(np.float64), raw_score=True)
    # not only close: they are the same numbers, added in the same order
    assert trees.margins(asked).tolist() == np.asarray(expected).tolist()


def test_a_threshold_between_two_float32_numbers_is_rounded_down() -> None:
    low = np.float32(1)
    high = np.nextafter(low, np.float32(2))
    for threshold, on_the_left in ((float(low), 1), ((float(low) + float(high)) / 2 + 1e-9, 1), (float(high), 2)):
        node = {"decision_type": "<=", "missing_type": "None", "split_feature": 0, "threshold": threshold}
        tree = {**node, "left_child": {"leaf_value": 1.0}, "right_child": {"leaf_value": 0.0}}
        trees = Trees.of_dump({"tree_info": [{"tree_structure": tree}]})
        assert trees.margins(np.array([[low], [high]])).sum() == on_the_left


@pytest.mark.parametrize(
    ("leaves", "categorical", "message"), [(40, [], "at most 32 leaves"), (9, [0], "numeric splits")]
)
def test_trees_of_another_form_raise(leaves: int, categorical: list[int], message: str) -> None:
    table, is_hit = examples()
    table[:, 0] = np.abs(np.round(table[:, 0] * 4))
    parameters = {"objective": "binary", "verbosity": -1, "num_threads": 1, "num_leaves": leaves, "min_data_in_leaf": 2}
    data = lightgbm.Dataset(table, is_hit.astype(float), categorical_feature=categorical, params={"verbosity": -1})
    there = lightgbm.train(parameters, data, 20)
    with pytest.raises(ValueError, match=message):
        Trees.of_dump(there.dump_model())


def test_fitting_again_gives_the_same_trees_and_does_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    learned, is_hit = examples()
    weights = np.where(is_hit, 1, 1 / 0.37).astype(np.float32)
    first = fit_trees(learned, is_hit, weights, SETTINGS, 1)
    for n_threads in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", n_threads)
        again = fit_trees(learned, is_hit, weights, SETTINGS, 1)
        for key, array in first.trees.arrays.items():
            assert np.array_equal(array, again.trees.arrays[key]), key


def test_trees_are_no_more_than_help_other_rows() -> None:
    learned, is_hit = examples()
    noise = np.random.default_rng(2).random(len(is_hit)) < 0.5
    ones = np.ones(len(is_hit), np.float32)
    found = fit_trees(learned, noise, ones, SETTINGS, 1, until=(learned, is_hit))
    assert 1 <= len(found.trees) < SETTINGS.trees
    assert np.argmin(found.losses) + 1 == len(found.trees)


def test_lightgbm_that_cannot_be_loaded_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    learned, is_hit = examples()
    with pytest.raises(EnvironmentMissing, match="LightGBM, with which the model ranker is fitted") as caught:
        fit_trees(learned, is_hit, np.ones(len(is_hit), np.float32), SETTINGS, 1)
    assert "libgomp" in str(caught.value.remedy)


# --- features ---------------------------------------------------------------------------------------------------

N = 12
CATALOGUE = Catalogue(
    artist_of=np.array([0, 0, 0, 1, 1, 2, 2, -1, -1, 3, 3, 3], np.int32),
    album_of=np.array([0, 0, 1, 2, 2, 3, 4, -1, 5, 6, 6, 7], np.int32),
    counts=np.arange(N, dtype=np.int64),
    logs=log_table(200),
    last=101,
)


def features(seeds: list[int], models: list[list[tuple[int, float]]], fused: dict[int, float]) -> dict[str, list[Any]]:
    found = [
        Ranked(Ragged.from_lists([[i for i, _ in own]]), np.array([s for _, s in own], np.float32)) for own in models
    ]
    union = Union.of(found)
    scores = np.array([fused[i] for i in union.ids[0].tolist()], np.float32)
    candidates = candidates_of(union, scores, np.array([10]))
    asked = Queries.of(Ragged.from_lists([seeds]))
    table = features_of(asked, union, scores, candidates, CATALOGUE)
    assert table.dtype == np.float32
    assert np.isfinite(table).all()
    columns = {name: table[:, i].tolist() for i, name in enumerate(FEATURES)}
    return {"track": union.ids.values[candidates.values].tolist(), **columns}


def test_features() -> None:
    models: list[list[tuple[int, float]]] = [[(1, 4.0), (4, 2.0)], [(9, 3.0)], [], [(4, 8.0), (1, 6.0)], [(5, 1.0)]]
    found = features([0, 3, 3, 2, 99, -5], models, {1: 0.5, 4: 1.0, 5: 0.0, 9: 0.25})
    assert found["track"] == [4, 1, 9, 5]
    assert found["ials_score"] == [0.5, 1, 0, 0]
    assert found["title_score"] == [1, 0.75, 0, 0]
    assert found["fusion_score"] == [1, 0.5, 0.25, 0]
    log = [float(x) for x in np.log(np.arange(1, 102)).astype(np.float32)]
    # what a model does not recommend has the last rank
    assert found["ials_rank"] == [log[1], log[0], log[100], log[100]]
    assert found["fusion_rank"] == log[:4]
    # standard deviation .5 * sqrt(11) / 4 around .375
    assert found["ials_z"] == pytest.approx([0.301511, 1.507557, -0.904534, -0.904534], rel=1e-5)
    assert found["artist_z"] == [0, 0, 0, 0]
    # the seeds are 0, 3 and 2: unknown ones and repeats do not count
    assert found["artist_share"] == pytest.approx([1 / 3, 2 / 3, 0, 0])
    assert found["album_share"] == pytest.approx([1 / 3, 1 / 3, 0, 0])
    assert found["artist_is_last"] == [0, 1, 0, 0]
    assert found["album_is_last"] == [0, 0, 0, 0]
    assert found["artist_share_of_candidates"] == [0.25, 0.25, 0.25, 0.25]
    assert found["seeds"] == [log[2]] * 4
    assert found["artists_of_seeds"] == pytest.approx([2 / 3] * 4)
    usual = (log[2] + log[1]) / 3
    assert found["popularity_to_seeds"] == pytest.approx(
        [log[3] - usual, log[0] - usual, log[8] - usual, log[4] - usual]
    )


def test_an_unknown_artist_is_equal_to_no_other() -> None:
    found = features([7], [[(8, 1.0), (1, 0.5)]] + [[]] * 4, {8: 1.0, 1: 0.5})
    assert found["track"] == [8, 1]
    assert found["artist_share"] == found["artist_share_of_candidates"][:1] + [0] == [0, 0]


@given(st.integers(1, 30))
def test_features_mean_the_same_for_scores_in_another_unit(factor: int) -> None:
    models: list[list[tuple[int, float]]] = [[(1, 4.0), (4, 2.0)], [(9, 3.0)], [(5, 2.0), (1, 1.0)], [], []]
    fused = {1: 0.5, 4: 1.0, 5: 0.0, 9: 0.25}
    scaled = [[(i, s * factor) for i, s in own] for own in models]
    one, other = features([0], models, fused), features([0], scaled, {i: s * factor for i, s in fused.items()})
    for name, values in one.items():
        assert values == pytest.approx(other[name], rel=1e-5, abs=1e-6), name


def test_a_query_of_which_nothing_is_known_has_features() -> None:
    found = features([], [[]] * 4 + [[(3, 1.0), (2, 0.5)]], {3: 1.0, 2: 0.5})
    assert found["track"] == [3, 2]
    assert found["artist_share"] == found["seeds"] == [0, 0]


# --- the model --------------------------------------------------------------------------------------------------

N_TRACKS, N_QUERIES = 400, 120


class Counts:
    """The part `interactions`, of which only the counts are used."""

    counts = np.arange(N_TRACKS, 0, -1)
    largest_count = N_TRACKS


class Fixed:
    """A model that recommends the same tracks for every query."""

    def __init__(self, tracks: list[int], **arrays: np.ndarray) -> None:
        self.arrays: NamedArrays = arrays
        self._tracks = tracks

    def candidates(self, queries: Queries, n: np.ndarray) -> Ranked:
        found = Ragged.from_lists([self._tracks] * len(queries))
        scores = np.tile(np.linspace(2, 1, len(self._tracks), dtype=np.float32), len(queries))
        return Ranked(found, scores).head(n)


ARTIST_OF = np.random.default_rng(0).permutation(np.arange(N_TRACKS) // 10).astype(np.int32)
CANDIDATES = np.random.default_rng(1).permutation(N_TRACKS)[:200].tolist()
SMALL = CONFIG.model_copy(
    update={
        "ranker": CONFIG.ranker.model_copy(
            update={"trees": 25, "least_in_leaf": 20, "least_queries": 50, "candidates": 250, "learning_rate": 0.2}
        )
    }
)


def by_artist(n: int = N_QUERIES) -> Trial:
    """Queries with one seed, of which the hidden tracks are the others of its artist."""
    seeds = np.random.default_rng(2).permutation(N_TRACKS)[:n].tolist()
    hidden = [[i for i in CANDIDATES if ARTIST_OF[i] == ARTIST_OF[own] and i != own] for own in seeds]
    kept = [i for i, row in enumerate(hidden) if row]
    return Trial(
        Queries.of(Ragged.from_lists([[seeds[i]] for i in kept])), Ragged.from_lists([hidden[i] for i in kept])
    )


def fitted_ranker(trial: Trial | None, config: RecommendConfig = SMALL) -> tuple[ranker.Ranker, FittedModel]:
    """The ranker and its fusion, of a model that ranks the same tracks for every query and of popularity."""
    train = TrainingData(N_TRACKS, album_of=np.full(N_TRACKS, -1, np.int32), trial=trial)
    parts: dict[str, Any] = {"interactions": Counts(), **dict.fromkeys(fusion.PARTS, Fixed([]))}
    parts |= {"ials": Fixed(CANDIDATES), "artist": Fixed([], artist_of=ARTIST_OF)}
    weights = np.tile(np.array([1, 0, 0, 0, 0.1], np.float32), (len(fusion.BUCKETS), 1))
    popular = ranked_by(Counts.counts, train.listed)
    parts["fusion"] = fusion.Fusion({"weights": weights, **popular}, config, parts)
    arrays = ranker.fit(train, config, parts, new_tools())
    return ranker.Ranker(arrays, config, parts), parts["fusion"]


@lru_cache(maxsize=1)
def learned() -> tuple[ranker.Ranker, FittedModel]:
    return fitted_ranker(by_artist())


def test_it_learns_from_the_trial_what_fusion_does_not_know() -> None:
    there, fused = learned()
    trial = by_artist()
    before = evaluate(recommend(fused, trial.queries, 100).ids, trial.truth, k=100, artist_of=None)
    after = evaluate(recommend(there, trial.queries, 100).ids, trial.truth, k=100, artist_of=None)
    assert after.r_precision.mean() > 0.8 > 0.2 > before.r_precision.mean()
    arrays = there.arrays
    assert (arrays["held_out"] > [0.7, 0.7]).all()
    assert (arrays["held_out"] > arrays["held_out_fusion"] + 0.3).all()
    assert arrays["importance"].shape == (len(ranker.FEATURES),)
    assert ranker.FEATURES[int(arrays["importance"].argmax())].startswith("artist_")


def test_recommending_needs_no_lightgbm(monkeypatch: pytest.MonkeyPatch) -> None:
    there, _ = learned()
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    again = importlib.reload(importlib.import_module(ranker_trees.__name__)).Trees.of(there.arrays)
    assert again.margins(np.zeros((1, len(ranker.FEATURES)), np.float32)).shape == (1,)


def test_the_ablation_shows_which_features_matter() -> None:
    arrays = learned()[0].arrays
    losses = dict(zip(ranker.GROUPS, arrays["held_out"] - arrays["ablation"], strict=True))
    assert (losses["artists_and_albums"] > 0.3).all()
    assert all((abs(loss) < 0.1).all() for name, loss in losses.items() if name != "artists_and_albums")
    explanation = ranker.explain(arrays)
    assert explanation.held_out == tuple(arrays["held_out"])
    assert [(one.group, one.features) for one in explanation.ablations] == list(ranker.GROUPS.items())
    assert [one.ndcg for one in explanation.ablations] == arrays["ablation"][:, 1].tolist()
    assert explanation.importances == dict(zip(ranker.FEATURES, arrays["importance"], strict=True))
    off = SMALL.model_copy(update={"ranker": SMALL.ranker.model_copy(update={"ablation": False})})
    there, _ = fitted_ranker(by_artist(), off)
    assert ranker.explain(there.arrays).ablations == ()
    for key, array in there.arrays.items():
        assert key == "ablation" or np.array_equal(array, arrays[key]), key


def test_every_feature_is_in_a_group_of_its_own() -> None:
    single = [name for key, group in ranker.GROUPS.items() for name in group if key != "all_models"]
    assert sorted(single) == sorted(set(ranker.FEATURES)) == sorted(ranker.FEATURES)


@pytest.mark.parametrize("trial", [None, by_artist(30)], ids=["none", "small"])
def test_without_enough_queries_the_order_is_that_of_fusion(trial: Trial | None) -> None:
    there, fused = fitted_ranker(trial)
    asked = by_artist().queries
    assert rows(recommend(there, asked, 30)) == rows(recommend(fused, asked, 30))
    assert not any(ranker.explain(there.arrays).importances.values())


def test_trees_that_are_no_better_than_fusion_are_not_used() -> None:
    asked = by_artist().queries
    _, fused = fitted_ranker(None)
    there, fused = fitted_ranker(Trial(asked, recommend(fused, asked, 3).ids))
    assert there.arrays["held_out_fusion"].tolist() == [1, 1]
    assert rows(recommend(there, asked, 30)) == rows(recommend(fused, asked, 30))


def test_what_is_learned_by_heart_is_not_measured() -> None:
    """Each half is measured with the trees of the other: hidden tracks without a rule cannot be found."""
    asked = by_artist().queries
    rng = np.random.default_rng(4)
    trial = Trial(
        asked, Ragged.from_lists([rng.choice(CANDIDATES, 4, replace=False).tolist() for _ in range(len(asked))])
    )
    settings = SMALL.ranker.model_copy(update={"least_in_leaf": 1, "leaves": 32, "trees": 60})
    drawn = Examples.of(learned()[0]._source, trial, settings, 1)
    found = fit_trees(drawn.sample.rows, drawn.sample.is_hit, drawn.sample.weights, settings, 1)
    assert drawn.measure(found.trees.margins(drawn.measured.rows))[0] > 0.5
    assert drawn.crossed(settings, 1, stop_early=False).measured[0] < 0.1


def test_what_follows_the_candidates_is_in_the_order_of_fusion() -> None:
    there, fused = learned()
    asked = by_artist().queries.slice(0, 5)
    found, expected = recommend(there, asked, N_TRACKS), recommend(fused, asked, N_TRACKS)
    for own, row, before in zip(asked.seeds.values.tolist(), rows(found), rows(expected), strict=True):
        ids = [i for i, _ in row]
        assert sorted(ids) == sorted(set(range(N_TRACKS)) - {own})
        assert ids[250:] == [i for i, _ in before][250:]
        assert set(ids[:250]) == {i for i, _ in before[:250]}
        assert ids[:250] != [i for i, _ in before][:250]
        assert row == sorted(row, key=lambda pair: (-pair[1], pair[0]))


def test_sampled_candidates_stand_for_the_others() -> None:
    there, _ = learned()
    trial = by_artist()
    few = SMALL.ranker.model_copy(update={"rows": 3000})
    source = there._source
    all_of_them, some = (Examples.of(source, trial, settings, 1) for settings in (SMALL.ranker, few))
    assert len(all_of_them.sample.rows) == len(all_of_them.measured.rows) == 250 * len(trial.queries)
    assert all_of_them.sample.weights.min() == all_of_them.sample.weights.max() == 1
    hits, n = int(some.sample.is_hit.sum()), len(some.sample.rows)
    assert hits == all_of_them.sample.is_hit.sum()
    assert (some.sample.weights[some.sample.is_hit] == 1).all()
    assert n - hits == pytest.approx(3000, rel=0.1)
    assert some.sample.weights.sum() == pytest.approx(len(all_of_them.sample.rows), rel=0.05)
    # what is measured is not sampled
    assert np.array_equal(some.measured.rows, all_of_them.measured.rows)


def test_rows_and_trees_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    there, _ = learned()
    asked = by_artist().queries
    expected = rows(recommend(there, asked, 30))
    monkeypatch.setattr(ranker, "_QUERIES", 7)
    monkeypatch.setattr(ranker_training, "_QUERIES", 9)
    again, _ = fitted_ranker(by_artist())
    for key, array in there.arrays.items():
        assert np.array_equal(array, again.arrays[key]), key
    assert rows(recommend(again, asked, 30)) == expected
