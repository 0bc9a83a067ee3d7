"""Delta tables of a lake: the only place that knows paths. Reads at a version; writes whole or not at all.

What a table is (version, history, rows, size, files) is read by delta-rs from the log alone: it needs no JVM and takes
milliseconds, so that a run with nothing to do starts no session. Rows are read (scan.py) and written (datafiles.py) as
data files, which are committed here. Spark reads tables where people ask for them in SQL.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError

from encore.config import Config
from encore.errors import LakeError
from encore.lake.delta import MAINTENANCE, Commit, Tables, data_files, first_line
from encore.lake.filesystem import delete_folder, is_s3
from encore.lake.scan import KeyRange, Scan, scan_of
from encore.lake.schema import delta_schema, properties
from encore.lake.tables import ALL, VIEWS, Table, arrow_schema

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class TableState:
    """What the log says of a table: version, rows, files, bytes, last commit, and `changes`, the versions that changed
    rows, newest first, with the job that made each (None: not a job of Encore)."""

    version: int
    rows: int
    files: int
    bytes: int
    commit: Commit | None
    changed_at_ms: int
    changes: tuple[tuple[int, str | None], ...]

    @property
    def data_version(self) -> int:
        """The last version that changed rows: optimising a table does not make what was derived from it stale."""
        return self.changes[0][0] if self.changes else 0

    def version_for(self, job: str) -> int:
        """As `data_version`, but for what other jobs did to a table that several write."""
        return next((version for version, by in self.changes if by is None or by == job), 0)


class Store(Tables):
    """The tables of one lake: their state and their rows. `spark` is called where Spark itself has to read a table."""

    def __init__(self, config: Config, spark: Callable[[], SparkSession]) -> None:
        super().__init__(config)
        self._spark = spark

    # what is there -------------------------------------------------------------------------------------------------

    def exists(self, table: Table) -> bool:
        """Whether the table is there."""
        return self.open(table) is not None

    def version(self, table: Table) -> int | None:
        """Its newest version; None where it is not there."""
        found = self.open(table)
        return found.version() if found else None

    def data_version(self, table: Table) -> int | None:
        """The last version that changed rows; None where the table is not there."""
        state = self.state(table)
        return state.data_version if state else None

    def state(self, table: Table) -> TableState | None:
        """What the log says of a table; None where it is not there."""
        found = self.open(table)
        if found is None:
            return None
        actions = pa.table(found.get_add_actions(flatten=True))
        history = found.history(100)
        commits = [Commit.parse(entry.get("userMetadata")) for entry in history]
        changes = [
            (int(entry["version"]), commit.job if commit else None)
            for entry, commit in zip(history, commits, strict=True)
            if entry.get("operation") not in MAINTENANCE
        ]
        return TableState(
            version=found.version(),
            rows=int(pc.sum(actions["num_records"]).as_py() or 0) if actions.num_rows else 0,
            files=actions.num_rows,
            bytes=int(pc.sum(actions["size_bytes"]).as_py() or 0) if actions.num_rows else 0,
            commit=next((commit for commit in commits if commit), None),
            changed_at_ms=int(history[0]["timestamp"]) if history else 0,
            changes=tuple(changes),
        )

    def partitions(self, table: Table, column: str) -> set[str]:
        """The values of a partition column that have rows; none where the table is not there."""
        found = self.open(table)
        return {file[f"partition.{column}"] for file in data_files(found)} if found else set()

    def parts_done(self, table: Table, fingerprint: str) -> set[str]:
        """Parts of the work of this fingerprint that are the table's newest commits: a re-run skips them."""
        found = self.open(table)
        done: set[str] = set()
        for entry in found.history() if found else ():
            if entry.get("operation") in MAINTENANCE:
                continue
            commit = Commit.parse(entry.get("userMetadata"))
            if commit is None or commit.fingerprint != fingerprint:
                break
            done.add(commit.part)
        return done

    def check_writable(self) -> None:
        """Raise LakeError where nothing can be written (local lakes; S3 answers at the first write)."""
        if is_s3(self.path):
            return
        probe = os.path.join(self.path, f".encore-{uuid.uuid4().hex}")
        try:
            os.makedirs(self.path, exist_ok=True)
            with open(probe, "wb"):
                pass
            os.unlink(probe)
        except OSError as error:
            raise LakeError(
                f"the lake {self.path} cannot be written: {error.strerror}",
                remedy="choose another lake.path or mend its rights",
            ) from error

    # reading -------------------------------------------------------------------------------------------------------

    def read(self, table: Table, version: int | None = None) -> DataFrame:
        """The rows of a table, at a version or the newest. Raises LakeError where it is not there."""
        with _spark_errors(table.name):
            reader = self._spark().read.format("delta")
            if version is not None:
                reader = reader.option("versionAsOf", version)
            return reader.load(self.uri(table))

    def read_small(self, table: Table, columns: list[str] | None = None) -> pa.Table:
        """A small table as Arrow, without Spark; an empty one where it is not there."""
        found = self.open(table)
        if found is None:
            schema = arrow_schema(table)
            return schema.empty_table().select(columns or schema.names)
        self.check_schema(table, found)
        wanted = ", ".join(f'"{name}"' for name in columns or arrow_schema(table).names)
        # by delta-rs's own engine: its bridge to a pyarrow data set now and then aborts the process as it ends
        return pa.table(QueryBuilder().register("t", found).execute(f"SELECT {wanted} FROM t").read_all())

    def scan(
        self, table: Table, columns: Sequence[str], version: int | None = None, where: KeyRange | None = None
    ) -> Scan:
        """Some columns of a table's rows, at a version or the newest, to be read from its files without Spark.

        Raises LakeError where the table is not there, or where its files alone do not say what its rows are.
        """
        found = self.there(table)
        if version is not None:
            found.load_as_version(version)
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
        """Make every table that is there, and the views over them, known to Spark SQL by name; returns the names."""
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

    def ensure(self, table: Table) -> None:
        """Make the table where it is not there; raise LakeError where it was made by another declaration."""
        found = self.open(table)
        if found is not None:
            self.check_schema(table, found)
            return
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
            raise LakeError(f"{uri}: cannot be made: {first_line(error)}") from error

    @contextmanager
    def scratch(self, name: str) -> Iterator[str]:
        """A place in the lake for what a job sets aside between two passes; it is gone when the block ends."""
        place = f"{self.root}/_scratch/{name}-{uuid.uuid4().hex[:12]}"
        try:
            yield place
        finally:
            delete_folder(place, self._config.s3)


def _no_spark() -> NoReturn:
    raise AssertionError("this command reads the log of a table alone")


def open_store(config: Config) -> Store:
    """The lake of a configuration, to look at. LakeError where there is none."""
    store = Store(config, _no_spark)
    if not any(store.exists(table) for table in ALL):
        raise LakeError(f"no tables in the lake {config.lake.path}", remedy="call `encore run`, or set lake.path")
    return store


@contextmanager
def _spark_errors(what: str) -> Iterator[None]:
    """Spark's and Delta's errors as LakeError with their first line. Errors that a worker raised for us pass."""
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
