"""Registering models: what is new is registered, what is better is promoted, and MLflow can load it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient, set_tracking_uri
from rich.console import Console

from encore.cli.models import print_models, promote, registered_source, roll_back
from encore.config import Config
from encore.errors import ConfigError, InputError
from encore.evaluation.bootstrap import GroupSums
from encore.jobs import register_models
from encore.recommenders import fitted
from encore.runtime.model_registry import ModelRegistry
from encore.runtime.pipeline import plan, run_pipeline
from encore.runtime.tracking import FITTED, Tracking
from encore.serving.bundle import verify
from encore.serving.models import Resolved
from encore.serving.scorer import Scorer
from encore.spark.session import Session
from tests import recompute
from tests.conftest import settings

NAME = "encore-adjacency"


def configured(lake: Path, raw: Path, *more: str) -> Config:
    own = (
        f"raw.playlists={raw}",
        f"raw.features={raw}/features",
        "recommend.k=30",
        "recommend.models=[adjacency]",
        # weak: only direct neighbours count
        "recommend.adjacency.reach=1",
        "registry.models=[]",
        "registry.timed_playlists=3",
        # evaluated playlists that were not trained on are answered alike whether their pid is known or not
        "split.protocol=challenge",
        "split.challenge_playlists=150",
    )
    return settings(lake, *own, *more)


@pytest.fixture(scope="module")
def made(session: Session, generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake on which a weak model has been registered."""
    lake = tmp_path_factory.mktemp("registry") / "lake"
    run_pipeline(configured(lake, generated), plan(last="register_models"), session=session, run_id="first")
    return lake


@pytest.fixture
def run(made: Path, generated: Path, session: Session, tmp_path: Path) -> Callable[..., tuple[Config, dict[str, Any]]]:
    """Run the pipeline on a copy of the lake and its registry, with more settings; returns these, and the facts."""
    lake = tmp_path / "lake"
    shutil.copytree(made, lake)
    shutil.copy(f"{made}-mlflow.db", f"{lake}-mlflow.db")

    def run(*more: str, first: str = "split_holdout", **options: Any) -> tuple[Config, dict[str, Any]]:
        config = configured(lake, generated, *more)
        jobs = plan(first=first, last="register_models")
        return config, run_pipeline(config, jobs, session=session, **options)[-1].facts

    return run


def rows(config: Config) -> list[dict[str, Any]]:
    return sorted(recompute.table(Path(config.lake.path), "registrations"), key=lambda row: row["version"])


def aliases(config: Config) -> dict[str, int]:
    found = MlflowClient(config.tracking.uri).get_registered_model(NAME).aliases
    return {alias: int(version) for alias, version in found.items()}


def test_a_version_has_its_evaluation_its_tables_and_its_bundle(made: Path, generated: Path) -> None:
    config = configured(made, generated)
    (row,) = rows(config)
    client = MlflowClient(config.tracking.uri)
    version = client.get_model_version_by_alias(NAME, "champion")
    model = next(row for row in recompute.table(made, "models") if row["model"] == "adjacency")
    assert (row["version"], row["verdict"], row["reason"], row["run_id"]) == (1, "champion", "the first", "first")
    assert row["fingerprint"] == version.tags["encore.fingerprint"] == model["fingerprint"]
    assert dict(row["numbers"])["ndcg"] > 0
    assert {name: int(value) for name, value in version.tags.items() if name.startswith("version.")} == {
        f"version.{table}": number for table, number in dict(model["inputs"]).items()
    }
    run = client.get_run(row["evaluation_run"])
    assert version.run_id == row["evaluation_run"]
    assert (run.data.tags["model"], run.data.tags[FITTED]) == ("adjacency", row["fingerprint"])
    assert [output.model_id for output in run.outputs.model_outputs] == [version.source.removeprefix("models:/")]
    source = registered_source(config, None, made)
    assert source.resolve() == Resolved("1")
    folder = source.fetch("1")
    manifest = verify(folder)
    assert manifest.size == row["size_bytes"]
    assert manifest.fingerprints["adjacency"] == row["fingerprint"]
    (array,) = (made / "_models" / "adjacency" / row["fingerprint"]).glob("closeness.npy")
    assert (folder / "models/adjacency/closeness.npy").samefile(array), "a hard link, not a copy"


