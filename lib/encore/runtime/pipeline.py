"""Runs a pipeline on one machine: the selected jobs, in the order of the graph, in one process and session."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import structlog

from encore.config import Config
from encore.lake.lock import LakeLock
from encore.runtime import graph
from encore.runtime.registry import JOBS, job_module, nodes
from encore.runtime.result import JobResult
from encore.runtime.runner import run_job
from encore.runtime.tracking import Tracking
from encore.spark.session import Session

log = structlog.get_logger("encore")


def new_run_id() -> str:
    """An id for a pipeline run that sorts by time: 20260131-235959-1a2b3c."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"


def check(config: Config) -> None:
    """Refuse settings that would otherwise fail late, with each job's own `check`."""
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
) -> list[JobResult]:
    """Run jobs one after the other. The first failure ends the run, is recorded, and is raised.

    A `session` that is given is used and left running; without one, one is started where a job needs it. The first job
    with work to do takes the lake's lock, which is released at the end; `take_over` takes it from a run that holds it.
    Raises TransientError where another run holds the lock.
    """
    check(config)
    own, tracking = session or Session(config), Tracking(config, run_id or new_run_id())
    lock = LakeLock(config, tracking.run_id, take_over=take_over)
    results: list[JobResult] = []
    began = time.monotonic()
    failed: str | None = None
    try:
        for name in jobs:
            failed = name
            if on_job:
                on_job(name)
            results.append(run_job(name, config, own, tracking, force=force, lock=lock))
            if on_result:
                on_result(results[-1])
        failed = None
    finally:
        try:
            # of one job among others in processes of their own, the seconds are told by itself
            seconds = time.monotonic() - began if len(jobs) > 1 else None
            tracking.finish([result.name for result in results], failed, seconds)
            if session is None:
                own.stop()
        finally:
            # last: until then tasks of a job that failed may still write files
            lock.release()
    return results


def plan(first: str | None = None, last: str | None = None, only: Sequence[str] = ()) -> list[str]:
    """The jobs of a run, in order."""
    return graph.select(nodes(), first, last, only)
