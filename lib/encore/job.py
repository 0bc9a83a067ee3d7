"""One shape for every job: what it declares, what it is given, and how it is run, alone or in the line.

A job is a module of `encore.jobs` with

    READS: tuple[Table, ...]      what it reads; with WRITES, the graph
    WRITES: tuple[Table, ...]     what it alone writes
    SETTINGS: tuple[str, ...]     the sections of the configuration on which its result depends
    def run(ctx: JobContext) -> None
    def state(ctx: JobContext) -> str      optional: digest of what it depends on outside the lake
    UPKEEP: tuple[Table, ...]     optional: tables whose files, but no rows, it changes

The result of a job is a function of its input tables, those settings, that state and the code. Their digest, the
fingerprint, is kept with each run, so that a job with nothing to do says so without starting Spark.
"""

from __future__ import annotations

import ast
import hashlib
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog

import encore
from encore import costs, rows, shipping
from encore.config import Config
from encore.datafiles import REPORT, Moved, Writer
from encore.errors import LakeError, WriteRefused
from encore.graph import Node
from encore.progress import Meter, meter
from encore.scan import Among, Scan, Where
from encore.session import start_session
from encore.store import Commit, Store
from encore.tables import JOB_COSTS, JOB_RUNS, Table, arrow_schema
from encore.tracking import Tracking

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

JOBS: tuple[str, ...] = (
    "ingest_playlists",
    "ingest_features",
    "build_track_vectors",
    "split_holdout",
    "build_centroids",
    "recommend",
    "evaluate",
    "report",
)
"""Every job. The order of running is not this one but that of the graph."""

EXTRA_JOBS: tuple[str, ...] = ("maintain",)
"""Jobs that are not of the line: they run when they are asked for by name, and change no row."""


def job_module(name: str) -> ModuleType:
    """The module of a job."""
    return import_module(f"encore.jobs.{name}")


def node(name: str) -> Node:
    """A job as the graph sees it."""
    module = job_module(name)
    return Node(name, module.READS, module.WRITES)


def upkeep(name: str) -> tuple[Table, ...]:
    """Tables whose files, but no rows, a job changes."""
    found: tuple[Table, ...] = getattr(job_module(name), "UPKEEP", ())
    return found


def nodes() -> list[Node]:
    """All jobs of the line as the graph sees them."""
    return [node(name) for name in JOBS]


def extra_nodes() -> list[Node]:
    """The jobs that are not of the line, as the graph sees them."""
    return [node(name) for name in EXTRA_JOBS]


