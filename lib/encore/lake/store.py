"""The Delta tables of a lake: their state, reading them at a version, and creating them.

The state of a table (version, history, rows, size, files) is read by delta-rs from the log alone: this needs no JVM and
takes milliseconds, so a run with nothing to do starts no session. Rows are read (scan.py) and written (parquet.py) as
data files, which are committed by transaction.py. Spark reads tables only for SQL queries by users.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError

from encore.config import Config
from encore.errors import LakeError
from encore.lake.delta import (
    RESTORE,
    Change,
    Commit,
    Tables,
    all_changes,
    arrow_table,
    changes,
    changes_of,
    data_files,
    file_actions,
    first_line,
    in_effect,
    log_entries,
)
from encore.lake.failures import delta_error, os_error
from encore.lake.filesystem import delete_folder, is_s3
from encore.lake.scan import KeyIn, KeyRange, Scan, scan_of
from encore.lake.schema import changed_constraints, delta_field, delta_schema, missing_columns, properties
from encore.lake.tables import ALL, VIEWS, Table, arrow_schema

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_ENTRIES = 100
"""How many entries of a table's log are read initially."""


@dataclass(frozen=True)
class TableState:
    """The state of a table according to its log: its id, version, rows, files, bytes, its last commit, and the newest
    commits that its rows come from, newest first. `restored`: the newest restore, if it is among the newest commits.

    A table that was dropped and recreated has a new `id`, and its versions start at 0 again: id and version are only
    meaningful together.
    """

    id: str
    version: int
    rows: int
    files: int
    bytes: int
    commit: Commit | None
    changed_at_ms: int
    newest: tuple[Change, ...]
    restored: Change | None
    log: DeltaTable = field(repr=False, compare=False)
    reopen: Callable[[], DeltaTable] = field(repr=False, compare=False)
    """Opens the table again, since the credentials in `log` may have expired; its files are known without any."""

    def changes(self) -> Iterator[Change]:
        """The commits that the rows come from, newest first; those that are not in `newest` are read on demand."""
        yield from self.newest
        if self.version >= _ENTRIES:
            yield from islice(changes(self.reopen()), len(self.newest), None)

    @property
    def data_version(self) -> int:
        """The version that the rows come from: optimizing a table does not make data derived from it stale, and after a
        restore it is the same as it was at the restored version."""
        return next((change.version for change in self.changes()), 0)

    def data_version_at(self, version: int) -> int:
        """What `data_version` was at an earlier version: if it is the same as now, so are the rows."""
        before = (change for change in all_changes(self.log) if change.version <= version)
        return next((change.version for change in in_effect(before)), 0)

    @property
    def data_id(self) -> str:
        """The table's id and data version: equal for equal rows."""
        return f"{self.id}@{self.data_version}"

    def version_for(self, job: str) -> int:
        """Like `data_version`, but ignores commits of other jobs to a table that several jobs write."""
        own = (c.version for c in self.changes() if c.commit is None or c.commit.job in (job, RESTORE))
        return next(own, 0)

    def data_id_of(self, partition: tuple[tuple[str, str], ...]) -> str:
        """Like `data_id`, but only for the rows of a partition."""
        own = (c.version for c in self.changes() if c.commit is None or c.commit.touches(partition))
        return f"{self.id}@{next(own, 0)}"


