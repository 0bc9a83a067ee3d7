"""Converts declarations to Delta schemas, and compares declarations with existing tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, Field, Schema

from encore.lake.tables import Column, Table, arrow_type

LOG_RETENTION = ("delta.logRetentionDuration", "interval 3650 days")
"""Log entries are small. Without them, an old version cannot be read even if its files exist, and it can no longer be
determined which work wrote which rows (coverage.py)."""


def delta_schema(table: Table) -> Schema:
    """The declaration as a Delta schema, including comments."""
    return Schema.from_json(json.dumps({"type": "struct", "fields": [_field(column) for column in table.columns]}))


def _field(column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "type": _delta_type(column.type),
        "nullable": column.nullable,
        "metadata": {"comment": column.comment},
    }


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


def constraints(table: Table) -> dict[str, str]:
    """The Delta table properties for a table's checks."""
    return {f"delta.constraints.{name}": check.sql for name, check in table.checks.items()}


def changed_constraints(table: Table, found: DeltaTable) -> dict[str, str]:
    """The properties of those checks for which an existing table has another condition."""
    stored = found.metadata().configuration
    return {name: sql for name, sql in constraints(table).items() if stored.get(name, sql) != sql}


def properties(table: Table) -> dict[str, str | None]:
    """The Delta table properties for a table's checks, layout, grain and layer."""
    found: dict[str, str | None] = {**constraints(table)}
    if table.checks:
        # the first protocol version that requires every writer to enforce them
        found["delta.minWriterVersion"] = "3"
    found["delta.dataSkippingNumIndexedCols"] = str(table.stats_columns)
    found[LOG_RETENTION[0]] = LOG_RETENTION[1]
    return {**found, "encore.grain": table.grain, "encore.layer": table.layer}


def schema_differences(table: Table, found: DeltaTable) -> list[str]:
    """The differences between a declaration and an existing table, except for missing nullable columns."""
    fields = {field.name: field for field in pa.schema(found.schema().to_arrow())}
    differences = []
    for column in table.columns:
        field = fields.pop(column.name, None)
        if field is None:
            if not column.nullable:
                differences.append(f"column {column.name} {column.type} is missing")
        elif not _same_type(field.type, arrow_type(column.type)):
            differences.append(f"column {column.name}: {column.type} expected, {field.type} found")
    differences += [f"column {name} is not declared" for name in fields]
    partitions = tuple(found.metadata().partition_columns)
    if partitions != table.partition_by:
        differences.append(f"partitioned by {_listed(table.partition_by)} expected, {_listed(partitions)} found")
    return differences


def missing_columns(table: Table, found: DeltaTable) -> list[Column]:
    """The nullable columns of a declaration that an existing table lacks."""
    names = {field.name for field in found.schema().fields}
    return [column for column in table.columns if column.nullable and column.name not in names]


def delta_field(column: Column) -> Field:
    """A column as a Delta field, including its comment."""
    return Field.from_json(json.dumps(_field(column)))


def ddl_of(table: Table) -> str:
    """The columns of a declaration on one line."""
    return ", ".join(f"{c.name} {c.type}{'' if c.nullable else ' not null'}" for c in table.columns)


def ddl_found(found: DeltaTable) -> str:
    """The columns of an existing table on one line."""
    fields = pa.schema(found.schema().to_arrow())
    return ", ".join(f"{f.name} {_ddl_type(f.type)}{'' if f.nullable else ' not null'}" for f in fields)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"


def _ddl_type(found: pa.DataType) -> str:
    """The Spark SQL type for an Arrow type if tables.py has one, otherwise Arrow's name."""
    if pa.types.is_list(found):
        return f"array<{_ddl_type(found.value_type)}>"
    if pa.types.is_map(found):
        return f"map<{_ddl_type(found.key_type)},{_ddl_type(found.item_type)}>"
    names = {"int64": "bigint", "int32": "int", "float": "float", "double": "double", "bool": "boolean"}
    return names.get(str(found), "timestamp" if pa.types.is_timestamp(found) else str(found))


def _same_type(found: pa.DataType, declared: pa.DataType) -> bool:
    """Whether two types are equal, ignoring the names of inner fields of lists and maps, which differ between
    writers."""
    if pa.types.is_list(declared):
        return bool(pa.types.is_list(found)) and _same_type(found.value_type, declared.value_type)
    if pa.types.is_map(declared):
        return bool(pa.types.is_map(found)) and _same_type(found.item_type, declared.item_type)
    return bool(found == declared)
