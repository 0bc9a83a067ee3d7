"""From one row to one row: how every job after ingest works. Arrow batches in, Arrow batches out, nothing shuffled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from encore.datafiles import REPORT_DDL, Place, Writer
from encore.tables import Table, arrow_schema

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

Kernel = Callable[[pa.Table], tuple[np.ndarray | None, dict[str, Any]]]
"""Rows of a bounded number of playlists to columns of the result, and the places of the rows that they are of, rising;
None: of all. The kernel does not say keys: a result row has those of its source row."""


@dataclass(frozen=True)
class Mapped:
    """A frame that a kernel makes of a source, with the source's keys: unique there, so unique here."""

    frame: DataFrame
    keys: DataFrame


@runtime_checkable
class Speaker(Protocol):
    """A kernel that has something to say to the driver when its task ends, besides its rows."""

    def say(self) -> bytes:
        """What it has to say, once all its rows are made."""


@dataclass(frozen=True)
class RowMap:
    """A kernel over the rows of a frame, whose results the tasks write to files themselves.

    `start` is called once in each Python task and returns the kernel, which is given `block` rows at a time; results
    are written, and so held, `piece` rows at a time. `constant`: key columns of the target that are one value
    throughout; `source` has the others. `tasks` a core is how finely Spark cuts the source. `rest` makes the rows
    that the driver adds, of what the kernels had to say.
    """

    source: DataFrame
    start: Callable[[], Kernel]
    block: int
    constant: Mapping[str, str] = field(default_factory=dict)
    tasks: int = 2
    rest: Callable[[list[bytes]], pa.Table] | None = None


def write_rows(work: RowMap, target: Table, place: Place) -> pa.Table:
    """Do the work in tasks that write the files; the reports of all of them, of schema datafiles.REPORT."""
    start, block, constant = work.start, work.block, dict(work.constant)

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        kernel, wanted, writer = start(), arrow_schema(target), Writer(target, place)
        for rows in blocks(batches, block):
            kept, columns = kernel(rows)
            writer.write(with_keys(rows, kept, columns, target, constant).select(wanted.names).cast(wanted))
        yield writer.close(kernel.say() if isinstance(kernel, Speaker) else None)

    with finely_cut(work.source, work.tasks):
        reports = work.source.mapInArrow(write, REPORT_DDL).toArrow()
    if work.rest is None:
        return reports
    said = [value for value in reports["said"].to_pylist() if value is not None]
    writer = Writer(target, place)
    writer.write(work.rest(said).select(target.names).cast(arrow_schema(target)))
    return pa.concat_tables([reports, pa.Table.from_batches([writer.close()]).cast(reports.schema)])


@contextmanager
def finely_cut(frame: DataFrame, tasks: int) -> Iterator[None]:
    """While a frame is read, files are cut into so many tasks a core where their row groups allow it.

    With Spark's defaults a table of a few megabytes is one task, whatever is to be done for each of its rows.
    """
    spark = frame.sparkSession
    wanted = {
        "spark.sql.files.minPartitionNum": str(tasks * spark.sparkContext.defaultParallelism),
        "spark.sql.files.openCostInBytes": str(64 << 10),
    }
    before = {name: spark.conf.get(name, None) for name in wanted}
    for name, value in wanted.items():
        spark.conf.set(name, value)
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                spark.conf.unset(name)
            else:
                spark.conf.set(name, old)


def map_rows(
    source: DataFrame, start: Callable[[], Kernel], target: Table, *, block: int, constant: dict[str, str] | None = None
) -> Mapped:
    """Apply a kernel to the rows of `source`, `block` rows at a time.

    `start` is called once in each Python task and returns the kernel: what is costly to open is opened there.
    `source` has the key columns of `target` but for those in `constant`, which are one value throughout.
    """
    from pyspark.sql import functions as F

    fixed = constant or {}

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        kernel, wanted = start(), arrow_schema(target)
        for rows in blocks(batches, block):
            kept, columns = kernel(rows)
            result = with_keys(rows, kept, columns, target, fixed)
            yield from result.select(wanted.names).cast(wanted).combine_chunks().to_batches()

    keys = source.select(*(F.lit(fixed[name]).alias(name) if name in fixed else name for name in target.key))
    return Mapped(source.mapInArrow(work, target.ddl), keys)


def with_keys(
    rows: pa.Table, kept: np.ndarray | None, columns: dict[str, Any], target: Table, fixed: dict[str, str]
) -> pa.Table:
    """The kernel's columns with the keys of their source rows. ValueError unless `kept` are places of rows, rising."""
    if kept is not None and len(kept) and (kept[0] < 0 or kept[-1] >= len(rows) or (np.diff(kept) <= 0).any()):
        raise ValueError(f"{target.name}: places of source rows, rising, expected from the kernel")
    n = len(rows) if kept is None else len(kept)
    keys: dict[str, Any] = {}
    for name in target.key:
        if name in fixed:
            keys[name] = pa.repeat(fixed[name], n)
        else:
            keys[name] = rows[name] if kept is None else rows[name].take(pa.array(kept))
    return pa.table({**columns, **keys})


def blocks(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Batches of whatever size joined and cut into tables of `size` rows, the last one shorter."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, size - count)
            batch = batch.slice(part.num_rows)
            held.append(part)
            count += part.num_rows
            if count == size:
                yield pa.Table.from_batches(held)
                held, count = [], 0
    if held:
        yield pa.Table.from_batches(held)
