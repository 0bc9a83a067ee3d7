"""What is there, for people: the last run, its metrics, and the tables of a lake. Read without Spark."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from encore.config import Config
from encore.errors import LakeError
from encore.lake.store import Store, open_store
from encore.lake.tables import ALL, FRAMEWORK, JOB_COSTS, JOB_RUNS, MODEL_METRICS, PLAYLIST_METRICS, VIEWS, Table


def print_tables(config: Config, out: Console) -> None:
    """Every declared table: rows, version, size, files, when and by which job it was written last."""
    store = open_store(config)
    grid = Grid("table", "layer", title=f"{config.lake.path}", title_justify="left")
    for name in ("rows", "version", "size", "files"):
        grid.add_column(name, justify="right")
    grid.add_column("last job")
    grid.add_column("written, UTC")
    for table in ALL:
        state = store.state(table)
        if state is None:
            grid.add_row(table.name, table.layer, "-", "-", "-", "-", "not there yet", "-")
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
    out.print(f"views: {', '.join(VIEWS)}", highlight=False)


def _recorder(table: Table) -> str:
    return "every job" if table in FRAMEWORK else "-"


def size(count: int) -> str:
    """Bytes for people, in powers of 1000."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def last_run(store: Store) -> list[dict[str, Any]]:
    """Rows of `job_runs` of the run that started last, in the order in which its jobs started."""
    rows = sorted(store.read_small(JOB_RUNS).to_pylist(), key=lambda row: row["started_at"])
    if not rows:
        raise LakeError("no job has run in this lake yet", remedy="call `encore run`")
    return [row for row in rows if row["run_id"] == rows[-1]["run_id"]]


def print_run(config: Config, out: Console) -> None:
    """The last run: each stage with its seconds, rows, and what it had to say."""
    store = open_store(config)
    rows = last_run(store)
    grid = Grid("stage", "status", title=f"run {rows[0]['run_id']}, {rows[0]['started_at']:%Y-%m-%d %H:%M:%S} UTC")
    grid.add_column("seconds", justify="right")
    grid.add_column("rows")
    grid.add_column("remarks")
    for row in rows:
        facts = json.loads(row["facts"] or "{}")
        remarks = row["error"] or ", ".join(f"{k} {v:.4g}" for k, v in facts.items() if "/" not in k and _is_number(v))
        grid.add_row(
            row["job"],
            row["status"],
            f"{row['seconds']:.1f}",
            "\n".join(f"{t} {n:,}" for t, n in row["rows"]),
            remarks,
        )
    _print_costs(store, rows, out)
    total = (rows[-1]["started_at"] - rows[0]["started_at"]).total_seconds() + rows[-1]["seconds"]
    grid.caption = f"{total:.1f} s in all; stages that were up to date are not listed"
    out.print(grid)


def _print_costs(store: Store, runs: list[dict[str, Any]], out: Console) -> None:
    """What the jobs of a run cost, as Spark counted it; nothing where they ran before that was recorded."""
    key = itemgetter(*JOB_COSTS.key)
    wanted = {key(run) for run in runs}
    rows = [row for row in store.read_small(JOB_COSTS).to_pylist() if key(row) in wanted]
    if not rows:
        return
    grid = Grid("stage", title="costs", title_justify="left")
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
    for row in sorted(rows, key=lambda row: row["started_at"]):
        counts = [f"{row[name]:,}" for name in ("read_rows", "written_rows")]
        moved = [size(row[name]) for name in ("read_bytes", "written_bytes")]
        rest = [size(row[f"{n}_bytes"]) for n in ("shuffled", "spilled", "jvm", "python", "driver")]
        between = [counts[0], moved[0], counts[1], moved[1]]
        grid.add_row(row["job"], f"{row['seconds']:.1f}", f"{row['tasks']:,}", *between, *rest)
    grid.caption = "JVM, Python, driver: peak resident memory; memory that workers map together counts for each"
    out.print(grid)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def print_metrics(config: Config, out: Console) -> None:
    """Metrics by model, as `evaluate` recorded them last."""
    store = open_store(config)
    means = newest_means(store)
    if not means:
        return
    grid = Grid("model", title="metrics", title_justify="left")
    names = ("r_precision", "r_precision_artist", "ndcg", "clicks", "coverage", "share_unserved")
    for name in (*names, "n_playlists"):
        grid.add_column(name, justify="right")
    for model, found in sorted(means.items(), key=lambda item: -item[1].get("r_precision", (0.0, 0))[0]):
        values = [f"{found[name][0]:.4f}" if name in found else "-" for name in names]
        grid.add_row(model, *values, f"{max(n for _, n in found.values()):,}")
    out.print(grid)


def newest_means(store: Store) -> dict[str, dict[str, tuple[float, int]]]:
    """By model, of those that the lake has metrics of: its newest means over all playlists, and how many these are."""
    rows = [row for row in store.read_small(MODEL_METRICS).to_pylist() if row["bucket"] == "all"]
    there = store.partitions(PLAYLIST_METRICS, "model")
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for row in sorted(rows, key=itemgetter("evaluated_at")):
        if row["model"] in there:
            found.setdefault(row["model"], {})[row["metric"]] = (row["value"], row["n_playlists"])
    return found
