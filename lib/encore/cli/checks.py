"""`encore checks`: shows what was expected of the tables and what was found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from encore.config import Config
from encore.errors import InputError, LakeError
from encore.lake.expectations import EXPECTATIONS, check_settings, newest, shown_expected, shown_value
from encore.lake.store import Store, open_store
from encore.lake.tables import CHECKS

VERDICTS = ("ok", "warn", "fail", "accepted", "uncompared")
STYLES = {"fail": "bold red", "warn": "yellow", "accepted": "yellow"}


def print_checks(config: Config, run_id: str | None, *, as_json: bool, out: Console) -> None:
    """Print the newest rows of `checks` of each job, or those of a run.

    Raises LakeError if the lake has none yet, InputError if it has none of that run.
    """
    rows = check_rows(open_store(config))
    if not rows:
        raise LakeError("nothing has been checked in this lake yet", remedy="run `encore run`")
    if run_id is not None:
        rows = [row for row in rows if row["run_id"] == run_id]
        if not rows:
            raise InputError(
                f"the run {run_id} checked nothing in this lake",
                remedy='`encore sql "SELECT DISTINCT run_id FROM checks"` lists the runs that did',
            )
    found = newest(rows)
    if as_json:
        told = [{**row, "at": row["at"].isoformat()} for row in found]
        out.print_json(json.dumps(told))
        return
    print_grid(found, "expectations", out)


def check_rows(store: Store) -> list[dict[str, Any]]:
    """All rows of `checks`."""
    rows: list[dict[str, Any]] = store.read_small(CHECKS).to_pylist()
    return rows


def print_grid(rows: Sequence[Mapping[str, Any]], title: str, out: Console) -> None:
    """Print rows of `checks`, and how many there are of each verdict."""
    grid = Grid("expectation", "of", title=title, title_justify="left")
    for name in ("found", "expected", "last good run"):
        grid.add_column(name, justify="right")
    grid.add_column("verdict")
    for row in rows:
        verdict, style = str(row["verdict"]), STYLES.get(row["verdict"])
        grid.add_row(
            row["name"],
            escape(row["subject"]),
            shown_value(row, "value"),
            shown_expected(row),
            shown_value(row, "baseline"),
            f"[{style}]{verdict}[/]" if style else verdict,
        )
    out.print(grid)
    counts = [f"{n} {verdict}" for verdict in VERDICTS if (n := sum(row["verdict"] == verdict for row in rows))]
    runs = ", ".join(f"{job} in run {run}" for job, run in dict.fromkeys((row["job"], row["run_id"]) for row in rows))
    out.print(f"{', '.join(counts)} ({runs})", highlight=False)


def describe_expectations(config: Config, out: Console) -> None:
    """Print every expectation with its bound, its severity, and what the bound is about."""
    check_settings(config)
    grid = Grid("expectation", "checked by", "bound", "a breach", "what is bounded")
    for one in EXPECTATIONS:
        own = config.check.expect[one.name]
        grid.add_row(one.name, one.job, f"{own.bound:g}", own.severity, one.meaning)
    out.print(grid)
    out.print(
        "--set check.expect.NAME.bound=X sets a bound, --set check.accept=[NAME] accepts a breach in one run",
        highlight=False,
        markup=False,
    )
