"""Metrics of the jobs, in the text format that node_exporter's textfile collector reads.

They are computed from what the jobs recorded in the lake, so that any machine that reads the lake can write them. Only
one thing is not in the lake: a job that has nothing to do records nothing. The time of its last success is therefore
kept in the file, which each run updates, and never goes back.

The label is `job_name`, because Prometheus sets a label `job` of its own on all that it scrapes.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from encore.errors import EnvironmentMissing
from encore.lake.expectations import newest
from encore.lake.store import Store
from encore.lake.tables import CHECKS, JOB_COSTS, JOB_RUNS, MODEL_METRICS, PLAYLIST_METRICS, QUARANTINE

LAST_SUCCESS: Final = "encore_job_last_success_timestamp_seconds"
_LAKE: Final = "encore_lake_info"
_MODEL_METRICS: Final = ("ndcg", "r_precision", "coverage")


class _Families:
    """Metric families in the order in which they were first used, as a collector."""

    def __init__(self) -> None:
        self._made: dict[str, Metric] = {}

    def gauge(self, name: str, text: str, value: float, **labels: str) -> None:
        """Add a sample to a gauge."""
        family = self._made.setdefault(name, GaugeMetricFamily(name, text, labels=list(labels)))
        family.add_metric(list(labels.values()), value)  # type: ignore[attr-defined]

    def counter(self, name: str, text: str, value: float, **labels: str) -> None:
        """Add a sample to a counter; `name` without _total."""
        family = self._made.setdefault(name, CounterMetricFamily(name, text, labels=list(labels)))
        family.add_metric(list(labels.values()), value)  # type: ignore[attr-defined]

    def collect(self) -> Iterable[Metric]:
        """The families."""
        return self._made.values()


def job_metrics(store: Store, succeeded: Mapping[str, float] | None = None) -> bytes:
    """The metrics of the jobs, models, rejected records and expectations of a lake.

    `succeeded`: seconds since 1970 at which jobs were found to be up to date, by name; the later of this and of what
    the lake records counts.
    """
    families = _Families()
    families.gauge(_LAKE, "The lake that the jobs work on; always 1.", 1, lake=store.path)
    _add_jobs(families, store, succeeded or {})
    _add_costs(families, store)
    _add_quarantine(families, store)
    _add_models(families, store)
    _add_checks(families, store)
    registry = CollectorRegistry()
    registry.register(families)  # type: ignore[arg-type]
    return generate_latest(registry)


def _seconds(at: datetime) -> float:
    return at.astimezone(UTC).timestamp()


def _newest(rows: Iterable[dict[str, Any]], time: str, *key: str) -> list[dict[str, Any]]:
    """The newest row by `time` for each value of some columns, ordered by these."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row[time]):
        found[tuple(row[name] for name in key)] = row
    return [found[values] for values in sorted(found)]


def _add_jobs(families: _Families, store: Store, succeeded: Mapping[str, float]) -> None:
    runs = store.read_small(JOB_RUNS).to_pylist()
    for run in _newest(runs, "started_at", "job"):
        name, ended = run["job"], _seconds(run["started_at"]) + run["seconds"]
        families.gauge(
            "encore_job_last_run_timestamp_seconds", "When the job last ended, having had work.", ended, job_name=name
        )
        text = "1 if the job's last run failed, else 0."
        families.gauge("encore_job_failed", text, run["status"] == "failed", job_name=name)
    last: dict[str, float] = dict(succeeded)
    for run in _newest((run for run in runs if run["status"] != "failed"), "started_at", "job"):
        name, ended = run["job"], _seconds(run["started_at"]) + run["seconds"]
        last[name] = max(ended, last.get(name, 0.0))
        families.gauge("encore_job_seconds", "How long the last successful run took.", run["seconds"], job_name=name)
        for table, rows in sorted(dict(run["rows"]).items()):
            text = "Rows of a table after the last successful run; of quarantine, those that the run added."
            families.gauge("encore_job_rows", text, rows, job_name=name, table=table)
    for name, ended in sorted(last.items()):
        text = "When the job last succeeded, or was found to be up to date."
        families.gauge(LAST_SUCCESS, text, ended, job_name=name)
    failures = Counter(run["job"] for run in runs if run["status"] == "failed")
    for name in sorted({run["job"] for run in runs}):
        families.counter("encore_job_failures", "Failed runs of the job in this lake.", failures[name], job_name=name)


