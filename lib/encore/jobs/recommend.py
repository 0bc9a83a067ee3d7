"""Recommend tracks for every playlist with every configured model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from encore.arrays.ragged import Ragged
from encore.config import Config
from encore.lake.delta import changes
from encore.lake.scan import KeyRange
from encore.lake.tables import CHALLENGE_PLAYLISTS, HOLDOUT, RECOMMENDATIONS, TRACK_VECTORS, TRACKS
from encore.recommenders.base import Model, TrainingData, recommend
from encore.recommenders.registry import model
from encore.recommenders.training import training_data
from encore.runtime.context import JobContext
from encore.runtime.fingerprint import code_digest, fingerprint
from encore.spark.row_map import Kernel, RowMap

READS = (TRACKS, HOLDOUT, CHALLENGE_PLAYLISTS, TRACK_VECTORS)
WRITES = (RECOMMENDATIONS,)
DERIVED = WRITES
SETTINGS = ("recommend",)

ROWS_A_BLOCK = 16_384
"""Number of playlists passed to a model at a time: with 500 ids and scores each, 65 MB of results."""

COMMON_SETTINGS = ("k", "train_on_challenge")
"""Settings on which the rows of every model depend; settings that only limit memory change no rows."""


def check(config: Config) -> None:
    """Raise ConfigError for a model that is not in the registry."""
    for name in config.recommend.models:
        model(name)


def model_fingerprints(ctx: JobContext) -> dict[str, str]:
    """The fingerprint of each model's rows, from its own code, settings and inputs but not those of other models."""
    return {name: _fingerprint(ctx, model(name)) for name in ctx.config.recommend.models}


def _fingerprint(ctx: JobContext, entry: Model) -> str:
    own = entry.fit.__module__
    settings = ctx.config.recommend.model_dump(mode="json")
    tables = [TRACKS, HOLDOUT]
    tables += [TRACK_VECTORS] if "vectors" in entry.needs else []
    tables += [CHALLENGE_PLAYLISTS] if settings["train_on_challenge"] else []
    return fingerprint(
        f"{ctx.name} {entry.name}",
        code=code_digest(__name__, left_out={"encore.recommenders.registry"}) + code_digest(own),
        settings={name: settings[name] for name in (*COMMON_SETTINGS, *entry.settings)},
        inputs={table.name: ctx.data_id(table) for table in tables},
        writes=WRITES,
    )


def run(ctx: JobContext) -> None:
    """Write `recommendations`, model by model, in pid ranges, from each row's seed tracks and the broadcast arrays."""
    models = [model(name) for name in ctx.config.recommend.models]
    log = list(changes(ctx.store.there(RECOMMENDATIONS)))
    stale = [entry for entry in models if ctx.remaining(log, entry.name)]
    needs = {field for entry in stale for field in entry.needs}
    train = training_data(ctx.stream, ctx.n_rows(TRACKS), needs, with_challenge=ctx.config.recommend.train_on_challenge)
    for entry in stale:
        _recommend(ctx, entry, train)
    for name in sorted(ctx.store.partitions(RECOMMENDATIONS, "model") - set(ctx.models)):
        ctx.write(RECOMMENDATIONS, [], KeyRange((("model", name),)), part=f"{name}: dropped")


def _recommend(ctx: JobContext, entry: Model, train: TrainingData) -> None:
    settings = ctx.config.recommend
    # with the challenge protocol, only some playlists are evaluated, and lists for the others would serve nobody
    is_partial = any(part["kind"].null_count < len(part) for part in ctx.stream(HOLDOUT, ["kind"]))
    shipped = ctx.ship(**entry.fit(train, settings).arrays)

    def start() -> Kernel:
        fitted = entry.load(shipped.open(), settings)

        def kernel(holdout: pa.Table) -> tuple[np.ndarray, dict[str, Any]]:
            wanted = np.arange(len(holdout))
            if is_partial:
                wanted = np.flatnonzero(holdout["kind"].is_valid().to_numpy())
                holdout = holdout.take(pa.array(wanted))
            ranked = recommend(fitted, holdout["pid"].to_numpy(), Ragged.from_arrow(holdout["train"]), settings.k)
            some = np.flatnonzero(ranked.ids.lengths > 0)
            ids, scores = ranked.ids, Ragged(ranked.ids.offsets, ranked.scores)
            if len(some) < len(holdout):
                ids, scores = ids.take(some), scores.take(some)
            return wanted[some], {"track_ids": ids.to_arrow(), "scores": scores.to_arrow()}

        return kernel

    ctx.chunked(
        HOLDOUT,
        RECOMMENDATIONS,
        ("pid", "train", "kind"),
        lambda holdout, *_: RowMap(holdout, start, block=ROWS_A_BLOCK, constant={"model": entry.name}),
        models=[entry.name],
    )
