"""Runs one job: skips it if nothing has changed, otherwise creates its tables, runs it, and records how it ended."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from operator import itemgetter
from types import ModuleType
from typing import Any

from encore.config import Config
from encore.errors import EncoreError, InputError
from encore.lake.failures import translated
from encore.lake.lock import LakeLock
from encore.lake.store import Store, TableState
from encore.lake.tables import JOB_COSTS, JOB_RUNS, QUARANTINE, Table
from encore.lake.transaction import append_small
from encore.runtime.context import JobContext
from encore.runtime.fingerprint import code_digest, digest, fingerprint
from encore.runtime.leftovers import Cleaned, working
from encore.runtime.registry import gates, job_module
from encore.runtime.result import JobResult
from encore.runtime.tracking import Tracking
from encore.spark import stage_metrics
from encore.spark.session import Session


def run_job(
    name: str,
    config: Config,
    session: Session,
    tracking: Tracking,
    *,
    force: bool = False,
    lock: LakeLock | None = None,
    cleaned: Cleaned | None = None,
) -> JobResult:
    """Run one job: skip it if nothing has changed, otherwise create its tables, run it, and record how it ended.

    A job with work to do acquires the `lock` first. Raises TransientError if another run holds it, InputError if a job
    that has to precede it (`BEFORE`) failed when it last ran.
    """
    module = job_module(name)
    store = Store(config, session)
    ctx = JobContext(
        name, config, session, store, tracking, tracking.run_id, module.READS, module.WRITES, force=force, lock=lock
    )
    began, clock = datetime.now(UTC), time.monotonic()
    inputs = [table for table in module.READS if table not in module.WRITES]
    ctx.inputs = {table.name: state for table in inputs if (state := store.state(table)) is not None}
    _set_fingerprints(ctx, module)
    found = None if force else _up_to_date(ctx, module)
    if found is not None:
        ctx.log.info("up_to_date")
        return JobResult(name, "up_to_date", time.monotonic() - clock, found, {})
    if lock is not None:
        store.check_writable()
        if lock.take():
            # another run may have changed the tables since they were read
            return run_job(name, config, session, tracking, force=force, lock=lock, cleaned=cleaned)
    _check_gates(store, name)
    row: dict[str, Any] = {
        "run_id": ctx.run_id,
        "job": name,
        "started_at": began,
        "fingerprint": ctx.fingerprint,
    }
    error: BaseException | None = None
    before = stage_metrics.newest(session()) if session.started else -1
    outputs: dict[str, int] = {}
    try:
        store.check_writable()
        tracking.prepare()
        for table in module.WRITES:
            ctx.begin(table)
        outputs = {table.name: _version_for(store, table, name) for table in module.WRITES}
        ctx.log.info("started")
        with translated(), working(store, name, ctx.run_id, module.WRITES, cleaned or Cleaned()):
            module.run(ctx)
    except BaseException as caught:
        error = caught
        raise
    finally:
        seconds = time.monotonic() - clock
        after = {table.name: state for table in module.WRITES if (state := _state_or_none(store, table))}
        # the versions that this run committed, not later ones from other runs
        outputs |= {table: max(done) for table in outputs if (done := ctx.committed(table))}
        ids = {table: state.id for table, state in {**ctx.inputs, **after}.items()}
        rows = {table: ctx.n_refused if table == QUARANTINE.name else state.rows for table, state in after.items()}
        row |= {
            "seconds": seconds,
            "status": "failed" if error else "done",
            "inputs": list(ctx.versions.items()),
            "outputs": list(outputs.items()),
            "rows": list(rows.items()),
            "facts": json.dumps(ctx.facts, sort_keys=True),
            "error": None if error is None else "".join(traceback.format_exception_only(error)).strip()[:2000],
            "table_ids": list(ids.items()),
        }
        _record(store, JOB_RUNS, row, failed=error is not None)
    stages = stage_metrics.stages(session(), before) if session.started else []
    cost = {"seconds": seconds, **stage_metrics.row(stages, ctx.io_stats)}
    _record(store, JOB_COSTS, {**{name: row[name] for name in JOB_COSTS.key}, **cost}, failed=False)
    result = JobResult(name, "done", seconds, rows, ctx.facts, cost)
    tracking.log_job(result, ctx.versions, ctx.input_tables)
    ctx.log.info("done", seconds=round(seconds, 3), **{f"rows_{table}": n for table, n in result.rows.items()})
    return result


def _check_gates(store: Store, name: str) -> None:
    """Raise InputError if one of the jobs that have to precede a job failed when it last ran."""
    wanted = gates(name)
    if not wanted:
        return
    runs = store.read_small(JOB_RUNS, ["job", "run_id", "started_at", "status", "error"]).to_pylist()
    for gate in wanted:
        last = max((run for run in runs if run["job"] == gate), key=itemgetter("started_at"), default=None)
        if last is not None and last["status"] == "failed":
            raise InputError(
                f"{name} does not run, because {gate} failed in run {last['run_id']}: {last['error']}",
                remedy=f"run {gate} again: `encore run` without --from and --only does",
            )


def _set_fingerprints(ctx: JobContext, module: ModuleType) -> None:
    state = module.state(ctx) if hasattr(module, "state") else ""
    if hasattr(module, "model_fingerprints"):
        ctx.models = module.model_fingerprints(ctx)
        ctx.fingerprint = digest({"job": ctx.name, "models": ctx.models, "state": state})
        return
    settings = ctx.config.model_dump(mode="json")
    ctx.fingerprint = fingerprint(
        ctx.name,
        code=code_digest(module.__name__),
        settings={section: settings[section] for section in module.SETTINGS},
        inputs={table: found.data_id for table, found in ctx.inputs.items()},
        writes=module.WRITES,
        state=state,
    )


def _version_for(store: Store, table: Table, job: str) -> int:
    state = store.state(table)
    return state.version_for(job) if state else 0


def _state_or_none(store: Store, table: Table) -> TableState | None:
    try:
        return store.state(table)
    except EncoreError:
        return None


def _record(store: Store, table: Table, row: dict[str, Any], *, failed: bool) -> None:
    try:
        store.ensure(table)
        append_small(store, table, [row])
    except EncoreError:
        # a job that failed because the lake is not writable must end with its own error, not with this one
        if not failed:
            raise


def _up_to_date(ctx: JobContext, module: ModuleType) -> dict[str, int] | None:
    """The rows of the job's tables if its last run had this fingerprint and nothing has changed them since, else None.

    The run's record is verified: the tables must be the same ones, at the versions that the run itself committed, and
    according to the table's own log every row of a derived table must have this fingerprint. If a table was restored
    after the last run, its rows may be those of an earlier run, and each run with this fingerprint is considered.
    """
    runs = ctx.store.read_small(JOB_RUNS).to_pylist()
    mine = [run for run in runs if run["job"] == ctx.name and run["status"] == "done"]
    last = max(mine, key=itemgetter("started_at"), default=None)
    if last is None:
        return None
    states = {table: ctx.store.state(table) for table in module.WRITES}
    since = last["started_at"].timestamp() * 1000
    restores = [state.restored for state in states.values() if state is not None and state.restored is not None]
    candidates = mine if any(restore.timestamp_ms > since for restore in restores) else [last]
    for run in candidates:
        if run["fingerprint"] == ctx.fingerprint and _is_result(ctx, module, run, states):
            # the rows in quarantine are from earlier runs and from other jobs
            return {table.name: state.rows for table, state in states.items() if state and table is not QUARANTINE}
    return None


def _is_result(
    ctx: JobContext, module: ModuleType, run: Mapping[str, Any], states: Mapping[Table, TableState | None]
) -> bool:
    """Whether the job's tables are as one of its runs, a row of `job_runs`, left them."""
    outputs, ids = dict(run["outputs"]), dict(run["table_ids"] or ())
    for table, state in states.items():
        if state is None or state.id != ids.get(table.name):
            return False
        derived = table in getattr(module, "DERIVED", ())
        if not (_is_derived(ctx, state) if derived else state.version_for(ctx.name) == outputs.get(table.name)):
            return False
    return True


def _is_derived(ctx: JobContext, state: TableState) -> bool:
    """Whether the last commit of every row has the fingerprint of this job, or of the row's model."""
    return not any(ctx.remaining(state.changes(), model) for model in ctx.models or ("",))
