"""Delta tables of a lake: the only place that knows paths. Reads at a version; writes whole or not at all.

What a table is (version, history, rows, size, files) is read by delta-rs from the log alone: it needs no JVM and takes
milliseconds, so that a run with nothing to do starts no session. Rows are read (scan.py) and written (datafiles.py) as
data files, which are committed here. Spark reads tables where people ask for them in SQL.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, QueryBuilder, Schema, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction
from numpy.typing import NDArray

from encore.config import Config
from encore.datafiles import Place, Writer, merge_broken, repeated_keys
from encore.errors import LakeError, WriteRefused
from encore.files import delete_folder, is_s3
from encore.scan import Among, Scan, Where, scan_of, touched
from encore.tables import ALL, VIEWS, Table, arrow_schema, arrow_type

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

MAINTENANCE = frozenset(
    {"OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES", "ADD CONSTRAINT", "CREATE TABLE"}
)
"""Operations that change no row: a table's data version is that of the last other one."""


SMALL_BYTES = 16 * 1024**2
"""Opening a file costs about as much as reading so much of it from S3."""

LOG_RETENTION = ("delta.logRetentionDuration", "interval 3650 days")
"""Entries of the log are small, and without them an old version cannot be read though its files are there."""


@dataclass(frozen=True)
class Commit:
    """What a job leaves in a commit's metadata: from what it was made, and which part of the work it was."""

    job: str
    run_id: str
    fingerprint: str
    part: str = "all"

    def json(self) -> str:
        """The form in which it stands in the Delta log."""
        return json.dumps({"encore": self.__dict__}, sort_keys=True)

    @staticmethod
    def parse(text: str | None) -> Commit | None:
        """The Commit in a log entry's userMetadata; None where another program wrote it."""
        try:
            found = json.loads(text or "")["encore"]
            return Commit(**found)
        except (ValueError, KeyError, TypeError):
            return None


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


