"""The jobs check and check_results: a breach stops what comes after it, until it is mended or accepted."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from mlflow import MlflowClient
from rich.console import Console

from encore.cli.checks import print_checks
from encore.cli.log_run import log_run
from encore.cli.show import print_last_run
from encore.config import Config
from encore.errors import ConfigError, InputError, LakeError
from encore.lake.store import Store
from encore.lake.tables import MODEL_METRICS, arrow_schema
from encore.runtime.pipeline import plan, run_pipeline
from encore.runtime.registry import gates
from encore.runtime.textfile import job_metrics
from encore.spark.session import Session
from tests import recompute
from tests.conftest import settings

MODELS = "recommend.models=[popularity,random]"
INGEST = plan(last="split_holdout")
"""The jobs up to the first one that waits for `check`."""
AFTER_CHECK = ("track_vectors", "holdout", "models", "recommendations", "model_metrics", "registrations")


@dataclass
class Lake:
    """A lake of a test, with its own raw files, and how it is run."""

    session: Session
    path: Path
    raw: Path

    def config(self, *more: str) -> Config:
        own = (f"raw.playlists={self.raw}", f"raw.features={self.raw}/features", "recommend.k=20", MODELS)
        store = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{self.path}-mlflow.db")
        return settings(self.path, f"tracking.uri={store}", *own, "ingest.vanished=remove", *more)

    def run(self, *more: str, jobs: Sequence[str] | None = None, run_id: str | None = None) -> dict[str, str]:
        results = run_pipeline(self.config(*more), jobs or INGEST, session=self.session, run_id=run_id)
        return {result.name: result.status for result in results}

    def rows(self, **wanted: Any) -> list[dict[str, Any]]:
        """Rows of `checks` with some values, oldest first."""
        rows = sorted(recompute.table(self.path, "checks"), key=lambda row: (row["at"], row["subject"]))
        return [row for row in rows if wanted.items() <= row.items()]

    def verdicts(self, name: str) -> list[str]:
        return [row["verdict"] for row in self.rows(name=name)]

    def versions(self, names: Sequence[str] = AFTER_CHECK) -> dict[str, int]:
        return {name: version for name, version in recompute.versions(self.path).items() if name in names}

    def lose_a_third(self) -> list[Path]:
        """Take two of six slices away; returns where they are now."""
        return [path.rename(self.path.parent / path.name) for path in sorted(self.raw.glob("*.json"))[:2]]

    def measure(self, model: str, metric: str, value: float) -> None:
        """Add a mean of a model, as if it had been evaluated just now."""
        old = next(row for row in recompute.table(self.path, "model_metrics") if row["model"] == model)
        row = {**old, "run_id": f"evaluated {value}", "bucket": "all", "metric": metric, "value": value}
        row["evaluated_at"] = datetime.now(UTC)
        table = pa.Table.from_pylist([row], schema=arrow_schema(MODEL_METRICS))
        write_deltalake(str(self.path / "model_metrics"), table, mode="append")


@pytest.fixture(scope="module")
def made(session: Session, generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake on which the pipeline has run once, but for the last two jobs."""
    folder = tmp_path_factory.mktemp("checks")
    shutil.copytree(generated, folder / "raw")
    lake = Lake(session, folder / "lake", folder / "raw")
    assert set(lake.run(jobs=plan(last="check_results"), run_id="first").values()) == {"done"}
    return lake


