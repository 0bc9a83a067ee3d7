"""Row maps on Spark: any division into tasks and blocks, unique keys, arrays that every worker memory-maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chispa import assert_df_equality

from encore.arrays.ragged import Ragged
from encore.config import S3Config
from encore.lake.parquet import IoStats, TableLocation, Writer
from encore.lake.scan import KeyRange, RowRange, Scan
from encore.lake.tables import HOLDOUT, RECOMMENDATIONS, arrow_schema
from encore.spark.broadcast import ship
from encore.spark.row_map import Kernel, RowMap, write_rows
from encore.spark.session import Session
from encore.spark.stage_metrics import newest, stages
from encore.spark.tasks import run_tasks

S3 = S3Config(endpoint=None, region=None, path_style=False)
SCHEMA = pa.schema([("pid", pa.int64()), ("track_ids", pa.list_(pa.int32()))])


def source(folder: Path, *files: range, group: int = 4) -> Scan:
    """Playlists of three tracks, in files with small row groups."""
    row_ranges = []
    for pids in files:
        rows = pa.table({"pid": list(pids), "track_ids": [[p, p + 1, p + 2] for p in pids]}, schema=SCHEMA)
        name = f"{pids.start}.parquet"
        folder.mkdir(exist_ok=True)
        pq.write_table(rows, folder / name, row_group_size=group)
        row_ranges.append(RowRange(name, 0, len(pids)))
    return Scan(TableLocation(str(folder), S3), SCHEMA, KeyRange(), tuple(row_ranges))


def halves() -> Kernel:
    def kernel(rows: pa.Table) -> tuple[None, dict[str, Any]]:
        lists = Ragged.from_arrow(rows["track_ids"])
        parts = {"train": lists.head(2).to_arrow(), "test": lists.where(lists.positions >= 2).to_arrow()}
        return None, {**parts, **{name: pa.nulls(len(rows), pa.string()) for name in ("title", "kind")}}

    return kernel


def made(folder: Path, reports: pa.Table) -> list[str]:
    return [str(folder / path) for path in reports["path"].drop_null().to_pylist()]


@pytest.mark.parametrize(
    ("tasks", "block"), [(2, 4), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((1, 1), (9, 1000)))]
)
def test_rows_do_not_depend_on_tasks_and_blocks(session: Session, tmp_path: Path, tasks: int, block: int) -> None:
    spark, out = session(), tmp_path / "out"
    work = RowMap(source(tmp_path / "in", range(21), range(21, 50)), halves, block=block, tasks=tasks)
    reports = write_rows(spark, work, HOLDOUT, TableLocation(str(out), S3))
    expected = spark.createDataFrame([(pid, [pid, pid + 1], [pid + 2], None, None) for pid in range(50)], HOLDOUT.ddl)
    found = spark.read.parquet(*made(out, reports))
    assert_df_equality(found, expected, ignore_row_order=True, ignore_nullable=True)
    assert sum(reports["read_rows"].drop_null().to_pylist()) == 50
    assert len(made(out, reports)) == min(2 * tasks, 50)


def test_a_kernel_may_skip_rows_and_keys_come_from_the_source(session: Session, tmp_path: Path) -> None:
    def even() -> Kernel:
        def kernel(rows: pa.Table) -> tuple[np.ndarray, dict[str, Any]]:
            kept = np.flatnonzero(rows["pid"].to_numpy() % 2 == 0)
            lists = Ragged.from_arrow(rows["track_ids"]).take(kept)
            return kept, {"track_ids": lists.to_arrow(), "scores": Ragged(lists.offsets, lists.values * 0.5).to_arrow()}

        return kernel

    spark, out = session(), tmp_path / "out"
    work = RowMap(source(tmp_path / "in", range(9)), even, block=4, constant={"model": "m"})
    reports = write_rows(spark, work, RECOMMENDATIONS, TableLocation(str(out), S3))
    rows = [
        ("m", pid, [pid, pid + 1, pid + 2], [pid * 0.5, pid * 0.5 + 0.5, pid * 0.5 + 1.0]) for pid in (0, 2, 4, 6, 8)
    ]
    expected = spark.createDataFrame(rows, RECOMMENDATIONS.ddl)
    found = spark.read.option("basePath", str(out)).parquet(*made(out, reports)).select(*RECOMMENDATIONS.names)
    assert_df_equality(found, expected, ignore_row_order=True, ignore_nullable=True)


def test_a_kernel_that_repeats_a_row_is_an_error(session: Session, tmp_path: Path) -> None:
    def twice() -> Kernel:
        return lambda rows: (np.array([0, 0]), {"train": pa.array([[1], [1]]), "test": pa.array([[2], [2]])})

    work = RowMap(source(tmp_path / "in", range(3)), twice, block=10)
    with pytest.raises(ValueError, match="ascending positions of source rows"):
        write_rows(session(), work, HOLDOUT, TableLocation(str(tmp_path / "out"), S3))


def test_an_empty_source_runs_no_tasks(session: Session, tmp_path: Path) -> None:
    before = newest(session())
    reports = write_rows(
        session(), RowMap(source(tmp_path), halves, block=4), HOLDOUT, TableLocation(str(tmp_path), S3)
    )
    assert reports.num_rows == 0
    assert newest(session()) == before


def test_broadcast_arrays_are_equal_and_read_only_on_every_worker(session: Session) -> None:
    arrays = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "empty": np.empty(0, np.int32)}
    shipped = ship(session(), arrays)
    again = ship(session(), {"other": arrays["a"].copy()})
    assert again.files[0][1] == shipped.files[0][1], "the same content is sent once"

    def look(number: int) -> pa.Table:
        found = shipped.open()
        return pa.table(
            {
                "number": [number],
                "total": [float(found["a"].sum())],
                "writeable": [found["a"].flags.writeable],
                "n": [len(found["empty"])],
            }
        )

    rows = pa.concat_tables(run_tasks(session(), range(4), look)).to_pylist()
    assert rows == [{"number": i, "total": 66.0, "writeable": False, "n": 0} for i in range(4)]


def test_tasks_run_in_one_stage_without_a_shuffle(session: Session, tmp_path: Path) -> None:
    before = newest(session())
    work = RowMap(source(tmp_path / "in", range(20)), halves, block=4, tasks=3)
    write_rows(session(), work, HOLDOUT, TableLocation(str(tmp_path / "out"), S3))
    (stage,) = stages(session(), before)
    assert stage.tasks == 6
    assert (stage.shuffled_rows, stage.shuffled_bytes, stage.spilled_bytes) == (0, 0, 0)


def test_a_written_file_is_read_back_with_its_partition(tmp_path: Path) -> None:
    place, io_stats = TableLocation(str(tmp_path), S3), IoStats()
    writer = Writer(RECOMMENDATIONS, place)
    rows = pa.table(
        {"model": ["m"] * 5, "pid": range(5), "track_ids": [[1, 2]] * 5, "scores": [[0.5, 0.25]] * 5},
        schema=arrow_schema(RECOMMENDATIONS),
    )
    writer.write(rows)
    path = writer.close().column("path")[0].as_py()
    schema = pa.schema([("model", pa.string()), ("track_ids", pa.list_(pa.int32()))])
    row_range = RowRange(path, 1, 4, (("model", "m"),), filtered=True)
    scan = Scan(place, schema, KeyRange((("model", "m"),), "pid", 2, 9), (row_range,))
    found = pa.concat_tables(scan.read(io_stats))
    assert found.to_pylist() == [{"model": "m", "track_ids": [1, 2]}] * 2
    assert io_stats.read_rows == 3
    assert 0 < io_stats.read_bytes < (tmp_path / path).stat().st_size
