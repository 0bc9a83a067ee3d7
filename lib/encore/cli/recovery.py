"""Restores tables by time travel, and copies a lake to a backup and back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import structlog
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from encore.cli.show import size
from encore.config import Config
from encore.errors import ConfigError, LakeError
from encore.lake.backup import Backup, Vault, create, restore, verify
from encore.lake.delta import Change, Tables, all_changes, in_effect
from encore.lake.lock import LakeLock
from encore.lake.restore import when
from encore.lake.store import Store, open_store
from encore.lake.tables import BY_NAME, Table
from encore.progress import Meter, meter
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
    intact: bool,
    dry_run: bool,
    take_over: bool,
    out: Console,
) -> None:
    """Restore a table, and those that its job writes with it; without a version or a time, list the versions."""
    table, store = table_named(name), open_store(config)
    if (version is not None) + (time is not None) + intact > 1:
        raise ConfigError("--version, --time and --intact exclude each other: leave only one of them")
    if version is None and time is None and not intact:
        _print_versions(store, table, out)
        return
    if intact:
        planned = recovery.plan_intact(store, table)
    else:
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


def _vault(config: Config, place: str) -> Vault:
    return Vault.at(place, config.s3)


@contextmanager
def _locked(config: Config, path: str, run_id: str, *, take_over: bool = False) -> Iterator[None]:
    """Hold the lock of a lake, or of a folder of backups."""
    own = config.model_copy(update={"lake": config.lake.model_copy(update={"path": path})})
    lock = LakeLock(own, run_id, take_over=take_over)
    lock.take()
    try:
        yield
    finally:
        lock.release()


def create_backup(config: Config, place: str, keep_days: int | None, out: Console) -> None:
    """Back a lake up to a folder or a prefix in S3."""
    vault, store = _vault(config, place), open_store(config)
    with _locked(config, vault.url, new_run_id()), meter("backup", "bytes") as shown:
        made = create(store, vault, keep_days=keep_days, on_progress=_counted(shown))
    backup = made.backup
    out.print(
        f"Backup {backup.id} of {len(backup.tables)} tables and {size(backup.size)} in {vault.url}: "
        f"{made.files:,} new files, {size(made.bytes)}",
        highlight=False,
    )
    if made.removed:
        out.print(f"{made.removed:,} files that only older backups had were removed", highlight=False)


def _counted(shown: Meter) -> Callable[[int], None]:
    lock = threading.Lock()

    def count(n: int) -> None:
        with lock:
            shown.update(shown.done + n)

    return count


def list_backups(config: Config, place: str, out: Console) -> None:
    """List the backups in a place, newest first."""
    vault = _vault(config, place)
    grid = Grid("id", "taken at (UTC)", "lake", title=f"backups in {vault.url}", title_justify="left")
    for name in ("tables", "rows", "size"):
        grid.add_column(name, justify="right")
    for backup_id in reversed(vault.ids()):
        one = vault.read(backup_id)
        rows = sum(table.rows for table in one.tables.values())
        taken = when(int(one.taken_at * 1000)).removesuffix(" UTC")
        grid.add_row(one.id, taken, one.lake, str(len(one.tables)), f"{rows:,}", size(one.size))
    out.print(grid)


def _chosen(vault: Vault, backup_id: str | None, time: str | None) -> Backup:
    if backup_id is not None:
        return vault.read(backup_id)
    return vault.newest(None if time is None else parsed_time(time) / 1000)


def verify_backup(config: Config, place: str, backup_id: str | None, out: Console) -> None:
    """Read a backup, by default the newest, and compare each file with its digest. Raises LakeError on a difference."""
    vault = _vault(config, place)
    backup = _chosen(vault, backup_id, None)
    with meter("verify", "bytes", backup.size) as shown:
        broken = verify(vault, backup, _counted(shown))
    if broken:
        raise LakeError(
            f"backup {backup.id}: {len(broken):,} files are damaged: {broken[0]}",
            remedy="make a new backup: it copies the files that are gone again; for this one, remove the damaged files",
        )
    out.print(f"Backup {backup.id}: every file is intact, {size(backup.size)}", highlight=False)


def restore_backup(
    config: Config,
    place: str,
    backup_id: str | None,
    time: str | None,
    only: Sequence[str],
    *,
    replace: bool,
    take_over: bool,
    out: Console,
) -> None:
    """Bring a lake, or some of its tables, back from a backup."""
    if backup_id is not None and time is not None:
        raise ConfigError("--id and --time exclude each other: leave out one of them")
    for name in only:
        table_named(name)
    vault, tables = _vault(config, place), Tables(config)
    backup, run_id = _chosen(vault, backup_id, time), new_run_id()
    with _locked(config, tables.root, run_id, take_over=take_over), meter("restore", "bytes") as shown:
        done = restore(tables, vault, backup, only=only, replace=replace, on_progress=_counted(shown))
    files = {name: n for name, n in done.tables.items() if n} | ({"fitted models": done.models} if done.models else {})
    log.info("backup_restored", run_id=run_id, backup=backup.id, **files)
    taken = when(int(backup.taken_at * 1000))
    if files:
        listed = ", ".join(f"{name} {n:,}" for name, n in files.items())
        text = f"Brought back from backup {backup.id} of {taken}: {listed} files, {size(done.bytes)}"
        out.print(text, highlight=False)
    else:
        out.print(f"Nothing to do: the lake has all that backup {backup.id} of {taken} has.", highlight=False)
    for name, (now, then) in done.newer.items():
        out.print(
            f"{name} keeps its version {now}; `encore restore {name} --version {then}` goes back to that of the backup",
            highlight=False,
        )
    out.print("`encore doctor --lake` checks every row; `encore run` computes what is stale.", highlight=False)


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
