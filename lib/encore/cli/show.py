"""Prints the last run, its metrics and the tables of a lake in readable form. Reads them without Spark."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from encore.cli.checks import STYLES, check_rows
from encore.config import Config
from encore.errors import LakeError
from encore.lake.expectations import newest, sentence
from encore.lake.store import Store, open_store
from encore.lake.tables import (
    ALL,
    CHALLENGE_PLAYLISTS,
    FRAMEWORK,
    JOB_COSTS,
    JOB_RUNS,
    MODEL_METRICS,
    PLAYLIST_METRICS,
    QUARANTINE,
    VIEWS,
    Table,
)


def print_tables(config: Config, out: Console) -> None:
    """Print every declared table: rows, version, size, files, and when and by which job it was last written."""
    store = open_store(config)
    grid = Grid("table", "layer", title=f"tables of {store.root}", title_justify="left")
    for name in ("rows", "version", "size", "files"):
        grid.add_column(name, justify="right")
    grid.add_column("written by")
    grid.add_column("at (UTC)")
    for table in ALL:
        state = store.state(table)
        if state is None:
            grid.add_row(table.name, table.layer, "-", "-", "-", "-", "not made yet", "-")
            continue
        written = datetime.fromtimestamp(state.changed_at_ms / 1000, UTC)
        job = state.commit.job if state.commit else _recorder(table)
        grid.add_row(
            table.name,
            table.layer,
            f"{state.rows:,}",
            str(state.version),
            size(state.bytes),
            f"{state.files:,}",
            job,
            f"{written:%Y-%m-%d %H:%M:%S}",
        )
    out.print(grid)
    out.print(f"`encore sql` queries these tables and the views {', '.join(VIEWS)}", highlight=False)


def _recorder(table: Table) -> str:
    return "every job" if table in FRAMEWORK else "-"


def size(count: int) -> str:
    """A human-readable number of bytes, in powers of 1000."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def row_counts(rows: dict[str, int]) -> Iterable[str]:
    """Row counts of the tables that a job wrote, as text; for quarantine, the number of rows added, if any."""
    for table, n in rows.items():
        if table == CHALLENGE_PLAYLISTS.name and not n:
            # most lakes have no challenge set
            continue
        if table != QUARANTINE.name:
            yield f"{table} {n:,}"
        elif n:
            yield f"{table} +{n:,}"


def _records(store: Store, table: Table, time: str = "started_at") -> list[dict[str, Any]]:
    """The rows of a small table, sorted by a timestamp column, oldest first.

    The timestamps are in UTC without a time zone: to convert one with a time zone, pyarrow would import pandas.
    """
    rows = store.read_small(table)
    times = rows[time].cast(pa.timestamp("us"))
    return sorted(rows.set_column(rows.schema.get_field_index(time), time, times).to_pylist(), key=itemgetter(time))


def print_last_run(config: Config, out: Console) -> None:
    """Print the run that started last: its jobs with seconds, rows and remarks, their cost, and metrics by model."""
    store = open_store(config)
    last = last_run(store)
    _print_jobs(last, out)
    _print_checks(store, last, out)
    _print_costs(store, last, out)
    _print_metrics(config, store, out)


def last_run(store: Store) -> list[dict[str, Any]]:
    """The rows of `job_runs` of the run that started last, in the order in which its jobs started."""
    runs = _records(store, JOB_RUNS)
    if not runs:
        raise LakeError("no job has run in this lake yet", remedy="run `encore run`")
    return [row for row in runs if row["run_id"] == runs[-1]["run_id"]]


