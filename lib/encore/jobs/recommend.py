"""Recommend tracks for every playlist with every configured model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encore.arrays.ragged import Ragged
from encore.config import Config
from encore.lake.delta import changes
from encore.lake.model_arrays import ModelArrays
from encore.lake.parquet import TableLocation, Writer
from encore.lake.scan import KeyRange, Scan, scan_of
from encore.lake.tables import (
    CHALLENGE_PLAYLISTS,
    HOLDOUT,
    MODELS,
    RECOMMENDATIONS,
    TRACK_VECTORS,
    TRACKS,
    arrow_schema,
)
from encore.recommenders.base import Queries, recommend
from encore.recommenders.fitted import FittedModels, fingerprints
from encore.recommenders.registry import model
from encore.runtime.context import JobContext
from encore.runtime.fingerprint import code_digest, fingerprint
from encore.spark.row_map import Kernel, RowMap
from encore.splits.sampling import sample_settings, sampled_pids

READS = (TRACKS, HOLDOUT, CHALLENGE_PLAYLISTS, TRACK_VECTORS, MODELS)
WRITES = (RECOMMENDATIONS,)
DERIVED = WRITES
SETTINGS = ("recommend", "evaluate")

COLUMNS = ("pid", "train", "title", "kind")
"""The columns of `holdout` that queries are made of."""

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
            settings={"k": ctx.config.recommend.k, "model": fitted[name], "sample": sample_settings(ctx.config)},
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
    ctx.fitted = {name: models.fingerprints[name] for name in ctx.models}
    todo = [name for name in ctx.config.recommend.models if ctx.remaining(log, name)]
    # with the challenge protocol, only some playlists are evaluated, and lists for the others would serve nobody
    is_partial = any(part["kind"].null_count < len(part) for part in ctx.stream(HOLDOUT, ["kind"]))
    with _sampled(ctx, sampled_pids(ctx.stream, ctx.config) if todo else None) as sample:
        for name in todo:
            _recommend(ctx, name, models, sample, is_partial=is_partial)
    for name in sorted(ctx.store.partitions(RECOMMENDATIONS, "model") - set(ctx.models)):
        ctx.write(RECOMMENDATIONS, [], KeyRange((("model", name),)), part=f"{name}: dropped")


@dataclass(frozen=True)
class _Sample:
    """The sorted pids of the playlists that are evaluated, and their rows of `holdout` with COLUMNS."""

    pids: np.ndarray
    rows: Scan


@contextmanager
def _sampled(ctx: JobContext, pids: np.ndarray | None) -> Iterator[_Sample | None]:
    """Copy the rows of some playlists to a file of their own, so that no model reads those of all the others."""
    if pids is None:
        yield None
        return
    with ctx.store.scratch("sample") as folder:
        place = TableLocation(folder, ctx.config.s3)
        writer, wanted = Writer(HOLDOUT, place), pa.array(pids)
        for part in ctx.stream(HOLDOUT, HOLDOUT.names):
            writer.write(part.filter(pc.is_in(part["pid"], wanted)))
        reports = writer.close().to_pylist()
        files = [{"path": file["path"], "num_records": json.loads(file["stats"])["numRecords"]} for file in reports]
        yield _Sample(pids, scan_of(place, arrow_schema(HOLDOUT, COLUMNS), KeyRange(), (), files))


def _recommend(ctx: JobContext, name: str, models: FittedModels, sample: _Sample | None, *, is_partial: bool) -> None:
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
        COLUMNS,
        lambda holdout, *_: RowMap(
            sample.rows.within(holdout.where) if sample else holdout,
            start,
            block=ROWS_A_BLOCK,
            constant={"model": name},
        ),
        models=[name],
        only=sample.pids if sample else None,
    )
