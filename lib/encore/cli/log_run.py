"""`encore log`: logs a finished run to MLflow from the lake."""

from __future__ import annotations

import json
from datetime import timedelta
from operator import itemgetter
from typing import Any

import numpy as np
from rich.console import Console

from encore.cli.checks import check_rows
from encore.cli.show import last_run
from encore.config import Config
from encore.errors import InputError, LakeError, TransientError
from encore.evaluation.rows import COLUMNS, summary
from encore.evaluation.summary import Summary
from encore.lake.scan import KeyRange
from encore.lake.store import Store, open_store
from encore.lake.tables import BY_NAME, JOB_COSTS, JOB_RUNS, MODEL_METRICS, PLAYLIST_METRICS
from encore.runtime.result import JobResult
from encore.runtime.tracking import InputTable, Tracking

_NO_TRACKS = np.empty(0, np.int64)
"""Stands in for how often tracks are recommended, which the plots do not use."""


def log_run(config: Config, run_id: str | None, out: Console) -> None:
    """Log the jobs and the evaluated models of a run (default: the last one) as the run itself would have done.

    Logging a run again adds the same values to the same MLflow runs. The logged settings are those of this command.
    Raises InputError if the lake has no such run, TransientError if MLflow does not accept it.
    """
    store = open_store(config)
    runs = store.read_small(JOB_RUNS).to_pylist() if run_id else last_run(store)
    own = sorted((row for row in runs if run_id in (None, row["run_id"])), key=itemgetter("started_at"))
    if not own:
        raise InputError(
            f"the lake {config.lake.path} has no run {run_id}",
            remedy='`encore sql "SELECT DISTINCT run_id FROM job_runs"` lists them',
        )
    name = own[0]["run_id"]
    ends = [row["started_at"] + timedelta(seconds=row["seconds"]) for row in own]
    times = (_ms(own[0]["started_at"]), _ms(max(ends)))
    tracking = Tracking(config, name, times=times)
    costs = {tuple(row[key] for key in JOB_COSTS.key): row for row in store.read_small(JOB_COSTS).to_pylist()}
    for row in own:
        if row["status"] == "done":
            cost = costs.get(tuple(row[key] for key in JOB_COSTS.key), {})
            measured = {key: value for key, value in cost.items() if key not in JOB_COSTS.key and value is not None}
            facts = json.loads(row["facts"] or "{}")
            result = JobResult(row["job"], "done", row["seconds"], dict(row["rows"]), facts, measured)
            tracking.log_job(result, dict(row["inputs"]), _inputs(store, row))
    rows = [row for row in check_rows(store) if row["run_id"] == name]
    for job in dict.fromkeys(row["job"] for row in rows):
        tracking.log_checks(job, [row for row in rows if row["job"] == job])
    models = _log_models(store, tracking, own)
    latest = {row["job"]: row["status"] for row in own}
    failed = next((job for job, status in latest.items() if status != "done"), None)
    done = [job for job, status in latest.items() if status == "done"]
    tracking.finish(done, failed, (max(ends) - own[0]["started_at"]).total_seconds())
    if tracking.failed is not None:
        raise TransientError(
            f"MLflow does not take run {name}: {tracking.place}: {tracking.failed}",
            remedy="check tracking.uri (MLFLOW_TRACKING_URI) or tracking.login, and try again",
        )
    out.print(
        f"run {name}: {len(done)} job(s) and {models} model(s) logged to the experiment {tracking.experiment}",
        highlight=False,
        markup=False,
    )


def _ms(moment: Any) -> int:
    return int(moment.timestamp() * 1000)


def _log_models(store: Store, tracking: Tracking, own: list[dict[str, Any]]) -> int:
    """Log the rows of `model_metrics` for a run's models, with plots if the rows behind them can still be read.

    Returns the number of models.
    """
    # importing matplotlib is slow, and only a run that evaluated something needs it
    from encore.reports import plots

    rows = [row for row in store.read_small(MODEL_METRICS).to_pylist() if row["run_id"] == tracking.run_id]
    evaluated = next((row for row in reversed(own) if row["job"] == "evaluate" and row["status"] == "done"), None)
    models = list(dict.fromkeys(row["model"] for row in rows))
    for model in models:
        metrics: dict[str, float] = {}
        for row in (row for row in rows if row["model"] == model):
            prefix = "" if row["bucket"] == "all" else f"{row['bucket']}/"
            metrics[f"{prefix}{row['metric']}"] = row["value"]
            metrics[f"{prefix}n_playlists"] = row["n_playlists"]
        summary = _summary(store, model, evaluated)
        figures = {}
        if summary is not None:
            mine = {model: summary}
            figures = {
                "precision_by_known": plots.precision_by_known(mine),
                "clicks_distribution": plots.clicks_distribution(mine),
            }
        versions, inputs = (dict(evaluated["inputs"]), _inputs(store, evaluated)) if evaluated else ({}, [])
        fitted = next(row["fitted"] for row in rows if row["model"] == model)
        tracking.log_model(model, metrics, versions, inputs, figures, fitted)
    return len(models)


def _inputs(store: Store, row: dict[str, Any]) -> list[InputTable]:
    """The tables that a job read, limited to those whose versions can still be read."""
    ids, found = dict(row["table_ids"] or ()), []
    for name, version in row["inputs"]:
        if name not in BY_NAME:
            continue
        try:
            state = store.state_at(BY_NAME[name], version)
        except LakeError:
            continue
        if state.id == ids.get(name):
            found.append(InputTable(BY_NAME[name], store.url(BY_NAME[name]), state.id, version, state.rows))
    return found


def _summary(store: Store, model: str, evaluated: dict[str, Any] | None) -> Summary | None:
    """The data for the plots, from the rows that the run wrote; None if these can no longer be read."""
    version = dict(evaluated["outputs"]).get(PLAYLIST_METRICS.name) if evaluated else None
    if version is None:
        return None
    try:
        at = store.at(PLAYLIST_METRICS, version)
        rows = store.scan(PLAYLIST_METRICS, COLUMNS, at, KeyRange((("model", model),))).whole()
    except LakeError:
        return None
    return summary(rows, _NO_TRACKS)
