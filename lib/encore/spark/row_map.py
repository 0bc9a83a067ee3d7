"""Row-by-row maps over tables, the basis of every job after ingest. Tasks read files, compute, and write files.

Spark schedules the tasks and retries those that fail; nothing is shuffled, and no row passes through the JVM.
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
"""Maps a block of source rows to result columns, and the positions of the source rows that have a result, ascending
(None: all of them). It returns no key columns: a result row gets the keys of its source row."""


@runtime_checkable
class StatefulKernel(Protocol):
    """A kernel that sends state to the driver when its task ends, in addition to its rows."""

    def partial_state(self) -> bytes:
        """The state, serialised; called after the last block."""


@dataclass(frozen=True)
class RowMap:
    """A kernel over the rows of a scan, whose results are written to files by the tasks themselves.

    `start` is called once per task and returns the kernel, which gets `block` rows at a time. `constant`: key columns
    of the target that have a single value; `source` has the others. `tasks`: number of tasks per core. `remaining_rows`
    returns the rows that the driver adds, computed from the partial states of all kernels.
    """

    source: Scan
    start: Callable[[], Kernel]
    block: int
    constant: Mapping[str, str] = field(default_factory=dict)
    tasks: int = 2
    remaining_rows: Callable[[list[bytes]], pa.Table] | None = None


def write_rows(spark: SparkSession, work: RowMap, target: Table, place: TableLocation) -> pa.Table:
    """Run tasks that write the files; returns the reports of all tasks, with the schema parquet.REPORT."""
    start, block, constant = work.start, work.block, dict(work.constant)

    def write(part: Scan) -> pa.Table:
        kernel, schema, writer, io_stats = start(), arrow_schema(target), Writer(target, place), IoStats()
        for rows in blocks(part.read(io_stats), block):
            kept, columns = kernel(rows)
            writer.write(with_keys(rows, kept, columns, target, constant).select(schema.names).cast(schema))
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
    rows: pa.Table, kept: np.ndarray | None, columns: dict[str, Any], target: Table, constant: dict[str, str]
) -> pa.Table:
    """The kernel's columns with the keys of their source rows.

    Raises ValueError unless `kept` holds ascending positions of source rows.
    """
    if kept is not None and len(kept) and (kept[0] < 0 or kept[-1] >= len(rows) or (np.diff(kept) <= 0).any()):
        raise ValueError(f"{target.name}: expected ascending positions of source rows from the kernel")
    n = len(rows) if kept is None else len(kept)
    keys: dict[str, Any] = {}
    for name in target.key:
        if name in constant:
            keys[name] = pa.repeat(constant[name], n)
        else:
            keys[name] = rows[name] if kept is None else rows[name].take(pa.array(kept))
    return pa.table({**columns, **keys})


def blocks(parts: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Regroup tables of any size into tables of `size` rows; the last one may be shorter."""
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