def test_the_scorer_and_mlflow_answer_like_the_batch_job(made: Path, generated: Path) -> None:
    config = configured(made, generated)
    holdout = {row["pid"]: row for row in recompute.table(made, "holdout")}
    uris = {row["track_id"]: row["track_uri"] for row in recompute.table(made, "tracks")}
    lists = [row for row in recompute.table(made, "recommendations") if row["model"] == "adjacency"]
    batch = [row for row in lists if holdout[row["pid"]]["kind"] is not None][:20]
    seeds = [[uris[track] for track in holdout[row["pid"]]["train"]] for row in batch]
    titles = [holdout[row["pid"]]["title"] for row in batch]
    set_tracking_uri(config.tracking.uri)
    try:
        # with the installed code: compiling the copy that is stored with the version takes long, see tests/serving
        model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion", model_config={"package": "encore"})
    finally:
        set_tracking_uri(None)
    found = model.predict(pd.DataFrame({"tracks": seeds, "title": titles}), params={"k": 30})
    assert [row["tracks"] for row in found] == [[uris[track] for track in row["track_ids"]] for row in batch]
    assert [np.float32(row["scores"]).tolist() for row in found] == [row["scores"] for row in batch]
    scorer = Scorer.open(registered_source(config, None, made).fetch("1"))
    assert scorer.catalogue.arrays["popularity"].sum() == sum(
        len(row["train"]) + len(row["test"]) for row in holdout.values()
    )


def test_a_second_run_registers_nothing(made: Path, generated: Path, session: Session) -> None:
    config = configured(made, generated)
    again = run_pipeline(config, plan(last="register_models"), session=session)
    assert {result.status for result in again} == {"up_to_date"}
    run_pipeline(config, ["register_models"], session=session, force=True)
    assert [row["version"] for row in rows(config)] == [1]
    assert len(MlflowClient(config.tracking.uri).search_model_versions(f"name = '{NAME}'")) == 1


