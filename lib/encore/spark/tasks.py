"""Python tasks on Spark, which Encore uses for scheduling, retries and distributing files.

Tasks read and write files themselves (lake/scan.py, lake/parquet.py), so only the description of the work and a short
result go through Spark. The RDD API does that without the ten seconds that a new JVM takes to prepare its first query.

An error of a task reaches the driver as itself, with its class, remedy and exit code, and not as text in a Java stack
trace. If no retry can help, the task ends as if it had succeeded and returns its error, so that Spark does not retry
it; a transient error is raised in the task until Spark has no attempt left.
"""

from __future__ import annotations

import pickle
import re
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from encore import interrupts
from encore.errors import EncoreError, EnvironmentMissing, TransientError
from encore.lake.failures import full, known

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

JVM_GONE_SECONDS = 3.0
"""How long to wait for the signal that may have ended the JVM, since this process usually receives it too."""


class WorkerTraceback(Exception):
    """The worker's traceback of an error; the cause of the error that the driver raises."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(frozen=True)
class TaskFailure:
    """How a task failed: its error, or its text if the error cannot be pickled, and the worker's stack trace."""

    error: BaseException | str
    stack: str

    @classmethod
    def of(cls, error: BaseException) -> TaskFailure:
        """The failure for an error that is being handled."""
        stack = "".join(traceback.format_exception(error)).rstrip()
        try:
            # an error that cannot be unpickled is of no use either
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 - an error's own __reduce__ or __init__ may raise anything
            return cls(f"{type(error).__name__}: {error}", stack)
        return cls(error, stack)

    @property
    def is_transient(self) -> bool:
        """Whether a retry may succeed."""
        return isinstance(self.error, TransientError)

    def throw(self) -> None:
        """Raise the error: an expected failure as it is, a defect with the worker's stack trace."""
        if isinstance(self.error, EncoreError):
            raise self.error
        error = self.error if isinstance(self.error, BaseException) else RuntimeError(self.error)
        raise error from WorkerTraceback(self.stack)


def run_tasks(spark: SparkSession, parts: Sequence[Any], work: Callable[[Any], pa.Table]) -> list[pa.Table]:
    """Run `work` on each part, one task per part; returns the results in the order of the parts.

    Parts and results are serialised, so they should be small. Each part is sent only to its own task. An error of a
    task is raised as it is, and the other tasks are stopped: see the module docstring.
    """
    if not parts:
        return []
    context = spark.sparkContext
    tries = tries_of(context.master, context.getConf().get("spark.task.maxFailures", "4") or "4")
    failed = context.accumulator([], Failures())  # type: ignore[type-var]

    def each(own: Iterable[Any]) -> Iterator[bytes]:
        from pyspark import TaskContext

        now = TaskContext.get()
        for part in own:
            try:
                answer = pack(work(part)).to_pybytes()
            except Exception as error:
                found = known(error)
                # an unknown error may be caused by the machine as well as by a defect, so Spark retries the task
                is_final = found is not None and not isinstance(found, TransientError)
                if not is_final and now is not None and now.attemptNumber() + 1 < tries:
                    raise
                failed.add([pickle.dumps(TaskFailure.of(error if found is None else found))])
                return
            yield answer

    try:
        with _stopped_early(context, lambda: bool(failed.value)):
            answers = context.parallelize(list(parts), len(parts)).mapPartitions(each).collect()
    except Exception as error:
        if not failed.value:
            raise spark_error(error) from error
    failures = [pickle.loads(failure) for failure in failed.value]
    # a permanent failure is more informative than a transient one that occurred with it
    for failure in sorted(failures, key=lambda failure: failure.is_transient):
        failure.throw()
    return [unpack(answer) for answer in answers]


class Failures:
    """The accumulator parameter for the pickled failures of tasks: concatenates lists."""

    def zero(self, value: list[bytes]) -> list[bytes]:
        """No failures."""
        return []

    def addInPlace(self, value1: list[bytes], value2: list[bytes]) -> list[bytes]:
        """The concatenation of both lists."""
        return [*value1, *value2]


def tries_of(master: str, most: str) -> int:
    """How often Spark attempts a task: `most`, the value of spark.task.maxFailures; on a local master, the number in
    its URL, or once."""
    if master.startswith("local"):
        found = re.fullmatch(r"local\[[^,]+,\s*(\d+)\]", master)
        return int(found[1]) if found else 1
    return int(most)


@contextmanager
def _stopped_early(context: SparkContext, is_failed: Callable[[], bool]) -> Iterator[None]:
    """Cancel the jobs of the block as soon as the driver learns that one of their tasks has failed."""
    tag, over = f"encore-{uuid.uuid4().hex}", threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            if is_failed():
                context.cancelJobsWithTag(tag)
                return

    context.addJobTag(tag)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        if interrupts.received() is None:
            thread.join()
            context.removeJobTag(tag)


_JVM_GONE = ("SparkContext was shut down", "stopped SparkContext", "Answer from Java side is empty")


def spark_error(error: Exception) -> Exception:
    """Translate a job's error that no task raised: from Spark itself, a worker that died, or a lost JVM."""
    text = str(error)
    if type(error).__name__ in ("Py4JNetworkError", "Py4JError") or any(part in text for part in _JVM_GONE):
        # a signal may have reached the JVM first: this process receives it soon, which raises Interrupted here
        time.sleep(JVM_GONE_SECONDS)
        return EnvironmentMissing(
            "Spark's JVM has ended", remedy="was it killed for want of memory? Lower spark.driver_memory, or free some"
        )
    if "No space left on device" in text:
        return full("the folder of Spark's temporary files (spark.local.dir, TMPDIR)")
    if "Python worker exited unexpectedly" in text or "ExecutorLostFailure" in text:
        return EnvironmentMissing(
            "a Python worker died: the system kills one for want of memory",
            remedy="free some memory, or work on fewer cores (spark.master) or smaller blocks (recommend.query_block)",
        )
    return error


def pack(table: pa.Table, compression: str | None = None) -> pa.Buffer:
    """Serialise a table as an Arrow IPC stream; `compression`: lz4, zstd or None."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as stream:
        stream.write_table(table)
    return sink.getvalue()


def unpack(data: bytes) -> pa.Table:
    """The inverse of `pack`."""
    return pa.ipc.open_stream(data).read_all()