class Store(Tables):
    """The tables of one lake: their state and their rows. `spark` is called only when Spark itself reads a table."""

    def __init__(self, config: Config, spark: Callable[[], SparkSession]) -> None:
        super().__init__(config)
        self._spark = spark
        self.workplace: str | None = None
        """The folder of the running job, for `scratch`; None: each scratch folder gets its own location."""

    # state ---------------------------------------------------------------------------------------------------------

    def exists(self, table: Table) -> bool:
        """Whether the table exists."""
        return self.open(table) is not None

    def state(self, table: Table) -> TableState | None:
        """The state of a table according to its log; None if it does not exist."""
        found = self.open(table)
        return None if found is None else _state_of(found, lambda: self.at(table, found.version()))

    def state_at(self, table: Table, version: int) -> TableState:
        """The state of a table at a version. Raises LakeError if its log no longer has that version."""
        return _state_of(self.at(table, version), lambda: self.at(table, version))

    def partitions(self, table: Table, column: str) -> set[str]:
        """The values of a partition column for which the table has data files; empty if the table does not exist."""
        found = self.open(table)
        return {file[f"partition.{column}"] for file in data_files(found)} if found else set()

    def check_writable(self) -> None:
        """Raise LakeError if a local lake is not writable; S3 reports it at the first write."""
        if is_s3(self.path):
            return
        probe = os.path.join(self.path, f".encore-{uuid.uuid4().hex}")
        try:
            os.makedirs(self.path, exist_ok=True)
            with open(probe, "wb"):
                pass
            os.unlink(probe)
        except OSError as error:
            raise os_error(f"the lake {self.path} cannot be written", error) from error

    # reading -------------------------------------------------------------------------------------------------------

    def read(self, table: Table, version: int | None = None) -> DataFrame:
        """The rows of a table at a version, by default the newest. Raises LakeError if it does not exist."""
        with _spark_errors(table.name):
            reader = self._spark().read.format("delta")
            if version is not None:
                reader = reader.option("versionAsOf", version)
            return reader.load(self.uri(table))

    def read_small(self, table: Table, columns: list[str] | None = None) -> pa.Table:
        """A small table as Arrow, without Spark; no rows if it does not exist."""
        return self._select(table, columns)

    def read_rows(
        self, table: Table, columns: list[str], column: str, values: Collection[str] | Collection[int]
    ) -> pa.Table:
        """The rows of a table whose `column` has one of some values, without Spark; no rows if it does not exist.

        Reads only the parts of files whose statistics allow for these values.
        """
        if not values:
            return pa.Table.from_batches([], arrow_schema(table, columns))
        shown = (str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'" for value in values)
        return self._select(table, columns, f' WHERE "{column}" IN ({", ".join(shown)})')

    def _select(self, table: Table, columns: list[str] | None, where: str = "") -> pa.Table:
        found, schema = self.open(table), arrow_schema(table, columns)
        if found is None:
            return pa.Table.from_batches([], schema)
        self.check_schema(table, found)
        lacking = {column.name for column in missing_columns(table, found)}
        wanted = ", ".join(f'"{name}"' for name in schema.names if name not in lacking)
        # with delta-rs's own engine: its bridge to pyarrow datasets sometimes aborts the process at exit
        try:
            rows = arrow_table(QueryBuilder().register("t", found).execute(f"SELECT {wanted} FROM t{where}").read_all())
        except (DeltaError, OSError, pa.ArrowInvalid) as error:
            raise delta_error(f"{self.uri(table)}: cannot be read", error) from error
        for name in lacking & set(schema.names):
            rows = rows.append_column(schema.field(name), pa.nulls(rows.num_rows, schema.field(name).type))
        return rows.select(schema.names)

    def scan(
        self, table: Table, columns: Sequence[str], at: DeltaTable | None = None, where: KeyRange | KeyIn | None = None
    ) -> Scan:
        """A scan of some columns of a table at an opened version, by default the newest, which reads its files without
        Spark.

        Raises LakeError if the table does not exist, or if its rows cannot be determined from its data files alone.
        """
        found = at or self.there(table)
        self.check_schema(table, found)
        protocol = found.protocol()
        if protocol.min_reader_version > 1:
            features = ", ".join(protocol.reader_features or ()) or f"reader version {protocol.min_reader_version}"
            raise LakeError(
                f"{self.uri(table)}: plain data files expected, {features} found",
                remedy="another program turned that on: drop the table, its job makes it again",
            )
        schema = arrow_schema(table, columns)
        return scan_of(self.location(table), schema, where or KeyRange(), table.partition_by, data_files(found))

    def register_views(self) -> list[str]:
        """Register every existing table, and the views, in Spark SQL; returns their names."""
        spark, names = self._spark(), []
        for table in ALL:
            if self.exists(table):
                self.read(table).createOrReplaceTempView(table.name)
                names.append(table.name)
        for name, query in VIEWS.items():
            if all(table.name in names for table in ALL if f" {table.name}" in query):
                spark.sql(query).createOrReplaceTempView(name)
                names.append(name)
        return names

    # writing -------------------------------------------------------------------------------------------------------

    def ensure(self, table: Table) -> DeltaTable:
        """The newest version of a table. Creates the table if it does not exist. Otherwise adds missing nullable
        columns, which are null in existing rows, and replaces constraints that the declaration has changed since.

        Raises LakeError if its schema differs from its declaration.
        """
        found = self.open(table)
        if found is None:
            return self._create(table)
        self.check_schema(table, found)
        lacking, changed = missing_columns(table, found), changed_constraints(table, found)
        try:
            if lacking:
                found.alter.add_columns([delta_field(column) for column in lacking])
            if changed:
                # in one commit, so that the table is never without the constraint
                found.alter.set_table_properties(changed, raise_if_not_exists=False)
        except (DeltaError, OSError) as error:
            raise delta_error(f"{self.url(table)}: cannot be brought up to date with its declaration", error) from error
        return self.there(table) if lacking or changed else found

    def _create(self, table: Table) -> DeltaTable:
        uri = self.url(table)
        try:
            if not is_s3(uri):
                os.makedirs(uri, exist_ok=True)
            DeltaTable.create(
                uri,
                delta_schema(table),
                mode="ignore",
                partition_by=list(table.partition_by),
                configuration=properties(table),
                storage_options=self.options,
                raise_if_key_not_exists=False,
            )
        except (DeltaError, OSError) as error:
            raise delta_error(f"{uri}: cannot be made", error) from error
        # another run may have created it at the same time: the log is authoritative
        return self.there(table)

    @contextmanager
    def scratch(self, name: str) -> Iterator[str]:
        """A folder in the lake for a job's intermediate files, removed when the block ends."""
        place = f"{self.workplace or f'{self.root}/_scratch'}/{name}-{uuid.uuid4().hex[:12]}"
        try:
            yield place
        finally:
            delete_folder(place, self.s3)


def _no_spark() -> NoReturn:
    raise AssertionError("this command reads the log of a table alone")


def open_store(config: Config) -> Store:
    """Open the lake of a configuration for reading. Raises LakeError if it has no tables."""
    store = Store(config, _no_spark)
    if not any(store.exists(table) for table in ALL):
        raise LakeError(f"no tables in the lake {config.lake.path}", remedy="call `encore run`, or set lake.path")
    return store


def _state_of(found: DeltaTable, reopen: Callable[[], DeltaTable]) -> TableState:
    """The state of an open table according to its log. `reopen` opens the same version again."""
    actions = file_actions(found)
    entries = log_entries(found, _ENTRIES)
    changed = list(changes_of(entries))
    newest = tuple(in_effect(changed))
    return TableState(
        id=str(found.metadata().id),
        version=found.version(),
        rows=int(pc.sum(actions["num_records"]).as_py() or 0) if actions.num_rows else 0,
        files=actions.num_rows,
        bytes=int(pc.sum(actions["size_bytes"]).as_py() or 0) if actions.num_rows else 0,
        commit=next((change.commit for change in newest if change.commit), None),
        changed_at_ms=int(entries[0]["timestamp"]) if entries else 0,
        newest=newest,
        restored=next((change for change in changed if change.commit and change.commit.restored is not None), None),
        log=found,
        reopen=reopen,
    )


@contextmanager
def _spark_errors(what: str) -> Iterator[None]:
    """Convert errors of Spark and Delta to LakeError with their first line; errors of Python workers pass through."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException, PythonException

    try:
        yield
    except PythonException:
        raise
    except (PySparkException, Py4JError) as error:
        cause = getattr(error, "java_exception", None)
        line = first_line(error)
        if cause is not None:
            text = str(cause.toString())
            line = text.splitlines()[0]
        raise LakeError(f"{what}: {line[:500]}") from error
