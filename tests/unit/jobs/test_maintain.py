"""Maintenance: small files come together, dead ones go, no row changes, and what MLflow's runs refer to stays."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from mlflow import MlflowClient

from encore.config import Config
from encore.errors import TransientError
from encore.lake.delta import Tables
from encore.lake.maintenance import optimize, vacuum
from encore.lake.schema import LOG_RETENTION
from encore.lake.store import Store
from encore.lake.tables import JOB_RUNS, PLAYLIST_CENTROIDS, arrow_schema
from encore.lake.transaction import append_small
from encore.runtime.runner import run_job
from encore.runtime.tracking import References, Tracking
from encore.spark.session import Session


def row(run: str, **more: Any) -> dict[str, Any]:
    found = {"run_id": run, "job": "recommend", "started_at": 0, "seconds": 1.0, "status": "done", "fingerprint": run}
    return {**found, "inputs": [], "outputs": [], "rows": [], "facts": None, "error": None, "table_ids": [], **more}


def store_of(config: Config, rows: int = 20) -> Store:
    """A lake in which `job_runs` has a file a row."""
    store = Store(config, Session(config))
    store.ensure(JOB_RUNS)
    for i in range(rows):
        append_small(store, JOB_RUNS, [row(f"run-{i:02}")])
    return store


def rows_of(store: Store) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = store.read_small(JOB_RUNS).to_pylist()
    return sorted(found, key=lambda one: str(one["run_id"]))


def files(config: Config) -> set[str]:
    return {path.name for path in Path(config.lake.path, "job_runs").glob("*.parquet")}


def age(config: Config, days: int = 60) -> None:
    """Make every file that much older, in the log too: when it was removed is what counts."""
    then = time.time() - days * 86400
    for path in Path(config.lake.path).rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))
    for path in Path(config.lake.path).glob("*/_delta_log/*.json"):
        text = path.read_text()
        for name in ("deletionTimestamp", "timestamp"):
            text = shifted(text, f'"{name}":', int(days * 86400e3))
        path.write_text(text)


def shifted(text: str, name: str, by: int) -> str:
    parts = text.split(name)
    for i, part in enumerate(parts[1:], 1):
        digits = len(part) - len(part.lstrip("0123456789"))
        parts[i] = f"{int(part[:digits]) - by}{part[digits:]}" if digits else part
    return name.join(parts)


def maintain(config: Config, run_id: str = "maintenance-1") -> dict[str, Any]:
    facts: dict[str, Any] = run_job("maintain", config, Session(config), Tracking(config, run_id)).facts
    return facts


def test_older_entries_of_a_log_are_read_with_new_credentials(
    lake_settings: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state may be hours old, and its credentials expired, when a job asks for more than the newest entries."""
    monkeypatch.setattr("encore.lake.store._ENTRIES", 2)
    state = store_of(lake_settings(), rows=4).state(JOB_RUNS)
    assert state is not None
    asked: list[Tables] = []

    def options(tables: Tables) -> dict[str, str]:
        asked.append(tables)
        return {}

    monkeypatch.setattr(Tables, "options", property(options))
    assert state.data_version == 4
    assert asked == [], "the newest entries are known"
    assert [change.version for change in state.changes()] == [4, 3, 2, 1]
    assert len(asked) == 1


def test_small_files_are_merged_and_no_data_version_changes(lake_settings: Callable[..., Config]) -> None:
    config = lake_settings()
    store = store_of(config)
    before, rows = store.state(JOB_RUNS), rows_of(store)
    facts = maintain(config)
    after = store.state(JOB_RUNS)
    assert before is not None
    assert after is not None
    assert facts["job_runs/files_merged"] == 20
    assert after.files < before.files
    # the run itself is recorded in the table, by one more version that adds a row
    own = [change.version for change in after.changes() if change.version <= before.data_version]
    assert own[0] == before.data_version
    assert [one for one in rows_of(store) if one["job"] != "maintain"] == rows


