"""What a job is given: its settings, the tables that it declared, and the session."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from encore.config import Config
from encore.errors import LakeError, WriteRefused
from encore.lake.delta import Commit
from encore.lake.parquet import REPORT, IoStats, Writer
from encore.lake.scan import KeyIn, KeyRange, Scan
from encore.lake.store import Store
from encore.lake.tables import Table, arrow_schema
from encore.lake.transaction import commit_files
from encore.progress import Meter, meter
from encore.runtime.registry import JOBS, job_module
from encore.runtime.tracking import Tracking
from encore.spark import broadcast, row_map
from encore.spark.session import Session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


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
    io_stats: IoStats = field(default_factory=IoStats)

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

    def scan(self, table: Table, columns: Sequence[str], where: KeyRange | None = None) -> Scan:
        """Columns of a declared table as it was when the job started; of one that the job itself writes, as it is."""
        self._may_read(table)
        return self.store.scan(table, columns, None if table in self.writes else self.versions[table.name], where)

    def stream(self, table: Table, columns: Sequence[str], where: KeyRange | None = None) -> Iterator[pa.Table]:
        """The rows of `scan`, in parts of bounded size, for the driver itself."""
        return self.scan(table, columns, where).read(self.io_stats)

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

    def ship(self, **arrays: np.ndarray) -> broadcast.BroadcastArrays:
        """Send arrays to every executor, once."""
        return broadcast.ship(self.spark, arrays)

    def write_rows(self, table: Table, work: row_map.RowMap, where: KeyRange, *, part: str = "all") -> pa.Table:
        """Replace the rows `where` by what tasks make of a source and write, in one commit; returns their reports."""
        self._may_write(table)
        reports = row_map.write_rows(self.spark, work, table, self.store.location(table))
        self.commit_files(table, reports, where, part=part)
        return reports

    def commit_files(self, table: Table, reports: pa.Table, where: KeyRange | KeyIn, *, part: str = "all") -> None:
        """Replace the rows `where` by those of files that were written (`parquet.REPORT`), in one commit."""
        self._may_write(table)
        commit_files(self.store, table, reports, self.commit(part), where)
        self.io_stats.read_rows += pc.sum(reports["read_rows"]).as_py() or 0
        self.io_stats.read_bytes += pc.sum(reports["read_bytes"]).as_py() or 0
        self.io_stats.written_bytes += pc.sum(reports["size"]).as_py() or 0
        self.io_stats.written_rows += sum(
            json.loads(text)["numRecords"] for text in reports["stats"].drop_null().to_pylist()
        )

    def writer(self, table: Table) -> Writer:
        """A writer of files of a table, which show in the table once they are committed."""
        self._may_write(table)
        return Writer(table, self.store.location(table))

    def write(self, table: Table, parts: Iterable[pa.Table], where: KeyRange | KeyIn, *, part: str = "all") -> None:
        """Replace the rows `where` by rows that the driver itself has, in one commit, without Spark."""
        writer = self.writer(table)
        for rows_ in parts:
            writer.write(rows_.select(table.names).cast(arrow_schema(table)))
        self.commit_files(table, pa.Table.from_batches([writer.close()], REPORT), where, part=part)

    def append(self, table: Table, rows_: pa.Table, *, part: str = "all") -> None:
        """Add rows that the driver has, whose keys are new, in one commit."""
        key = table.key[-1]
        self.write(table, [rows_], KeyIn(key, pa.array([], arrow_schema(table).field(key).type)), part=part)

    def chunked(
        self,
        source: Table,
        target: Table,
        columns: Sequence[str],
        make: Callable[[Scan, np.ndarray], row_map.RowMap],
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
                scan = self.scan(source, columns, KeyRange((), "pid", start, start + step))
                with self.watched(shown, len(inside)):
                    self.write_rows(target, make(scan, inside), KeyRange(partition, "pid", low, high), part=part)
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