class Store:
    """The tables of one lake. `spark` is called where Spark itself is to read a table."""

    def __init__(self, config: Config, spark: Callable[[], SparkSession]) -> None:
        self.path = config.lake.path.removeprefix("file://").rstrip("/")
        self._config = config
        self._spark = spark

    # what is there -------------------------------------------------------------------------------------------------

    @cached_property
    def _options(self) -> dict[str, str]:
        """What delta-rs needs to reach S3; credentials it takes from the environment itself."""
        if not is_s3(self.path):
            return {}
        s3 = self._config.s3
        options = {"aws_conditional_put": "etag"}
        if s3.endpoint:
            options["aws_endpoint"] = s3.endpoint
            options["aws_allow_http"] = str(s3.endpoint.startswith("http://")).lower()
            options["aws_virtual_hosted_style_request"] = str(not s3.path_style).lower()
        if s3.region:
            options["aws_region"] = s3.region
        return options

    def uri(self, table: Table) -> str:
        """Where a table is, as Spark writes it (Hadoop's name of S3 is s3a)."""
        return f"{self._root}/{table.name}".replace("s3://", "s3a://", 1)

    def _url(self, table: Table) -> str:
        """Where a table is, as the AWS tools and delta-rs write it."""
        return f"{self._root}/{table.name}".replace("s3a://", "s3://", 1)

    @property
    def _root(self) -> str:
        return self.path if is_s3(self.path) else os.path.abspath(self.path)

    def _delta(self, table: Table) -> DeltaTable | None:
        try:
            return DeltaTable(self._url(table), storage_options=self._options)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise LakeError(f"{self.uri(table)}: cannot be read: {_first_line(error)}") from error

    def _there(self, table: Table) -> DeltaTable:
        """As `_delta`. Raises LakeError where the table is not there."""
        found = self._delta(table)
        if found is None:
            raise LakeError(f"{self.uri(table)}: the table is not there")
        return found

    def exists(self, table: Table) -> bool:
        """Whether the table is there."""
        return self._delta(table) is not None

    def version(self, table: Table) -> int | None:
        """Its newest version; None where it is not there."""
        found = self._delta(table)
        return found.version() if found else None

    def data_version(self, table: Table) -> int | None:
        """The last version that changed rows; None where the table is not there."""
        state = self.state(table)
        return state.data_version if state else None

    def state(self, table: Table) -> TableState | None:
        """What the log says of a table; None where it is not there."""
        found = self._delta(table)
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
        found = self._delta(table)
        return {file[f"partition.{column}"] for file in _files(found)} if found else set()

    def parts_done(self, table: Table, fingerprint: str) -> set[str]:
        """Parts of the work of this fingerprint that are the table's newest commits: a re-run skips them."""
        found = self._delta(table)
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
        found = self._delta(table)
        if found is None:
            schema = arrow_schema(table)
            return schema.empty_table().select(columns or schema.names)
        self._check_schema(table, found)
        wanted = ", ".join(f'"{name}"' for name in columns or arrow_schema(table).names)
        # by delta-rs's own engine: its bridge to a pyarrow data set now and then aborts the process as it ends
        return pa.table(QueryBuilder().register("t", found).execute(f"SELECT {wanted} FROM t").read_all())

    def scan(
        self, table: Table, columns: Sequence[str], version: int | None = None, where: Where | None = None
    ) -> Scan:
        """Some columns of a table's rows, at a version or the newest, to be read from its files without Spark.

        Raises LakeError where the table is not there, or where its files alone do not say what its rows are.
        """
        found = self._there(table)
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
        return scan_of(self.place(table), schema, where or Where(), table.partition_by, _files(found))

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
        found = self._delta(table)
        if found is not None:
            self._check_schema(table, found)
            return
        uri = self._url(table)
        try:
            if not is_s3(uri):
                os.makedirs(uri, exist_ok=True)
            DeltaTable.create(
                uri,
                _delta_schema(table),
                mode="ignore",
                partition_by=list(table.partition_by),
                configuration=_properties(table),
                storage_options=self._options,
                raise_if_key_not_exists=False,
            )
        except (DeltaError, OSError) as error:
            raise LakeError(f"{uri}: cannot be made: {_first_line(error)}") from error

    def _check_schema(self, table: Table, found: DeltaTable) -> None:
        differences = _schema_differences(table, found)
        if differences:
            raise LakeError(
                f"the lake {self.path} was made by another schema: {table.name}: " + "; ".join(differences),
                remedy="choose another lake.path, or move this lake away",
            )

    def commit_files(self, table: Table, reports: pa.Table, commit: Commit, where: Where | Among) -> None:
        """Replace the rows `where` by those of files that tasks wrote (`datafiles.REPORT`), in one commit.

        Raises WriteRefused, and commits nothing, where a task met rows that break the declaration. Rows outside of
        `where` that share a file with rows inside are written again.
        """
        broken: dict[str, tuple[int, str]] = {}
        for text in reports["broken"].drop_null().to_pylist():
            merge_broken(broken, json.loads(text))
        if broken:
            key = "/".join(table.key)
            raise WriteRefused(
                table.name, [f"{name}: broken by {n} row(s), such as {key} {of}" for name, (n, of) in broken.items()]
            )
        self._check_keys(table, reports.filter(reports["path"].is_valid()).to_pylist(), where)
        found = self._there(table)
        self._check_schema(table, found)
        actions: list[AddAction | RemoveAction] = []
        kept = Writer(table, self.place(table))
        now = int(time.time() * 1000)
        for file, partition, inside, outside in touched(_files(found), where, table.partition_by):
            # another writer may have left a file without statistics, whose rows are not known and may be any
            empty = file["num_records"] == 0
            if inside or empty:
                if outside and not empty:
                    rows = self._rows_outside(table, file["path"], partition, where)
                    if rows is None:
                        continue
                    kept.write(rows)
                actions.append(RemoveAction(file["path"], True, now, file["size_bytes"], partition))
        rewritten = pa.Table.from_batches([kept.close()])
        for row in [*reports.to_pylist(), *rewritten.to_pylist()]:
            if row["path"] is not None:
                actions.append(
                    AddAction(
                        row["path"], row["size"], json.loads(row["partition"]), row["modified_ms"], True, row["stats"]
                    )
                )
        try:
            found.create_write_transaction(
                actions,
                "append",
                found.schema(),
                list(table.partition_by),
                commit_properties=CommitProperties(custom_metadata={"userMetadata": commit.json()}),
            )
        except (DeltaError, OSError) as error:
            raise LakeError(f"{table.name}: cannot be committed: {_first_line(error)}") from error

    def _check_keys(self, table: Table, files: list[dict[str, Any]], where: Where | Among) -> None:
        """That new files have no key twice, and no row outside of what they replace. Each file for itself was checked
        as it was written, so keys are read of those alone whose ends overlap. For keys of one whole number."""
        name = table.number_key
        if name is None:
            return
        parts: dict[str, list[tuple[int, int, str]]] = {}
        for file in files:
            stats, values = json.loads(file["stats"]), json.loads(file["partition"])
            if not stats["numRecords"]:
                continue
            low, high = stats["minValues"][name], stats["maxValues"][name]
            bounded = isinstance(where, Where) and where.column == name
            if any(values[key] != value for key, value in where.partition) or (bounded and where.sides(low, high)[1]):
                raise WriteRefused(table.name, [f"rows outside of what they replace: {values} {name} {low} to {high}"])
            parts.setdefault(file["partition"], []).append((low, high, file["path"]))
        for own in parts.values():
            paths = sorted(overlapping(own))
            repeated = repeated_keys(self._keys_in(table, name, paths), name) if paths else {}
            if repeated:
                rules = [f"{rule}: {n} repeat, such as {of}" for rule, (n, of) in repeated.items()]
                raise WriteRefused(table.name, rules)

    def _keys_in(self, table: Table, name: str, paths: list[str]) -> NDArray[np.int64]:
        found = []
        for path in paths:
            with self.place(table).open(path) as source:
                found.append(pq.ParquetFile(source, pre_buffer=True).read([name])[name].to_numpy().astype(np.int64))
        return np.concatenate(found)

    def place(self, table: Table) -> Place:
        """Where workers write files of a table."""
        return Place(self._url(table), self._config.s3)

    def _rows_outside(
        self, table: Table, path: str, partition: dict[str, str], where: Where | Among
    ) -> pa.Table | None:
        """The rows of a file that are outside; None where all are, and the file may stay as it is."""
        with self.place(table).open(path) as source:
            file = pq.ParquetFile(source, pre_buffer=True)
            outside = where.outside(file.read([where.column])[where.column])
            if pc.all(outside, min_count=0).as_py():
                return None
            rows = file.read().filter(outside)
        for name, value in partition.items():
            rows = rows.append_column(name, pa.repeat(value, rows.num_rows))
        return rows.select(table.names).cast(arrow_schema(table))

    def append_small(self, table: Table, rows: list[dict[str, Any]]) -> None:
        """Add a few rows without Spark, making the table where it is not there. For the framework's own ledger."""
        data = pa.Table.from_pylist(rows, schema=arrow_schema(table))
        uri = self._url(table)
        try:
            if not is_s3(uri):
                os.makedirs(uri, exist_ok=True)
            write_deltalake(uri, data, mode="append", storage_options=self._options)
        except (DeltaError, OSError) as error:
            raise LakeError(f"{uri}: cannot be written: {_first_line(error)}") from error

    # maintenance ---------------------------------------------------------------------------------------------------

    def optimize(self, table: Table, small_files: int) -> int:
        """Merge small files where a table, or a partition, has at least so many; returns how many were merged."""
        found = self._there(table)
        small: dict[tuple[str, ...], int] = {}
        for file in _files(found):
            if file["size_bytes"] < SMALL_BYTES:
                partition = tuple(str(file[f"partition.{name}"]) for name in table.partition_by)
                small[partition] = small.get(partition, 0) + 1
        merged = 0
        for partition, count in small.items():
            if count >= small_files:
                where = [(name, "=", value) for name, value in zip(table.partition_by, partition, strict=True)]
                with self._maintaining(table):
                    # a file is either small or left as it is
                    done = found.optimize.compact(partition_filters=where or None, target_size=SMALL_BYTES)
                merged += int(done["numFilesRemoved"])
        return merged

    def vacuum(self, table: Table, keep_versions: Sequence[int], retention_days: int) -> int:
        """Remove files that neither the newest version nor `keep_versions` refer to and that are older than the
        retention; returns how many. The log of a kept version stays, too."""
        found = self._there(table)
        with self._maintaining(table):
            if found.metadata().configuration.get(LOG_RETENTION[0]) != LOG_RETENTION[1]:
                found.alter.set_table_properties(dict([LOG_RETENTION]))
            kept = [version for version in keep_versions if self._readable(found, version)]
            found.update_incremental()
            removed = found.vacuum(
                retention_hours=24 * retention_days,
                dry_run=False,
                enforce_retention_duration=False,
                keep_versions=kept or None,
            )
        return len(removed)

    def _readable(self, found: DeltaTable, version: int) -> bool:
        """Whether the log still says what a version was; another lake's run may name one that never was here."""
        try:
            return DeltaTable(found.table_uri, version=version, storage_options=self._options).version() == version
        except (DeltaError, OSError):
            return False

    @contextmanager
    def _maintaining(self, table: Table) -> Iterator[None]:
        try:
            yield
        except (DeltaError, OSError) as error:
            raise LakeError(f"{table.name}: cannot be maintained: {_first_line(error)}") from error

    @contextmanager
    def scratch(self, name: str) -> Iterator[str]:
        """A place in the lake for what a job sets aside between two passes; it is gone when the block ends."""
        place = f"{self._root}/_scratch/{name}-{uuid.uuid4().hex[:12]}"
        try:
            yield place
        finally:
            delete_folder(place, self._config.s3)


