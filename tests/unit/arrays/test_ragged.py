from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encore.arrays import ragged
from encore.arrays.ragged import Ragged

small = st.integers(-3, 6)
int32 = st.integers(-(2**31), 2**31 - 1)
row_lists = st.lists(st.lists(small | int32, max_size=8), max_size=12)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ragged.blocks, "__defaults__", (5,))


@given(row_lists)
def test_properties_match_the_lists(rows: list[list[int]]) -> None:
    it = Ragged.from_lists(rows)
    assert it.tolist() == rows
    assert len(it) == len(rows)
    assert it.lengths.tolist() == [len(row) for row in rows]
    assert it.rows.tolist() == [i for i, row in enumerate(rows) for _ in row]
    assert it.positions.tolist() == [j for row in rows for j in range(len(row))]
    assert (it.offsets.dtype, it.values.dtype) == (np.dtype(np.int64), np.dtype(np.int32))


@given(row_lists, st.data())
def test_take_slice_head_where_concat(rows: list[list[int]], data: st.DataObject) -> None:
    it = Ragged.from_lists(rows)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9)) if rows else []
    assert it.take(np.array(chosen, dtype=np.int64)).tolist() == [rows[i] for i in chosen]
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    part = it.slice(start, stop)
    assert part.tolist() == rows[start:stop]
    assert len(part.values) == 0 or np.shares_memory(part.values, it.values)
    assert it.head(2).tolist() == [row[:2] for row in rows]
    n = np.arange(len(rows)) % 4
    assert it.head(n).tolist() == [row[: i % 4] for i, row in enumerate(rows)]
    assert it.where(it.values % 2 == 0).tolist() == [[v for v in row if v % 2 == 0] for row in rows]
    parts = [it.slice(0, start), it.slice(start, stop), it.slice(stop, len(rows))]
    assert Ragged.concat(parts).tolist() == rows


@given(row_lists)
def test_distinct_keeps_first_occurrences_in_order(rows: list[list[int]]) -> None:
    assert Ragged.from_lists(rows).distinct().tolist() == [list(dict.fromkeys(row)) for row in rows]


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1) | small, max_size=6), max_size=6))
def test_distinct_of_numbers_too_wide_for_one_key(rows: list[list[int]]) -> None:
    it = Ragged.from_lists(rows, dtype=np.int64)
    assert it.distinct().tolist() == [list(dict.fromkeys(row)) for row in rows]


@given(st.lists(st.tuples(*[st.lists(small | int32, max_size=8)] * 2), max_size=12))
def test_isin_looks_in_the_same_row_only(pairs: list[tuple[list[int], list[int]]]) -> None:
    left, right = Ragged.from_lists([a for a, _ in pairs]), Ragged.from_lists([b for _, b in pairs])
    assert left.isin(right).tolist() == [value in b for a, b in pairs for value in a]


def test_distinct_of_wide_numbers_keeps_rows_apart() -> None:
    rows = [[5, -(2**63)], [5, 2**63 - 1, 5], [2**63 - 1], [2**63 - 1, 5]]
    assert Ragged.from_lists(rows, dtype=np.int64).distinct().tolist() == [rows[0], rows[1][:2], *rows[2:]]


def test_isin_at_size_with_many_near_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ragged.blocks, "__defaults__", (ragged.BLOCK_VALUES,))
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, 300, 400)
    left = Ragged.from_lengths(lengths, rng.integers(0, 500, lengths.sum()).astype(np.int32))
    lengths = rng.integers(0, 60, 400)
    right = Ragged.from_lengths(lengths, rng.integers(0, 500, lengths.sum()).astype(np.int32))
    expected = [np.isin(left[i], right[i]) for i in range(400)]
    np.testing.assert_array_equal(left.isin(right), np.concatenate(expected))


@given(st.lists(st.integers(0, 12), max_size=40), st.integers(1, 20))
def test_blocks_partition_the_rows(lengths: list[int], size: int) -> None:
    it = Ragged.from_lengths(np.array(lengths, dtype=np.int64), np.zeros(sum(lengths), dtype=np.int32))
    blocks = list(it.blocks(size))
    assert [i for start, stop in blocks for i in range(start, stop)] == list(range(len(lengths)))
    assert all(start < stop and sum(lengths[start : stop - 1]) < size + 12 for start, stop in blocks)


