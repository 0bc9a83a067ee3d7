"""Tables and views for Athena: the same columns as Spark's views, and the right rows on another SQL engine."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from encore.aws.athena import VIEW_COLUMNS, VIEWS, athena_view
from encore.lake import tables
from encore.lake.tables import HOLDOUT, PLAYLISTS, RECOMMENDATIONS, TRACKS, Table, arrow_schema
from tests.conftest import ROOT

PLAYLIST_ROWS: list[dict[str, Any]] = [
    {"pid": 7, "name": "one", "track_ids": [2, 0, 2]},
    {"pid": 8, "name": None, "track_ids": []},
]
HOLDOUT_ROWS = [{"pid": 7, "train": [2], "test": [0]}]
RECOMMENDED = [{"model": "cosine", "pid": 7, "track_ids": [0, 1], "scores": [0.5, 0.25]}]


def rows_of(table: Table, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows with nulls in the columns that are not given."""
    return pa.Table.from_pylist([{**dict.fromkeys(table.names), **row} for row in rows], schema=arrow_schema(table))


@pytest.fixture
def engine() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    tracks = [{"track_id": i, "track_uri": f"spotify:track:{i}", "track_name": f"t{i}"} for i in range(3)]
    made: dict[Table, Sequence[Mapping[str, Any]]] = {
        PLAYLISTS: PLAYLIST_ROWS,
        HOLDOUT: HOLDOUT_ROWS,
        RECOMMENDATIONS: RECOMMENDED,
        TRACKS: tracks,
    }
    for table, rows in made.items():
        connection.register(table.name, rows_of(table, rows))
    return connection


def test_views_have_the_same_names_and_columns_as_in_spark() -> None:
    assert set(VIEWS) == set(tables.VIEWS) == set(VIEW_COLUMNS)
    for name, query in tables.VIEWS.items():
        # the outermost SELECT comes first in the text
        chosen = " ".join(query.split("FROM (SELECT")[0].split())
        matches = [re.search(rf"\b{column}(,|$)", chosen) for column in VIEW_COLUMNS[name]]
        assert all(matches), name
        assert len(chosen.split(", ")) - chosen.count("(h.test, ") == len(VIEW_COLUMNS[name])
        starts = [match.start() for match in matches if match]
        assert starts == sorted(starts)


def test_playlist_tracks_counts_positions_from_0(engine: duckdb.DuckDBPyConnection) -> None:
    found = engine.execute(f"SELECT pid, pos, track_id FROM ({VIEWS['playlist_tracks']}) ORDER BY 1, 2").fetchall()
    assert found == [(7, 0, 2), (7, 1, 0), (7, 2, 2)]


def test_holdout_tracks_has_both_parts(engine: duckdb.DuckDBPyConnection) -> None:
    found = engine.execute(f"SELECT part, pos, track_id FROM ({VIEWS['holdout_tracks']}) ORDER BY 1").fetchall()
    assert found == [("test", 0, 0), ("train", 0, 2)]


def test_recommended_tracks_counts_ranks_from_1_and_flags_hits(engine: duckdb.DuckDBPyConnection) -> None:
    query = f"SELECT rank, track_id, score, hit FROM ({VIEWS['recommended_tracks']}) ORDER BY 1"
    assert engine.execute(query).fetchall() == [(1, 0, 0.5, True), (2, 1, 0.25, False)]


@pytest.mark.parametrize("name", list(VIEWS))
def test_columns_in_glue_match_the_query_result(engine: duckdb.DuckDBPyConnection, name: str) -> None:
    result = engine.execute(VIEWS[name])
    types = {"BIGINT": "bigint", "INTEGER": "int", "VARCHAR": "string", "FLOAT": "float", "BOOLEAN": "boolean"}
    assert result.description is not None
    given = [(column[0], types[str(column[1])]) for column in result.description]
    _, text, columns = athena_view(name, "encore_dev")
    assert columns == given
    about = json.loads(base64.b64decode(text.removeprefix("/* Presto View: ").removesuffix(" */")))
    assert [column["name"] for column in about["columns"]] == [column for column, _ in columns]
    assert {column["type"] for column in about["columns"]} <= {"bigint", "integer", "varchar", "real", "boolean"}


def test_the_diagram_in_the_documentation_is_the_generated_one() -> None:
    from encore.aws.diagram import architecture
    from encore.runtime.registry import extra_nodes, nodes

    text = (ROOT / "deploy" / "docs" / "aws-stacks.md").read_text()
    assert architecture(nodes(), extra_nodes()) in text, "regenerate it: encore graph --aws"
