"""Tuning: the better settings are found, a study continues as if nothing had happened, and test tracks are not read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from mlflow import MlflowClient

from encore.config import Config
from encore.errors import ConfigError, LakeError
from encore.lake.store import Store, open_store
from encore.lake.tables import Table
from encore.recommenders.base import Queries, recommend
from encore.recommenders.registry import MODELS, with_parts
from encore.runtime.tracking import STUDY, TRIAL
from encore.tuning import study
from encore.tuning.holdout import tuning_data
from encore.tuning.study import Outcome, tune
from tests.conftest import settings
from tests.unit.tuning.lakes import N_TRACKS, make_lake

POOR = ("recommend.item_knn.seed_damping=0.0", "recommend.item_knn.track_damping=0.0", "recommend.k=30")


def configured(lake: Path, *more: str) -> Config:
    return settings(lake, *POOR, f"tune.path={lake}-tune", *more)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake, and an MLflow store: making one takes seconds."""
    lake = tmp_path_factory.mktemp("tuning") / "lake"
    config = configured(lake)
    make_lake(config)
    MlflowClient(tracking_uri=config.tracking.uri).search_experiments()
    return lake


@pytest.fixture
def lake(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "lake")
    shutil.copy(f"{made}-mlflow.db", tmp_path / "lake-mlflow.db")
    return tmp_path / "lake"


def run(config: Config, trials: int, name: str = "item_knn", **more: Any) -> Outcome:
    return tune(config, open_store(config), name, trials=trials, **more)


def shown(found: Outcome) -> list[tuple[int, dict[str, Any], float]]:
    return [(result.number, dict(result.settings), result.metrics["ndcg"]) for result in found.results]


def runs(config: Config) -> list[Any]:
    client = MlflowClient(tracking_uri=config.tracking.uri)
    experiment = client.get_experiment_by_name("encore")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def interrupting(at: int) -> Callable[..., Any]:
    """`recommend`, which is called once a trial and is interrupted in one of them."""
    calls = iter(range(1000))

    def interrupted(*args: Any) -> Any:
        if next(calls) == at:
            raise KeyboardInterrupt
        return recommend(*args)

    return interrupted


def test_the_better_settings_are_found_and_logged(lake: Path) -> None:
    config = configured(lake)
    found = run(config, 8)
    assert found.first.settings == {"seed_damping": 0.0, "track_damping": 0.0}, "trial 0 is that of the present ones"
    assert found.best.metrics["ndcg"] > 1.15 * found.first.metrics["ndcg"]
    assert found.best.settings["seed_damping"] + found.best.settings["track_damping"] > 0.3
    assert found.settings == {"recommend": {"item_knn": dict(found.best.settings)}}
    (parent,) = [run for run in runs(config) if STUDY in run.data.tags]
    assert (parent.data.tags[STUDY], parent.info.status) == (found.study, "FINISHED")
    assert parent.data.metrics["ndcg"] == found.best.metrics["ndcg"]
    assert parent.data.tags["version.holdout"] == "0"
    trials = {int(run.data.tags[TRIAL]): run for run in runs(config) if TRIAL in run.data.tags}
    assert set(trials) == set(range(8))
    for result in found.results:
        logged = trials[result.number]
        assert logged.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert logged.info.status == "FINISHED"
        assert logged.data.params == {f"recommend.item_knn.{k}": str(v) for k, v in result.settings.items()}
        assert logged.data.metrics == result.metrics
        assert set(result.metrics) == {"r_precision", "ndcg", "clicks", "seconds"}


