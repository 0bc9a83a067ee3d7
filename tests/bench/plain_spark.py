"""Ingest as a careful Spark user would write it, with Spark's own means: the peer of `ingest_playlists`.

Slices are read once, by Spark's JSON reader with a schema, and staged as Parquet, so that later steps only read the
columns that they need. An aggregation and a window give tracks dense ids, most frequent first; a join brings the ids to
the rows, and another aggregation reassembles the playlists. The two tables have the columns of encore.lake.tables.
Unlike Encore, it does not report what is wrong with a file, quarantine rejected records, or read only new files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SLICE_DDL = """
    playlists ARRAY<STRUCT<
        name: STRING, description: STRING, collaborative: STRING, pid: BIGINT, modified_at: BIGINT, num_tracks: INT,
        num_albums: INT, num_artists: INT, num_followers: INT, num_edits: INT, duration_ms: BIGINT,
        tracks: ARRAY<STRUCT<
            pos: INT, artist_name: STRING, track_uri: STRING, artist_uri: STRING, track_name: STRING,
            album_uri: STRING, duration_ms: BIGINT, album_name: STRING
        >>
    >>
"""


def plain_ingest(spark: Any, paths: Sequence[str], lake: str) -> None:
    """Write the Delta tables `playlists` and `tracks` under `lake` from the slices at `paths`; staged files stay."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    slices = spark.read.schema(SLICE_DDL).option("multiLine", "true").json(list(paths))
    slices.select(
        F.explode("playlists").alias("p"), F.element_at(F.split(F.input_file_name(), "/"), -1).alias("slice")
    ).select("p.*", "slice").write.mode("overwrite").parquet(f"{lake}/staged")
    playlists = spark.read.parquet(f"{lake}/staged")
    rows = playlists.select("pid", F.explode("tracks").alias("t")).select("pid", "t.*")

    names = ("track_name", "artist_uri", "artist_name", "album_uri", "album_name", "duration_ms")
    distinct = rows.groupBy("track_uri").agg(
        F.count("*").alias("n_rows"),
        F.min_by(F.struct(*names, F.col("pid").alias("first_pid")), "pid").alias("best"),
    )
    by_frequency = Window.orderBy(F.col("n_rows").desc(), "track_uri")
    numbered = distinct.select(
        (F.row_number().over(by_frequency) - 1).cast("int").alias("track_id"), "track_uri", "best.*"
    )
    numbered.write.format("delta").mode("overwrite").save(f"{lake}/tracks")

    ids = spark.read.format("delta").load(f"{lake}/tracks").select("track_id", "track_uri")
    lists = (
        rows.join(ids, "track_uri")
        .groupBy("pid")
        .agg(F.sort_array(F.collect_list(F.struct("pos", "track_id"))).getField("track_id").alias("track_ids"))
    )
    described = playlists.drop("tracks").join(lists, "pid", "left")
    described.select(
        "pid",
        "name",
        "description",
        (F.col("collaborative") == "true").alias("collaborative"),
        F.timestamp_seconds("modified_at").alias("modified_at"),
        "num_tracks",
        "num_albums",
        "num_artists",
        "num_followers",
        "num_edits",
        "duration_ms",
        F.coalesce("track_ids", F.array().cast("array<int>")).alias("track_ids"),
        "slice",
    ).write.format("delta").mode("overwrite").save(f"{lake}/playlists")