def _add_costs(families: _Families, store: Store) -> None:
    texts = {
        "cpu_seconds": "CPU seconds of the JVM's task threads in the last run that succeeded.",
        "read_bytes": "Bytes that the last run that succeeded read.",
        "written_bytes": "Bytes that the last run that succeeded wrote.",
        "spilled_bytes": "Bytes that the last run that succeeded spilled to disk.",
    }
    for row in _newest(store.read_small(JOB_COSTS).to_pylist(), "started_at", "job"):
        for column, text in texts.items():
            families.gauge(f"encore_job_{column}", text, row[column], job_name=row["job"])
        text = "Peak resident memory of the processes in the last run that succeeded."
        for process in ("jvm", "python", "driver"):
            size = row[f"{process}_bytes"]
            families.gauge("encore_job_peak_bytes", text, size, job_name=row["job"], process=process)


def _add_quarantine(families: _Families, store: Store) -> None:
    rows = store.read_small(QUARANTINE, ["stage", "reason"])
    counts = Counter(zip(rows["stage"].to_pylist(), rows["reason"].to_pylist(), strict=True))
    for (job, reason), n in sorted(counts.items()):
        families.gauge("encore_quarantine_rows", "Records in quarantine.", n, job_name=job, reason=reason)


def _add_models(families: _Families, store: Store) -> None:
    kept = store.partitions(PLAYLIST_METRICS, "model")
    rows = [row for row in store.read_small(MODEL_METRICS).to_pylist() if row["bucket"] == "all"]
    for row in _newest((row for row in rows if row["model"] in kept), "evaluated_at", "model", "metric"):
        if row["metric"] in _MODEL_METRICS:
            text = f"The model's {row['metric']} in its newest evaluation: the mean over the playlists, or share."
            families.gauge(f"encore_model_{row['metric']}", text, row["value"], model=row["model"])
        if row["metric"] == "ndcg":
            text = "When the model was last evaluated."
            at = _seconds(row["evaluated_at"])
            families.gauge("encore_model_evaluated_timestamp_seconds", text, at, model=row["model"])


def _add_checks(families: _Families, store: Store) -> None:
    for row in newest(store.read_small(CHECKS).to_pylist()):
        labels = {"job_name": row["job"], "check": row["name"], "subject": row["subject"]}
        text = "What was measured for an expectation, when it was last checked."
        families.gauge("encore_check_value", text, row["value"], **labels)
        if row["expected"] is not None:
            text = "The lowest or highest value that was expected."
            families.gauge("encore_check_expected", text, row["expected"], **labels)
        text = "1 if an expectation was not met when it was last checked, and nobody accepted that, else 0."
        breached = row["verdict"] in ("warn", "fail")
        families.gauge("encore_check_breached", text, breached, **labels, level=row["severity"])


def write_textfile(store: Store, path: Path, up_to_date: Iterable[str] = ()) -> None:
    """Replace a file by the current metrics, atomically.

    `up_to_date`: jobs that were just found to be up to date. Such successes that the file recorded for the same lake
    earlier are kept. node_exporter reads files whose names end in `.prom`. Raises EnvironmentMissing if the file cannot
    be written.
    """
    succeeded = _recorded(path, store.path)
    succeeded.update(dict.fromkeys(up_to_date, datetime.now(UTC).timestamp()))
    content = job_metrics(store, succeeded)
    partial = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False) as file:
            partial = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # temporary files are readable only by their owner, but node_exporter runs as another user
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except OSError as error:
        if partial:
            Path(partial).unlink(missing_ok=True)
        raise EnvironmentMissing(
            f"{path}: cannot be written: {error.strerror}", remedy="choose another file, or fix its permissions"
        ) from error


def _recorded(path: Path, lake: str) -> dict[str, float]:
    """The time of each job's last success that a file has; none if it is missing, unreadable or of another lake."""
    try:
        families = list(text_string_to_metric_families(path.read_text()))
    except (OSError, ValueError):
        return {}
    samples = [sample for family in families for sample in family.samples]
    if not any(sample.name == _LAKE and sample.labels.get("lake") == lake for sample in samples):
        return {}
    return {sample.labels["job_name"]: sample.value for sample in samples if sample.name == LAST_SUCCESS}
