"""Choosing the latest job costs, without Spark."""

from __future__ import annotations

from encore.spark.stage_metrics import latest


def test_the_latest_row_of_each_job_in_run_order() -> None:
    rows = [{"job": job, "started_at": at} for job, at in (("a", 3), ("b", 2), ("a", 1), ("c", 0), ("b", 4))]
    assert [(row["job"], row["started_at"]) for row in latest(rows)] == [("c", 0), ("a", 3), ("b", 4)]
    assert latest([]) == []
