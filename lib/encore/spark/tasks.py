"""Python tasks on Spark, which Encore uses for scheduling, retries and distributing files.

Tasks read and write files themselves (lake/scan.py, lake/parquet.py), so only the description of the work and a short
answer go through Spark. The RDD API does that without the ten seconds that a new JVM takes to prepare its first query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def run_tasks(spark: SparkSession, parts: Sequence[Any], work: Callable[[Any], pa.Table]) -> list[pa.Table]:
    """Run `work` on each part, one task per part; returns the results in the order of the parts.

    Parts and results are serialised, so they should be small. Each part is sent only to its own task.
    """
    if not parts:
        return []

    def each(own: Iterable[Any]) -> Iterator[bytes]:
        for part in own:
            yield pack(work(part)).to_pybytes()

    answers = spark.sparkContext.parallelize(list(parts), len(parts)).mapPartitions(each).collect()
    return [unpack(answer) for answer in answers]


def pack(table: pa.Table, compression: str | None = None) -> pa.Buffer:
    """Serialise a table as an Arrow IPC stream; `compression`: lz4, zstd or None."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as stream:
        stream.write_table(table)
    return sink.getvalue()


def unpack(data: bytes) -> pa.Table:
    """The inverse of `pack`."""
    return pa.ipc.open_stream(data).read_all()
