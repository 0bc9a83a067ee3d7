"""The jobs, and the interface that each of them implements.

A job is a module of `encore.jobs` with

    READS: tuple[Table, ...]      the tables that it reads; READS and WRITES define the graph
    WRITES: tuple[Table, ...]     the tables that it writes and no other job does (SHARED tables: one partition per job)
    SETTINGS: tuple[str, ...]     the sections of the configuration that its result depends on
    def run(ctx: JobContext) -> None
    def check(config: Config) -> None             optional: rejects settings (ConfigError) before any job starts
    def state(ctx: JobContext) -> str             optional: digest of the state outside the lake that it depends on
    def model_fingerprints(ctx: JobContext) -> dict[str, str]     optional: the fingerprint of each model's rows
    DERIVED: tuple[Table, ...]    optional: tables computed entirely from the inputs, so all rows have one fingerprint
    BEFORE: tuple[str, ...]       optional: jobs that wait for it although they read none of its tables, and that do not
                                  run, nor do those after them, as long as its last run failed
    UPKEEP: tuple[Table, ...]     optional: tables whose files it changes, but not their rows, except that `maintain`
                                  removes rows of `models` that nothing refers to

The result of a job is a function of its input tables, these settings, this state and the code. Their digest, the
fingerprint, is stored with each run and in each commit, so that a job with nothing to do is detected without starting
Spark.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from encore.lake.tables import Table
from encore.runtime.graph import Node, predecessors

JOBS: tuple[str, ...] = (
    "ingest_playlists",
    "ingest_features",
    "check",
    "build_track_vectors",
    "split_holdout",
    "build_centroids",
    "fit_models",
    "recommend",
    "evaluate",
    "check_results",
    "register_models",
    "report",
)
"""The jobs of the pipeline. They run in the order of the graph, not in this order."""

SMOKE = "smoke"
"""The job that checks whether jobs can run. The state machine runs it before the pipeline."""

MAINTENANCE_JOBS: tuple[str, ...] = ("maintain", "record_canary")
"""Jobs outside the pipeline with a weekly schedule."""

EXTRA_JOBS: tuple[str, ...] = (*MAINTENANCE_JOBS, SMOKE)
"""Jobs outside the pipeline, with no place in the graph."""


def job_module(name: str) -> ModuleType:
    """The module of a job."""
    return import_module(f"encore.jobs.{name}")


def node(name: str) -> Node:
    """A job as a node of the graph."""
    module = job_module(name)
    return Node(name, module.READS, module.WRITES, getattr(module, "BEFORE", ()))


def gates(name: str) -> list[str]:
    """The jobs of the pipeline with BEFORE that a job waits for, directly or indirectly."""
    before = predecessors(nodes()).get(name, set())
    return [job for job in JOBS if job in before and hasattr(job_module(job), "BEFORE")]


def upkeep(name: str) -> tuple[Table, ...]:
    """The tables that a job maintains, without being their writer."""
    found: tuple[Table, ...] = getattr(job_module(name), "UPKEEP", ())
    return found


def nodes() -> list[Node]:
    """The jobs of the pipeline as nodes of the graph."""
    return [node(name) for name in JOBS]


def extra_nodes() -> list[Node]:
    """The jobs outside the pipeline as nodes of the graph."""
    return [node(name) for name in EXTRA_JOBS]
