"""Parsing slices on one thread: Encore's parser against orjson, the standard library, polars and DuckDB.

All start from the path of a file in the page cache and end with arrays: a table of playlists, and the playlist and
track URI of every row. Encore does more along the way: it validates every record and URI, keeps all fields of all
tracks, and converts URIs to numeric ids. Peers need not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from encore.mpd.parse import Limits, parse_slice
from tests.bench.data import in_order, slices_of
from tests.bench.figures import Check, Found, figure, ratio
from tests.bench.timing import Timed, check_threads, joined, timed

LIMITS = Limits(max_tracks=10_000, payload_bytes=500)
FIELDS = ("pid", "name", "collaborative", "modified_at", "num_tracks", "num_albums", "num_followers")


@dataclass(frozen=True)
class Sizes:
    """Slices of 1,000 playlists to parse, and repeats."""

    slices: int = 8
    repeats: int = 3


QUICK = Sizes(slices=1, repeats=2)


@dataclass(frozen=True)
class Rows:
    """The result of every parser: the number of playlists, and pid and track URI of each row, in file order."""

    playlists: int
    pids: np.ndarray
    uris: pa.Array

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Rows)
            and self.playlists == other.playlists
            and np.array_equal(self.pids, other.pids)
            and self.uris.equals(other.uris)
        )

    __hash__ = None  # type: ignore[assignment]


def ours(path: Path) -> Any:
    """Encore's complete parser."""
    return parse_slice(path.read_bytes(), LIMITS)


def our_rows(parsed: Any) -> Rows:
    """The result of `ours` as Rows, for comparison with the peers; not part of what is measured."""
    return Rows(parsed.playlists.num_rows, parsed.pids, _text(parsed.records.field("track_uri")))


