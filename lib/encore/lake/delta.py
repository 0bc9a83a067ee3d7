"""Locates the tables of a lake and opens them with delta-rs. Reading, writing and maintenance build on this module."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from encore.config import Config, S3Config
from encore.errors import LakeError
from encore.lake.credentials import delta_credentials
from encore.lake.failures import delta_error
from encore.lake.filesystem import is_s3
from encore.lake.parquet import TableLocation
from encore.lake.schema import ddl_found, ddl_of, schema_differences
from encore.lake.tables import Table

MAINTENANCE = frozenset(
    {"OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES", "ADD CONSTRAINT", "ADD COLUMN", "CREATE TABLE"}
)
"""Operations that change no rows: a table's data version is the version of the last other operation."""

RESTORE = "restore"
"""What the commits of a restore (restore.py) name as their job."""

Interval = tuple[int | None, int | None]
"""A half-open range of integers, lower bound included and upper bound excluded; None: unbounded."""


@dataclass(frozen=True)
class Commit:
    """What a job records in a commit's metadata: what the rows were computed from, and which rows were replaced.

    `part` names the unit of work. `partition` and `rows` identify the replaced rows: all rows with these partition
    values whose key lies in the interval. `rows` is None if the replaced rows are not such a range, or if an older
    release wrote the commit. `fitted`: the fingerprint of the fitted model that the rows come from; empty if from none.
    `restored`: the earlier version whose rows the commit brought back (restore.py); None for all other commits.
    """

    job: str
    run_id: str
    fingerprint: str
    part: str = "all"
    partition: tuple[tuple[str, str], ...] = ()
    rows: Interval | None = None
    fitted: str = ""
    restored: int | None = None

    def json(self) -> str:
        """The JSON that is stored in the Delta log."""
        # older releases do not know `restored`: to them, a restore is a commit of another program
        fields = {name: value for name, value in self.__dict__.items() if name != "restored" or value is not None}
        return json.dumps({"encore": fields}, sort_keys=True)

    @staticmethod
    def parse(text: str | None) -> Commit | None:
        """Parse the Commit in a log entry's userMetadata; None if another program wrote the entry."""
        try:
            found = dict(json.loads(text or "")["encore"])
            partition = tuple((str(name), str(value)) for name, value in found.pop("partition", ()))
            rows = found.pop("rows", None)
            return Commit(**found, partition=partition, rows=None if rows is None else (rows[0], rows[1]))
        except (ValueError, KeyError, TypeError, IndexError):
            return None

    def touches(self, partition: tuple[tuple[str, str], ...]) -> bool:
        """Whether the commit may have replaced rows of a partition."""
        own = dict(self.partition)
        return all(own.get(name, value) == value for name, value in partition)

    def is_within(self, partition: tuple[tuple[str, str], ...]) -> bool:
        """Whether the commit can only have replaced rows of a partition."""
        own = dict(self.partition)
        return all(own.get(name) == value for name, value in partition)


@dataclass(frozen=True)
class Change:
    """A commit that changed rows: its version, its time in ms since 1970, and its metadata (None: another program)."""

    version: int
    timestamp_ms: int
    commit: Commit | None


def changes(found: DeltaTable) -> Iterator[Change]:
    """The commits that the rows of a table come from, newest first: `in_effect` of all changes."""
    return in_effect(all_changes(found))


def all_changes(found: DeltaTable) -> Iterator[Change]:
    """The commits of a table that changed rows, with restores, newest first; older log entries are read on demand."""
    seen, limit = 0, 100
    while True:
        entries = log_entries(found, limit)
        yield from changes_of(entries[seen:])
        if len(entries) < limit:
            return
        seen, limit = len(entries), limit * 10


def in_effect(found: Iterable[Change]) -> Iterator[Change]:
    """The changes that no later restore has undone, newest first; the restores themselves are left out.

    `found`: all changes of a table, newest first. After a restore, a table's rows come from the same commits as at the
    version that was restored.
    """
    restores: list[tuple[int, int, tuple[tuple[str, str], ...]]] = []
    for change in found:
        commit = change.commit
        if commit is not None and commit.restored is not None:
            restores.append((change.version, commit.restored, commit.partition))
        elif not _is_undone(change, restores):
            yield change


def _is_undone(change: Change, restores: Iterable[tuple[int, int, tuple[tuple[str, str], ...]]]) -> bool:
    """Whether one of some restores (its version, the version that it restored, its partition), newest first, undid a
    change. A restore that a later one undid does not count."""
    below: int | None = None
    for at, version, partition in restores:
        if below is not None and at > below:
            continue
        if partition and (change.commit is None or not change.commit.is_within(partition)):
            continue
        if change.version > version:
            return True
        below = version
    return False


