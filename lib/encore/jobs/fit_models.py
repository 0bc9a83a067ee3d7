"""Fit every configured model, and the models that it is made of, and store their arrays in the lake."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from encore.config import Config
from encore.lake.filesystem import delete_folder
from encore.lake.model_arrays import ModelArrays
from encore.lake.scan import KeyIn
from encore.lake.tables import CHALLENGE_PLAYLISTS, HOLDOUT, MODELS, TRACK_VECTORS, TRACKS, arrow_schema
from encore.recommenders.base import Model, Tools
from encore.recommenders.fitted import FittedModels, fingerprints
from encore.recommenders.registry import model, with_parts
from encore.recommenders.training import training_data
from encore.runtime.context import JobContext
from encore.spark.tasks import run_tasks

READS = (TRACKS, HOLDOUT, CHALLENGE_PLAYLISTS, TRACK_VECTORS, MODELS)
WRITES = (MODELS,)
SETTINGS = ("recommend",)


def check(config: Config) -> None:
    """Raise ConfigError for a model that is not in the registry."""
    for name in config.recommend.models:
        model(name)


def model_fingerprints(ctx: JobContext) -> dict[str, str]:
    """The fingerprint of each model and part."""
    data_ids = {table.name: ctx.data_id(table) for table in READS if table not in WRITES}
    return fingerprints(ctx.config, ctx.config.recommend.models, data_ids)


def state(ctx: JobContext) -> str:
    """Empty if the arrays of all models are there, otherwise the run that stores them.

    So arrays that were deleted are fitted again.
    """
    arrays = ModelArrays.of(ctx.config)
    return arrays.token(ctx.run_id, not _missing(arrays, model_fingerprints(ctx)))


def _missing(arrays: ModelArrays, models: Mapping[str, str]) -> set[str]:
    """Names of the models whose arrays are not stored; `models`: fingerprints by name."""
    return {name for name, found in models.items() if not arrays.has(name, found)}


def run(ctx: JobContext) -> None:
    """Fit the models whose fingerprint is new, one after the other; each is stored before its row is written."""
    arrays = ModelArrays.of(ctx.config)
    missing = _missing(arrays, ctx.models)
    rows = ctx.store.read_small(MODELS, ["model", "fingerprint"]).to_pylist()
    known = {(row["model"], row["fingerprint"]) for row in rows if row["model"] not in missing}
    models = FittedModels(arrays, ctx.config.recommend, ctx.models)
    entries = with_parts(ctx.config.recommend.models)
    stale = [entry for entry in entries if ctx.force or (entry.name, ctx.models[entry.name]) not in known]
    settings = ctx.config.recommend
    train = training_data(
        ctx.stream,
        ctx.n_rows(TRACKS),
        {field for entry in stale for field in entry.needs},
        ctx.config.split,
        trial_playlists=settings.trial_playlists,
        with_challenge=settings.train_on_challenge,
    )
    for entry in stale:
        started, own = time.monotonic(), ctx.models[entry.name]
        parts = {name: models.load(name) for name in entry.parts}
        checkpoints = arrays.checkpoints(entry.name, own)
        made = entry.fit(train, settings, parts, _tools(ctx, entry, checkpoints))
        stored = arrays.write(entry.name, own, made)
        delete_folder(checkpoints, ctx.config.s3)
        seconds = time.monotonic() - started
        row = {
            "model": entry.name,
            "fingerprint": own,
            "settings": json.dumps(_settings(ctx.config, entry), sort_keys=True),
            "parts": [(name, ctx.models[name]) for name in entry.parts],
            "fitted_at": datetime.now(UTC),
            "run_id": ctx.run_id,
            "seconds": seconds,
            "size_bytes": stored.size,
            "arrays": list(stored.arrays.items()),
            "digest": stored.digest,
            "inputs": list(ctx.versions.items()),
            "table_ids": [(name, found.id) for name, found in ctx.inputs.items()],
        }
        table = pa.Table.from_pylist([row], schema=arrow_schema(MODELS))
        where = KeyIn("fingerprint", pa.array([own]))
        ctx.write(MODELS, [table], where, part=entry.name, fingerprint=own)
        ctx.log.info("model_fitted", model=entry.name, seconds=round(seconds, 3), size_bytes=stored.size)
    if missing:
        arrays.write_token(ctx.run_id)


def _tools(ctx: JobContext, entry: Model, checkpoints: str) -> Tools:
    def run(tasks: Sequence[Any], work: Callable[[Any], pa.Table]) -> list[pa.Table]:
        return run_tasks(ctx.spark, tasks, work)

    def on_step(step: int, metrics: Mapping[str, float]) -> None:
        ctx.tracking.log_step(f"{ctx.name}/{entry.name}", step, metrics)
        ctx.log.info("fit_step", model=entry.name, step=step, **metrics)

    n_tasks = ctx.spark.sparkContext.defaultParallelism if entry.is_distributed else 1
    return Tools(checkpoints, ctx.config.s3, run, n_tasks, on_step)


def _settings(config: Config, entry: Model) -> dict[str, Any]:
    values = config.recommend.model_dump(mode="json")
    return {name: values[name] for name in entry.settings}
