"""Restores a table to an earlier version, as a new commit.

Nothing is lost: the versions in between stay readable, and a restore can itself be undone. The commit records the
version that it restored, so that the rows count as the work of the commits that they come from (`delta.in_effect`):
what was computed from them before is not stale again, and what was computed from the undone rows is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import unquote

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import DeltaError

from encore.errors import LakeError
from encore.lake.delta import RESTORE, Change, Commit, Tables, all_changes, data_files, in_effect, log_entries
from encore.lake.failures import delta_error
from encore.lake.filesystem import file_sizes
from encore.lake.parquet import REPORT, Writer
from encore.lake.scan import KeyRange
from encore.lake.store import Store
from encore.lake.tables import Table, arrow_schema
from encore.lake.transaction import Transaction

Partition = tuple[tuple[str, str], ...]
"""Values of partition columns; empty: the whole table."""


@dataclass(frozen=True)
class Target:
    """What is to be restored: a table, or a partition of it, and the version. `is_current`: it has these rows now."""

    table: Table
    partition: Partition
    version: int
    is_current: bool


def target_at(tables: Tables, table: Table, ms: int, partition: Partition = ()) -> Target:
    """The newest version of a table at a time, in ms since 1970.

    Raises LakeError if the table did not exist then, or if its log does not go back that far.
    """
    found = tables.there(table)
    entries = log_entries(found)
    version = next((int(entry["version"]) for entry in entries if int(entry["timestamp"]) <= ms), None)
    if version is None:
        first = int(entries[-1]["timestamp"])
        raise LakeError(
            f"{tables.uri(table)}: there is no version of {when(ms)}: the first is of {when(first)}",
            remedy="choose a later time, or restore the table from a backup: `encore backup restore`",
        )
    return target_of(found, table, version, partition)


def target_of(found: DeltaTable, table: Table, version: int, partition: Partition = ()) -> Target:
    """A version of an open table. Raises LakeError if there is none."""
    newest = found.version()
    if not 0 <= version <= newest:
        raise LakeError(f"{table.name}: versions 0 to {newest} expected, {version} found")
    changed = list(all_changes(found))
    before = _origin((change for change in changed if change.version <= version), partition)
    return Target(table, partition, version, before == _origin(changed, partition))


def _origin(changed: Iterable[Change], partition: Partition) -> int | None:
    """The newest commit that rows of a partition come from."""
    own = (c.version for c in in_effect(changed) if c.commit is None or c.commit.touches(partition))
    return next(own, None)


def check_files(tables: Tables, target: Target) -> None:
    """Raise LakeError if files of the version are gone, because maintenance or somebody removed them."""
    gone, n_files = _gone(tables, target, file_sizes(tables.url(target.table), tables.s3))
    if gone:
        raise LakeError(
            f"{tables.uri(target.table)}: {len(gone):,} of the {n_files:,} files of version {target.version} are "
            f"gone, such as {gone[0]}",
            remedy="put them back from a backup (`encore backup restore`), or choose another version",
        )


def _gone(tables: Tables, target: Target, sizes: Mapping[str, int]) -> tuple[list[str], int]:
    """The files of the version that are not there or have another size, and the number of all of its files."""
    files = data_files(tables.at(target.table, target.version))
    return [path for file in files if sizes.get(path := unquote(file["path"])) != file["size_bytes"]], len(files)


def newest_intact(tables: Tables, wanted: Sequence[tuple[Table, Partition]]) -> list[Target]:
    """The versions that some tables had at the newest time at which every file of all of them is there.

    For a copy of a lake whose logs are ahead of its files. Raises LakeError if there is no such time.
    """
    times: set[int] = set()
    sizes = {}
    for table, _ in wanted:
        sizes[table] = file_sizes(tables.url(table), tables.s3)
        times |= {int(entry["timestamp"]) for entry in log_entries(tables.there(table))}
    known: dict[tuple[Table, int], bool] = {}
    for ms in sorted(times, reverse=True):
        targets = [target_at(tables, table, ms, partition) for table, partition in wanted]
        for target in targets:
            key = (target.table, target.version)
            if key not in known:
                known[key] = not _gone(tables, target, sizes[target.table])[0]
        if all(known[target.table, target.version] for target in targets):
            # another version with the same rows may lack files
            newest = {target.table: tables.there(target.table).version() for target in targets}
            return [replace(target, is_current=target.version == newest[target.table]) for target in targets]
    raise LakeError(
        f"{', '.join(table.name for table, _ in wanted)}: no version has all its files",
        remedy="bring them back from a backup: `encore backup restore`",
    )


def restore(store: Store, target: Target, run_id: str) -> int:
    """Give a table, or a partition, the rows that it had at a version, in one commit; returns the new version.

    The caller holds the lake's lock. Raises LakeError if files of the version are gone.
    """
    commit = Commit(RESTORE, run_id, "", f"version {target.version}", target.partition, restored=target.version)
    if target.partition:
        return _restore_partition(store, target, commit)
    found = store.there(target.table)
    properties = CommitProperties(custom_metadata={"userMetadata": commit.json()}, max_commit_retries=0)
    try:
        found.restore(target.version, commit_properties=properties)
    except (DeltaError, OSError) as error:
        raise delta_error(f"{target.table.name}: version {target.version} cannot be restored", error) from error
    return store.there(target.table).version()


def _restore_partition(store: Store, target: Target, commit: Commit) -> int:
    """Rewrite the rows of a partition: Delta can only restore whole tables."""
    table, where = target.table, KeyRange(target.partition)
    writer = Writer(table, store.location(table))
    for rows in store.scan(table, table.names, store.at(table, target.version), where).read():
        writer.write(rows.select(table.names).cast(arrow_schema(table)))
    transaction = Transaction(store, table, store.there(table))
    return transaction.commit(pa.Table.from_batches([writer.close()], REPORT), commit, where, exclusive=True)


def clear(store: Store, table: Table, run_id: str) -> None:
    """Remove all rows of a table, in one commit."""
    commit = Commit(RESTORE, run_id, "", "emptied before a restore")
    Transaction(store, table, store.there(table)).commit(REPORT.empty_table(), commit, KeyRange())


def when(ms: int) -> str:
    """A time in ms since 1970, for messages."""
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