def test_few_files_are_left_as_they_are(lake_settings: Callable[..., Config]) -> None:
    config = lake_settings()
    store_of(config, rows=15)
    assert maintain(config)["job_runs/files_merged"] == 0


def test_dead_files_go_after_the_retention_and_not_before(lake_settings: Callable[..., Config]) -> None:
    config = lake_settings()
    store = store_of(config)
    before = files(config)
    assert optimize(store, JOB_RUNS, 16) == 20
    assert vacuum(store, JOB_RUNS, [], 30) == 0
    assert before <= files(config)
    age(config)
    assert vacuum(store, JOB_RUNS, [], 30) == 20
    assert files(config).isdisjoint(before)
    assert store.read_small(JOB_RUNS).num_rows == 20


def test_versions_that_runs_refer_to_stay_readable_until_the_run_is_deleted(
    lake_settings: Callable[..., Config],
) -> None:
    config = lake_settings()
    store = store_of(config)
    kept = store.there(JOB_RUNS).version()
    client = MlflowClient(tracking_uri=config.tracking.uri)
    experiment = client.create_experiment("encore", artifact_location=f"{config.lake.path}-artifacts")
    run = client.create_run(experiment, tags={"version.job_runs": str(kept - 5)}).info.run_id
    optimize(store, JOB_RUNS, 16)
    age(config)
    facts = maintain(config)
    assert facts["job_runs/versions_kept"] == 1
    old = DeltaTable(f"{config.lake.path}/job_runs", version=kept - 5)
    assert old.to_pyarrow_table().num_rows == 15
    assert old.metadata() is not None
    assert DeltaTable(f"{config.lake.path}/job_runs").metadata().configuration[LOG_RETENTION[0]] == LOG_RETENTION[1]

    client.delete_run(run)
    age(config, 1)
    found = Tracking(config, "later").references()
    assert found is not None
    assert kept - 5 not in found.versions.get("job_runs", set())


def test_nothing_is_removed_while_mlflow_does_not_answer(
    lake_settings: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: Tracking) -> str:
        raise OSError("the server does not answer")

    monkeypatch.setattr(Tracking, "_experiment", away)
    config = lake_settings()
    store = store_of(config)
    optimize(store, JOB_RUNS, 16)
    age(config)
    before = files(config)
    with pytest.raises(TransientError, match="no file was removed"):
        maintain(config)
    assert before <= files(config)


def test_a_version_that_never_was_in_this_lake_protects_nothing(lake_settings: Callable[..., Config]) -> None:
    config = lake_settings()
    store = store_of(config, rows=3)
    assert vacuum(store, JOB_RUNS, [999], 30) == 0
    assert store.read_small(JOB_RUNS).num_rows == 3


def test_tables_that_are_not_there_are_not_made(lake_settings: Callable[..., Config]) -> None:
    config = lake_settings()
    store_of(config, rows=1)
    maintain(config)
    assert not Store(config, Session(config)).exists(PLAYLIST_CENTROIDS)


def test_what_runs_refer_to_is_in_their_tags_and_parameters(lake_settings: Callable[..., Config]) -> None:
    config = lake_settings()
    client = MlflowClient(tracking_uri=config.tracking.uri)
    experiment = client.create_experiment("encore", artifact_location=f"{config.lake.path}-artifacts")
    client.create_run(experiment, tags={"version.tracks": "3", "version.odd": "x"})
    model = client.create_run(experiment)
    client.log_param(model.info.run_id, "version.tracks", "5")
    client.set_tag(model.info.run_id, "encore.fitted", "abc")
    assert Tracking(config, "any").references() == References({"tracks": {3, 5}}, {"abc"})


def test_schema_of_the_rows_here_is_that_of_the_table() -> None:
    assert set(row("x")) | {"facts", "error"} == set(arrow_schema(JOB_RUNS).names)
