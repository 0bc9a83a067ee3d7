"""Declarations as Delta writes them, and what differs between a declaration and a table that is there."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, Schema

from encore.lake.tables import Table, arrow_type


def delta_schema(table: Table) -> Schema:
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


def properties(table: Table) -> dict[str, str | None]:
    """Checks, layout and meaning of a table."""
    found: dict[str, str | None] = {f"delta.constraints.{name}": check.sql for name, check in table.checks.items()}
    if table.checks:
        # the first protocol that makes every writer enforce them
        found["delta.minWriterVersion"] = "3"
    found["delta.dataSkippingNumIndexedCols"] = str(table.stats_columns)
    return {**found, "encore.grain": table.grain, "encore.layer": table.layer}


def schema_differences(table: Table, found: DeltaTable) -> list[str]:
    """What differs between a declaration and the table that was found; a sentence a column."""
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
