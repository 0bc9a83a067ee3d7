"""Reads rows of Delta tables from their data files. The driver gets the list of files from the log, once.

Tasks are given stretches of rows of these files and read them column by column with pyarrow, so that rows of arrays
never pass through the JVM, where each costs ten times as much. See parquet.py for the way back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from encore.errors import LakeError
from encore.lake.failures import reading
from encore.lake.parquet import IoStats, TableLocation


@dataclass(frozen=True)
class KeyRange:
    """Rows of a table: of some partition values, with `low` <= `column` < `high` (None: no bound)."""

    partition: tuple[tuple[str, str], ...] = ()
    column: str = "pid"
    low: int | None = None
    high: int | None = None

    def sides(self, low: Any, high: Any) -> tuple[bool, bool]:
        """Whether a file whose values are from low to high (None: unknown) may have rows inside, and rows outside."""
        if self.low is None and self.high is None:
            return True, False
        if low is None or high is None:
            return True, True
        above = self.low is None or high >= self.low
        below = self.high is None or low < self.high
        whole = (self.low is None or low >= self.low) and (self.high is None or high < self.high)
        return above and below, not whole

    def outside(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Which values are outside of the range."""
        found = pa.chunked_array([pa.repeat(False, len(column))])
        if self.low is not None:
            found = pc.or_(found, pc.less(column, self.low))
        if self.high is not None:
            found = pc.or_(found, pc.greater_equal(column, self.high))
        return found


