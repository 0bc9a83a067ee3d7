"""Runs one job: skips it where nothing has changed, else makes its tables, runs it, and records how it ended."""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from encore.config import Config
from encore.errors import LakeError
from encore.lake.store import Store
from encore.lake.tables import JOB_COSTS, JOB_RUNS, Table
from encore.lake.transaction import append_small
from encore.runtime.context import JobContext
from encore.runtime.fingerprint import code_digest
from encore.runtime.registry import job_module
from encore.runtime.result import JobResult
from encore.runtime.tracking import Tracking
from encore.spark import stage_metrics
from encore.spark.session import Session


def run_job(name: str, config: Config, session: Session, tracking: Tracking, *, force: bool = False) -> JobResult:
    """Run one job: skip it where nothing changed, else make its tables, run it, and record how it ended."""
    module = job_module(name)
    store = Store(config, session)
    ctx = JobContext(name, config, session, store, tracking, tracking.run_id, module.READS, module.WRITES, force=force)
    began, clock = datetime.now(UTC), time.monotonic()
    inputs = [table for table in module.READS if table not in module.WRITES]
    states = {table.name: store.state(table) for table in inputs}
    ctx.versions = {table: state.version for table, state in states.items() if state is not None}
    depends = {
        "job": name,
        "code": code_digest(f"encore.jobs.{name}"),
        "settings": {section: config.model_dump(mode="json")[section] for section in module.SETTINGS},
        "inputs": {table: state.data_version for table, state in states.items() if state is not None},
        "state": module.state(ctx) if hasattr(module, "state") else "",
    }
    ctx.fingerprint = hashlib.blake2b(json.dumps(depends, sort_keys=True).encode(), digest_size=16).hexdigest()
    found = None if force else _up_to_date(store, name, module.WRITES, ctx.fingerprint)
    if found is not None:
        ctx.log.info("up_to_date")
        return JobResult(name, "up_to_date", time.monotonic() - clock, found, {})
    if force:
        # parts that an earlier run of the same work has committed are done again too
        ctx.fingerprint = hashlib.blake2b(f"{ctx.fingerprint} {began}".encode(), digest_size=16).hexdigest()
    row: dict[str, Any] = {
        "run_id": ctx.run_id,
        "job": name,
        "started_at": began,
        "fingerprint": ctx.fingerprint,
    }
    error: BaseException | None = None
    before = stage_metrics.newest(session()) if session.started else -1
    try:
        store.check_writable()
        tracking.prepare()
        for table in module.WRITES:
            store.ensure(table)
        ctx.log.info("started")
        module.run(ctx)
    except BaseException as caught:
        error = caught
        raise
    finally:
        seconds = time.monotonic() - clock
        after = {table.name: state for table in module.WRITES if (state := _state_or_none(store, table))}
        row |= {
            "seconds": seconds,
            "status": "failed" if error else "done",
            "inputs": list(ctx.versions.items()),
            "outputs": [(table, state.version_for(name)) for table, state in after.items()],
            "rows": [(table, state.rows) for table, state in after.items()],
            "facts": json.dumps(ctx.facts, sort_keys=True),
            "error": None if error is None else "".join(traceback.format_exception_only(error)).strip()[:2000],
        }
        _record(store, JOB_RUNS, row, failed=error is not None)
    cost = {
        "seconds": seconds,
        **stage_metrics.row(stage_metrics.stages(session(), before) if session.started else [], ctx.io_stats),
    }
    _record(store, JOB_COSTS, {**{name: row[name] for name in JOB_COSTS.key}, **cost}, failed=False)
    result = JobResult(name, "done", seconds, {table: state.rows for table, state in after.items()}, ctx.facts, cost)
    tracking.log_job(result, ctx.versions)
    ctx.log.info("done", seconds=round(seconds, 3), **{f"rows_{table}": n for table, n in result.rows.items()})
    return result


def _state_or_none(store: Store, table: Table) -> Any:
    try:
        return store.state(table)
    except LakeError:
        return None


def _record(store: Store, table: Table, row: dict[str, Any], *, failed: bool) -> None:
    try:
        append_small(store, table, [row])
    except LakeError:
        # a job that failed because the lake cannot be written must end with its own error, not with this one
        if not failed:
            raise


def _up_to_date(store: Store, name: str, writes: Sequence[Table], fingerprint: str) -> dict[str, int] | None:
    """Rows of the job's tables where its last run was of this fingerprint and nothing has changed them since."""
    runs = store.read_small(JOB_RUNS).to_pylist()
    mine = [run for run in runs if run["job"] == name and run["status"] == "done"]
    if not mine:
        return None
    last = max(mine, key=lambda run: run["started_at"])
    if last["fingerprint"] != fingerprint:
        return None
    outputs, rows_ = dict(last["outputs"]), {}
    for table in writes:
        state = store.state(table)
        if (state.version_for(name) if state else None) != outputs.get(table.name):
            return None
        if state:
            rows_[table.name] = state.rows
    return rows_
