"""From one row to one row on Spark: any partitions and blocks, keys that stay unique, arrays that every worker maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from chispa import assert_df_equality

from encore.catalogue import count_tracks
from encore.job import Session
from encore.ragged import Ragged
from encore.rows import Kernel, map_rows
from encore.shipping import ship
from encore.tables import HOLDOUT, RECOMMENDATIONS

SCHEMA = "pid bigint, track_ids array<int>"


def playlists(session: Session, n: int, partitions: int) -> Any:
    rows = [(pid, [pid, pid + 1, pid + 2]) for pid in range(n)]
    return session().createDataFrame(rows, SCHEMA).repartition(partitions)


def halves() -> Kernel:
    def kernel(rows: pa.Table) -> tuple[None, dict[str, Any]]:
        lists = Ragged.from_arrow(rows["track_ids"])
        return None, {"train": lists.head(2).to_arrow(), "test": lists.where(lists.places >= 2).to_arrow()}

    return kernel


@pytest.mark.parametrize(("partitions", "block"), [(1, 1), (3, 4), (7, 1000)])
def test_partitions_and_blocks_change_no_row(session: Session, partitions: int, block: int) -> None:
    expected = session().createDataFrame([(pid, [pid, pid + 1], [pid + 2]) for pid in range(50)], HOLDOUT.ddl)
    mapped = map_rows(playlists(session, 50, partitions), halves, HOLDOUT, block=block)
    assert_df_equality(mapped.frame, expected, ignore_row_order=True, ignore_nullable=True)
    assert_df_equality(mapped.keys, expected.select("pid"), ignore_row_order=True, ignore_nullable=True)


def test_a_kernel_may_leave_rows_out_and_keys_come_from_the_source(session: Session) -> None:
    def even() -> Kernel:
        def kernel(rows: pa.Table) -> tuple[np.ndarray, dict[str, Any]]:
            kept = np.flatnonzero(rows["pid"].to_numpy() % 2 == 0)
            lists = Ragged.from_arrow(rows["track_ids"]).take(kept)
            return kept, {"track_ids": lists.to_arrow(), "scores": Ragged(lists.offsets, lists.values * 0.5).to_arrow()}

        return kernel

    mapped = map_rows(playlists(session, 9, 2), even, RECOMMENDATIONS, block=4, constant={"model": "m"})
    rows = [
        ("m", pid, [pid, pid + 1, pid + 2], [pid * 0.5, pid * 0.5 + 0.5, pid * 0.5 + 1.0]) for pid in (0, 2, 4, 6, 8)
    ]
    expected = session().createDataFrame(rows, RECOMMENDATIONS.ddl)
    assert_df_equality(mapped.frame, expected, ignore_row_order=True, ignore_nullable=True)


def test_a_kernel_that_repeats_a_row_is_refused(session: Session) -> None:
    from pyspark.errors import PythonException

    def twice() -> Kernel:
        return lambda rows: (np.array([0, 0]), {"train": pa.array([[1], [1]]), "test": pa.array([[2], [2]])})

    with pytest.raises(PythonException, match="places of source rows, rising"):
        map_rows(playlists(session, 3, 1), twice, HOLDOUT, block=10).frame.collect()


def test_arrays_reach_every_worker_as_they_were_and_cannot_be_written(session: Session) -> None:
    arrays = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "empty": np.empty(0, np.int32)}
    shipped = ship(session(), arrays)
    again = ship(session(), {"other": arrays["a"].copy()})
    assert again.files[0][1] == shipped.files[0][1], "the same content is sent once"

    def look(batches: Any) -> Any:
        for _ in batches:
            found = shipped.open()
            yield pa.RecordBatch.from_arrays(
                [
                    pa.array([float(found["a"].sum())]),
                    pa.array([found["a"].flags.writeable]),
                    pa.array([len(found["empty"])]),
                ],
                ["total", "writeable", "n"],
            )

    rows = session().range(4).repartition(2).mapInArrow(look, "total double, writeable boolean, n bigint").collect()
    assert {tuple(row) for row in rows} == {(66.0, False, 0)}


def test_tracks_are_counted_as_often_as_they_stand(session: Session) -> None:
    counts = count_tracks(playlists(session, 50, 3), "track_ids", 60)
    assert counts.tolist() == [1, 2, *[3] * 48, 2, 1, *[0] * 8]


def test_after_ingest_nothing_is_shuffled(session: Session) -> None:
    plan = map_rows(playlists(session, 5, 1), halves, HOLDOUT, block=4).frame
    text = plan._jdf.queryExecution().executedPlan().toString()
    assert text.count("Exchange") == 1, "the one of this test's own repartition"