def _files(found: DeltaTable) -> list[dict[str, Any]]:
    """The data files of the version that is loaded: path, size, rows, partition.<name>, min.<name>, max.<name>."""
    return pa.table(found.get_add_actions(flatten=True)).to_pylist()


def overlapping(files: list[tuple[int, int, str]]) -> set[str]:
    """Names of files, of least and greatest value and name, that may share a value with another."""
    found: set[str] = set()
    reach: tuple[int, str] | None = None
    for low, high, path in sorted(files):
        if reach is not None and low <= reach[0]:
            found |= {path, reach[1]}
        reach = max(reach or (high, path), (high, path))
    return found


def _delta_schema(table: Table) -> Schema:
    """The declaration as Delta writes it in its log, comments included."""
    fields = [
        {"name": c.name, "type": _delta_type(c.type), "nullable": c.nullable, "metadata": {"comment": c.comment}}
        for c in table.columns
    ]
    return Schema.from_json(json.dumps({"type": "struct", "fields": fields}))


def _delta_type(ddl: str) -> str | dict[str, Any]:
    if ddl.startswith("array<"):
        return {"type": "array", "elementType": _delta_type(ddl[6:-1]), "containsNull": True}
    if ddl.startswith("map<"):
        key, value = ddl[4:-1].split(",")
        return {
            "type": "map",
            "keyType": _delta_type(key),
            "valueType": _delta_type(value),
            "valueContainsNull": True,
        }
    return {"bigint": "long", "int": "integer"}.get(ddl, ddl)