def _text(column: Any) -> pa.Array:
    """A text column as a single string array."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    whole = pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
    return whole.cast(pa.string())


def _by_loads(loads: Callable[[bytes], Any]) -> Callable[[Path], Rows]:
    def parse(path: Path) -> Rows:
        playlists = loads(path.read_bytes())["playlists"]
        table = pa.table({name: [playlist.get(name) for playlist in playlists] for name in FIELDS})
        lengths = [len(playlist["tracks"]) for playlist in playlists]
        uris = pa.array([track["track_uri"] for playlist in playlists for track in playlist["tracks"]], pa.string())
        return Rows(table.num_rows, np.repeat(table["pid"].to_numpy(), lengths), uris)

    return parse


def _polars(path: Path) -> Rows:
    import polars as pl

    track = pl.Struct(
        {
            "pos": pl.Int64,
            "artist_name": pl.String,
            "track_uri": pl.String,
            "artist_uri": pl.String,
            "track_name": pl.String,
            "album_uri": pl.String,
            "duration_ms": pl.Int64,
            "album_name": pl.String,
        }
    )
    whole = pl.Int64
    playlist = pl.Struct(
        {
            "name": pl.String,
            "collaborative": pl.String,
            "pid": whole,
            "modified_at": whole,
            "num_tracks": whole,
            "num_albums": whole,
            "num_followers": whole,
            "num_edits": whole,
            "duration_ms": whole,
            "num_artists": whole,
            "description": pl.String,
            "tracks": pl.List(track),
        }
    )
    frame = pl.read_json(path, schema={"playlists": pl.List(playlist)}).explode("playlists").unnest("playlists")
    table = frame.select(FIELDS)
    rows = frame.select("pid", "tracks").explode("tracks").select("pid", pl.col("tracks").struct.field("track_uri"))
    return Rows(table.height, rows["pid"].to_numpy(), rows["track_uri"].to_arrow())


def _duckdb_connection() -> Any:
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET threads = 1")
    connection.execute("SET preserve_insertion_order = true")
    return connection


_TRACK = (
    "STRUCT(pos BIGINT, artist_name VARCHAR, track_uri VARCHAR, artist_uri VARCHAR, track_name VARCHAR, "
    "album_uri VARCHAR, duration_ms BIGINT, album_name VARCHAR)"
)
_PLAYLIST = (
    "STRUCT(name VARCHAR, collaborative VARCHAR, pid BIGINT, modified_at BIGINT, num_tracks BIGINT, "
    "num_albums BIGINT, num_followers BIGINT, num_edits BIGINT, duration_ms BIGINT, num_artists BIGINT, "
    f"description VARCHAR, tracks {_TRACK}[])"
)


def _duckdb() -> Callable[[Path], Rows]:
    connection = _duckdb_connection()

    def parse(path: Path) -> Rows:
        source = f"""read_json('{path}', format = 'unstructured', records = true,
            columns = {{playlists: '{_PLAYLIST}[]'}}, maximum_object_size = {path.stat().st_size + 65536})"""
        unnested = f"SELECT unnest(playlists, recursive := false) p FROM {source}"
        connection.execute(f"CREATE OR REPLACE TEMP TABLE p AS {unnested}")
        names = ", ".join(f"p.{name} AS {name}" for name in FIELDS)
        table = connection.sql(f"SELECT {names} FROM p").to_arrow_table()
        rows = connection.sql("SELECT p.pid AS pid, unnest(p.tracks).track_uri AS uri FROM p").to_arrow_table()
        return Rows(table.num_rows, rows["pid"].to_numpy(), rows["uri"])

    return parse


PEERS: dict[str, tuple[str, Callable[[], Callable[[Path], Rows]]]] = {
    "orjson": ("orjson.loads, then arrays", lambda: _by_loads(orjson.loads)),
    "json": ("json.loads, then arrays", lambda: _by_loads(json.loads)),
    "polars": ("polars read_json with a schema, explode", lambda: _polars),
    "duckdb": ("DuckDB read_json with a schema, unnest", _duckdb),
}


def run(sizes: Sizes) -> Found:
    """Figures parser.<who> in MB/s, and ratios parser.ours_over.<who>. POLARS_MAX_THREADS must already be 1."""
    files = in_order(slices_of(sizes.slices * 1000))
    size = sum(path.stat().st_size for path in files) / 1e6
    work = f"{len(files)} slices, {size:,.0f} MB, one thread"
    parsers: dict[str, Callable[[Path], Any]] = {"ours": ours, **{name: make() for name, (_, make) in PEERS.items()}}
    for parse in parsers.values():
        parse(files[0])
    times: dict[str, list[Timed]] = {name: [] for name in parsers}
    for _ in range(sizes.repeats):
        # alternately, so that a temporary slowdown of the machine affects all of them
        for name, parse in parsers.items():
            times[name].append(timed(partial(_each, parse, files), 1))
    expected = our_rows(times["ours"][-1].result)
    found = Found()
    for name, repeats in times.items():
        label, whole = PEERS[name][0] if name in PEERS else "", joined(repeats)
        speed = [size / seconds for seconds in whole.seconds]
        found += Found(
            [figure(f"parser.{name}", "MB/s", speed, better="higher", work=work, note=label)],
            [check_threads(f"parser.{name}", whole, 1)],
        )
        if name != "ours":
            over = ratio(f"parser.ours_over.{name}", found["parser.ours"], found[f"parser.{name}"], note=label)
            same = _normal(whole.result) == expected
            detail = f"{len(expected.pids):,} rows of the last slice compared"
            found += Found([over], [Check(f"parser.{name}.agrees", same, detail)])
    return found


def _each(parse: Callable[[Path], Any], files: Sequence[Path]) -> Any:
    """Parse the files one by one, as a task does, and return the last result; each is freed before the next."""
    result: Any = None
    for path in files:
        result = None
        result = parse(path)
    return result


def _normal(rows: Rows) -> Rows:
    return Rows(rows.playlists, np.asarray(rows.pids), _text(rows.uris))
