"""Both passes of ingest on Spark: one task per run of files, no shuffle, and little staged data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encore.config import S3Config
from encore.lake.filesystem import list_files
from encore.lake.parquet import TableLocation
from encore.lake.tables import CHALLENGE_PLAYLISTS, PLAYLISTS, QUARANTINE, TRACKS
from encore.mpd.ingest import (
    Parsing,
    Staging,
    TaskTracks,
    Writing,
    assign_ids,
    by_number,
    parse_files,
    tasks_of,
    write_files,
)
from encore.mpd.parse import Limits
from encore.spark.session import Session

S3 = S3Config(endpoint=None, region=None, path_style=False)
NO_TRACKS = pa.schema(
    [("track_id", pa.int32()), ("track_uri", pa.string()), ("first_pid", pa.int64()), ("n_missing", pa.int8())]
).empty_table()


@pytest.fixture
def stages(session: Session) -> Iterator[Callable[[], list[list[int]]]]:
    """What Spark has run so far in this test: for each of its jobs, the number of tasks of each stage."""
    context = session().sparkContext
    context.setJobGroup("passes", "")

    def found() -> list[list[int]]:
        tracker = context.statusTracker()
        jobs = [tracker.getJobInfo(job) for job in sorted(tracker.getJobIdsForGroup("passes"))]
        return [[tracker.getStageInfo(stage).numTasks for stage in job.stageIds] for job in jobs]

    yield found
    context.setLocalProperty("spark.jobGroup.id", None)


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_task_for_each_run_and_no_shuffle(
    session: Session, generated: Path, tmp_path: Path, stages: Callable[[], list[list[int]]]
) -> None:
    files = by_number(list_files(str(generated), "*.json", S3))
    runs, aside = tasks_of(files, 2, 2), Staging(str(tmp_path / "aside"), S3)
    about = parse_files(session(), dict(enumerate(runs)), Parsing(Limits(1000, 100), aside, {}, {}))
    assert stages() == [[len(runs)]]
    assert about["slice"].to_pylist() == [file.name for file in files]
    assert sorted(pid for pids in about["pids"].to_pylist() for pid in pids) == list(range(300))
    assert bytes_in(tmp_path / "aside") < sum(file.size for file in files) / 3

    scratch = list(dict.fromkeys(about["scratch"].to_pylist()))
    tables = (PLAYLISTS, CHALLENGE_PLAYLISTS, TRACKS, QUARANTINE)
    places = {table.name: TableLocation(str(tmp_path / table.name), S3) for table in tables}
    ids = assign_ids((TaskTracks.read(aside, name) for name in scratch), NO_TRACKS)
    written = write_files(session(), ids, Writing(aside, scratch, "s", places))
    assert stages() == [[len(runs)], [len(runs)]]
    assert {name: reports.num_rows for name, reports in written.items()} == {
        "playlists": len(runs),
        "challenge_playlists": 0,
        "tracks": len(runs),
        "quarantine": 0,
    }
    rows: dict[str, Any] = {
        name: sum(pq.read_metadata(tmp_path / name / path).num_rows for path in reports["path"].to_pylist())
        for name, reports in written.items()
    }
    assert rows == {"playlists": 300, "challenge_playlists": 0, "tracks": ids.n_new, "quarantine": 0}