def _print_jobs(rows: list[dict[str, Any]], out: Console) -> None:
    grid = Grid("job", "status", title_justify="left")
    grid.title = f"run {rows[0]['run_id']}, started {rows[0]['started_at']:%Y-%m-%d %H:%M:%S} UTC"
    grid.add_column("seconds", justify="right")
    grid.add_column("rows")
    grid.add_column("remarks")
    for row in rows:
        facts = json.loads(row["facts"] or "{}")
        remarks = (f"{name} {_number(value)}" for name, value in facts.items() if "/" not in name and _is_number(value))
        grid.add_row(
            row["job"],
            row["status"],
            f"{row['seconds']:.1f}",
            "\n".join(row_counts(dict(row["rows"]))),
            escape(row["error"]) if row["error"] else "\n".join(remarks),
        )
    out.print(grid)
    total = (rows[-1]["started_at"] - rows[0]["started_at"]).total_seconds() + rows[-1]["seconds"]
    out.print(f"{total:.1f} s in all; jobs that were up to date are not listed", highlight=False)


def _print_checks(store: Store, runs: list[dict[str, Any]], out: Console) -> None:
    """Print what a run checked: what was not as expected, and how many expectations were met."""
    found = newest([row for row in check_rows(store) if row["run_id"] == runs[0]["run_id"]])
    if not found:
        return
    breaches = [row for row in found if row["verdict"] in STYLES]
    for row in breaches:
        out.print(f"[{STYLES[row['verdict']]}]{row['verdict']}[/] {escape(sentence(row))}", highlight=False)
    out.print(f"{len(found)} expectations, {len(breaches)} not met; `encore checks` shows all", highlight=False)


def _number(value: float) -> str:
    """A human-readable number: integers with all their digits, others with four significant digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _print_costs(store: Store, runs: list[dict[str, Any]], out: Console) -> None:
    """Print what the jobs of a run cost, as measured by Spark; nothing for runs older than these records."""
    key = itemgetter(*JOB_COSTS.key)
    wanted = {key(run) for run in runs}
    rows = [row for row in _records(store, JOB_COSTS) if key(row) in wanted]
    if not rows:
        return
    grid = Grid("job", title="what they cost", title_justify="left")
    for name in (
        "seconds",
        "tasks",
        "rows in",
        "in",
        "rows out",
        "out",
        "shuffled",
        "spilled",
        "JVM",
        "Python",
        "driver",
    ):
        grid.add_column(name, justify="right")
    for row in rows:
        counts = [f"{row[name]:,}" for name in ("read_rows", "written_rows")]
        moved = [size(row[name]) for name in ("read_bytes", "written_bytes")]
        rest = [size(row[f"{n}_bytes"]) for n in ("shuffled", "spilled", "jvm", "python", "driver")]
        between = [counts[0], moved[0], counts[1], moved[1]]
        grid.add_row(row["job"], f"{row['seconds']:.1f}", f"{row['tasks']:,}", *between, *rest)
    out.print(grid)
    out.print(
        "JVM, Python, driver: peak resident memory; memory that Python workers share is counted for each of them",
        highlight=False,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def print_metrics(config: Config, out: Console) -> None:
    """Print metrics by model, as last recorded by `evaluate`."""
    _print_metrics(config, open_store(config), out)


def _print_metrics(config: Config, store: Store, out: Console) -> None:
    means = newest_means(store)
    if not means:
        return
    grid = Grid("model", title="metrics by model", title_justify="left")
    names = ("r_precision", "r_precision_artist", "ndcg", "clicks", "coverage", "share_unserved")
    for name in (*names, "n_playlists"):
        grid.add_column(name, justify="right")
    for model, found in sorted(means.items(), key=lambda item: -item[1].get("r_precision", (0.0, 0))[0]):
        values = [f"{found[name][0]:.4f}" if name in found else "-" for name in names]
        grid.add_row(model, *values, f"{max(n for _, n in found.values()):,}")
    out.print(grid)


def newest_means(store: Store) -> dict[str, dict[str, tuple[float, int]]]:
    """For each model that the lake has metrics of: its newest means over all playlists, and the number of playlists."""
    rows = [row for row in _records(store, MODEL_METRICS, "evaluated_at") if row["bucket"] == "all"]
    there = store.partitions(PLAYLIST_METRICS, "model")
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for row in rows:
        if row["model"] in there:
            found.setdefault(row["model"], {})[row["metric"]] = (row["value"], row["n_playlists"])
    return found
