"""Restores tables by time travel, and copies a lake to a backup and back."""

from __future__ import annotations

from datetime import UTC, datetime

import structlog
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from encore.config import Config
from encore.errors import ConfigError
from encore.lake.delta import Change, all_changes, in_effect
from encore.lake.restore import when
from encore.lake.store import Store, open_store
from encore.lake.tables import BY_NAME, Table
from encore.runtime import recovery
from encore.runtime.pipeline import new_run_id

_NEWEST = 20
"""How many versions of a table are listed."""

log = structlog.get_logger("encore.recovery")


def table_named(name: str) -> Table:
    """The declared table with a name. Raises ConfigError if there is none."""
    if name not in BY_NAME:
        raise ConfigError(f"no table {name!r}", remedy=f"the tables are {', '.join(BY_NAME)}")
    return BY_NAME[name]


def parsed_time(text: str) -> int:
    """A time such as 2026-01-31T02:00 or 2026-01-31T02:00+01:00 in ms since 1970; UTC unless it says otherwise."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--time {text}: a time such as 2026-01-31T02:00 (UTC) expected") from error
    return round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


def restore_table(
    config: Config,
    name: str,
    version: int | None,
    time: str | None,
    *,
    dry_run: bool,
    take_over: bool,
    out: Console,
) -> None:
    """Restore a table, and those that its job writes with it; without a version or a time, list the versions."""
    table, store = table_named(name), open_store(config)
    if version is not None and time is not None:
        raise ConfigError("--version and --time exclude each other: leave out one of them")
    if version is None and time is None:
        _print_versions(store, table, out)
        return
    at_ms = None if time is None else parsed_time(time)
    planned = recovery.plan(store, table, version=version, at_ms=at_ms)
    todo = [target for target in planned.targets if not target.is_current]
    grid = Grid("table", title=f"as of {when(planned.at_ms)}", title_justify="left")
    grid.add_column("from version", justify="right")
    grid.add_column("to version", justify="right")
    for target in planned.targets:
        part = "".join(f" ({column} {value})" for column, value in target.partition)
        now = store.there(target.table).version()
        grid.add_row(target.table.name + part, str(now), "as it is" if target.is_current else str(target.version))
    out.print(grid)
    if not todo:
        out.print("Nothing to do: the tables have these rows already.")
        return
    if dry_run:
        return
    run_id = new_run_id()
    done = recovery.run(config, store, planned, run_id, take_over=take_over)
    log.info("restored", run_id=run_id, at=when(planned.at_ms), **done)
    out.print(
        f"Restored by run {run_id}: {', '.join(f'{one} is version {number}' for one, number in done.items())}. "
        "`encore run` computes what is stale now; if the cause is in the slices or the settings, correct that first.",
        highlight=False,
    )


def _print_versions(store: Store, table: Table, out: Console) -> None:
    """List the newest versions of a table that changed rows, and which of them the present rows come from."""
    changed = list(all_changes(store.there(table)))
    present = {change.version for change in in_effect(changed)}
    grid = Grid(title=f"versions of {table.name}", title_justify="left")
    grid.add_column("version", justify="right")
    for name in ("at (UTC)", "job", "run", "what", ""):
        grid.add_column(name)
    for change in changed[:_NEWEST]:
        grid.add_row(*(escape(text) for text in _row(change, change.version in present)))
    out.print(grid)
    if len(changed) > _NEWEST:
        out.print(f"{len(changed) - _NEWEST:,} older versions are not listed", highlight=False)
    out.print(f"`encore restore {table.name} --version N` brings one back", highlight=False)


def _row(change: Change, is_present: bool) -> tuple[str, ...]:
    commit = change.commit
    at = when(change.timestamp_ms).removesuffix(" UTC")
    if commit is None:
        return str(change.version), at, "another program, or a record of runs", "", "", "" if is_present else "undone"
    undone = "" if is_present or commit.restored is not None else "undone"
    return str(change.version), at, commit.job, commit.run_id, commit.part, undone