def test_an_interrupted_study_makes_the_trials_of_one_that_was_not(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(configured(lake, f"tune.path={tmp_path}/other"), 6)
    config = configured(lake)
    for at, n in ((0, 0), (3, 3)):
        with monkeypatch.context() as patch:
            patch.setattr(study, "recommend", interrupting(at))
            with pytest.raises(KeyboardInterrupt):
                run(config, 6)
        assert {run.info.status for run in runs(config) if STUDY in run.data.tags} == {"KILLED"}
        assert "RUNNING" not in {run.info.status for run in runs(config)}
        assert len(run(config, n).results) == n if n else True
    # a process that was killed leaves a trial that never ends
    journal = next(Path(config.tune.path).glob("item_knn-*.log"))
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    optuna.load_study(study_name=journal.stem, storage=storage).ask()
    seen: list[int] = []
    found = run(config, 6, on_start=lambda done: seen.append(len(done.results)))
    assert seen == [3], "what is finished is not done again"
    assert shown(found) == shown(whole)
    assert shown(run(config, 6)) == shown(whole)
    trials = [int(run.data.tags[TRIAL]) for run in runs(config) if TRIAL in run.data.tags]
    assert sorted(trials) == list(range(6))


def test_trials_that_mlflow_lacks_are_logged_later(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(lake)
    with monkeypatch.context() as patch:
        patch.setattr("encore.runtime.tracking.Tracking._experiment", lambda _: (_ for _ in ()).throw(OSError("away")))
        assert len(run(config, 2).results) == 2
    run(config, 2)
    assert sorted(run.data.tags[TRIAL] for run in runs(config) if TRIAL in run.data.tags) == ["0", "1"]


def test_other_data_and_other_settings_are_other_studies(lake: Path, tmp_path: Path) -> None:
    config = configured(lake)
    names = {run(config, 1).study, run(config, 1).study}
    assert len(names) == 1
    names.add(run(config, 1, metric="r_precision").study)
    names.add(run(configured(lake, "recommend.item_knn.postings=7"), 1).study)
    names.add(run(configured(lake, "split.seed=3"), 1).study)
    other = configured(tmp_path / "other", f"tracking.uri={config.tracking.uri}")
    make_lake(other, seed=1)
    names.add(run(other, 1).study)
    assert len(names) == 5


def test_the_budget_ends_a_study_after_a_trial(lake: Path) -> None:
    config = configured(lake)
    assert len(run(config, 5, minutes=0).results) == 1
    assert len(run(config, 5, minutes=0).results) == 2


def test_the_test_tracks_are_never_read(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # they are also such that nothing could be made of them: see lakes.BAD_TEST
    columns: set[str] = set()
    scan = Store.scan

    def watched(store: Store, table: Table, names: Sequence[str], *args: Any) -> Any:
        columns.update(f"{table.name}.{name}" for name in names)
        return scan(store, table, names, *args)

    monkeypatch.setattr(Store, "scan", watched)
    run(configured(lake), 2)
    run(configured(lake), 1, "artist")
    assert "holdout.train" in columns
    assert "holdout.test" not in columns


@pytest.mark.parametrize("protocol", ["random", "challenge"])
def test_models_are_judged_by_playlists_that_they_have_not_learnt_from(made: Path, protocol: str) -> None:
    # with this seed, five playlists would be in both if the model's own trial were chosen among all of them
    config = configured(made, f"split.protocol={protocol}", "split.seed=11")
    store = open_store(config)
    data = tuning_data(lambda *what: store.scan(*what).read(), N_TRACKS, with_parts(["fusion"]), config)
    train, judged = data.train, data.judged
    assert train.trial is not None
    pids = judged.queries.pids
    own = train.trial.queries.pids
    assert 0 < len(pids) <= 60
    assert 0 < len(own) <= 60
    assert not set(pids.tolist()) & set(own.tolist())
    for trial in (judged, train.trial):
        rows = np.searchsorted(train.pids, trial.queries.pids)
        for i, row in enumerate(rows.tolist()):
            hidden, left = set(trial.truth[i].tolist()), set(train.lists[row].tolist())
            assert hidden
            assert not hidden & left
            assert left == (set() if protocol == "challenge" else set(trial.queries.seeds[i].tolist()))


def test_parts_are_fitted_once(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[str] = []
    fit = study._Judge._fit

    def counted(judge: Any, entry: Any, recommend: Any) -> Any:
        fits.append(entry.name)
        return fit(judge, entry, recommend)

    monkeypatch.setattr(study._Judge, "_fit", counted)
    run(configured(lake), 3)
    assert fits == ["interactions", "item_knn", "item_knn", "item_knn"]


def test_what_cannot_be_tuned_is_said(lake: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="popularity has no settings that can be tuned") as caught:
        run(configured(lake), 1, "popularity")
    assert "adjacency" in str(caught.value.remedy)
    with pytest.raises(ConfigError, match="no metric 'clicks' to tune by"):
        run(configured(lake), 1, metric="clicks")
    small = configured(tmp_path / "small")
    make_lake(small, n=5)
    with pytest.raises(LakeError, match="too few playlists to tune by"):
        run(small, 1)


def test_spaces_are_of_settings_that_there_are() -> None:
    config = configured(Path("lake")).recommend
    for entry in MODELS.values():
        for name, space in entry.tunable.items():
            section = getattr(config, entry.name)
            for value in (space.low, space.high):
                type(section).model_validate({**section.model_dump(), name: value})
            assert space.low < space.high
            assert space.is_int == isinstance(getattr(section, name), int)


def test_present_settings_outside_of_the_space_are_tried_too(lake: Path) -> None:
    config = configured(lake, "recommend.item_knn.seed_damping=3.0")
    found = run(config, 2)
    assert found.first.settings["seed_damping"] == 3.0


def test_queries_of_the_judged_playlists_are_those_of_training(made: Path) -> None:
    config = configured(made, "tune.playlists=1000")
    store = open_store(config)
    data = tuning_data(lambda *what: store.scan(*what).read(), N_TRACKS, with_parts(["item_knn"]), config)
    assert isinstance(data.judged.queries, Queries)
    assert len(data.judged.queries) == 600 // 10
