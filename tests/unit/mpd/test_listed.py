"""Files of tracks that no playlist has: every format gives the same rows, and what is wrong is said."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encore.config import S3Config
from encore.errors import InputError
from encore.mpd.listed import COLUMNS, ListedTracks, listed_files, read_listed

S3 = S3Config(endpoint=None, region=None, path_style=False)
FIRST, SECOND = (f"spotify:track:{letter * 22}" for letter in "ab")
ROWS: list[dict[str, Any]] = [
    {"track_uri": FIRST, "track_name": "1999", "artist_name": 'A, "B"', "album_name": "NA", "duration_ms": 1000},
    {"track_uri": SECOND, "track_name": "Straße", "artist_name": None, "album_name": None, "duration_ms": None},
]
NAMES = list(ROWS[0])


def read(path: Path) -> ListedTracks:
    return read_listed(listed_files(str(path), S3), S3)


def text(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    quoted = [["" if row[n] is None else '"' + str(row[n]).replace('"', '""') + '"' for n in NAMES] for row in rows]
    return "\n".join(delimiter.join(row) for row in [NAMES, *quoted]) + "\n"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    content = {"csv": text(rows), "tsv": text(rows, "\t")}.get(kind, lines).encode()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.CSV.gz", "a.tsv", "a.jsonl", "a.ndjson.gz", "a.parquet"])
def test_every_format_gives_the_same(tmp_path: Path, name: str) -> None:
    found = read(write(tmp_path / name, ROWS))
    assert found.table.column_names == list(COLUMNS)
    expected = [{**dict.fromkeys(COLUMNS), **row} for row in ROWS]
    assert found.table.to_pylist() == expected
    assert found.note() is None


def test_ids_are_uris_and_the_first_row_of_a_track_is_used(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"track_uri,track_name\n{'b' * 22},b\n {FIRST} ,a\n{SECOND},again\n")
    assert [(row["track_uri"], row["track_name"]) for row in read(tmp_path / "a.csv").table.to_pylist()] == [
        (FIRST, "a"),
        (SECOND, "b"),
    ]


def test_rows_without_a_valid_uri_are_left_out_and_the_first_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        f"track_uri,track_name\n{FIRST},a\n,b\nspotify:episode:{'e' * 22},c\n{'x' * 21},d\n"
    )
    found = read(tmp_path)
    assert len(found) == 1
    assert found.note() == "3 rows of raw.tracks have no valid track_uri and were left out, the first: a.csv: row 2"


def test_a_playing_time_of_nothing_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"track_uri,duration_ms\n{FIRST},0\n{SECOND},-1\n")
    assert read(tmp_path).table["duration_ms"].to_pylist() == [None, None]


@pytest.mark.parametrize(
    ("name", "content", "expected", "remedy"),
    [
        ("a.xlsx", "x", "this format is not read", ".csv, .tsv, .jsonl"),
        ("a.parquet.gz", "x", "this format is not read", ".csv, .tsv, .jsonl"),
        ("a.parquet", "x", "not as its extension says", ".csv, .tsv, .jsonl"),
        ("a.csv.gz", "x", "not as its extension says", ".csv, .tsv, .jsonl"),
        ("a.csv", "", "not as its extension says", ".csv, .tsv, .jsonl"),
        ("a.jsonl", "[1]", "not as its extension says", ".csv, .tsv, .jsonl"),
        ("a.csv", "uri,name\na,b\n", "no column track_uri; columns found: uri, name", "rename the column"),
        ("a.jsonl", '{"uri": "a"}\n', "no column track_uri", "rename the column"),
        ("a.csv", f"track_uri,duration_ms\n{FIRST},long\n", "duration_ms: whole numbers expected", None),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error(
    tmp_path: Path, name: str, content: str, expected: str, remedy: str | None
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)
    assert expected in str(caught.value)
    assert remedy is None or remedy in str(caught.value.remedy)


def test_without_the_setting_there_are_none() -> None:
    assert len(read_listed(listed_files(None, S3), S3)) == 0
