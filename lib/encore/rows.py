"""From one row to one row: how every job after ingest works. Arrow batches in, Arrow batches out, nothing shuffled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from encore.tables import Table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

Kernel = Callable[[pa.Table], tuple[np.ndarray | None, dict[str, Any]]]
"""Rows of a bounded number of playlists to columns of the result, and the places of the rows that they are of, rising;
None: of all. The kernel does not say keys: a result row has those of its source row."""


@dataclass(frozen=True)
class Mapped:
    """A frame that a kernel makes of a source, with the source's keys: unique there, so unique here."""

    frame: DataFrame
    keys: DataFrame


def map_rows(
    source: DataFrame, start: Callable[[], Kernel], target: Table, *, block: int, constant: dict[str, str] | None = None
) -> Mapped:
    """Apply a kernel to the rows of `source`, `block` rows at a time.

    `start` is called once in each Python task and returns the kernel: what is costly to open is opened there.
    `source` has the key columns of `target` but for those in `constant`, which are one value throughout.
    """
    from pyspark.sql import functions as F

    fixed = constant or {}

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from encore.store import arrow_schema

        kernel, wanted = start(), arrow_schema(target)
        for rows in blocks(batches, block):
            kept, columns = kernel(rows)
            result = with_keys(rows, kept, columns, target, fixed)
            yield from result.select(wanted.names).cast(wanted).combine_chunks().to_batches()

    keys = source.select(*(F.lit(fixed[name]).alias(name) if name in fixed else name for name in target.key))
    return Mapped(source.mapInArrow(work, target.ddl), keys)


def with_keys(
    rows: pa.Table, kept: np.ndarray | None, columns: dict[str, Any], target: Table, fixed: dict[str, str]
) -> pa.Table:
    """The kernel's columns with the keys of their source rows. ValueError unless `kept` are places of rows, rising."""
    if kept is not None and len(kept) and (kept[0] < 0 or kept[-1] >= len(rows) or (np.diff(kept) <= 0).any()):
        raise ValueError(f"{target.name}: places of source rows, rising, expected from the kernel")
    n = len(rows) if kept is None else len(kept)
    keys: dict[str, Any] = {}
    for name in target.key:
        if name in fixed:
            keys[name] = pa.repeat(fixed[name], n)
        else:
            keys[name] = rows[name] if kept is None else rows[name].take(pa.array(kept))
    return pa.table({**columns, **keys})


def blocks(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Batches of whatever size joined and cut into tables of `size` rows, the last one shorter."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, size - count)
            batch = batch.slice(part.num_rows)
            held.append(part)
            count += part.num_rows
            if count == size:
                yield pa.Table.from_batches(held)
                held, count = [], 0
    if held:
        yield pa.Table.from_batches(held)
