"""The cost of a job: Spark's metrics of its stages, and the rows and bytes that workers read and wrote themselves.

Spark keeps the metrics of finished stages in its status store, even if its web UI is off (`spark.ui.enabled`). They are
read once per job, as JSON produced by the JVM: one call per number would take seconds. Memory is the resident memory of
the JVM and of its Python workers, sampled by Spark's executors every `spark.executor.metrics.pollingInterval`; pages
that several workers map are counted for each of them.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from encore.lake.parquet import IoStats

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SETTINGS = {
    "spark.executor.processTreeMetrics.enabled": "true",
    "spark.executor.metrics.pollingInterval": "1000",
    "spark.ui.retainedStages": "10000",
}
"""Spark settings that these metrics require."""


@dataclass(frozen=True)
class Stage:
    """A finished Spark stage.

    Rows and bytes as counted by Spark: `read` and `written` refer to files and tables, `shuffled` to what its tasks
    wrote for other stages. Seconds are summed over tasks; memory is the peak while the stage ran.
    """

    id: int
    name: str
    tasks: int
    run_seconds: float
    cpu_seconds: float
    gc_seconds: float
    read_rows: int
    read_bytes: int
    written_rows: int
    written_bytes: int
    shuffled_rows: int
    shuffled_bytes: int
    spilled_bytes: int
    jvm_bytes: int
    python_bytes: int


def stages(spark: SparkSession, since: int = -1) -> list[Stage]:
    """Stages of this session that ran, with ids above `since`, ordered by id; skipped stages are left out."""
    context = spark.sparkContext
    jvm, gateway = context._jvm, context._gateway
    # metrics are delivered through a queue that may still hold those of the last tasks
    context._jsc.sc().listenerBus().waitUntilEmpty()
    nothing = jvm.java.util.ArrayList()
    found = context._jsc.sc().statusStore().stageList(nothing, False, False, gateway.new_array(jvm.double, 0), nothing)
    mapper = jvm.com.fasterxml.jackson.databind.ObjectMapper()
    mapper.registerModule(jvm.com.fasterxml.jackson.module.scala.DefaultScalaModule())
    made = [
        _stage(entry) for entry in json.loads(mapper.writeValueAsString(found)) if entry["numTasks"] and _ran(entry)
    ]
    return sorted((stage for stage in made if stage.id > since), key=lambda stage: stage.id)


def _ran(entry: Mapping[str, Any]) -> bool:
    return entry["status"] in ("COMPLETE", "FAILED")


def _stage(entry: Mapping[str, Any]) -> Stage:
    memory = entry["peakExecutorMetrics"] or {}
    return Stage(
        id=entry["stageId"],
        name=entry["name"],
        tasks=entry["numTasks"],
        run_seconds=entry["executorRunTime"] / 1e3,
        cpu_seconds=entry["executorCpuTime"] / 1e9,
        gc_seconds=entry["jvmGcTime"] / 1e3,
        read_rows=entry["inputRecords"],
        read_bytes=entry["inputBytes"],
        written_rows=entry["outputRecords"],
        written_bytes=entry["outputBytes"],
        shuffled_rows=entry["shuffleWriteRecords"],
        shuffled_bytes=entry["shuffleWriteBytes"],
        spilled_bytes=entry["diskBytesSpilled"],
        jvm_bytes=memory.get("ProcessTreeJVMRSSMemory", 0),
        python_bytes=memory.get("ProcessTreePythonRSSMemory", 0),
    )


def newest(spark: SparkSession) -> int:
    """The id of the newest stage, or -1; pass it to `stages` as `since` to get only later ones."""
    return max((stage.id for stage in stages(spark)), default=-1)


def driver_bytes() -> int:
    """The peak resident memory of this Python process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def row(found: Sequence[Stage], io_stats: IoStats) -> dict[str, Any]:
    """The columns of `job_costs` except the key and seconds, summed over the stages and the workers' own I/O."""
    totals: dict[str, Any] = {
        "stages": len(found),
        "tasks": sum(stage.tasks for stage in found),
        "run_seconds": float(sum(stage.run_seconds for stage in found)),
        "cpu_seconds": float(sum(stage.cpu_seconds for stage in found)),
        "gc_seconds": float(sum(stage.gc_seconds for stage in found)),
        "shuffled_rows": sum(stage.shuffled_rows for stage in found),
        "shuffled_bytes": sum(stage.shuffled_bytes for stage in found),
        "spilled_bytes": sum(stage.spilled_bytes for stage in found),
        "jvm_bytes": max((stage.jvm_bytes for stage in found), default=0),
        "python_bytes": max((stage.python_bytes for stage in found), default=0),
        "driver_bytes": driver_bytes(),
    }
    for name in ("read_rows", "read_bytes", "written_rows", "written_bytes"):
        totals[name] = sum(getattr(stage, name) for stage in found) + getattr(io_stats, name)
    return totals


def latest(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The latest of the given rows of `job_costs` for each job, in the order in which they ran."""
    ordered = sorted(rows, key=lambda row: row["started_at"])
    return sorted({row["job"]: row for row in ordered}.values(), key=lambda row: row["started_at"])
