"""Python tasks on Spark: what Encore asks of it is places to work at, retries, and that tasks find what was shipped.

Tasks read and write files themselves (scan.py, datafiles.py), so what goes through Spark is what to do, and a short
answer. Its plain API of distributed collections does that without the ten seconds in which a new JVM gets ready for its
first query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def run_tasks(spark: SparkSession, parts: Sequence[Any], work: Callable[[Any], pa.Table]) -> list[pa.Table]:
    """`work` of each part, a task each; the answers, in the order of the parts.

    Parts and answers are pickled or as good as: they should be small. A part goes to its own task only.
    """
    if not parts:
        return []

    def each(own: Iterable[Any]) -> Iterator[bytes]:
        for part in own:
            yield pack(work(part)).to_pybytes()

    answers = spark.sparkContext.parallelize(list(parts), len(parts)).mapPartitions(each).collect()
    return [unpack(answer) for answer in answers]


def pack(table: pa.Table, compression: str | None = None) -> pa.Buffer:
    """A table as Arrow's stream; `compression`: lz4, zstd, or none."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as stream:
        stream.write_table(table)
    return sink.getvalue()


def unpack(data: bytes) -> pa.Table:
    """The table that `pack` was given."""
    return pa.ipc.open_stream(data).read_all()
