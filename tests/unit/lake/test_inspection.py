"""What `encore doctor --lake` finds: nothing in a lake that is well, and each kind of damage by table and rule."""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.transaction import AddAction
from typer.testing import CliRunner

from encore.cli import app as cli
from encore.config import Config
from encore.errors import LakeError
from encore.lake.delta import Tables
from encore.lake.inspection import inspect
from encore.lake.schema import delta_schema
from encore.lake.tables import BY_NAME, arrow_schema
from tests.conftest import settings
from tests.s3server import S3Server

URI = "spotify:track:" + "a" * 21
NOW = datetime(2026, 1, 31, tzinfo=UTC)

ROWS: dict[str, list[dict[str, Any]]] = {
    "tracks": [{"track_id": i, "track_uri": f"{URI}{i}", "first_pid": 0} for i in range(4)],
    "ingest_ledger": [
        {
            "slice": "a.json",
            "size_bytes": 1,
            "digest": "x",
            "modified_ns": 1,
            "n_playlists": 3,
            "n_quarantined": 0,
            "status": "ingested",
            "ingested_at": NOW,
        }
    ],
    "playlists": [
        {"pid": 0, "track_ids": [0, 1, 1], "slice": "a.json"},
        {"pid": 7, "track_ids": [3, 2], "slice": "a.json"},
        {"pid": 9, "track_ids": [], "slice": "a.json"},
    ],
    "challenge_playlists": [
        {"pid": 8, "num_holdouts": 2, "track_ids": [1, 3], "positions": [0, 5], "slice": "a.json"},
    ],
    "track_vectors": [{"track_id": i, "vector": [1.0, 2.0]} for i in (0, 3)],
    "holdout": [{"pid": 0, "train": [0], "test": [1]}, {"pid": 7, "train": [3], "test": [2]}],
    "playlist_centroids": [{"pid": 7, "vector": [1.0, 2.0], "n_tracks": 1}],
    "recommendations": [
        {"model": model, "pid": pid, "track_ids": [2, 3], "scores": [1.0, 0.5]}
        for model in ("cosine", "random")
        for pid in (0, 7)
    ],
    "vector_parameters": [
        {
            "transform": "raw",
            "columns": ["key"],
            "mean": [0.0],
            "matrix": [[1.0]],
            "weights": [1.0],
            "n_tracks": 2,
        }
    ],
}

Change = Callable[[Path], None]


