"""Writes to the tables of a lake: files that tasks have written become rows in one commit, or not at all."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, write_deltalake
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction
from numpy.typing import NDArray

from encore.errors import LakeError, WriteRefused
from encore.lake.delta import Commit, Tables, data_files, first_line
from encore.lake.filesystem import is_s3
from encore.lake.parquet import Writer, merge_broken, repeated_keys
from encore.lake.scan import KeyIn, KeyRange, touched
from encore.lake.tables import Table, arrow_schema


def commit_files(tables: Tables, table: Table, reports: pa.Table, commit: Commit, where: KeyRange | KeyIn) -> None:
    """Replace the rows `where` by those of files that tasks wrote (`parquet.REPORT`), in one commit.

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
    _check_keys(tables, table, reports.filter(reports["path"].is_valid()).to_pylist(), where)
    found = tables.there(table)
    tables.check_schema(table, found)
    actions: list[AddAction | RemoveAction] = []
    kept = Writer(table, tables.location(table))
    now = int(time.time() * 1000)
    for file, partition, inside, outside in touched(data_files(found), where, table.partition_by):
        # another writer may have left a file without statistics, whose rows are not known and may be any
        empty = file["num_records"] == 0
        if inside or empty:
            if outside and not empty:
                rows = _rows_outside(tables, table, file["path"], partition, where)
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
        raise LakeError(f"{table.name}: cannot be committed: {first_line(error)}") from error


def _check_keys(tables: Tables, table: Table, files: list[dict[str, Any]], where: KeyRange | KeyIn) -> None:
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
        with tables.location(table).open(path) as source:
            found.append(pq.ParquetFile(source, pre_buffer=True).read([name])[name].to_numpy().astype(np.int64))
    return np.concatenate(found)


def _rows_outside(
    tables: Tables, table: Table, path: str, partition: dict[str, str], where: KeyRange | KeyIn
) -> pa.Table | None:
    """The rows of a file that are outside; None where all are, and the file may stay as it is."""
    with tables.location(table).open(path) as source:
        file = pq.ParquetFile(source, pre_buffer=True)
        outside = where.outside(file.read([where.column])[where.column])
        if pc.all(outside, min_count=0).as_py():
            return None
        rows = file.read().filter(outside)
    for name, value in partition.items():
        rows = rows.append_column(name, pa.repeat(value, rows.num_rows))
    return rows.select(table.names).cast(arrow_schema(table))


def append_small(tables: Tables, table: Table, rows: list[dict[str, Any]]) -> None:
    """Add a few rows without Spark, making the table where it is not there. For the framework's own ledger."""
    data = pa.Table.from_pylist(rows, schema=arrow_schema(table))
    uri = tables.url(table)
    try:
        if not is_s3(uri):
            os.makedirs(uri, exist_ok=True)
        write_deltalake(uri, data, mode="append", storage_options=tables.options)
    except (DeltaError, OSError) as error:
        raise LakeError(f"{uri}: cannot be written: {first_line(error)}") from error


def overlapping(files: list[tuple[int, int, str]]) -> set[str]:
    """Names of files, of least and greatest value and name, that may share a value with another."""
    found: set[str] = set()
    reach: tuple[int, str] | None = None
    for low, high, path in sorted(files):
        if reach is not None and low <= reach[0]:
            found |= {path, reach[1]}
        reach = max(reach or (high, path), (high, path))
    return found
