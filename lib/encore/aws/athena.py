"""Tables and views for the Glue catalog and Athena, from the declarations in encore.lake.tables.

Athena reads the schema and files of a Delta table from its log. The Glue entry says that it is a Delta table and where
it is stored, and documents its columns for people. Partition columns are listed apart, as Athena does when it registers
a Delta table itself; partitions are not registered, because the log names the files. The views are those of
`encore.lake.tables.VIEWS` in Athena's SQL, where UNNEST expands arrays and positions start at 1.
"""

from __future__ import annotations

import base64
import json

from encore.lake.tables import HOLDOUT, PLAYLISTS, RECOMMENDATIONS, TRACKS, Table

DATABASE = "encore"

VIEWS: dict[str, str] = {
    "playlist_tracks": """
        SELECT p.pid, p.name AS playlist_name, CAST(u.ordinal - 1 AS integer) AS pos, t.track_id, t.track_uri,
               t.track_name, t.artist_uri, t.artist_name, t.album_uri, t.album_name, t.duration_ms
        FROM playlists p
        CROSS JOIN UNNEST(p.track_ids) WITH ORDINALITY AS u (track_id, ordinal)
        JOIN tracks t ON t.track_id = u.track_id""",
    "holdout_tracks": """
        SELECT h.pid, h.part, h.pos, t.track_id, t.track_uri, t.track_name, t.artist_uri, t.artist_name
        FROM (SELECT pid, 'train' AS part, CAST(u.ordinal - 1 AS integer) AS pos, u.track_id
              FROM holdout CROSS JOIN UNNEST(train) WITH ORDINALITY AS u (track_id, ordinal)
              UNION ALL
              SELECT pid, 'test' AS part, CAST(u.ordinal - 1 AS integer) AS pos, u.track_id
              FROM holdout CROSS JOIN UNNEST(test) WITH ORDINALITY AS u (track_id, ordinal)) h
        JOIN tracks t ON t.track_id = h.track_id""",
    "recommended_tracks": """
        SELECT r.model, r.pid, CAST(u.ordinal AS integer) AS rank, t.track_uri, r.scores[u.ordinal] AS score,
               t.track_id, t.track_name, t.artist_uri, t.artist_name, contains(h.test, u.track_id) AS hit
        FROM recommendations r
        CROSS JOIN UNNEST(r.track_ids) WITH ORDINALITY AS u (track_id, ordinal)
        JOIN tracks t ON t.track_id = u.track_id
        LEFT JOIN holdout h ON h.pid = r.pid""",
}
"""SQL by view: the same names and columns as `encore.lake.tables.VIEWS`."""

_DERIVED_TYPES = {
    "playlist_name": "string",
    "pos": "int",
    "part": "string",
    "rank": "int",
    "score": "float",
    "hit": "boolean",
}
"""Hive types of view columns that are in no table."""

VIEW_COLUMNS: dict[str, tuple[str, ...]] = {
    "playlist_tracks": (
        *("pid", "playlist_name", "pos", "track_id", "track_uri", "track_name", "artist_uri", "artist_name"),
        *("album_uri", "album_name", "duration_ms"),
    ),
    "holdout_tracks": ("pid", "part", "pos", "track_id", "track_uri", "track_name", "artist_uri", "artist_name"),
    "recommended_tracks": (
        *("model", "pid", "rank", "track_uri", "score", "track_id", "track_name", "artist_uri", "artist_name", "hit"),
    ),
}

_PRESTO_TYPES = {"string": "varchar", "int": "integer", "float": "real"}


def glue_columns(table: Table) -> list[tuple[str, str, str]]:
    """Name, Hive type and comment of each column that is not a partition key: Glue refuses to list a column twice."""
    return [(one.name, one.type, one.comment) for one in table.columns if one.name not in table.partition_by]


def glue_partition_keys(table: Table) -> list[tuple[str, str, str]]:
    """Name, Hive type and comment of each partition column, in the order of the folders."""
    return [(one.name, one.type, one.comment) for one in map(table.column, table.partition_by)]


def glue_parameters() -> dict[str, str]:
    """Table parameters that mark a Glue table as Delta for Athena and Spark."""
    return {"table_type": "DELTA", "spark.sql.sources.provider": "delta", "classification": "delta", "EXTERNAL": "TRUE"}


INPUT_FORMAT = "org.apache.hadoop.mapred.SequenceFileInputFormat"
OUTPUT_FORMAT = "org.apache.hadoop.hive.ql.io.HiveSequenceFileOutputFormat"
SERDE = "org.apache.hadoop.hive.serde2.lazy.LazySimpleSerDe"
"""What Spark itself writes to a Hive catalog for a Delta table, although nothing reads the table through them."""


def serde_parameters(location: str) -> dict[str, str]:
    """Parameters of SERDE: Spark finds the table by `path`, not by its location."""
    return {"serialization.format": "1", "path": location}


def athena_view(name: str, database: str) -> tuple[dict[str, str], str, list[tuple[str, str]]]:
    """A view in Glue: its parameters, the text that holds its SQL for Athena, and its columns' names and Hive types."""
    columns = [(column, _hive_type(column)) for column in VIEW_COLUMNS[name]]
    definition = {
        "originalSql": " ".join(VIEWS[name].split()),
        "catalog": "awsdatacatalog",
        "schema": database,
        "columns": [{"name": column, "type": _PRESTO_TYPES.get(type_, type_)} for column, type_ in columns],
    }
    text = base64.b64encode(json.dumps(definition).encode()).decode()
    return {"presto_view": "true", "comment": "Presto View"}, f"/* Presto View: {text} */", columns


def _hive_type(column: str) -> str:
    for table in (TRACKS, PLAYLISTS, HOLDOUT, RECOMMENDATIONS):
        if column in table.names and column not in _DERIVED_TYPES:
            return table.column(column).type
    return _DERIVED_TYPES[column]
