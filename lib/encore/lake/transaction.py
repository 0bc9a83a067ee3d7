"""Atomic writes to the tables of a lake: files that tasks have written are added in one commit, or not at all."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction
from numpy.typing import NDArray

from encore.errors import TransientError, WriteRefused
from encore.lake.delta import Change, Commit, Tables, all_changes, data_files
from encore.lake.failures import delta_error, reading
from encore.lake.filesystem import is_s3
from encore.lake.parquet import Writer, merge_broken, repeated_keys
from encore.lake.scan import KeyIn, KeyRange, touched
from encore.lake.tables import Table, arrow_schema, arrow_type

_RUN_AGAIN = "run it again: it goes on from what the table holds now"


class Transaction:
    """The commits of one run of a job to one table, planned on the version that was the newest when the job started.

    A commit atomically replaces rows with those of files that tasks have written. It succeeds only on the version for
    which it was prepared, whereas delta-rs by default retries an append on top of whatever was committed in between. If
    another writer has committed since the planned version, the commit is prepared again on the newest version, provided
    that the other commit did not affect the rows that this one replaces and adds; otherwise it fails with a
    TransientError, and nothing is written.
    """

    def __init__(self, tables: Tables, table: Table, planned: DeltaTable) -> None:
        self._tables, self._table = tables, table
        self.id, self.planned = str(planned.metadata().id), planned.version()
        self.committed: set[int] = set()
        self._added: set[str] = set()
        self._removed: set[str] = set()

    def commit(self, reports: pa.Table, commit: Commit, where: KeyRange | KeyIn, *, exclusive: bool = False) -> int:
        """Replace the rows in `where` with those of the files in `reports` (`parquet.REPORT`); returns the new version.

        Rows outside `where` that share a file with rows inside it are rewritten. `exclusive`: any other commit to the
        partition since the planned version is a conflict, for work that depends on all of its rows.
        Raises WriteRefused if a task found rows that violate the declaration, TransientError on a conflict.
        """
        files = reports.filter(reports["path"].is_valid()).to_pylist()
        _check_broken(self._table, reports)
        _check_keys(self._tables, self._table, files, where)
        rows = (where.low, where.high) if isinstance(where, KeyRange) else None
        text = replace(commit, partition=where.partition, rows=rows).json()
        while True:
            found = self._tables.there(self._table)
            self._tables.check_schema(self._table, found)
            self._check_conflicts(found, files, where, exclusive)
            removed, kept = _rewritten(self._tables, self._table, found, where)
            added = [
                AddAction(
                    row["path"], row["size"], json.loads(row["partition"]), row["modified_ms"], True, row["stats"]
                )
                for row in [*files, *kept]
            ]
            properties = CommitProperties(custom_metadata={"userMetadata": text}, max_commit_retries=0)
            try:
                found.create_write_transaction(
                    [*removed, *added],
                    "append",
                    found.schema(),
                    list(self._table.partition_by),
                    commit_properties=properties,
                )
            except (DeltaError, OSError) as error:
                if isinstance(error, CommitFailedError) and self._tables.there(self._table).version() > found.version():
                    # another writer was faster: its commit is checked before the next attempt
                    continue
                raise delta_error(f"{self._table.name}: cannot be committed", error) from error
            self._added |= {action.path for action in added}
            self._removed |= {action.path for action in removed}
            self.committed.add(found.version() + 1)
            return found.version() + 1

    def _check_conflicts(
        self, found: DeltaTable, files: list[dict[str, Any]], where: KeyRange | KeyIn, exclusive: bool
    ) -> None:
        """Raise TransientError if another writer changed rows that this commit depends on since the planned version."""
        name, newest = self._table.name, found.version()
        if str(found.metadata().id) != self.id or newest < max(self.committed, default=self.planned):
            raise TransientError(f"{name}: the table was dropped and made again meanwhile", remedy=_RUN_AGAIN)
        if newest == self.planned or newest - self.planned == len(self.committed):
            return
        since = takewhile(lambda change: change.version > self.planned, all_changes(found))
        others = [change for change in since if change.version not in self.committed]
        if not others:
            return
        own = [change for change in others if change.commit is None or change.commit.touches(where.partition)]
        conflicting = own if exclusive else [change for change in own if _replaced(change.commit, where)]
        if conflicting:
            raise self._conflict(conflicting[0])
        base = {file["path"]: file for file in data_files(self._tables.at(self._table, self.planned))}
        now = {file["path"]: file for file in data_files(found)}
        changed = [now[path] for path in now.keys() - base.keys() - self._added]
        changed += [base[path] for path in base.keys() - now.keys() - self._removed]
        replaced = (inside for *_, inside, _ in touched(changed, where, self._table.partition_by))
        if any(replaced) or self._shares_keys(changed, files) or not (self._added - self._removed) <= now.keys():
            raise self._conflict((own or others)[0])

    def _shares_keys(self, changed: list[dict[str, Any]], files: list[dict[str, Any]]) -> bool:
        """Whether files changed by other writers may share keys with new files, judged by minimum and maximum."""
        key = self._table.number_key
        for file in files:
            values, stats = json.loads(file["partition"]), json.loads(file["stats"])
            for other in changed:
                if any(other[f"partition.{name}"] != value for name, value in values.items()):
                    continue
                low, high = other.get(f"min.{key}"), other.get(f"max.{key}")
                if key is None or low is None or high is None or not stats["numRecords"]:
                    return True
                if low <= stats["maxValues"][key] and high >= stats["minValues"][key]:
                    return True
        return False

    def _conflict(self, change: Change) -> TransientError:
        at = datetime.fromtimestamp(change.timestamp_ms / 1000, UTC)
        who = f"the job {change.commit.job} of the run {change.commit.run_id}" if change.commit else "another program"
        part = f" ({change.commit.part})" if change.commit else ""
        return TransientError(
            f"{self._table.name}: {who} committed version {change.version}{part} at {at:%Y-%m-%d %H:%M:%S} UTC, after "
            f"this job was planned on version {self.planned}: nothing was written",
            remedy=_RUN_AGAIN,
        )


def _replaced(commit: Commit | None, where: KeyRange | KeyIn) -> bool:
    """Whether a commit's metadata says that it replaced rows in a range, even if it left no rows there."""
    if commit is None or commit.rows is None or not isinstance(where, KeyRange):
        return False
    low, high = commit.rows
    ends_before = high is not None and where.low is not None and high <= where.low
    begins_after = low is not None and where.high is not None and where.high <= low
    return not (ends_before or begins_after)


