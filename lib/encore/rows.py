"""From one row to one row: how every job after ingest works. Arrow batches in, Arrow batches out, nothing shuffled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from encore.tables import Table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

Kernel = Callable[[pa.Table], pa.Table]
"""Rows of a bounded number of playlists to rows of the result: at most one for each, with its pid, in their order."""


@dataclass(frozen=True)
class Mapped:
    """A frame that a kernel makes of a source, with the source's keys: unique there, so unique here."""

    frame: DataFrame
    keys: DataFrame


def map_rows(
    source: DataFrame,
    start: Callable[[], Kernel],
    target: Table,
    *,
    block: int,
    constant: dict[str, str] | None = None,
) -> Mapped:
    """Apply a kernel to the rows of `source`, which has a unique `pid`, `block` rows at a time.

    `start` is called once in each Python task and returns the kernel: what is costly to open is opened there.
    `constant` are the key columns of `target` that are one value throughout, such as the model.
    """
    from pyspark.sql import functions as F

    schema = [(c.name, c.type) for c in target.columns]

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from encore.store import arrow_schema

        kernel, wanted = start(), arrow_schema(target)
        for rows in blocks(batches, block):
            result = kernel(rows)
            check_keys(rows["pid"].to_numpy(), result["pid"].to_numpy(), target.name)
            yield from result.select(wanted.names).cast(wanted).combine_chunks().to_batches()

    keys = source.select("pid", *(F.lit(value).alias(name) for name, value in (constant or {}).items()))
    return Mapped(source.mapInArrow(work, ", ".join(f"`{n}` {t}" for n, t in schema)), keys.select(*target.key))


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


def check_keys(source: np.ndarray, result: np.ndarray, table: str) -> None:
    """Raise ValueError unless `result` is a part of `source` in the same order: what makes unique keys stay unique."""
    places = np.searchsorted(source, result, sorter=(order := np.argsort(source, kind="stable")))
    places = order[np.minimum(places, len(source) - 1)] if len(source) else places
    if len(result) and (len(source) == 0 or (source[places] != result).any() or (np.diff(places) <= 0).any()):
        raise ValueError(f"{table}: the kernel's pids are not those that it was given, each once, in their order")