def changes_of(entries: Iterable[dict[str, Any]]) -> Iterator[Change]:
    """The changes among a table's log entries, given as delta-rs returns them."""
    for entry in entries:
        if entry.get("operation") not in MAINTENANCE:
            commit = Commit.parse(entry.get("userMetadata"))
            yield Change(int(entry["version"]), int(entry["timestamp"]), commit)


class Tables:
    """The tables of one lake: their locations, and how to open them with delta-rs."""

    def __init__(self, config: Config) -> None:
        self.path = config.lake.path.removeprefix("file://").rstrip("/")
        self._config = config

    @property
    def options(self) -> dict[str, str]:
        """The storage options that delta-rs needs to access S3, with credentials that may expire: see
        `delta_credentials`. Use them at once, and open a table again before a step that comes much later."""
        if not is_s3(self.path):
            return {}
        s3 = self._config.s3
        options = {"aws_conditional_put": "etag", **delta_credentials(self.path, s3)}
        if s3.endpoint:
            options["aws_endpoint"] = s3.endpoint
            options["aws_allow_http"] = str(s3.endpoint.startswith("http://")).lower()
            options["aws_virtual_hosted_style_request"] = str(not s3.path_style).lower()
        return options

    def uri(self, table: Table) -> str:
        """The location of a table in the form that Spark uses (Hadoop's scheme for S3 is s3a)."""
        return f"{self.root}/{table.name}".replace("s3://", "s3a://", 1)

    def url(self, table: Table) -> str:
        """The location of a table in the form that the AWS tools and delta-rs use."""
        return f"{self.root}/{table.name}".replace("s3a://", "s3://", 1)

    @property
    def s3(self) -> S3Config:
        """The settings for accessing S3."""
        return self._config.s3

    @property
    def root(self) -> str:
        """The root of the lake: an absolute path, or its prefix in S3."""
        return self.path if is_s3(self.path) else os.path.abspath(self.path)

    def open(self, table: Table) -> DeltaTable | None:
        """Open the newest version of a table; None if it does not exist. Raises LakeError if it cannot be read."""
        try:
            return DeltaTable(self.url(table), storage_options=self.options)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise delta_error(f"{self.uri(table)}: cannot be read", error) from error

    def there(self, table: Table) -> DeltaTable:
        """Like `open`, but raises LakeError if the table does not exist."""
        found = self.open(table)
        if found is None:
            raise LakeError(f"{self.uri(table)}: the table is not there")
        return found

    def at(self, table: Table, version: int) -> DeltaTable:
        """Open a table at a version. Raises LakeError if its log no longer has that version."""
        try:
            return DeltaTable(self.url(table), version=version, storage_options=self.options)
        except (DeltaError, OSError) as error:
            raise delta_error(f"{self.uri(table)}: version {version} cannot be read", error) from error

    def location(self, table: Table) -> TableLocation:
        """The location to which workers write a table's files."""
        return TableLocation(self.url(table), self._config.s3)

    def check_schema(self, table: Table, found: DeltaTable) -> None:
        """Raise LakeError if a table's schema differs from its declaration.

        A missing nullable column is not a difference: it reads as null until a job that writes the table adds it.
        """
        differences = schema_differences(table, found)
        if differences:
            raise LakeError(
                f"the lake {self.path} has another schema: {table.name}: {'; '.join(differences)}; "
                f"expected: {ddl_of(table)}; found: {ddl_found(found)}",
                remedy=f"drop {self.uri(table)} and run again, or choose another lake.path",
            )


def log_entries(found: DeltaTable, limit: int | None = None) -> list[dict[str, Any]]:
    """The entries of a table's log as delta-rs returns them, newest first; `limit`: at most so many.

    Raises LakeError if they cannot be read, TransientError if the server does not answer.
    """
    try:
        return found.history(limit)
    except (DeltaError, OSError) as error:
        raise delta_error(f"{found.table_uri.rstrip('/')}: the log cannot be read", error) from error


def file_actions(found: DeltaTable) -> pa.Table:
    """The add actions of the loaded version, flattened: path, size_bytes, num_records, partition.<name>, min.<name>,
    max.<name>. Raises the same errors as `log_entries`."""
    try:
        return arrow_table(found.get_add_actions(flatten=True))
    except (DeltaError, OSError) as error:
        raise delta_error(f"{found.table_uri.rstrip('/')}: the log cannot be read", error) from error


def data_files(found: DeltaTable) -> list[dict[str, Any]]:
    """The data files of the loaded version, the rows of `file_actions`."""
    return file_actions(found).to_pylist()


def arrow_table(rows: Any) -> pa.Table:
    """Convert a result of delta-rs to a pyarrow table; pa.table would import pandas, which takes half a second."""
    return pa.RecordBatchReader.from_stream(rows).read_all()


def first_line(error: BaseException) -> str:
    """The first non-blank line of an error's message, or the name of its class if there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