@pytest.fixture
def lake(made: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A copy of `made`, whose runs are logged to the same MLflow store."""
    shutil.copytree(made.path, tmp_path / "lake")
    shutil.copytree(made.raw, tmp_path / "raw")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{made.path}-mlflow.db")
    return Lake(made.session, tmp_path / "lake", tmp_path / "raw")


def test_the_first_run_has_nothing_to_compare_with(made: Lake) -> None:
    assert {row["verdict"] for row in made.rows()} == {"ok", "uncompared"}
    (row,) = made.rows(name="playlists_lost")
    assert (row["job"], row["value"], row["baseline"], row["expected"]) == ("check", 300, None, None)
    assert {row["subject"] for row in made.rows(job="check_results")} == {"popularity", "random"}
    assert {row["run_id"] for row in made.rows()} == {"first"}
    missing = next(row["value"] for row in made.rows(name="features_missing"))
    listed = [row["track_uri"] for row in recompute.table(made.path, "tracks") if not row["orphaned"]]
    known = {row["track_uri"] for row in recompute.table(made.path, "audio_features")}
    assert missing == pytest.approx(1 - len(known & set(listed)) / len(listed))


def test_a_loss_of_playlists_stops_the_run_until_it_is_accepted(lake: Lake) -> None:
    before = lake.versions()
    lake.lose_a_third()
    for run_id in ("second", "third"):
        with pytest.raises(
            InputError, match=r"playlists_lost: 200, at least 285 expected \(300 in the last good"
        ) as caught:
            lake.run(run_id=run_id)
        assert "check.accept=[playlists_lost,tracks_lost]" in str(caught.value.remedy)
    assert lake.verdicts("playlists_lost") == ["uncompared", "fail", "fail"]
    assert [row["baseline"] for row in lake.rows(name="playlists_lost")] == [None, 300, 300]
    assert lake.versions() == before
    with pytest.raises(InputError, match="tracks_lost"):
        lake.run("check.accept=[playlists_lost]", run_id="fourth")
    accepted = lake.run("check.accept=[playlists_lost,tracks_lost]", run_id="fifth")
    assert accepted["check"] == accepted["split_holdout"] == "done"
    assert lake.verdicts("playlists_lost")[-1] == "accepted"
    again = lake.run(run_id="sixth")
    assert set(again.values()) == {"up_to_date"}, "what was accepted is not asked about again"


@pytest.mark.slow
def test_a_loss_that_is_mended_is_no_breach(lake: Lake) -> None:
    lost = lake.lose_a_third()
    with pytest.raises(InputError, match="playlists_lost"):
        lake.run()
    for path in lost:
        path.rename(lake.raw / path.name)
    assert lake.run()["check"] == "done"
    assert lake.verdicts("playlists_lost") == ["uncompared", "fail", "ok"]
    assert set(lake.run().values()) == {"up_to_date"}


@pytest.mark.parametrize(
    "jobs",
    [
        ["fit_models"],
        pytest.param(plan("split_holdout"), marks=pytest.mark.slow),
        pytest.param(plan("register_models"), marks=pytest.mark.slow),
    ],
)
def test_jobs_after_a_failed_check_do_not_run_by_themselves_either(lake: Lake, jobs: list[str]) -> None:
    lake.lose_a_third()
    with pytest.raises(InputError, match="playlists_lost"):
        lake.run(run_id="failed")
    before = lake.versions()
    expected = f"{jobs[0]} does not run, because check failed in run failed: .*playlists_lost: 200"
    with pytest.raises(InputError, match=expected):
        run_pipeline(lake.config(), jobs, session=lake.session, force=True)
    assert lake.versions() == before


def test_which_jobs_wait_for_a_check() -> None:
    assert gates("ingest_features") == gates("check") == gates("maintain") == []
    assert gates("build_track_vectors") == gates("split_holdout") == gates("evaluate") == ["check"]
    assert gates("register_models") == gates("report") == ["check", "check_results"]


def test_worse_metrics_fail_until_they_are_accepted(lake: Lake) -> None:
    jobs = ["check_results"]
    lake.measure("popularity", "ndcg", 0.001)
    with pytest.raises(InputError, match=r"not as expected: ndcg_lost/popularity: 0.0010, at least 0.\d+ expected"):
        lake.run(jobs=jobs, run_id="worse")
    for job in ("register_models", "report"):
        with pytest.raises(InputError, match=f"{job} does not run, because check_results failed in run worse"):
            lake.run(jobs=[job])
    with pytest.raises(InputError, match="ndcg_lost/popularity"):
        lake.run("check.accept=[ndcg_lost/random]", jobs=jobs)
    assert lake.run("check.accept=[ndcg_lost/popularity]", jobs=jobs) == {"check_results": "done"}
    lake.measure("popularity", "ndcg", 0.00099)
    assert lake.run(jobs=jobs) == {"check_results": "done"}, "what was accepted is the new baseline"


@pytest.mark.slow
def test_a_breach_keeps_the_champion_and_the_report(lake: Lake) -> None:
    page = Path(f"{lake.path}-report/report.html")
    (lake.raw / "mpd.slice.300-349.json").write_text("not JSON")
    assert lake.run(jobs=plan())["report"] == "done"
    text, before = page.read_text(), lake.versions(("registrations",))
    assert text.count('<b class="warn">warn</b>') == 2, "among the breaches, and among all"
    lake.measure("popularity", "ndcg", 0.001)
    with pytest.raises(InputError, match="ndcg_lost/popularity"):
        lake.run(jobs=plan("check_results"))
    assert page.read_text() == text
    assert lake.versions(("registrations",)) == before
    assert lake.run("check.accept=[ndcg_lost]", jobs=plan("check_results"))["report"] == "done"
    assert page.read_text().count('<b class="accepted">accepted</b>') == 2
    assert set(lake.run(jobs=plan("check_results")).values()) == {"up_to_date"}


def test_a_warning_lets_the_run_go_on_and_is_told_everywhere(lake: Lake) -> None:
    (lake.raw / "mpd.slice.300-349.json").write_text("not JSON")
    notes: list[str] = []
    results = run_pipeline(lake.config(), INGEST, session=lake.session, run_id="warned", on_note=notes.append)
    found = {result.name: result for result in results}
    expected = "files_refused: 100 %, at most 0 % expected (0 % in the last good run)"
    assert found["check"].facts["warnings"] == [expected]
    assert found["check"].facts["notes"] == [f"warning: {expected}"]
    assert "split_holdout" in found
    shown = io.StringIO()
    print_last_run(lake.config(), Console(file=shown, width=200))
    print_checks(lake.config(), None, as_json=False, out=Console(file=shown, width=200))
    print_checks(lake.config(), "warned", as_json=True, out=Console(file=shown, width=200))
    text = shown.getvalue()
    assert f"warn {expected}" in text
    assert '"verdict": "warn"' in text
    metrics = job_metrics(Store(lake.config(), lake.session)).decode()
    labels = 'check="files_refused",job_name="check",level="warn",subject=""'
    assert f"encore_check_breached{{{labels}}} 1.0" in metrics
    in_force = [*lake.rows(run_id="warned", job="check"), *lake.rows(job="check_results")]
    assert metrics.count("encore_check_breached{") == len(in_force)
    client = MlflowClient(tracking_uri=lake.config().tracking.uri)
    run = parent(client, "warned")
    assert run.data.tags["encore.checks.check"] == "warn: files_refused"
    assert run.data.metrics["check.files_refused"] == 1.0
    assert parent(client, "first").data.tags["encore.checks.check_results"] == "ok"
    (lake.raw / "mpd.slice.300-349.json").unlink()
    assert lake.run()["check"] == "done"
    assert lake.verdicts("files_refused") == ["ok", "warn", "ok"]


def parent(client: MlflowClient, run_id: str) -> Any:
    experiment = client.get_experiment_by_name("encore")
    assert experiment is not None
    wanted = f"tags.`encore.run_id` = '{run_id}' AND tags.`encore.kind` = 'pipeline'"
    (found,) = client.search_runs([experiment.experiment_id], wanted)
    return found


@pytest.mark.slow
def test_a_failure_is_in_mlflow_and_can_be_logged_later(lake: Lake) -> None:
    lake.lose_a_third()
    with pytest.raises(InputError):
        lake.run(run_id="logged")
    client = MlflowClient(tracking_uri=lake.config().tracking.uri)
    assert parent(client, "logged").data.tags["encore.checks.check"] == "fail: playlists_lost, tracks_lost"
    assert parent(client, "logged").data.metrics["check.playlists_lost"] == 200
    later = f"sqlite:///{lake.path}-later.db"
    log_run(lake.config(f"tracking.uri={later}"), "logged", Console(file=io.StringIO()))
    run = parent(MlflowClient(tracking_uri=later), "logged")
    assert run.data.tags["encore.checks.check"] == "fail: playlists_lost, tracks_lost"


@pytest.mark.slow
def test_other_bounds_and_severities_check_again_and_make_nothing_else_stale(lake: Lake) -> None:
    stricter = "check.expect.features_missing.bound=0.01"
    statuses = lake.run(stricter, jobs=plan(last="check_results"))
    assert {name for name, status in statuses.items() if status == "done"} == {"check"}
    assert lake.verdicts("features_missing") == ["ok", "warn"]
    with pytest.raises(InputError, match="features_missing"):
        lake.run(stricter, "check.expect.features_missing.severity=fail")
    assert lake.run()["check"] == "done", "the settings of the last good run, but the last run failed"
    ignored = lake.run("check.expect.features_missing.severity=ignore")
    assert ignored["check"] == "done"
    assert len(lake.verdicts("features_missing")) == 4, "it was not checked"


def test_a_lake_without_checks_goes_on(lake: Lake) -> None:
    shutil.rmtree(lake.path / "checks")
    with pytest.raises(LakeError, match="nothing has been checked"):
        print_checks(lake.config(), None, as_json=False, out=Console(file=io.StringIO()))
    jobs = plan(last="check_results")
    statuses = lake.run(jobs=jobs)
    assert {name for name, status in statuses.items() if status == "done"} == {"check", "check_results"}
    assert lake.verdicts("playlists_lost") == ["uncompared"]
    assert set(lake.run(jobs=jobs).values()) == {"up_to_date"}
    with pytest.raises(InputError, match="the run nosuch checked nothing"):
        print_checks(lake.config(), "nosuch", as_json=False, out=Console(file=io.StringIO()))


def test_no_bound_for_an_expectation_is_refused_before_any_job(lake: Lake) -> None:
    with pytest.raises(ConfigError, match="no such expectation"):
        lake.run("check.accept=[nosuch]")


def test_checks_need_no_spark(lake: Lake) -> None:
    shutil.rmtree(lake.path / "checks")
    unused = Session(lake.config())
    run_pipeline(lake.config(), ["check", "check_results"], session=unused)
    assert not unused.started
