"""From one row to one row: how every job after ingest works. Tasks read files, compute, and write files.

Spark gives the tasks their places and repeats those that fail; nothing is shuffled, and no row passes through the JVM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from encore.lake.parquet import REPORT, IoStats, TableLocation, Writer
from encore.lake.scan import Scan
from encore.lake.tables import Table, arrow_schema
from encore.spark.tasks import run_tasks

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Kernel = Callable[[pa.Table], tuple[np.ndarray | None, dict[str, Any]]]
"""Rows of a bounded number of playlists to columns of the result, and the places of the rows that they are of, rising;
None: of all. The kernel does not say keys: a result row has those of its source row."""


@runtime_checkable
class StatefulKernel(Protocol):
    """A kernel that has something to say to the driver when its task ends, besides its rows."""

    def partial_state(self) -> bytes:
        """What it has to say, once all its rows are made."""


@dataclass(frozen=True)
class RowMap:
    """A kernel over the rows of a scan, whose results the tasks write to files themselves.

    `start` is called once in each task and returns the kernel, which is given `block` rows at a time. `constant`: key
    columns of the target that are one value throughout; `source` has the others. `tasks` a core is how finely the
    source is cut. `rest` makes the rows that the driver adds, of what the kernels had to say.
    """

    source: Scan
    start: Callable[[], Kernel]
    block: int
    constant: Mapping[str, str] = field(default_factory=dict)
    tasks: int = 2
    remaining_rows: Callable[[list[bytes]], pa.Table] | None = None


def write_rows(spark: SparkSession, work: RowMap, target: Table, place: TableLocation) -> pa.Table:
    """Do the work in tasks that write the files; the reports of all of them, of schema parquet.REPORT."""
    start, block, constant = work.start, work.block, dict(work.constant)

    def write(part: Scan) -> pa.Table:
        kernel, wanted, writer, io_stats = start(), arrow_schema(target), Writer(target, place), IoStats()
        for rows in blocks(part.read(io_stats), block):
            kept, columns = kernel(rows)
            writer.write(with_keys(rows, kept, columns, target, constant).select(wanted.names).cast(wanted))
        states = kernel.partial_state() if isinstance(kernel, StatefulKernel) else None
        return pa.Table.from_batches([writer.close(states, io_stats)])

    parts = work.source.cut(work.tasks * spark.sparkContext.defaultParallelism)
    reports = pa.concat_tables([REPORT.empty_table(), *run_tasks(spark, parts, write)])
    if work.remaining_rows is None:
        return reports
    states = [value for value in reports["state"].to_pylist() if value is not None]
    writer = Writer(target, place)
    writer.write(work.remaining_rows(states).select(target.names).cast(arrow_schema(target)))
    return pa.concat_tables([reports, pa.Table.from_batches([writer.close()])])


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


def blocks(parts: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Tables of whatever size joined and cut into tables of `size` rows, the last one shorter."""
    held: list[pa.Table] = []
    count = 0
    for rows in parts:
        while rows.num_rows:
            part = rows.slice(0, size - count)
            rows = rows.slice(part.num_rows)
            held.append(part)
            count += part.num_rows
            if count == size:
                yield pa.concat_tables(held)
                held, count = [], 0
    if held:
        yield pa.concat_tables(held)
