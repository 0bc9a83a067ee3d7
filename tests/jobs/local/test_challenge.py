"""The challenge protocol: whole playlists are taken out of training and evaluated by kind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from encore.config import Config
from encore.runtime.pipeline import plan, run_pipeline
from encore.runtime.runner import run_job
from encore.runtime.tracking import Tracking
from encore.spark.session import Session
from encore.vocabulary import KINDS
from tests import recompute
from tests.conftest import settings

pytestmark = pytest.mark.slow

K = 50
KIND = {kind.name: kind for kind in KINDS}


def configured(lake: Path, raw: Path, *more: str) -> Config:
    own = (f"raw.playlists={raw}", f"raw.features={raw}/features", f"recommend.k={K}", "split.protocol=challenge")
    return settings(lake, *own, "split.challenge_playlists=60", *more)


@pytest.fixture(scope="module")
def made(session: Session, generated: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A lake on which the pipeline has run once."""
    lake = tmp_path_factory.mktemp("challenge") / "lake"
    config = configured(lake, generated)
    assert {result.status for result in run_pipeline(config, plan(), session=session)} == {"done"}
    return lake, config


@pytest.fixture(scope="module")
def holdout(made: tuple[Path, Config]) -> dict[int, dict[str, Any]]:
    return {row["pid"]: row for row in recompute.table(made[0], "holdout")}


def test_all_kinds_are_filled_and_the_rest_is_trained_on(
    made: tuple[Path, Config], holdout: dict[int, dict[str, Any]]
) -> None:
    playlists = {row["pid"]: row for row in recompute.table(made[0], "playlists")}
    assert set(holdout) == set(playlists)
    counts = Counter(row["kind"] for row in holdout.values())
    assert counts.pop(None) == 240
    assert counts == dict.fromkeys(KIND, 6)
    trained = {t for row in holdout.values() if row["kind"] is None for t in row["train"]}
    for pid, row in holdout.items():
        distinct = list(dict.fromkeys(playlists[pid]["track_ids"]))
        if row["kind"] is None:
            assert (row["train"], row["test"], row["title"]) == (distinct, [], playlists[pid]["name"])
            continue
        kind = KIND[row["kind"]]
        assert kind.low <= len(distinct) <= kind.high
        assert len(row["train"]) == kind.n_seeds
        assert row["train"] == [t for t in distinct if t in set(row["train"])]
        assert kind.is_random or row["train"] == distinct[: kind.n_seeds]
        assert row["test"] == [t for t in distinct if t not in set(row["train"]) and t in trained]
        assert row["title"] == (playlists[pid]["name"] if kind.has_title else None)


def test_models_know_only_playlists_that_are_trained_on(
    made: tuple[Path, Config], holdout: dict[int, dict[str, Any]]
) -> None:
    evaluated = {pid for pid, row in holdout.items() if row["kind"] is not None}
    counts = Counter(t for row in holdout.values() if row["kind"] is None for t in row["train"])
    n_tracks = len(recompute.table(made[0], "tracks"))
    order = sorted(range(n_tracks), key=lambda t: (-counts[t], t))
    rows = recompute.table(made[0], "recommendations")
    by_model = {model: {row["pid"] for row in rows if row["model"] == model} for model in made[1].recommend.models}
    assert by_model["popularity"] == by_model["random"] == evaluated
    # a title alone has no centroid
    assert by_model["cosine"] == evaluated & {row["pid"] for row in recompute.table(made[0], "playlist_centroids")}
    assert {holdout[pid]["kind"] for pid in evaluated - by_model["cosine"]} >= {"title"}
    for row in rows:
        if row["model"] == "popularity":
            known = set(holdout[row["pid"]]["train"])
            assert row["track_ids"] == [t for t in order[: K + len(known)] if t not in known][:K]


def test_metrics_are_given_by_kind(made: tuple[Path, Config], holdout: dict[int, dict[str, Any]]) -> None:
    lake, config = made
    rows = recompute.table(lake, "playlist_metrics")
    tested = {pid: row["kind"] for pid, row in holdout.items() if row["test"]}
    for model in config.recommend.models:
        assert {row["pid"]: row["kind"] for row in rows if row["model"] == model} == tested
    means = {(row["model"], row["bucket"], row["metric"]): row for row in recompute.table(lake, "model_metrics")}
    client = MlflowClient(tracking_uri=config.tracking.uri)
    runs = client.search_runs([client.get_experiment_by_name("encore").experiment_id])
    children = {run.data.tags["model"]: run for run in runs if "model" in run.data.tags}
    for model in config.recommend.models:
        for kind in KIND:
            own = [row for row in rows if row["model"] == model and row["kind"] == kind]
            assert means[model, f"kind_{kind}", "ndcg"]["n_playlists"] == len(own) > 0
            for metric in ("r_precision", "r_precision_artist", "ndcg", "clicks"):
                expected = pytest.approx(sum(row[metric] for row in own) / len(own), abs=1e-10)
                assert means[model, f"kind_{kind}", metric]["value"] == expected
                assert children[model].data.metrics[f"kind_{kind}/{metric}"] == expected
    artifacts = client.list_artifacts(children["cosine"].info.run_id, "plots")
    assert "precision_by_kind" in " ".join(item.path for item in artifacts)
    page = Path(config.report.path, "report.html").read_text()
    assert "By kind of playlist" in page


def test_nothing_is_to_do_again_and_another_protocol_makes_the_split_anew(
    made: tuple[Path, Config], session: Session, generated: Path
) -> None:
    lake, config = made
    assert {result.status for result in run_pipeline(config, plan(), session=session)} == {"up_to_date"}
    other = configured(lake, generated, "split.protocol=random")
    assert run_job("split_holdout", other, session, Tracking(other, "other")).status == "done"
    after = recompute.table(lake, "holdout")
    assert {row["kind"] for row in after} == {None}
    assert sum(bool(row["test"]) for row in after) == 300
