"""Runs a pipeline on one machine: the selected jobs, in the order of the graph, in one process and one session."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import structlog

from encore import interrupts, temporary
from encore.config import Config
from encore.errors import EncoreError
from encore.lake.lock import LakeLock
from encore.lake.store import open_store
from encore.lake.tables import QUARANTINE
from encore.runtime import graph
from encore.runtime.leftovers import Cleaned
from encore.runtime.registry import JOBS, job_module, nodes
from encore.runtime.result import JobResult
from encore.runtime.runner import run_job
from encore.runtime.tracking import Tracking
from encore.spark.session import Session

REFUSED_QUERY = '`encore sql "SELECT source, reason, detail FROM quarantine"` shows them'

log = structlog.get_logger("encore")


def new_run_id() -> str:
    """An id for a pipeline run that sorts by time: 20260131-235959-1a2b3c."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"


def check(config: Config) -> None:
    """Reject settings that would otherwise fail late, using each job's own `check`."""
    for name in JOBS:
        own = getattr(job_module(name), "check", None)
        if own is not None:
            own(config)


def run_pipeline(
    config: Config,
    jobs: Sequence[str],
    *,
    run_id: str | None = None,
    force: bool = False,
    take_over: bool = False,
    session: Session | None = None,
    on_job: Callable[[str], None] | None = None,
    on_result: Callable[[JobResult], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[JobResult]:
    """Run jobs one after the other. The first failure ends the run; it is recorded and raised.

    If `session` is given, it is used and left running; otherwise one is started when a job needs it. The first job with
    work to do acquires the lake's lock, which is released at the end; `take_over` takes it from a run that holds it.
    At the end, `on_note` is called with one line each about cleaning up after runs that did not finish, rejected
    records, MLflow and `run.textfile`. Raises TransientError if another run holds the lock.
    """
    check(config)
    own, tracking = session or Session(config), Tracking(config, run_id or new_run_id())
    lock = LakeLock(config, tracking.run_id, take_over=take_over)
    results: list[JobResult] = []
    cleaned = Cleaned()
    began = time.monotonic()
    failed: str | None = None
    try:
        for name in jobs:
            failed = name
            if on_job:
                on_job(name)
            results.append(run_job(name, config, own, tracking, force=force, lock=lock, cleaned=cleaned))
            if on_result:
                on_result(results[-1])
        failed = None
    finally:
        killed = interrupts.received() is not None
        try:
            # a single job may be one of several processes of a run, and reports only its own seconds
            seconds = time.monotonic() - began if len(jobs) > 1 else None
            tracking.finish([result.name for result in results], failed, seconds, killed=killed)
            if session is None:
                own.stop()
        finally:
            # last, because tasks of a failed job may still be writing files until then
            lock.release()
        notes = [*_notes(cleaned, results, tracking), *_write_metrics(config, results)]
        for note in notes:
            log.info("note", text=note)
            if on_note:
                on_note(note)
    return results


def _notes(cleaned: Cleaned, results: Sequence[JobResult], tracking: Tracking) -> Iterator[str]:
    """The messages to show to the user at the end of a run."""
    worked = [result for result in results if result.status != "up_to_date"]
    if interrupts.received() is not None:
        return
    if worked:
        cleaned.folders, cleaned.folder_bytes = temporary.remove_abandoned()
    cleaned.mlflow_runs = tracking.abandoned
    line = cleaned.line()
    if line:
        yield line
    refused = sum(result.rows.get(QUARANTINE.name, 0) for result in worked)
    if refused:
        yield f"{refused:,} record(s) were refused: {REFUSED_QUERY}"
    if worked and tracking.failed is not None:
        logged = "nothing was logged" if tracking.is_empty else "not everything was logged"
        yield (
            f"MLflow: {logged}: {tracking.place}: {tracking.failed}. The metrics are in the tables playlist_metrics "
            f"and model_metrics; `encore log {tracking.run_id}` logs them later"
        )
    elif worked:
        yield f"MLflow: run {tracking.run_id} in the experiment {tracking.experiment}, `make ui` shows it"


def _write_metrics(config: Config, results: Sequence[JobResult]) -> Iterator[str]:
    """Replace `run.textfile`, if it is set. A failure is a note: the jobs' results do not depend on it."""
    if config.run.textfile is None:
        return
    from encore.runtime.textfile import write_textfile

    try:
        store = open_store(config)
        write_textfile(
            store, Path(config.run.textfile), [result.name for result in results if result.status == "up_to_date"]
        )
    except EncoreError as error:
        yield f"run.textfile: the metrics of the jobs were not written: {error}"


def plan(first: str | None = None, last: str | None = None, only: Sequence[str] = ()) -> list[str]:
    """The jobs of a run, in order."""
    return graph.select(nodes(), first, last, only)
