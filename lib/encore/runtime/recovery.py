"""Restores the tables that a job writes together, so that they fit together.

The tables of ingest refer to each other: playlists have ids of tracks, and the ledger says which files have been read.
To restore one of them alone would leave ids without a track, or files that nothing reads again. So the tables of a job
are restored to the same time. Jobs are safe to kill, which is why the tables as of any time are a state from which the
next run continues.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from encore.config import Config
from encore.errors import ConfigError
from encore.lake.delta import Change, all_changes, log_entries
from encore.lake.lock import LakeLock
from encore.lake.restore import Target, check_files, clear, newest_intact, restore, target_at, target_of
from encore.lake.store import Store
from encore.lake.tables import INGEST_LEDGER, TRACKS, Table
from encore.runtime.registry import EXTRA_JOBS, JOBS, job_module


@dataclass(frozen=True)
class Plan:
    """What a restore is going to do: the targets, in the order of their commits, and the time, in ms since 1970."""

    targets: tuple[Target, ...]
    at_ms: int


def writers_of(table: Table) -> list[str]:
    """The jobs that write a table; none for the tables in which all jobs record their runs."""
    return [job for job in (*JOBS, *EXTRA_JOBS) if table in job_module(job).WRITES]


def together(store: Store, table: Table) -> list[tuple[Table, tuple[tuple[str, str], ...]]]:
    """The existing tables that are restored with a table; of those that several jobs write, the job's partition.

    Raises ConfigError for a table that several jobs write beside tables of their own, with which it is restored.
    """
    jobs = writers_of(table)
    if len(jobs) > 1:
        beside = [one.name for job in jobs for one in job_module(job).WRITES if len(writers_of(one)) == 1]
        if beside:
            raise ConfigError(
                f"{table.name}: several jobs write it: {', '.join(jobs)}",
                remedy=f"restore one of {', '.join(beside)}: what its job wrote to {table.name} goes back with it",
            )
        return [(table, ())]
    if not jobs:
        return [(table, ())]
    own = [one for one in job_module(jobs[0]).WRITES if store.exists(one)]
    return [(one, ((one.partition_by[0], jobs[0]),) if len(writers_of(one)) > 1 else ()) for one in own]


def plan(store: Store, table: Table, *, version: int | None = None, at_ms: int | None = None) -> Plan:
    """Plan to restore a table, and the tables that its job writes with it, to a version of the table or a time.

    If `version` is the last that a run committed to the table, the time is that of the run's last commit to any of the
    tables. Raises LakeError if a table did not exist at that time, or files of its version are gone.
    """
    found = store.there(table)
    if version is not None:
        target_of(found, table, version)
    own = together(store, table)
    if at_ms is None:
        assert version is not None, "a version or a time"
        at_ms = _end_of(store, table, version, [one for one, _ in own])
    targets = [target_at(store, one, at_ms, partition) for one, partition in own]
    todo = [target for target in targets if not target.is_current]
    for target in todo:
        check_files(store, target)
    return Plan(tuple(sorted(targets, key=lambda target: _rank(store, target))), at_ms)


def plan_intact(store: Store, table: Table) -> Plan:
    """Plan to restore a table, and those that its job writes with it, to the newest time at which all files are there.

    Raises LakeError if there is none.
    """
    targets = newest_intact(store, together(store, table))
    at_ms = max(_time_of(store, target) for target in targets)
    return Plan(tuple(sorted(targets, key=lambda target: _rank(store, target))), at_ms)


def _time_of(store: Store, target: Target) -> int:
    entries = log_entries(store.there(target.table))
    return next(int(entry["timestamp"]) for entry in entries if int(entry["version"]) == target.version)


def _end_of(store: Store, table: Table, version: int, tables: list[Table]) -> int:
    """The time until which commits belong to a version of a table."""
    entries = {int(entry["version"]): int(entry["timestamp"]) for entry in log_entries(store.there(table))}
    changed = list(all_changes(store.there(table)))
    last = next((change for change in changed if change.version <= version), None)
    following = min((change.timestamp_ms for change in changed if change.version > version), default=None)
    run_id = last.commit.run_id if last and last.commit else None
    times = [entries[version]]
    if run_id is not None and not any(_is_of(change, run_id) for change in changed if change.version > version):
        for other in tables:
            times += [change.timestamp_ms for change in all_changes(store.there(other)) if _is_of(change, run_id)]
    end = max(times)
    return end if following is None else min(end, following - 1)


def _is_of(change: Change, run_id: str) -> bool:
    return change.commit is not None and change.commit.run_id == run_id


def _rank(store: Store, target: Target) -> int:
    """The place of a target in the order of commits: at no time, a playlist has the id of a track that is not there."""
    if target.table is INGEST_LEDGER:
        return 3
    if target.table is not TRACKS:
        return 1
    state, before = store.state(TRACKS), store.at(TRACKS, target.version)
    return 0 if state is None or _n_rows(before) >= state.rows else 2


def _n_rows(found: Any) -> int:
    return int(found.count())


def run(config: Config, store: Store, planned: Plan, run_id: str, *, take_over: bool = False) -> dict[str, int]:
    """Restore what a plan says, under the lake's lock; returns the new version of each table that changed.

    If it is interrupted, the next `encore run` reads all files again, unless the same restore is called again first.
    """
    todo = [target for target in planned.targets if not target.is_current]
    done: dict[str, int] = {}
    lock = LakeLock(config, run_id, take_over=take_over)
    lock.take()
    try:
        if any(target.table is INGEST_LEDGER for target in todo) and len(todo) > 1:
            clear(store, INGEST_LEDGER, run_id)
        for target in todo:
            lock.check()
            done[target.table.name] = restore(store, target, run_id)
    finally:
        lock.release()
    return done
