"""Recommend tracks for every playlist with every configured model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from encore.arrays.ragged import Ragged
from encore.config import Config
from encore.lake.delta import changes
from encore.lake.model_arrays import ModelArrays
from encore.lake.scan import KeyRange
from encore.lake.tables import CHALLENGE_PLAYLISTS, HOLDOUT, MODELS, RECOMMENDATIONS, TRACK_VECTORS, TRACKS
from encore.recommenders.base import Queries, recommend
from encore.recommenders.fitted import FittedModels, fingerprints
from encore.recommenders.registry import model
from encore.runtime.context import JobContext
from encore.runtime.fingerprint import code_digest, fingerprint
from encore.spark.row_map import Kernel, RowMap

READS = (TRACKS, HOLDOUT, CHALLENGE_PLAYLISTS, TRACK_VECTORS, MODELS)
WRITES = (RECOMMENDATIONS,)
DERIVED = WRITES
SETTINGS = ("recommend",)

ROWS_A_BLOCK = 16_384
"""Number of playlists passed to a model at a time: with 500 ids and scores each, 65 MB of results."""


def check(config: Config) -> None:
    """Raise ConfigError for a model that is not in the registry."""
    for name in config.recommend.models:
        model(name)


def model_fingerprints(ctx: JobContext) -> dict[str, str]:
    """The fingerprint of each model's rows, from the fitted model, the playlists and k, but not from other models."""
    fitted = _fitted(ctx).fingerprints
    return {
        name: fingerprint(
            f"{ctx.name} {name}",
            code=code_digest(__name__, left_out={"encore.recommenders.registry"}),
            settings={"k": ctx.config.recommend.k, "model": fitted[name]},
            inputs={HOLDOUT.name: ctx.data_id(HOLDOUT)},
            writes=WRITES,
        )
        for name in ctx.config.recommend.models
    }


def _fitted(ctx: JobContext) -> FittedModels:
    data_ids = {table.name: ctx.data_id(table) for table in (TRACKS, HOLDOUT, CHALLENGE_PLAYLISTS, TRACK_VECTORS)}
    found = fingerprints(ctx.config, ctx.config.recommend.models, data_ids)
    return FittedModels(ModelArrays.of(ctx.config), ctx.config.recommend, found)


def run(ctx: JobContext) -> None:
    """Write `recommendations`, model by model, in pid ranges, from each row's seed tracks and the mapped arrays."""
    log = list(changes(ctx.store.there(RECOMMENDATIONS)))
    models = _fitted(ctx)
    # with the challenge protocol, only some playlists are evaluated, and lists for the others would serve nobody
    is_partial = any(part["kind"].null_count < len(part) for part in ctx.stream(HOLDOUT, ["kind"]))
    for name in ctx.config.recommend.models:
        if ctx.remaining(log, name):
            _recommend(ctx, name, models, is_partial=is_partial)
    for name in sorted(ctx.store.partitions(RECOMMENDATIONS, "model") - set(ctx.models)):
        ctx.write(RECOMMENDATIONS, [], KeyRange((("model", name),)), part=f"{name}: dropped")


def _recommend(ctx: JobContext, name: str, models: FittedModels, *, is_partial: bool) -> None:
    # here too, so that a model that is not stored is an error before any task starts
    models.load(name)
    k = ctx.config.recommend.k

    def start() -> Kernel:
        fitted = models.load(name)

        def kernel(holdout: pa.Table) -> tuple[np.ndarray, dict[str, Any]]:
            wanted = np.arange(len(holdout))
            if is_partial:
                wanted = np.flatnonzero(holdout["kind"].is_valid().to_numpy())
                holdout = holdout.take(pa.array(wanted))
            seeds = Ragged.from_arrow(holdout["train"])
            ranked = recommend(fitted, Queries(holdout["pid"].to_numpy(), seeds, holdout["title"].to_pylist()), k)
            some = np.flatnonzero(ranked.ids.lengths > 0)
            ids, scores = ranked.ids, Ragged(ranked.ids.offsets, ranked.scores)
            if len(some) < len(holdout):
                ids, scores = ids.take(some), scores.take(some)
            return wanted[some], {"track_ids": ids.to_arrow(), "scores": scores.to_arrow()}

        return kernel

    ctx.chunked(
        HOLDOUT,
        RECOMMENDATIONS,
        ("pid", "train", "title", "kind"),
        lambda holdout, *_: RowMap(holdout, start, block=ROWS_A_BLOCK, constant={"model": name}),
        models=[name],
    )