@dataclass(frozen=True)
class KeyIn:
    """Rows of a table: of some partition values, whose `column` (text or integers) is one of `values`."""

    column: str
    values: pa.Array
    partition: tuple[tuple[str, str], ...] = ()

    def sides(self, low: Any, high: Any) -> tuple[bool, bool]:
        """Like `KeyRange.sides`."""
        if low is None or high is None:
            return len(self.values) > 0, True
        between = pc.and_(pc.greater_equal(self.values, low), pc.less_equal(self.values, high))
        return bool(pc.any(between, min_count=0).as_py()), True

    def outside(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Like `KeyRange.outside`."""
        return pc.invert(pc.is_in(column, value_set=self.values))


@dataclass(frozen=True)
class RowRange:
    """Rows `first` to `last` - 1 of a data file, in file order. `filtered`: whether some of them must be left out."""

    path: str
    first: int
    last: int
    partition: tuple[tuple[str, str], ...] = ()
    filtered: bool = False


@dataclass(frozen=True)
class Scan:
    """Some columns of some rows of a table at a version, picklable: `schema` of the result, `where` for which rows,
    `row_ranges` of the files, ordered by the files' smallest keys."""

    place: TableLocation
    schema: pa.Schema
    where: KeyRange | KeyIn
    row_ranges: tuple[RowRange, ...]

    @property
    def rows(self) -> int:
        """Rows of all row ranges, including those that `where` leaves out."""
        return sum(row_range.last - row_range.first for row_range in self.row_ranges)

    def of(self, column: str, values: Collection[str]) -> Scan:
        """The row ranges whose partition has one of some values."""
        kept = tuple(row_range for row_range in self.row_ranges if dict(row_range.partition)[column] in values)
        return replace(self, row_ranges=kept)

    def within(self, where: KeyRange) -> Scan:
        """The rows of this scan, which has all rows of its files, whose key is in another range."""
        kept = tuple(replace(row_range, filtered=True) for row_range in self.row_ranges)
        return replace(self, where=where, row_ranges=kept)

    def cut(self, n: int) -> list[Scan]:
        """At most n scans of about equal size, none empty, which together are this one, in order."""
        total, parts = self.rows, min(n, self.rows)
        bounds = [total * i // parts for i in range(parts + 1)] if parts else [0]
        cuts: list[list[RowRange]] = [[] for _ in bounds[1:]]
        start = 0
        for row_range in self.row_ranges:
            end = start + row_range.last - row_range.first
            first = int(np.searchsorted(bounds, start, side="right")) - 1
            for i in range(first, len(cuts)):
                low, high = max(start, bounds[i]), min(end, bounds[i + 1])
                if low >= end:
                    break
                if low < high:
                    shift = row_range.first - start
                    cuts[i].append(replace(row_range, first=low + shift, last=high + shift))
            start = end
        return [replace(self, row_ranges=tuple(found)) for found in cuts]

    def whole(self, io_stats: IoStats | None = None) -> pa.Table:
        """The rows of `read` as one table."""
        return pa.concat_tables([self.schema.empty_table(), *self.read(io_stats)])

    def read(self, io_stats: IoStats | None = None) -> Iterator[pa.Table]:
        """The rows, a table for each row group; what was read is added to `io_stats`."""
        counted = io_stats or IoStats()
        for row_range in self.row_ranges:
            yield from self._read_row_range(row_range, counted)

    def _may_have_rows(self, group: Any) -> bool:
        """Whether a row group may have rows inside `where`, by its statistics."""
        inside, _ = self.where.sides(*_limits(group, self.where.column))
        return inside

    def _read_row_range(self, row_range: RowRange, io_stats: IoStats) -> Iterator[pa.Table]:
        fixed = dict(row_range.partition)
        names = [name for name in self.schema.names if name not in fixed]
        extra = [self.where.column] if row_range.filtered and self.where.column not in names else []
        with reading(self.place.url(row_range.path)), self.place.open(row_range.path) as source:
            file = pq.ParquetFile(source, pre_buffer=True)
            ends = np.cumsum([0] + [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
            if row_range.last > ends[-1]:
                raise LakeError(f"{self.place.uri}/{row_range.path}: {row_range.last} rows expected, {ends[-1]} found")
            # a file that was written before a column was declared has nulls in it
            present = [name for name in names if name in file.schema_arrow.names]
            for group in range(file.num_row_groups):
                low, high = max(row_range.first, int(ends[group])), min(row_range.last, int(ends[group + 1]))
                if low >= high or (row_range.filtered and not self._may_have_rows(file.metadata.row_group(group))):
                    continue
                rows = file.read_row_group(group, [*present, *extra]).slice(low - int(ends[group]), high - low)
                io_stats.read_rows += rows.num_rows
                io_stats.read_bytes += (
                    _stored(file.metadata.row_group(group), {*names, *extra})
                    * (high - low)
                    // max(1, int(ends[group + 1] - ends[group]))
                )
                if row_range.filtered:
                    rows = rows.filter(pc.invert(self.where.outside(rows[self.where.column])))
                for name, value in fixed.items():
                    if name in self.schema.names:
                        rows = rows.append_column(name, pa.repeat(value, rows.num_rows))
                for name in set(names) - set(present):
                    rows = rows.append_column(name, pa.nulls(rows.num_rows, self.schema.field(name).type))
                yield rows.select(self.schema.names).cast(self.schema)


def _limits(group: Any, name: str) -> tuple[Any, Any]:
    """Least and greatest value of a column in a row group; None, None if they are unknown."""
    for i in range(group.num_columns):
        column = group.column(i)
        if column.path_in_schema == name and column.is_stats_set and column.statistics.has_min_max:
            return column.statistics.min, column.statistics.max
    return None, None


def _stored(group: Any, names: set[str]) -> int:
    """Bytes on disk of some columns of a row group."""
    columns = (group.column(i) for i in range(group.num_columns))
    return sum(column.total_compressed_size for column in columns if column.path_in_schema.split(".")[0] in names)


def touched(
    files: Iterable[dict[str, Any]], where: KeyRange | KeyIn, partition_by: Sequence[str]
) -> Iterator[tuple[dict[str, Any], dict[str, str], bool, bool]]:
    """The files (rows of deltalake's flattened add actions) of the partitions, each with its partition values, and
    whether by its statistics it may have rows inside, and rows outside."""
    for file in files:
        partition = {name: file[f"partition.{name}"] for name in partition_by}
        if all(partition[name] == value for name, value in where.partition):
            low, high = (file.get(f"{end}.{where.column}") for end in ("min", "max"))
            yield file, partition, *where.sides(low, high)


def scan_of(
    place: TableLocation,
    schema: pa.Schema,
    where: KeyRange | KeyIn,
    partition_by: Sequence[str],
    files: list[dict[str, Any]],
) -> Scan:
    """The scan of some files (rows of deltalake's flattened add actions), without those that cannot hold a row."""
    found = []
    for file, partition, inside, outside in touched(files, where, partition_by):
        rows = file["num_records"]
        if rows is None:
            with reading(place.url(file["path"])), place.open(file["path"]) as source:
                rows = pq.ParquetFile(source).metadata.num_rows
        if inside and rows:
            low = file.get(f"min.{where.column}")
            order = tuple(partition.values()), low is None, low, file["path"]
            found.append((order, RowRange(file["path"], 0, rows, tuple(partition.items()), outside)))
    return Scan(place, schema, where, tuple(row_range for _, row_range in sorted(found, key=lambda entry: entry[0])))
