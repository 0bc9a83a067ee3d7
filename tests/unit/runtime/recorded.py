"""A lake with what jobs record of themselves, without the tables that they write."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from encore.config import Config
from encore.lake.store import Store
from encore.lake.tables import CHECKS, JOB_COSTS, JOB_RUNS, MODEL_METRICS, PLAYLIST_METRICS, QUARANTINE, Table
from encore.lake.transaction import append_small

BEGAN = datetime(2026, 1, 31, 12, tzinfo=UTC)


def run(job: str, hours: float, status: str, seconds: float = 60.0, **rows: int) -> dict[str, Any]:
    return {
        "run_id": f"run-{hours}",
        "job": job,
        "started_at": BEGAN + timedelta(hours=hours),
        "seconds": seconds,
        "status": status,
        "fingerprint": "a",
        "inputs": [],
        "outputs": [],
        "rows": list(rows.items()),
        "facts": "{}",
        "error": "no space" if status == "failed" else None,
        "table_ids": [],
    }


def cost(job: str, hours: float, **numbers: float) -> dict[str, Any]:
    empty = {column.name: 0 for column in JOB_COSTS.columns}
    return {**empty, **{name: run(job, hours, "done")[name] for name in JOB_COSTS.key}, "seconds": 60.0, **numbers}


def mean(model: str, metric: str, value: float, hours: float, bucket: str = "all") -> dict[str, Any]:
    row = {"run_id": f"run-{hours}", "model": model, "bucket": bucket, "metric": metric, "value": value}
    more = {"n_playlists": 10, "fingerprint": "a", "logged_to": None, "fitted": None}
    return {**row, **more, "evaluated_at": BEGAN + timedelta(hours=hours)}


def refused(number: int, reason: str) -> dict[str, Any]:
    row = {"source": "mpd.slice.0-999.json", "record": f"playlist {number}", "pid": number, "reason": reason}
    return {**row, "detail": "", "payload": None, "stage": "ingest_playlists", "taken_by": None}


def evaluated(model: str) -> dict[str, Any]:
    zeros = {"bigint": 0, "int": 0, "double": 0.0, "string": "", "timestamp": BEGAN, "boolean": False}
    columns = [column for column in PLAYLIST_METRICS.columns if not column.nullable]
    return {**{column.name: zeros.get(column.type) for column in columns}, "model": model}


def checked(job: str, name: str, severity: str, verdict: str, subject: str = "") -> dict[str, Any]:
    row = {"run_id": "run-25", "job": job, "name": name, "subject": subject, "severity": severity, "verdict": verdict}
    numbers = {"value": 0.3, "baseline": 0.3, "expected": 0.27, "bound": 0.1}
    return {**row, **numbers, "relation": "at_least", "basis": None, "at": BEGAN + timedelta(hours=25)}


def _no_spark() -> NoReturn:
    raise AssertionError("works without Spark")


def recorded_lake(config: Config) -> Store:
    """A lake in which playlists were ingested twice, and two models evaluated, one of which is no longer there."""
    found = Store(config, _no_spark)
    rows: dict[Table, list[dict[str, Any]]] = {
        JOB_RUNS: [
            run("ingest_playlists", 0, "done", playlists=1000, quarantine=3),
            run("ingest_playlists", 24, "done", seconds=90.0, playlists=2000, quarantine=0),
            run("evaluate", 1, "failed"),
            run("evaluate", 2, "done"),
            run("evaluate", 25, "failed"),
        ],
        JOB_COSTS: [
            cost("ingest_playlists", 0, cpu_seconds=5.0),
            cost("ingest_playlists", 24, cpu_seconds=7.0, driver_bytes=100),
        ],
        QUARANTINE: [refused(1, "pid_missing"), refused(2, "pid_missing"), refused(3, "pid_not_integer")],
        MODEL_METRICS: [
            mean("ranker", "ndcg", 0.3, 1),
            mean("ranker", "ndcg", 0.4, 25),
            mean("ranker", "ndcg", 0.1, 25, bucket="train_0_5"),
            mean("ranker", "r_precision", 0.2, 25),
            mean("dropped", "ndcg", 0.2, 1),
        ],
        PLAYLIST_METRICS: [evaluated("ranker")],
        CHECKS: [
            checked("check", "features_missing", "warn", "warn"),
            checked("check_results", "ndcg_lost", "fail", "ok", "ranker"),
        ],
    }
    for table, some in rows.items():
        found.ensure(table)
        append_small(found, table, some)
    return found
