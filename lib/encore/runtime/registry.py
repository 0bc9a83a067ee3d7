"""The jobs, and the shape that every one of them has.

A job is a module of `encore.jobs` with

    READS: tuple[Table, ...]      what it reads; with WRITES, the graph
    WRITES: tuple[Table, ...]     what it alone writes
    SETTINGS: tuple[str, ...]     the sections of the configuration on which its result depends
    def run(ctx: JobContext) -> None
    def check(config: Config) -> None             optional: refuses settings (ConfigError) before any job starts
    def state(ctx: JobContext) -> str             optional: digest of what it depends on outside of the lake
    def model_fingerprints(ctx: JobContext) -> dict[str, str]     optional: by model, that of the model's rows
    DERIVED: tuple[Table, ...]    optional: tables whose every row is made from the inputs, and so has one fingerprint
    UPKEEP: tuple[Table, ...]     optional: tables whose files, but no rows, it changes

The result of a job is a function of its input tables, those settings, that state and the code. Their digest, the
fingerprint, is kept with each run and in each commit, so that a job with nothing to do says so without starting Spark.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from encore.lake.tables import Table
from encore.runtime.graph import Node

JOBS: tuple[str, ...] = (
    "ingest_playlists",
    "ingest_features",
    "build_track_vectors",
    "split_holdout",
    "build_centroids",
    "recommend",
    "evaluate",
    "report",
)
"""Every job. The order of running is not this one but that of the graph."""

EXTRA_JOBS: tuple[str, ...] = ("maintain",)
"""Jobs that are not of the line: they run when they are asked for by name, and change no row."""


def job_module(name: str) -> ModuleType:
    """The module of a job."""
    return import_module(f"encore.jobs.{name}")


def node(name: str) -> Node:
    """A job as the graph sees it."""
    module = job_module(name)
    return Node(name, module.READS, module.WRITES)


def upkeep(name: str) -> tuple[Table, ...]:
    """Tables whose files, but no rows, a job changes."""
    found: tuple[Table, ...] = getattr(job_module(name), "UPKEEP", ())
    return found


def nodes() -> list[Node]:
    """All jobs of the line as the graph sees them."""
    return [node(name) for name in JOBS]


def extra_nodes() -> list[Node]:
    """The jobs that are not of the line, as the graph sees them."""
    return [node(name) for name in EXTRA_JOBS]
