"""Checks the integrity of a lake without Spark: logs, data files, schemas, checks, keys and references between tables.

Each table is read once, a few thousand rows at a time. Only its keys are kept in memory: for a million playlists and
their two million tracks, a few hundred megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from numpy.typing import NDArray

from encore.errors import EncoreError, LakeError
from encore.findings import Finding
from encore.lake.delta import Tables, data_files
from encore.lake.filesystem import file_sizes, is_s3
from encore.lake.parquet import broken_rows, merge_broken
from encore.lake.schema import schema_differences
from encore.lake.tables import (
    ALL,
    CHALLENGE_PLAYLISTS,
    FRAMEWORK,
    HOLDOUT,
    INGEST_LEDGER,
    PLAYLIST_CENTROIDS,
    PLAYLIST_METRICS,
    PLAYLISTS,
    RECOMMENDATIONS,
    TRACK_VECTORS,
    TRACKS,
    Table,
    arrow_schema,
)

BLOCK_ROWS = 8192
"""Rows that are checked at a time: with 500 ids and scores each, 33 MB."""

REFERENCES: dict[Table, tuple[tuple[str, Table], ...]] = {
    PLAYLISTS: (("track_ids", TRACKS), ("slice", INGEST_LEDGER)),
    CHALLENGE_PLAYLISTS: (("track_ids", TRACKS), ("slice", INGEST_LEDGER)),
    TRACK_VECTORS: (("track_id", TRACKS),),
    HOLDOUT: (("pid", PLAYLISTS), ("train", TRACKS), ("test", TRACKS)),
    PLAYLIST_CENTROIDS: (("pid", PLAYLISTS),),
    RECOMMENDATIONS: (("pid", PLAYLISTS), ("track_ids", TRACKS)),
    PLAYLIST_METRICS: (("pid", PLAYLISTS),),
}
"""Columns, or the elements of array columns, whose values are keys of another table."""

SEPARATE: dict[Table, Table] = {CHALLENGE_PLAYLISTS: PLAYLISTS}
"""Tables that have no key in common with another."""

UNIQUE: dict[Table, tuple[str, ...]] = {TRACKS: ("track_uri",)}
"""Columns that are unique in addition to the key."""

Broken = dict[str, tuple[int, str]]
"""By violated rule (worded as what holds for an intact table): the number of violations and an example."""


def inspect(tables: Tables) -> Iterator[Finding]:
    """Check every existing table: yields one finding if it is intact, else one with a remedy per violated rule.

    Raises LakeError if the lake has no tables.
    """
    first = (TRACKS, INGEST_LEDGER, PLAYLISTS)
    known: dict[Table, NDArray[Any] | pa.Array | None] = {}
    any_there = False
    for table in (*first, *(table for table in ALL if table not in first)):
        for finding in _inspect_table(tables, table, known):
            any_there = True
            yield finding
    if not any_there:
        raise LakeError(f"no tables in the lake {tables.path}", remedy="call `encore run`, or set lake.path")


def _inspect_table(
    tables: Tables, table: Table, known: dict[Table, NDArray[Any] | pa.Array | None]
) -> Iterator[Finding]:
    remedy = _remedy(tables, table)
    # references to this table cannot be checked until its keys are known
    known[table] = None
    try:
        found = tables.open(table)
        sizes = file_sizes(tables.url(table), tables.s3)
    except EncoreError as error:
        yield Finding(table.name, str(error), error.remedy or remedy)
        return
    if found is None:
        known[table] = _keys(table, [])
        if sizes:
            yield Finding(table.name, f"{len(sizes):,} files, but no Delta log among them", remedy)
        return
    differences = schema_differences(table, found)
    if differences:
        yield Finding(table.name, "another schema than declared: " + "; ".join(differences), remedy)
        return
    protocol = found.protocol()
    if protocol.min_reader_version > 1:
        features = ", ".join(protocol.reader_features or ()) or f"reader version {protocol.min_reader_version}"
        yield Finding(table.name, f"plain data files expected, {features} found", remedy)
        return
    looked = _Look(tables, table, known)
    looked.read(found, sizes)
    known[table] = None if looked.unread else _keys(table, looked.keys)
    for rule, (n, example) in looked.broken.items():
        yield Finding(table.name, f"{rule}: broken {n:,} time{'s'[: n > 1]}, such as {example}", remedy)
    if not looked.broken:
        yield Finding(table.name, f"{looked.rows:,} rows in {looked.files:,} files, version {found.version()}")


def _remedy(tables: Tables, table: Table) -> str:
    url = tables.url(table)
    drop = f"aws s3 rm --recursive {url}/" if is_s3(url) else f"rm -r {url}"
    if table in FRAMEWORK:
        return f"drop the table (`{drop}`): the history of the jobs is lost, and the next `encore run` begins a new one"
    return f"call `encore run`; where that does not help, drop the table (`{drop}`) and call it again to make it anew"


@dataclass
class _Look:
    """The state of checking one table: the rules that it violates, and its keys."""

    tables: Tables
    table: Table
    known: dict[Table, NDArray[Any] | pa.Array | None]
    broken: Broken = field(default_factory=dict)
    keys: list[pa.Table] = field(default_factory=list)
    rows: int = 0
    files: int = 0
    unread: bool = False

    def read(self, found: DeltaTable, sizes: dict[str, int]) -> None:
        """Check all files of the newest version; `sizes` has the sizes of the files that exist."""
        for file in data_files(found):
            path, self.files = unquote(file["path"]), self.files + 1
            if path not in sizes:
                self._break("every file in the log is there", path)
            elif sizes[path] != file["size_bytes"]:
                said = f"{path}: {file['size_bytes']:,} bytes expected, {sizes[path]:,} found"
                self._break("every file has the size that the log says", said)
            else:
                self._read_file(file, path)
        self._look_at_keys()

    def _break(self, rule: str, example: str) -> None:
        # the contents of such a file are unknown
        self.unread = True
        merge_broken(self.broken, {rule: (1, example)})

    def _read_file(self, file: dict[str, Any], path: str) -> None:
        before, expected = self.rows, file["num_records"]
        partition = {name: file[f"partition.{name}"] for name in self.table.partition_by}
        try:
            with self.tables.location(self.table).open(file["path"]) as source:
                for rows in _blocks(source, self.table, partition):
                    self._look_at_rows(rows)
        except (EncoreError, pa.ArrowException, OSError) as error:
            self._break("every file can be read", f"{path}: {' '.join(str(error).split())[:200]}")
            return
        if expected is not None and self.rows - before != expected:
            said = f"{path}: {expected:,} expected, {self.rows - before:,} found"
            self._break("every file has the rows that the log says", said)

    def _look_at_rows(self, rows: pa.Table) -> None:
        self.rows += rows.num_rows
        merge_broken(self.broken, broken_rows(self.table, rows))
        self.keys.append(rows.select([*self.table.key, *UNIQUE.get(self.table, ())]))
        for column, target in REFERENCES.get(self.table, ()):
            keys = self.known[target]
            if keys is not None and rows.num_rows:
                self._look_at_references(rows, column, target, keys)

        other = SEPARATE.get(self.table)
        if other is not None and (keys := self.known[other]) is not None and rows.num_rows:
            shared = np.flatnonzero(_are_in(rows[other.key[0]].combine_chunks(), keys))
            if len(shared):
                rule = f"no {other.key[0]} of {other.name} is in {self.table.name}"
                merge_broken(self.broken, {rule: (len(shared), str(rows[other.key[0]][int(shared[0])].as_py()))})

    def _look_at_references(self, rows: pa.Table, column: str, target: Table, keys: NDArray[Any] | pa.Array) -> None:
        values = rows[column].combine_chunks()
        parents = None
        if pa.types.is_list(values.type):
            parents, values = pc.list_parent_indices(values).to_numpy(), values.flatten()
        lost = np.flatnonzero(~_are_in(values, keys))
        if len(lost):
            places = lost if parents is None else np.unique(parents[lost])
            key = "/".join(str(rows[name][int(places[0])].as_py()) for name in self.table.key)
            example = f"{values[int(lost[0])].as_py()}, of {'/'.join(self.table.key)} {key}"
            merge_broken(self.broken, {f"{column} refers to rows of {target.name}": (len(places), example)})

    def _look_at_keys(self) -> None:
        for columns in (self.table.key, *((name,) for name in UNIQUE.get(self.table, ()))):
            more = _repeated(self.keys, columns)
            if more.num_rows:
                example = "/".join(str(more[name][0].as_py()) for name in columns)
                merge_broken(self.broken, {f"key {'/'.join(columns)} is unique": (more.num_rows, example)})
        if self.table == TRACKS and not self.unread:
            ids = np.unique(_numbers(self.keys, "track_id"))
            missing = int(ids[-1]) + 1 - len(ids) if len(ids) else 0
            if missing:
                first = int(np.flatnonzero(ids != np.arange(len(ids)))[0])
                merge_broken(self.broken, {"track_id is dense, 0 to n - 1": (missing, f"{first}, which is missing")})


def _blocks(source: Any, table: Table, partition: dict[str, str]) -> Iterator[pa.Table]:
    """The rows of a data file with the declared columns and types; nullable columns that it lacks are null."""
    file = pq.ParquetFile(source)
    names = [name for name in table.names if name in file.schema_arrow.names]
    for group in range(file.num_row_groups):
        for batch in file.iter_batches(BLOCK_ROWS, row_groups=[group], columns=names):
            rows = pa.Table.from_batches([batch])
            for name in table.names:
                if name not in names:
                    value = pa.scalar(partition.get(name), arrow_schema(table).field(name).type)
                    rows = rows.append_column(name, pa.repeat(value, rows.num_rows))
            yield rows.select(table.names).cast(arrow_schema(table))


def _numbers(parts: Sequence[pa.Table], column: str) -> NDArray[np.int64]:
    found = [pc.drop_null(part[column]).to_numpy().astype(np.int64) for part in parts]
    return np.concatenate([np.empty(0, np.int64), *found])


def _repeated(parts: Sequence[pa.Table], columns: Sequence[str]) -> pa.Table:
    """The combinations of values in some columns that occur in more than one row."""
    if not parts:
        return pa.table({name: [] for name in columns})
    counted = (
        pa.concat_tables([part.select(columns) for part in parts]).group_by(columns).aggregate([([], "count_all")])
    )
    return counted.filter(pc.greater(counted["count_all"], 1))


def _keys(table: Table, parts: Sequence[pa.Table]) -> NDArray[Any] | pa.Array | None:
    """The keys that other tables refer to: sorted numbers, or distinct strings; None if no table refers to this one."""
    if all(table != target for targets in REFERENCES.values() for _, target in targets):
        return None
    (name,) = table.key
    if table.number_key:
        return np.unique(_numbers(parts, name))
    texts = [part[name].combine_chunks() for part in parts]
    return pc.unique(pa.concat_arrays(texts)) if texts else pa.array([], pa.string())


def _are_in(values: pa.Array, keys: NDArray[Any] | pa.Array) -> NDArray[np.bool_]:
    """Which values are among the keys; null is not."""
    if isinstance(keys, pa.Array):
        known: NDArray[np.bool_] = pc.is_in(values, value_set=keys).to_numpy(zero_copy_only=False)
        return known
    if not len(keys):
        return np.zeros(len(values), np.bool_)
    numbers = pc.fill_null(values, -1).to_numpy(zero_copy_only=False)
    if keys[0] == 0 and keys[-1] == len(keys) - 1:
        return np.asarray((numbers >= 0) & (numbers < len(keys)))
    places = np.minimum(np.searchsorted(keys, numbers), len(keys) - 1)
    return np.asarray(keys[places] == numbers)
