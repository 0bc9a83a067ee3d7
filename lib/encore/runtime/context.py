"""What a job works with: its settings, the tables that it declared, and the Spark session."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from encore.config import Config
from encore.errors import LakeError
from encore.lake.coverage import complement, remaining
from encore.lake.delta import Change, Commit, Interval, changes
from encore.lake.lock import LakeLock
from encore.lake.parquet import REPORT, IoStats, Writer
from encore.lake.scan import KeyIn, KeyRange, Scan
from encore.lake.store import Store, TableState
from encore.lake.tables import QUARANTINE, Table, arrow_schema
from encore.lake.track_arrays import damaged
from encore.lake.transaction import Transaction
from encore.progress import Meter, meter
from encore.runtime.registry import JOBS, job_module
from encore.runtime.tracking import InputTable, Tracking
from encore.spark import broadcast, row_map
from encore.spark.session import Session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass
class JobContext:
    """What a job works with. Reading or writing a table that it did not declare is refused.

    `inputs`: the state of each table that it reads and that existed when it started. `models`: by name of the model,
    the fingerprint of the job's rows of it, for jobs whose tables have rows of several models; `fitted`: that of the
    fitted model that they come from.
    """

    name: str
    config: Config
    session: Session
    store: Store
    tracking: Tracking
    run_id: str
    reads: tuple[Table, ...]
    writes: tuple[Table, ...]
    fingerprint: str = ""
    models: dict[str, str] = field(default_factory=dict)
    fitted: dict[str, str] = field(default_factory=dict)
    force: bool = False
    lock: LakeLock | None = None
    inputs: dict[str, TableState] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    io_stats: IoStats = field(default_factory=IoStats)
    n_refused: int = 0
    """Records that this run has put in quarantine, which other runs and jobs write too."""
    _transactions: dict[str, Transaction] = field(default_factory=dict)

    @property
    def spark(self) -> SparkSession:
        """The session, started on first use."""
        return self.session()

    @property
    def versions(self) -> dict[str, int]:
        """The version of each table that the job reads."""
        return {name: state.version for name, state in self.inputs.items()}

    @property
    def input_tables(self) -> list[InputTable]:
        """The tables that the job reads, as MLflow is told."""
        found = ((table, self.inputs.get(table.name)) for table in self.reads)
        return [InputTable(t, self.store.url(t), state.id, state.version, state.rows) for t, state in found if state]

    @cached_property
    def log(self) -> Any:
        """A structured logger that carries the job and the run."""
        return structlog.get_logger("encore").bind(job=self.name, run_id=self.run_id)

    # reading -------------------------------------------------------------------------------------------------------

    def scan(self, table: Table, columns: Sequence[str], where: KeyRange | KeyIn | None = None) -> Scan:
        """Columns of a table as of the start of the job; of a table that the job itself writes, as of now."""
        self._may_read(table)
        at = None if table in self.writes else self.inputs[table.name].log
        return self.store.scan(table, columns, at, where)

    def stream(self, table: Table, columns: Sequence[str], where: KeyRange | KeyIn | None = None) -> Iterator[pa.Table]:
        """The rows of `scan` on the driver, in parts of bounded size."""
        return self.scan(table, columns, where).read(self.io_stats)

    def _may_read(self, table: Table) -> None:
        if table not in self.reads:
            raise LakeError(f"{self.name} reads {table.name}, which it does not declare")
        if table not in self.writes and table.name not in self.inputs:
            writer = next((job for job in JOBS if table in job_module(job).WRITES), "another job")
            raise LakeError(f"the lake {self.store.path} has no table {table.name} yet", remedy=f"run {writer} first")

    def n_rows(self, table: Table) -> int:
        """The number of rows of a table that another job writes, as of the start of this job."""
        self._may_read(table)
        return self.inputs[table.name].rows

    def data_id(self, table: Table) -> str:
        """The id and data version of a table that the job reads; empty where it does not exist."""
        state = self.inputs.get(table.name)
        return state.data_id if state else ""

    # writing -------------------------------------------------------------------------------------------------------

    def begin(self, table: Table) -> None:
        """Create a table that the job writes if it does not exist, and plan the job's commits on its newest version."""
        self._may_write(table)
        self._transactions[table.name] = Transaction(self.store, table, self.store.ensure(table))

    def transaction(self, table: Table) -> Transaction:
        """The commits of this job to a table that it writes."""
        self._may_write(table)
        return self._transactions[table.name]

    def committed(self, table: str) -> set[int]:
        """The versions of a table that this job has committed so far."""
        own = self._transactions.get(table)
        return own.committed if own else set()

    def _may_write(self, table: Table) -> None:
        if table not in self.writes:
            raise LakeError(f"{self.name} writes {table.name}, which it does not declare")

    def is_own(self, commit: Commit, fingerprint: str) -> bool:
        """Whether a commit belongs to a fingerprint's work; a forced run accepts only its own commits."""
        return commit.fingerprint == fingerprint and (not self.force or commit.run_id == self.run_id)

    def ship(self, **arrays: np.ndarray) -> broadcast.BroadcastArrays:
        """Send arrays to every executor, once."""
        return broadcast.ship(self.spark, arrays)

    def commit_files(
        self,
        table: Table,
        reports: pa.Table,
        where: KeyRange | KeyIn,
        *,
        part: str = "all",
        fingerprint: str | None = None,
        fitted: str = "",
        exclusive: bool = False,
    ) -> None:
        """Replace the rows `where` by those of files that were written (`parquet.REPORT`), in one commit.

        `fingerprint` is the job's unless it is given; `fitted` as in Commit; `exclusive` as in Transaction.commit.
        TransientError, and nothing is committed, where another run has taken the lake's lock over.
        """
        self.check_lock()
        commit = Commit(self.name, self.run_id, fingerprint or self.fingerprint, part, fitted=fitted)
        self.transaction(table).commit(reports, commit, where, exclusive=exclusive)
        n_rows = self._count(reports)
        if table is QUARANTINE:
            self.n_refused += n_rows

    def _count(self, reports: pa.Table) -> int:
        """Add what tasks report to the job's figures; returns the rows that they wrote."""
        self.io_stats.read_rows += pc.sum(reports["read_rows"]).as_py() or 0
        self.io_stats.read_bytes += pc.sum(reports["read_bytes"]).as_py() or 0
        self.io_stats.written_bytes += pc.sum(reports["size"]).as_py() or 0
        written_rows: int = sum(json.loads(text)["numRecords"] for text in reports["stats"].drop_null().to_pylist())
        self.io_stats.written_rows += written_rows
        return written_rows

    def check_lock(self) -> None:
        """TransientError where another run has taken the lake's lock over: this one must change nothing more."""
        if self.lock is not None:
            self.lock.check()

    def writer(self, table: Table) -> Writer:
        """A writer of data files of a table, which become visible when they are committed."""
        self._may_write(table)
        return Writer(table, self.store.location(table))

    def write(
        self,
        table: Table,
        parts: Iterable[pa.Table],
        where: KeyRange | KeyIn,
        *,
        part: str = "all",
        fingerprint: str | None = None,
        exclusive: bool = False,
    ) -> None:
        """Replace the rows `where` by rows on the driver, in one commit, without Spark."""
        writer = self.writer(table)
        for rows_ in parts:
            writer.write(rows_.select(table.names).cast(arrow_schema(table)))
        reports = pa.Table.from_batches([writer.close()], REPORT)
        self.commit_files(table, reports, where, part=part, fingerprint=fingerprint, exclusive=exclusive)

    def append(self, table: Table, rows_: pa.Table, *, part: str = "all") -> None:
        """Add rows on the driver, with new keys, in one commit."""
        key = table.key[-1]
        self.write(table, [rows_], KeyIn(key, pa.array([], arrow_schema(table).field(key).type)), part=part)

    def chunked(
        self,
        source: Table,
        target: Table,
        columns: Sequence[str],
        make: Callable[[Scan, np.ndarray, tuple[str, ...]], row_map.RowMap],
        *,
        models: Sequence[str] = (),
        only: np.ndarray | None = None,
    ) -> dict[str, list[Interval]]:
        """Write `target` from `source` in ranges of pids, one commit each, without the ranges that are already done.

        `make(scan, pids, models)` returns the work for one range, from the source's columns in it and its sorted pids.
        What is done follows from the target's log. With `models`, each model's rows are replaced in a commit of its
        own, under its own fingerprint, and models that lack the same ranges are computed together. `only`: the sorted
        pids that get rows, if not all do; chunks are cut by their number. Returns by model ("" without models) the
        ranges that were already done: from a pid, below a pid.
        """
        pids = self.pids(source)
        if (np.diff(pids) <= 0).any():
            raise damaged(source, "key pid is unique", f"pid {pids[1:][np.diff(pids) <= 0][0]}")
        pids = pids if only is None else only
        log = list(changes(self.store.there(target)))
        todo = {model: self.remaining(log, model) for model in models or ("",)}
        groups: dict[tuple[Interval, ...], list[str]] = {}
        for model, intervals in todo.items():
            groups.setdefault(tuple(intervals), []).append(model)
        for ranges, group in groups.items():
            self._write_ranges(source, target, columns, make, pids, ranges, tuple(name for name in group if name))
        return {model: complement(intervals) for model, intervals in todo.items()}

    def remaining(self, log: Iterable[Change], model: str = "") -> list[Interval]:
        """The ranges of pids that this job, for a model if given, still has to write, by a table's changes."""
        partition, fingerprint = _partition(model), self.models[model] if model else self.fingerprint
        return remaining(log, partition, lambda commit: self.is_own(commit, fingerprint))

    def _write_ranges(
        self,
        source: Table,
        target: Table,
        columns: Sequence[str],
        make: Callable[[Scan, np.ndarray, tuple[str, ...]], row_map.RowMap],
        pids: np.ndarray,
        ranges: Sequence[Interval],
        models: tuple[str, ...],
    ) -> None:
        chunks = [chunk for interval in ranges for chunk in chunks_of(interval, pids, self.config.run.chunk_playlists)]
        with meter(f"{self.name} {', '.join(models)}".strip(), "playlists", len(pids)) as shown:
            shown.update(len(pids) - sum(len(inside) for _, inside in chunks))
            for (low, high), inside in chunks:
                scan = self.scan(source, columns, KeyRange((), "pid", low, high))
                with self.watched(shown, len(inside)):
                    reports = row_map.write_rows(
                        self.spark, make(scan, inside, models), target, self.store.location(target)
                    )
                self._commit_chunk(target, reports, (low, high), models)
                self.log.info("chunk_written", table=target.name, part=part_name(low, high), playlists=len(inside))

    def _commit_chunk(self, target: Table, reports: pa.Table, rows: Interval, models: tuple[str, ...]) -> None:
        part = part_name(*rows)
        if not models:
            self.commit_files(target, reports, KeyRange((), "pid", *rows), part=part)
            return
        # a row without a path is about all files: what was read, and rows that break the declaration
        others, first = reports.filter(pc.is_null(reports["path"])), True
        for model in models:
            own = reports.filter(pc.equal(reports["partition"], json.dumps(dict(_partition(model)))))
            shared = others if first else others.filter(others["broken"].is_valid())
            own, first = pa.concat_tables([own, shared]), False
            where, fitted = KeyRange(_partition(model), "pid", *rows), self.fitted.get(model, "")
            self.commit_files(
                target, own, where, part=f"{model}: {part}", fingerprint=self.models[model], fitted=fitted
            )

    def pids(self, table: Table) -> np.ndarray:
        """The sorted pids of a table, int64."""
        parts = [part["pid"].to_numpy() for part in self.stream(table, ["pid"])]
        return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))

    @contextmanager
    def watched(self, shown: Meter, amount: int) -> Iterator[None]:
        """While Spark works on `amount` units, show progress by the share of finished tasks."""
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


def _partition(model: str) -> tuple[tuple[str, str], ...]:
    return (("model", model),) if model else ()


def part_name(low: int | None, high: int | None) -> str:
    """A range of pids in words, the upper end exclusive."""
    ends = [*([f"from pid {low}"] if low is not None else []), *([f"below pid {high}"] if high is not None else [])]
    return " ".join(ends) or "all"


def chunks_of(interval: Interval, pids: np.ndarray, step: int) -> list[tuple[Interval, np.ndarray]]:
    """Cut an interval of pids after every `step` pids, with the pids in each part; no part but the only one is empty.

    Pids may be sparse, such as those of imported playlists. The parts cover the whole interval without gaps. An
    interval without pids is one part: its rows are removed.
    """
    low, high = interval
    first = 0 if low is None else int(np.searchsorted(pids, low))
    last = len(pids) if high is None else int(np.searchsorted(pids, high))
    inside = pids[first:last]
    starts = inside[step::step].tolist()
    ends = [low, *starts, high]
    cuts = np.searchsorted(inside, starts)
    return list(zip(pairwise(ends), np.split(inside, cuts), strict=True))
