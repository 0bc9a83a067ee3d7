"""Hold out random tracks of each playlist."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from encore.arrays.ragged import Ragged
from encore.lake.tables import HOLDOUT, PLAYLISTS
from encore.runtime.context import JobContext
from encore.spark.row_map import Kernel, RowMap
from encore.splits.holdout import split

READS = (PLAYLISTS,)
WRITES = (HOLDOUT,)
DERIVED = WRITES
SETTINGS = ("split",)


def run(ctx: JobContext) -> None:
    """Write `holdout`, one row per row of `playlists`."""
    seed, fraction = ctx.config.split.seed, ctx.config.split.fraction

    def start() -> Kernel:
        def kernel(playlists: pa.Table) -> tuple[None, dict[str, Any]]:
            pids = playlists["pid"].to_numpy()
            train, test = split(pids, Ragged.from_arrow(playlists["track_ids"]), seed=seed, fraction=fraction)
            parts = {"train": train.to_arrow(), "test": test.to_arrow()}
            return None, {**parts, "title": playlists["name"], "kind": pa.nulls(len(playlists), pa.string())}

        return kernel

    ctx.chunked(
        PLAYLISTS,
        HOLDOUT,
        ("pid", "name", "track_ids"),
        lambda playlists, *_: RowMap(playlists, start, block=20_000),
    )