def append(lake: Path, name: str, rows: list[dict[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Add rows that nobody has checked, as files with the columns that are named, to a table that is made first."""
    table, place = BY_NAME[name], lake / name
    found = DeltaTable.create(place, delta_schema(table), mode="ignore", partition_by=list(table.partition_by))
    data = pa.Table.from_pylist(rows, schema=arrow_schema(table)).select(columns or table.names)
    actions = []
    for values in data.group_by(list(table.partition_by)).aggregate([]).to_pylist() if table.partition_by else [{}]:
        mask = [all(row[key] == value for key, value in values.items()) for row in rows]
        path = place / f"part-{uuid.uuid4()}.parquet"
        pq.write_table(data.filter(pa.array(mask)).drop_columns(list(values)), path)
        stats = json.dumps({"numRecords": sum(mask), "minValues": {}, "maxValues": {}, "nullCount": {}})
        actions.append(AddAction(path.name, path.stat().st_size, values, 0, True, stats))
    found.create_write_transaction(actions, "append", found.schema(), list(table.partition_by))


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """A small lake that is well."""
    for name, rows in ROWS.items():
        append(tmp_path / "lake", name, rows)
    return tmp_path / "lake"


def faults(config: Config) -> list[tuple[str, str]]:
    found = list(inspect(Tables(config)))
    assert all(finding.remedy is None or "encore run" in finding.remedy for finding in found)
    return [(finding.what, finding.fact) for finding in found if finding.remedy is not None]


def files(lake: Path, name: str) -> list[Path]:
    return sorted((lake / name).rglob("*.parquet"))


def test_a_lake_that_is_well(lake: Path) -> None:
    found = list(inspect(Tables(settings(lake))))
    assert {finding.what: finding.remedy for finding in found} == dict.fromkeys(ROWS)
    assert [finding.fact for finding in found if finding.what == "recommendations"] == ["4 rows in 2 files, version 1"]


def test_a_lake_without_tables(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="no tables in the lake"):
        list(inspect(Tables(settings(tmp_path / "lake"))))


def _doubled(name: str) -> Change:
    return lambda lake: append(lake, name, ROWS[name])


def _more(name: str, *rows: dict[str, Any]) -> Change:
    return lambda lake: append(lake, name, [{**ROWS[name][0], **row} for row in rows])


def _gone(lake: Path) -> None:
    files(lake, "holdout")[0].unlink()


def _cut(lake: Path) -> None:
    path = files(lake, "holdout")[0]
    path.write_bytes(path.read_bytes()[:-100])


def _scrambled(lake: Path) -> None:
    path = files(lake, "holdout")[0]
    path.write_bytes(b"\1" * path.stat().st_size)


def _log_scrambled(lake: Path) -> None:
    (lake / "holdout" / "_delta_log" / f"{0:020}.json").write_text("damaged")


def _log_gone(lake: Path) -> None:
    for path in (lake / "holdout" / "_delta_log").iterdir():
        path.unlink()


def _other_schema(lake: Path) -> None:
    write_deltalake(lake / "holdout", pa.table({"pid": ["a"]}), mode="overwrite", schema_mode="overwrite")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_doubled("playlists"), [("playlists", "key pid is unique: broken 3 times, such as 0")]),
        (_doubled("recommendations"), [("recommendations", "key model/pid is unique: broken 4 times, such as .*/.")]),
        (_doubled("ingest_ledger"), [("ingest_ledger", "key slice is unique: broken 1 time, such as a.json")]),
        (
            _doubled("tracks"),
            [
                ("tracks", "key track_id is unique: broken 4 times, such as 0"),
                ("tracks", f"key track_uri is unique: broken 4 times, such as {URI}."),
            ],
        ),
        (
            _more("tracks", {"track_id": 4}),
            [("tracks", f"key track_uri is unique: broken 1 time, such as {URI}0")],
        ),
        (
            _more("tracks", {"track_id": 6, "track_uri": f"{URI}6"}),
            [("tracks", "track_id is dense, 0 to n - 1: broken 2 times, such as 4, which is missing")],
        ),
        (
            _more("playlists", {"pid": 1, "track_ids": [0, 10**8]}),
            [("playlists", "track_ids refers to rows of tracks: broken 1 time, such as 100000000, of pid 1")],
        ),
        (
            _more("playlists", {"pid": 1, "track_ids": [0, None, -1]}),
            [("playlists", "track_ids refers to rows of tracks: broken 1 time, such as None, of pid 1")],
        ),
        (
            _more("playlists", {"pid": 1, "slice": "b.json"}),
            [("playlists", "slice refers to rows of ingest_ledger: broken 1 time, such as b.json, of pid 1")],
        ),
        (
            _more("challenge_playlists", {"pid": 1, "track_ids": [4], "positions": [0], "slice": "b.json"}),
            [
                ("challenge_playlists", "track_ids refers to rows of tracks: broken 1 time, such as 4, of pid 1"),
                (
                    "challenge_playlists",
                    "slice refers to rows of ingest_ledger: broken 1 time, such as b.json, of pid 1",
                ),
            ],
        ),
        (
            _more("challenge_playlists", {"pid": 7}),
            [("challenge_playlists", "no pid of playlists is in challenge_playlists: broken 1 time, such as 7")],
        ),
        (
            _more("challenge_playlists", {"pid": 1, "positions": [0]}),
            [("challenge_playlists", r"a_position_for_each_track \(.*\): broken 1 time, such as 1")],
        ),
        (
            _more("holdout", {"pid": 1, "train": [4], "test": [5]}),
            [
                ("holdout", "pid refers to rows of playlists: broken 1 time, such as 1, of pid 1"),
                ("holdout", "train refers to rows of tracks: broken 1 time, such as 4, of pid 1"),
                ("holdout", "test refers to rows of tracks: broken 1 time, such as 5, of pid 1"),
            ],
        ),
        (
            _more("recommendations", {"pid": 9, "track_ids": [4, 3]}),
            [
                (
                    "recommendations",
                    "track_ids refers to rows of tracks: broken 1 time, such as 4, of model/pid cosine/9",
                )
            ],
        ),
        (
            _more("track_vectors", {"track_id": 4}),
            [("track_vectors", "track_id refers to rows of tracks: broken 1 time, such as 4, of track_id 4")],
        ),
        (
            _more("playlist_centroids", {"pid": 8}),
            [("playlist_centroids", "pid refers to rows of playlists: broken 1 time, such as 8, of pid 8")],
        ),
        (
            _more("recommendations", {"pid": 9, "scores": [1.0]}),
            [("recommendations", r"a_score_for_each_track \(.*\): broken 1 time, such as cosine/9")],
        ),
        (
            _more("holdout", {"pid": 9, "train": None}),
            [("holdout", "train is not null: broken 1 time, such as 9")],
        ),
        (_gone, [("holdout", "every file in the log is there: broken 1 time, such as .*parquet")]),
        (
            _cut,
            [("holdout", r"every file has the size that the log says: broken 1 time, such as .*: [\d,]+ bytes exp.*")],
        ),
        (_scrambled, [("holdout", "every file can be read: broken 1 time, such as .*parquet: .*")]),
        (_log_scrambled, [("holdout", ".*/holdout: cannot be read: .*")]),
        (_log_gone, [("holdout", "1 files, but no Delta log among them")]),
        (_other_schema, [("holdout", "another schema than declared: .*train array<int> is missing.*")]),
    ],
)
def test_damage_is_named(lake: Path, change: Change, expected: list[tuple[str, str]]) -> None:
    change(lake)
    found = faults(settings(lake))
    assert [table for table, _ in found] == [table for table, _ in expected], found
    for (_, fact), (_, pattern) in zip(found, expected, strict=True):
        assert re.fullmatch(pattern, fact), fact


def test_a_file_of_other_rows_than_the_log_says(lake: Path) -> None:
    log = lake / "holdout" / "_delta_log" / f"{1:020}.json"
    log.write_text(log.read_text().replace(r"\"numRecords\": 2", r"\"numRecords\": 3"))
    ((table, fact),) = faults(settings(lake))
    assert table == "holdout"
    assert fact.startswith("every file has the rows that the log says: broken 1 time, such as ")
    assert fact.endswith(": 3 expected, 2 found")


def test_what_refers_to_a_table_that_cannot_be_read_is_not_blamed(lake: Path) -> None:
    (lake / "tracks" / "_delta_log" / f"{0:020}.json").write_text("damaged")
    assert [table for table, _ in faults(settings(lake))] == ["tracks"]


def test_a_column_that_was_added_later_reads_null_in_older_files(lake: Path) -> None:
    older = {"track_id": 4, "track_uri": f"{URI}4", "first_pid": 0}
    append(lake, "tracks", [older], list(older))
    assert faults(settings(lake)) == []


def test_the_command_names_table_fault_and_remedy(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def doctor() -> tuple[int, str]:
        arguments = ["doctor", "--lake", "--set", f"lake.path={lake}"]
        monkeypatch.setattr(sys, "argv", ["encore", *arguments])
        result = CliRunner().invoke(cli.app, arguments)
        return result.exit_code, result.stdout

    assert doctor()[0] == 0
    append(lake, "tracks", ROWS["tracks"])
    code, said = doctor()
    assert code == 5
    assert re.search(rf"FAIL +tracks +key track_id is unique: .*\n +call `encore run`; .*`rm -r {lake}/tracks`", said)
    assert re.search(r"ok +playlists", said)


@pytest.mark.slow
def test_a_lake_in_s3(lake: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    bucket, client = f"doctor-{uuid.uuid4().hex[:12]}", s3_server.client()
    client.create_bucket(Bucket=bucket)
    s3_server.upload(lake, bucket, "lake/")
    config = settings(f"s3://{bucket}/lake", "s3.path_style=true")
    assert faults(config) == []
    client.delete_object(Bucket=bucket, Key=f"lake/holdout/{files(lake, 'holdout')[0].name}")
    ((table, fact),) = faults(config)
    assert (table, fact.split(":")[0]) == ("holdout", "every file in the log is there")
