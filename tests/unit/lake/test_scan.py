"""Which rows of which files are read, and how they are cut into tasks."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from encore.config import S3Config
from encore.lake.parquet import TableLocation
from encore.lake.scan import KeyRange, RowRange, Scan, scan_of
from encore.lake.transaction import overlapping

PLACE = TableLocation("/lake/t", S3Config(endpoint=None, region=None, path_style=False))
SCHEMA = pa.schema([("pid", pa.int64())])


def scan(*lengths: int) -> Scan:
    return Scan(PLACE, SCHEMA, KeyRange(), tuple(RowRange(str(i), 0, n) for i, n in enumerate(lengths)))


def rows_of(found: Scan) -> list[tuple[str, int]]:
    return [(row_range.path, row) for row_range in found.row_ranges for row in range(row_range.first, row_range.last)]


@given(st.lists(st.integers(1, 30), max_size=8), st.integers(1, 12))
def test_cuts_are_the_rows_in_order_and_of_one_size_but_for_one(lengths: list[int], n: int) -> None:
    whole = scan(*lengths)
    parts = whole.cut(n)
    assert [row for part in parts for row in rows_of(part)] == rows_of(whole)
    assert len(parts) == min(n, sum(lengths))
    sizes = {part.rows for part in parts}
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_files_that_cannot_have_a_row_are_left_out_and_those_at_the_edge_are_filtered() -> None:
    files = [
        {"path": f"{i}", "num_records": 10, "min.pid": 10 * i, "max.pid": 10 * i + 9, "partition.model": model}
        for i in (3, 1, 0, 2)
        for model in "ba"
    ]
    found = scan_of(PLACE, SCHEMA, KeyRange((("model", "a"),), "pid", 10, 25), ["model"], files)
    assert [(s.path, s.filtered, s.partition) for s in found.row_ranges] == [
        ("1", False, (("model", "a"),)),
        ("2", True, (("model", "a"),)),
    ]
    assert found.of("model", ["b"]).row_ranges == ()


def test_a_file_of_unknown_ends_is_read_and_filtered() -> None:
    files = [{"path": "x", "num_records": 4}]
    (row_range,) = scan_of(PLACE, SCHEMA, KeyRange((), "pid", 10, 20), [], files).row_ranges
    assert row_range.filtered
    assert not scan_of(PLACE, SCHEMA, KeyRange(), [], files).row_ranges[0].filtered


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)), max_size=8))
def test_files_that_may_share_a_key_are_all_found(ends: list[tuple[int, int]]) -> None:
    files = [(low, low + length, str(i)) for i, (low, length) in enumerate(ends)]
    expected = {
        name
        for i, (low, high, name) in enumerate(files)
        for j, (least, most, _) in enumerate(files)
        if i != j and low <= most and least <= high
    }
    assert expected <= overlapping(files)
    assert overlapping(files) <= expected