def _check_broken(table: Table, reports: pa.Table) -> None:
    """Raise WriteRefused if tasks found rows that violate the declaration."""
    broken: dict[str, tuple[int, str]] = {}
    for text in reports["broken"].drop_null().to_pylist():
        merge_broken(broken, json.loads(text))
    if broken:
        key = "/".join(table.key)
        raise WriteRefused(
            table.name, [f"{name}: broken by {n} row(s), such as {key} {of}" for name, (n, of) in broken.items()]
        )


def _rewritten(
    tables: Tables, table: Table, found: DeltaTable, where: KeyRange | KeyIn
) -> tuple[list[RemoveAction], list[dict[str, Any]]]:
    """The files of a version with rows in `where`, to be removed, and new files with their other rows, to be added."""
    removed, now = [], int(time.time() * 1000)
    kept = Writer(table, tables.location(table))
    for file, partition, inside, outside in touched(data_files(found), where, table.partition_by):
        # a file from another writer may have no statistics, so it may contain any rows
        empty = file["num_records"] == 0
        if inside or empty:
            if outside and not empty:
                rows = _rows_outside(tables, table, file["path"], partition, where)
                if rows is None:
                    continue
                kept.write(rows)
            removed.append(RemoveAction(file["path"], True, now, file["size_bytes"], partition))
    return removed, kept.close().to_pylist()


def _check_keys(tables: Tables, table: Table, files: list[dict[str, Any]], where: KeyRange | KeyIn) -> None:
    """Raise WriteRefused if new files contain a duplicate key or a row outside `where`. Each file was checked on its
    own when it was written, so keys are read only from files whose key ranges overlap. For single-integer keys."""
    name = table.number_key
    if name is None:
        return
    parts: dict[str, list[tuple[int, int, str]]] = {}
    for file in files:
        stats, values = json.loads(file["stats"]), json.loads(file["partition"])
        if not stats["numRecords"]:
            continue
        low, high = stats["minValues"][name], stats["maxValues"][name]
        bounded = isinstance(where, KeyRange) and where.column == name
        if any(values[key] != value for key, value in where.partition) or (bounded and where.sides(low, high)[1]):
            raise WriteRefused(table.name, [f"rows outside of what they replace: {values} {name} {low} to {high}"])
        parts.setdefault(file["partition"], []).append((low, high, file["path"]))
    for own in parts.values():
        paths = sorted(overlapping(own))
        repeated = repeated_keys(_keys_in(tables, table, name, paths), name) if paths else {}
        if repeated:
            rules = [f"{rule}: {n} repeat, such as {of}" for rule, (n, of) in repeated.items()]
            raise WriteRefused(table.name, rules)


def _keys_in(tables: Tables, table: Table, name: str, paths: list[str]) -> NDArray[np.int64]:
    found = []
    for path in paths:
        with reading(tables.location(table).url(path)), tables.location(table).open(path) as source:
            found.append(pq.ParquetFile(source, pre_buffer=True).read([name])[name].to_numpy().astype(np.int64))
    return np.concatenate(found)


def _rows_outside(
    tables: Tables, table: Table, path: str, partition: dict[str, str], where: KeyRange | KeyIn
) -> pa.Table | None:
    """The rows of a file outside `where`; None if all of them are, so that the file can stay unchanged."""
    with reading(tables.location(table).url(path)), tables.location(table).open(path) as source:
        file = pq.ParquetFile(source, pre_buffer=True)
        outside = where.outside(file.read([where.column])[where.column])
        if pc.all(outside, min_count=0).as_py():
            return None
        rows = file.read().filter(outside)
    for column in table.columns:
        # a file that was written before a column was declared has null for it
        if column.name not in rows.column_names and column.name not in partition:
            rows = rows.append_column(column.name, pa.nulls(rows.num_rows, arrow_type(column.type)))
    for name, value in partition.items():
        rows = rows.append_column(name, pa.repeat(value, rows.num_rows))
    return rows.select(table.names).cast(arrow_schema(table))


def append_small(tables: Tables, table: Table, rows: list[dict[str, Any]]) -> None:
    """Append a few rows without Spark, creating the table if it does not exist. For the framework's own tables."""
    data = pa.Table.from_pylist(rows, schema=arrow_schema(table))
    uri = tables.url(table)
    try:
        if not is_s3(uri):
            os.makedirs(uri, exist_ok=True)
        write_deltalake(uri, data, mode="append", storage_options=tables.options)
    except (DeltaError, OSError) as error:
        raise delta_error(f"{uri}: cannot be written", error) from error


def overlapping(files: list[tuple[int, int, str]]) -> set[str]:
    """The names of the files that may share a value with another file; `files` are (minimum, maximum, name)."""
    found: set[str] = set()
    reach: tuple[int, str] | None = None
    for low, high, path in sorted(files):
        if reach is not None and low <= reach[0]:
            found |= {path, reach[1]}
        reach = max(reach or (high, path), (high, path))
    return found
