"""Metrics of the jobs: what the lake records, and successes that it does not record."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from encore.cli.app import app
from encore.config import Config
from encore.errors import EnvironmentMissing
from encore.lake.store import Store, open_store
from encore.lake.tables import JOB_RUNS
from encore.lake.transaction import append_small
from encore.runtime import pipeline
from encore.runtime.result import JobResult
from encore.runtime.textfile import LAST_SUCCESS, job_metrics, write_textfile
from tests.unit.runtime.recorded import BEGAN, recorded_lake, run


@pytest.fixture
def store(lake_settings: Callable[..., Config]) -> Store:
    return recorded_lake(lake_settings())


def values(content: bytes) -> dict[tuple[str, ...], float]:
    """The value of each series by its name and the values of its labels, in the order of the labels' names."""
    families = text_string_to_metric_families(content.decode())
    samples = [sample for family in families for sample in family.samples]
    return {(s.name, *(s.labels[name] for name in sorted(s.labels))): s.value for s in samples}


def test_the_lake_tells_when_each_job_succeeded_and_what_it_cost(store: Store) -> None:
    ingested = (BEGAN + timedelta(hours=24, seconds=90)).timestamp()
    expected = {
        (LAST_SUCCESS, "ingest_playlists"): ingested,
        (LAST_SUCCESS, "evaluate"): (BEGAN + timedelta(hours=2, seconds=60)).timestamp(),
        ("encore_job_last_run_timestamp_seconds", "evaluate"): (BEGAN + timedelta(hours=25, seconds=60)).timestamp(),
        ("encore_job_seconds", "ingest_playlists"): 90.0,
        ("encore_job_rows", "ingest_playlists", "playlists"): 2000.0,
        ("encore_job_rows", "ingest_playlists", "quarantine"): 0.0,
        ("encore_job_failed", "ingest_playlists"): 0.0,
        ("encore_job_failed", "evaluate"): 1.0,
        ("encore_job_failures_total", "ingest_playlists"): 0.0,
        ("encore_job_failures_total", "evaluate"): 2.0,
        ("encore_job_cpu_seconds", "ingest_playlists"): 7.0,
        ("encore_job_peak_bytes", "ingest_playlists", "driver"): 100.0,
        ("encore_quarantine_rows", "ingest_playlists", "pid_missing"): 2.0,
        ("encore_quarantine_rows", "ingest_playlists", "pid_not_integer"): 1.0,
        ("encore_model_ndcg", "ranker"): 0.4,
        ("encore_model_r_precision", "ranker"): 0.2,
        ("encore_check_value", "ndcg_lost", "check_results", "ranker"): 0.3,
        ("encore_check_expected", "ndcg_lost", "check_results", "ranker"): 0.27,
        ("encore_check_breached", "ndcg_lost", "check_results", "fail", "ranker"): 0.0,
        ("encore_check_breached", "features_missing", "check", "warn", ""): 1.0,
        ("encore_lake_info", store.path): 1.0,
    }
    found = values(job_metrics(store))
    assert {key: found.get(key) for key in expected} == expected
    assert not any("dropped" in key for key in found), "a model that is no longer evaluated"


def test_a_job_that_is_up_to_date_has_succeeded(store: Store, tmp_path: Path) -> None:
    """It records nothing in the lake, so the file keeps it, until the lake has a later success."""
    path = tmp_path / "metrics" / "encore.prom"
    before = datetime.now(UTC).timestamp()
    write_textfile(store, path, ["evaluate", "report"])
    first = values(path.read_bytes())
    assert first[LAST_SUCCESS, "evaluate"] >= before
    assert first[LAST_SUCCESS, "report"] >= before
    assert first[LAST_SUCCESS, "ingest_playlists"] < before
    write_textfile(store, path)
    assert values(path.read_bytes()) == first
    later = datetime.now(UTC) + timedelta(hours=1)
    append_small(store, JOB_RUNS, [{**run("report", 0, "done"), "started_at": later}])
    write_textfile(store, path)
    assert values(path.read_bytes())[LAST_SUCCESS, "report"] == pytest.approx(later.timestamp() + 60)


@pytest.mark.parametrize("content", ["", "{", 'encore_lake_info{lake="elsewhere"} 1\n' + LAST_SUCCESS + " 5\n"])
def test_a_file_that_is_not_of_this_lake_is_replaced(store: Store, tmp_path: Path, content: str) -> None:
    path = tmp_path / "encore.prom"
    path.write_text(content)
    write_textfile(store, path)
    assert path.read_bytes() == job_metrics(store)


def test_another_user_can_read_the_file_and_nothing_else_is_left(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "metrics" / "encore.prom"
    write_textfile(store, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path / "metrics") == ["encore.prom"]


def test_a_file_that_cannot_be_written_is_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "metrics" / "encore.prom").mkdir(parents=True)
    with pytest.raises(EnvironmentMissing, match=r"encore\.prom: cannot be written: "):
        write_textfile(store, tmp_path / "metrics" / "encore.prom")
    assert os.listdir(tmp_path / "metrics") == ["encore.prom"]


def test_the_command_prints_or_writes(store: Store, tmp_path: Path) -> None:
    call = ["metrics", "--set", f"lake.path={store.path}"]
    printed = CliRunner().invoke(app, call)
    assert printed.exit_code == 0, printed.output
    assert printed.stdout.encode() == job_metrics(store)
    path = tmp_path / "encore.prom"
    assert CliRunner().invoke(app, [*call, "--textfile", str(path)]).exit_code == 0
    assert path.read_bytes() == job_metrics(store)


@pytest.fixture
def no_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job is up to date."""
    monkeypatch.setattr(
        pipeline, "run_job", lambda name, *_, **__: JobResult(name, "up_to_date", 0.0, {}, {}), raising=True
    )


@pytest.mark.usefixtures("no_jobs")
class TestAfterARun:
    def test_the_file_is_written(self, store: Store, tmp_path: Path, lake_settings: Callable[..., Config]) -> None:
        path = tmp_path / "encore.prom"
        config = lake_settings(f"run.textfile={path}")
        assert open_store(config).path == store.path
        notes: list[str] = []
        pipeline.run_pipeline(config, ["report"], on_note=notes.append)
        assert (LAST_SUCCESS, "report") in values(path.read_bytes())
        assert notes == []

    def test_a_file_that_cannot_be_written_does_not_fail_the_run(
        self, store: Store, tmp_path: Path, lake_settings: Callable[..., Config]
    ) -> None:
        notes: list[str] = []
        results = pipeline.run_pipeline(lake_settings(f"run.textfile={tmp_path}"), ["report"], on_note=notes.append)
        assert [result.name for result in results] == ["report"]
        assert [note for note in notes if note.startswith("run.textfile: the metrics of the jobs were not written: ")]
