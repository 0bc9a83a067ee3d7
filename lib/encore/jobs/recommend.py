"""Recommend tracks for every playlist, with every model that the settings name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from encore.arrays.ragged import Ragged
from encore.config import Config
from encore.lake.scan import KeyRange
from encore.lake.tables import HOLDOUT, RECOMMENDATIONS, TRACK_VECTORS, TRACKS
from encore.lake.track_arrays import count_tracks, vector_matrix
from encore.recommenders.base import Model, Train, recommend
from encore.recommenders.registry import model
from encore.runtime.context import JobContext
from encore.spark.row_map import Kernel, RowMap

READS = (TRACKS, HOLDOUT, TRACK_VECTORS)
WRITES = (RECOMMENDATIONS,)
SETTINGS = ("recommend",)

ROWS_A_BLOCK = 16_384
"""Playlists that a worker asks a model for at a time: with 500 ids and scores each, 65 MB of results."""


def check(config: Config) -> None:
    """ConfigError for a model that is not in the registry."""
    for name in config.recommend.models:
        model(name)


def run(ctx: JobContext) -> None:
    """`recommendations`, model by model in ranges of pids. A model sees the seeds of a row and what was shipped."""
    models = [model(name) for name in ctx.config.recommend.models]
    train = _train(ctx, {field for entry in models for field in entry.needs})
    for entry in models:
        _recommend(ctx, entry, train)
    for name in sorted(ctx.store.partitions(RECOMMENDATIONS, "model") - {entry.name for entry in models}):
        ctx.write(RECOMMENDATIONS, [], KeyRange((("model", name),)), part=f"{name}: dropped")


def _train(ctx: JobContext, needs: set[str]) -> Train:
    n = ctx.n_rows(TRACKS)
    counts = np.empty(0, np.int64)
    if "counts" in needs:
        counts = count_tracks(ctx.stream(HOLDOUT, ["train"]), "train", n)
    if "vectors" in needs:
        ids, vectors = vector_matrix(ctx.stream(TRACK_VECTORS, ("track_id", "vector")))
    else:
        ids, vectors = np.empty(0, np.int32), np.empty((0, 0), np.float32)
    return Train(n_tracks=n, counts=counts, vector_ids=ids, vectors=vectors)


def _recommend(ctx: JobContext, entry: Model, train: Train) -> None:
    settings = ctx.config.recommend
    shipped = ctx.ship(**entry.fit(train, settings).arrays)

    def start() -> Kernel:
        fitted = entry.load(shipped.open(), settings)

        def kernel(holdout: pa.Table) -> tuple[np.ndarray, dict[str, Any]]:
            ranked = recommend(fitted, holdout["pid"].to_numpy(), Ragged.from_arrow(holdout["train"]), settings.k)
            some = np.flatnonzero(ranked.ids.lengths > 0)
            ids, scores = ranked.ids, Ragged(ranked.ids.offsets, ranked.scores)
            if len(some) < len(holdout):
                ids, scores = ids.take(some), scores.take(some)
            return some, {"track_ids": ids.to_arrow(), "scores": scores.to_arrow()}

        return kernel

    ctx.chunked(
        HOLDOUT,
        RECOMMENDATIONS,
        ("pid", "train"),
        lambda holdout, _: RowMap(holdout, start, block=ROWS_A_BLOCK, constant={"model": entry.name}),
        model=entry.name,
    )