@pytest.mark.slow
def test_a_model_that_comes_out_the_same_is_no_new_version(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = run()
    # as after a change of the code that changes no result
    monkeypatch.setattr(fitted, "code_digest", lambda *_: "other code")
    run(first="fit_models", run_id="other code")
    assert len({row["fingerprint"] for row in recompute.table(Path(config.lake.path), "models")}) > 2
    assert len(MlflowClient(config.tracking.uri).search_model_versions(f"name = '{NAME}'")) == 1
    assert {row["version"] for row in rows(config)} == {1}


def test_a_better_version_is_promoted_and_a_worse_one_held(run: Callable[..., Any], tmp_path: Path) -> None:
    config, facts = run("recommend.adjacency.reach=20", run_id="better")
    assert facts["notes"] == ["champion: adjacency 2"]
    assert aliases(config) == {"champion": 2, "previous": 1}
    second = rows(config)[1]
    assert (second["verdict"], second["compared_with"]) == ("champion", 1)
    assert dict(second["numbers"])["ndcg_low"] > 0
    # the check of results would refuse a model that is so much worse before it is registered
    config, facts = run("recommend.adjacency.reach=2", "check.accept=[ndcg_lost,r_precision_lost]", run_id="worse")
    (note,) = facts["notes"]
    assert note.startswith("adjacency 3 is held: NDCG is not significantly higher")
    assert aliases(config) == {"champion": 2, "previous": 1}
    assert [row["verdict"] for row in rows(config)] == ["champion", "champion", "held"]

    out = Console(file=io.StringIO(), width=300)
    print_models(config, "adjacency", as_json=True, out=out)
    listed = json.loads(out.file.getvalue())["models"]  # type: ignore[attr-defined]
    assert [(one["version"], one["aliases"], one["verdict"]) for one in listed] == [
        (3, [], "held"),
        (2, ["champion"], "champion"),
        (1, ["previous"], "champion"),
    ]
    with pytest.raises(InputError, match="adjacency 3 is held: NDCG"):
        promote(config, "adjacency", 3, None, force=False, out=out)
    promote(config, "adjacency", 3, "to see what happens", force=True, out=out)
    assert aliases(config) == {"champion": 3, "previous": 2}
    roll_back(config, "adjacency", "as feared", out)
    assert aliases(config) == {"champion": 2, "previous": 3}
    tags = MlflowClient(config.tracking.uri).get_model_version(NAME, "2").tags
    (audit,) = (value for name, value in tags.items() if name.startswith("encore.audit."))
    assert audit.startswith("rolled back from 3 by ")
    assert audit.endswith(": as feared")

    # what aliases refer to is kept, even if the evaluation runs are deleted
    client = MlflowClient(config.tracking.uri)
    for found in client.search_runs([client.get_experiment_by_name("encore").experiment_id]):
        client.delete_run(found.info.run_id)
    referred = Tracking(config, "maintain").references()
    assert referred is not None
    assert referred.fitted == {row["fingerprint"] for row in rows(config)[1:]}
    assert set(referred.versions) >= {"holdout", "tracks"}


@pytest.mark.slow
def test_another_holdout_is_refused(run: Callable[..., Any]) -> None:
    config, facts = run("recommend.adjacency.reach=20", "split.seed=7")
    (note,) = facts["notes"]
    assert note.startswith("adjacency 2 is refused: evaluated on holdout")
    assert "seed 7" in note
    assert aliases(config) == {"champion": 1}


def test_what_was_not_evaluated_is_not_registered(run: Callable[..., Any]) -> None:
    config, facts = run("recommend.adjacency.reach=20", first="register_models")
    (note,) = facts["notes"]
    assert note.startswith("not registered: adjacency: the evaluated model is not that of the present settings")
    assert len(rows(config)) == 1
    config, facts = run("registry.models=[popularity]", first="register_models")
    assert facts["notes"][0].startswith("not registered: popularity: it has not been evaluated")


@pytest.mark.slow
def test_if_mlflow_fails_the_next_run_registers(run: Callable[..., Any]) -> None:
    broken = "tracking.uri=sqlite:////proc/no/such/place.db"
    config, facts = run("recommend.adjacency.reach=20", broken)
    (note,) = facts["notes"]
    assert note.startswith("not registered: adjacency: MLflow: ")
    assert note.endswith("; the next run tries again")
    assert len(rows(config)) == 1
    config, facts = run("recommend.adjacency.reach=20", broken)
    assert facts["notes"], "tried again"
    config, facts = run("recommend.adjacency.reach=20")
    assert facts["notes"] == ["champion: adjacency 2"]
    assert rows(config)[1]["evaluation_run"] is not None


@pytest.mark.slow
def test_a_run_that_was_killed_after_registering_is_completed(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ModelRegistry, "promote", kill)
        with pytest.raises(KeyboardInterrupt):
            run("recommend.adjacency.reach=20")
    config, facts = run("recommend.adjacency.reach=20")
    assert facts["notes"] == ["champion: adjacency 2"]
    assert aliases(config) == {"champion": 2, "previous": 1}
    assert len(rows(config)) == 2


def test_models_to_register_must_exist(made: Path, generated: Path) -> None:
    with pytest.raises(ConfigError, match="no model 'none'"):
        register_models.check(configured(made, generated, "registry.models=[none]"))


def test_the_stored_evaluation_is_that_of_the_lake(made: Path, generated: Path) -> None:
    folder = registered_source(configured(made, generated), None, made).fetch("1").parent / "evaluation"
    own = [row for row in recompute.table(made, "playlist_metrics") if row["model"] == "adjacency"]
    columns = {name: np.array([row[name] for row in own]) for name in ("r_precision", "ndcg", "clicks")}
    expected = GroupSums.of(np.array([row["pid"] for row in own]), columns)
    assert np.array_equal(np.load(folder / "sums.npy"), expected.sums)
    assert json.loads((folder / "evaluation.json").read_text())["coverage"] == np.mean(
        [row["n_recommended"] > 0 for row in own]
    )