def _properties(table: Table) -> dict[str, str | None]:
    """Checks, layout and meaning of a table."""
    found: dict[str, str | None] = {f"delta.constraints.{name}": check.sql for name, check in table.checks.items()}
    if table.checks:
        # the first protocol that makes every writer enforce them
        found["delta.minWriterVersion"] = "3"
    found["delta.dataSkippingNumIndexedCols"] = str(table.stats_columns)
    return {**found, "encore.grain": table.grain, "encore.layer": table.layer}


def _schema_differences(table: Table, found: DeltaTable) -> list[str]:
    fields = {field.name: field for field in pa.schema(found.schema().to_arrow())}
    differences = []
    for column in table.columns:
        if column.name not in fields:
            differences.append(f"column {column.name} {column.type} is missing")
        elif not _same_type(fields[column.name].type, arrow_type(column.type)):
            differences.append(f"column {column.name}: {column.type} expected, {fields[column.name].type} found")
    return differences


def _same_type(found: pa.DataType, declared: pa.DataType) -> bool:
    """Equal but for the names of a list's or map's inner fields, which writers choose differently."""
    if pa.types.is_list(declared):
        return bool(pa.types.is_list(found)) and _same_type(found.value_type, declared.value_type)
    if pa.types.is_map(declared):
        return bool(pa.types.is_map(found)) and _same_type(found.item_type, declared.item_type)
    return bool(found == declared)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


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
        line = _first_line(error)
        if cause is not None:
            text = str(cause.toString())
            line = text.splitlines()[0]
        raise LakeError(f"{what}: {line[:500]}") from error