@given(row_lists, st.data())
def test_arrow_round_trip(rows: list[list[int]], data: st.DataObject) -> None:
    for kind in (pa.list_(pa.int32()), pa.large_list(pa.int32())):
        array = pa.array(rows, kind)
        assert Ragged.from_arrow(array).tolist() == rows
        start = data.draw(st.integers(0, len(rows)))
        assert Ragged.from_arrow(array.slice(start, 3)).tolist() == rows[start : start + 3]
        chunks = pa.chunked_array([array.slice(0, start), array.slice(start)], kind)
        assert Ragged.from_arrow(chunks).tolist() == rows
        assert Ragged.from_arrow(pa.chunked_array([], kind)).tolist() == []
    back = Ragged.from_lists(rows).to_arrow()
    assert back.type == pa.list_(pa.int32())
    assert back.to_pylist() == rows
    back.validate(full=True)


def test_arrow_values_are_not_copied() -> None:
    array = pa.array([[1.0, 2.0], [], [3.0]], pa.list_(pa.float32()))
    before = array.values.to_numpy()
    for it in (array, pa.chunked_array([array]), pa.chunked_array([array.slice(0, 0), array])):
        assert np.shares_memory(Ragged.from_arrow(it).values, before)
    there = Ragged.from_arrow(array)
    assert there.values.dtype == np.float32
    assert np.shares_memory(there.to_arrow().values.to_numpy(), before)
    assert there.slice(1, 3).to_arrow().to_pylist() == [[], [3.0]]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pa.array([[1], None], pa.list_(pa.int32())), "expected no null lists, found 1 of 2"),
        (pa.array([[1, None]], pa.list_(pa.int32())), "expected no null values in lists, found 1"),
        (pa.array([1], pa.int32()), "expected a column of lists, found int32"),
    ],
)
def test_arrow_nulls_and_other_types_raise(array: pa.Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ragged.from_arrow(array)


def test_a_null_outside_the_slice_does_not_matter() -> None:
    array = pa.array([None, [None], [1, 2], None], pa.list_(pa.int32())).slice(2, 1)
    assert Ragged.from_arrow(array).tolist() == [[1, 2]]


@pytest.mark.parametrize("offsets", [[], [1, 2], [0, 1], [0, 2, 1, 2], [[0, 2]]])
def test_invalid_offsets_raise(offsets: list) -> None:
    with pytest.raises(ValueError, match="offsets"):
        Ragged(np.array(offsets, dtype=np.int64), np.zeros(2, dtype=np.int32))


def test_invalid_arguments_raise() -> None:
    it = Ragged.from_lists([[1, 2], [3]])
    with pytest.raises(ValueError, match="int64"):
        Ragged(np.array([0, 2], dtype=np.int32), it.values[:2])
    with pytest.raises(ValueError, match="one dimension"):
        Ragged(np.array([0, 2]), np.zeros((2, 2)))
    with pytest.raises(IndexError):
        it[2]
    with pytest.raises(IndexError):
        it[-1]
    with pytest.raises(IndexError):
        it.slice(1, 3)
    with pytest.raises(ValueError, match="mask"):
        it.where(np.ones(2, dtype=np.bool_))
    with pytest.raises(ValueError, match="expected 2 rows, found 1"):
        it.isin(Ragged.empty(1))
    with pytest.raises(ValueError, match="integers of at most 32 bits"):
        it.isin(Ragged.empty(2, np.int64))
    with pytest.raises(ValueError, match="expected integers"):
        Ragged.from_lists([[1.5]], np.float32).distinct()
    with pytest.raises(ValueError, match="one value type"):
        Ragged.concat([it, Ragged.empty(1, np.int64)])
    with pytest.raises(ValueError, match="at least one part"):
        Ragged.concat([])


@settings(max_examples=20)
@given(st.integers(0, 30))
def test_empty_rows_everywhere(n: int) -> None:
    it = Ragged.empty(n)
    assert it.distinct().tolist() == it.where(np.zeros(0, dtype=np.bool_)).tolist() == [[]] * n
    assert it.isin(it).tolist() == []
    assert it.take(np.arange(n)[::-1]).tolist() == [[]] * n