class Session:
    """The Spark session of a process: started on first use, stopped once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._spark: SparkSession | None = None

    def __call__(self) -> SparkSession:
        """The session."""
        if self._spark is None:
            self._spark = start_session(self._config, "encore")
        return self._spark

    @property
    def started(self) -> bool:
        """Whether something needed it."""
        return self._spark is not None

    def stop(self) -> None:
        """Stop it, if it was started."""
        if self._spark is not None:
            self._spark.stop()
            self._spark = None


@dataclass
class JobContext:
    """What a job is given. Reading or writing a table that it did not declare is refused."""

    name: str
    config: Config
    session: Session
    store: Store
    tracking: Tracking
    run_id: str
    reads: tuple[Table, ...]
    writes: tuple[Table, ...]
    fingerprint: str = ""
    force: bool = False
    versions: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    moved: Moved = field(default_factory=Moved)

    @property
    def spark(self) -> SparkSession:
        """The session, started on first use."""
        return self.session()

    @cached_property
    def log(self) -> Any:
        """A structured logger that carries the job and the run."""
        return structlog.get_logger("encore").bind(job=self.name, run_id=self.run_id)

    def commit(self, part: str = "all") -> Commit:
        """What a commit of this job, for a part of its work, leaves in the table's log."""
        return Commit(self.name, self.run_id, self.fingerprint, part)

    def scan(self, table: Table, columns: Sequence[str], where: Where | None = None) -> Scan:
        """Columns of a declared table as it was when the job started; of one that the job itself writes, as it is."""
        self._may_read(table)
        return self.store.scan(table, columns, None if table in self.writes else self.versions[table.name], where)

    def stream(self, table: Table, columns: Sequence[str], where: Where | None = None) -> Iterator[pa.Table]:
        """The rows of `scan`, in parts of bounded size, for the driver itself."""
        return self.scan(table, columns, where).read(self.moved)

    def _may_read(self, table: Table) -> None:
        if table not in self.reads:
            raise LakeError(f"{self.name} reads {table.name}, which it does not declare")
        if table not in self.writes and table.name not in self.versions:
            writer = next((job for job in JOBS if table in job_module(job).WRITES), "another job")
            raise LakeError(f"the lake {self.store.path} has no table {table.name} yet", remedy=f"run {writer} first")

    def n_rows(self, table: Table) -> int:
        """Rows of a declared table that another job wrote, as the log says."""
        if table not in self.reads:
            raise LakeError(f"{self.name} reads {table.name}, which it does not declare")
        state = self.store.state(table)
        if state is None:
            raise LakeError(f"the lake {self.store.path} has no table {table.name} yet")
        return state.rows

    def _may_write(self, table: Table) -> None:
        if table not in self.writes:
            raise LakeError(f"{self.name} writes {table.name}, which it does not declare")

    def ship(self, **arrays: np.ndarray) -> shipping.Shipped:
        """Send arrays to every executor, once."""
        return shipping.ship(self.spark, arrays)

    def write_rows(self, table: Table, work: rows.RowMap, where: Where, *, part: str = "all") -> pa.Table:
        """Replace the rows `where` by what tasks make of a source and write, in one commit; returns their reports."""
        self._may_write(table)
        reports = rows.write_rows(self.spark, work, table, self.store.place(table))
        self.commit_files(table, reports, where, part=part)
        return reports

    def commit_files(self, table: Table, reports: pa.Table, where: Where | Among, *, part: str = "all") -> None:
        """Replace the rows `where` by those of files that were written (`datafiles.REPORT`), in one commit."""
        self._may_write(table)
        self.store.commit_files(table, reports, self.commit(part), where)
        self.moved.read_rows += pc.sum(reports["read_rows"]).as_py() or 0
        self.moved.read_bytes += pc.sum(reports["read_bytes"]).as_py() or 0
        self.moved.written_bytes += pc.sum(reports["size"]).as_py() or 0
        self.moved.written_rows += sum(
            json.loads(text)["numRecords"] for text in reports["stats"].drop_null().to_pylist()
        )

    def writer(self, table: Table) -> Writer:
        """A writer of files of a table, which show in the table once they are committed."""
        self._may_write(table)
        return Writer(table, self.store.place(table))

    def write(self, table: Table, parts: Iterable[pa.Table], where: Where | Among, *, part: str = "all") -> None:
        """Replace the rows `where` by rows that the driver itself has, in one commit, without Spark."""
        writer = self.writer(table)
        for rows_ in parts:
            writer.write(rows_.select(table.names).cast(arrow_schema(table)))
        self.commit_files(table, pa.Table.from_batches([writer.close()], REPORT), where, part=part)

    def append(self, table: Table, rows_: pa.Table, *, part: str = "all") -> None:
        """Add rows that the driver has, whose keys are new, in one commit."""
        key = table.key[-1]
        self.write(table, [rows_], Among(key, pa.array([], arrow_schema(table).field(key).type)), part=part)

    def chunked(
        self,
        source: Table,
        target: Table,
        columns: Sequence[str],
        make: Callable[[Scan, np.ndarray], rows.RowMap],
        *,
        model: str | None = None,
    ) -> list[tuple[int | None, int | None]]:
        """Write `target` from `source` in ranges of pids, a commit each; ranges that this work has done are skipped.

        `make(scan, pids)` says how the rows of one range come of the source's columns in it and their sorted pids.
        Where a `model` is named, its rows alone are replaced. Returns the ranges that were skipped: from a pid, below
        a pid.
        """
        pids = self.pids(source)
        if (np.diff(pids) <= 0).any():
            raise WriteRefused(source.name, ["key pid repeats"])
        step = self.config.run.chunk_playlists
        starts = np.unique(pids // step) * step
        partition = () if model is None else (("model", model),)
        done, skipped = self.store.parts_done(target, self.fingerprint), []
        with meter(f"{self.name} {model or ''}".strip(), "playlists", len(pids)) as shown:
            # without a source row there is one range, which empties what is there
            for i, start in enumerate(starts.tolist() or [0]):
                inside = pids[(pids >= start) & (pids < start + step)]
                low = start if i else None
                high = int(starts[i + 1]) if i + 1 < len(starts) else None
                part = f"{model}:{start}" if model else str(start)
                if part in done:
                    shown.update(shown.done + len(inside))
                    skipped.append((low, high))
                    continue
                scan = self.scan(source, columns, Where((), "pid", start, start + step))
                with self.watched(shown, len(inside)):
                    self.write_rows(target, make(scan, inside), Where(partition, "pid", low, high), part=part)
                self.log.info("chunk_written", table=target.name, part=part, playlists=len(inside))
        return skipped

    def pids(self, table: Table) -> np.ndarray:
        """The sorted pids of a table that is keyed by them, int64."""
        parts = [part["pid"].to_numpy() for part in self.stream(table, ["pid"])]
        return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))

    @contextmanager
    def watched(self, shown: Meter, amount: int) -> Iterator[None]:
        """While Spark works on `amount` units, show them as done in the measure in which its tasks are finished."""
        tracker, over, base = self.spark.sparkContext.statusTracker(), threading.Event(), shown.done

        def poll() -> None:
            while not over.wait(0.5):
                infos = [info for stage in tracker.getActiveStageIds() if (info := tracker.getStageInfo(stage))]
                total, done = (
                    sum(info.numTasks for info in infos),
                    sum(info.numCompletedTasks for info in infos),
                )
                shown.update(base + (amount * done // total if total else 0))

        thread = threading.Thread(target=poll, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        shown.update(base + amount)


@dataclass(frozen=True)
class JobResult:
    """How a job ended: `status` done or up_to_date, seconds, rows of each table that it wrote, what it cost."""

    name: str
    status: str
    seconds: float
    rows: dict[str, int]
    facts: dict[str, Any]
    cost: dict[str, Any] = field(default_factory=dict)


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
    before = costs.newest(session()) if session.started else -1
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
    cost = {"seconds": seconds, **costs.row(costs.stages(session(), before) if session.started else [], ctx.moved)}
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
        store.append_small(table, [row])
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


@cache
def code_digest(module: str) -> str:
    """Digest of the source of a module and of all of Encore's own that it imports: other code, another result."""
    root = Path(encore.__file__).parent
    digest, seen, todo = hashlib.blake2b(digest_size=16), set(), [module]
    while todo:
        name = todo.pop()
        path = root.joinpath(*name.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or name in _PRESENTATION or not path.is_file():
            continue
        seen.add(name)
        for statement in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("encore"):
                todo.append(str(statement.module))
                todo.extend(f"{statement.module}.{alias.name}" for alias in statement.names)
            elif isinstance(statement, ast.Import):
                todo.extend(alias.name for alias in statement.names if alias.name.startswith("encore"))
    for name in sorted(seen):
        path = root.joinpath(*name.split(".")[1:])
        digest.update(((path / "__init__.py") if path.is_dir() else path.with_suffix(".py")).read_bytes())
    return digest.hexdigest()


_PRESENTATION = frozenset(
    {"encore.reports.plots", "encore.progress", "encore.log", "encore.session", "encore.job", "encore.tracking"}
)
"""How a job is shown, started and logged: not what its rows are."""
