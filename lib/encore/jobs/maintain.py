"""Maintain the lake: compact small files, remove unreferenced ones and fitted models that nothing refers to.

Not a job of the pipeline: it runs when requested by name, or on its own schedule. Table versions that an MLflow run
refers to stay readable as long as that run exists, and so do fitted models: to release them, delete the run. Apart from
rows of `models`, no rows are changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any, TypeAlias

import pyarrow as pa

from encore.errors import TransientError
from encore.lake import maintenance
from encore.lake.coverage import fitted_models
from encore.lake.delta import Commit
from encore.lake.model_arrays import ModelArrays
from encore.lake.parquet import REPORT
from encore.lake.scan import KeyIn
from encore.lake.tables import ALL, CHALLENGE_PLAYLISTS, MODEL_METRICS, MODELS, RECOMMENDATIONS, TRACKS
from encore.lake.transaction import Transaction
from encore.recommenders.fitted import INPUTS, fingerprints
from encore.runtime.context import JobContext
from encore.runtime.tracking import References

READS = ()
WRITES = ()
UPKEEP = ALL
SETTINGS = ("maintain",)

Key: TypeAlias = tuple[str, str]
"""A fitted model: its name and fingerprint."""
Rows: TypeAlias = Mapping[Key, Mapping[str, Any]]
"""Rows of `models`."""


def state(ctx: JobContext) -> str:
    """The date, because once a day is enough."""
    return datetime.now(UTC).date().isoformat()


def run(ctx: JobContext) -> None:
    """OPTIMIZE, then remove rows of `models` and arrays that nothing refers to, then VACUUM every existing table.

    Raises TransientError, and removes nothing, if MLflow cannot report which versions its runs refer to.
    """
    limits = ctx.config.maintain
    tables = [table for table in ALL if ctx.store.exists(table)]
    for table in tables:
        ctx.check_lock()
        merged = maintenance.optimize(ctx.store, table, limits.small_files)
        ctx.facts[f"{table.name}/files_merged"] = merged
    referred = ctx.tracking.references()
    if referred is None:
        raise TransientError(
            f"MLflow does not say which versions its runs refer to, so no file was removed: {ctx.tracking.failed}",
            remedy="fix tracking.uri or tracking.login, or wait until the server answers, and run it again",
        )
    ctx.facts["models_dropped"] = _drop_models(ctx, referred)
    ctx.facts["models_removed"] = _remove_models(ctx)
    for table in tables:
        ctx.check_lock()
        kept = sorted(referred.versions.get(table.name, set()))
        ctx.facts[f"{table.name}/files_removed"] = maintenance.vacuum(ctx.store, table, kept, limits.retention_days)
        ctx.facts[f"{table.name}/versions_kept"] = len(kept)
    ctx.log.info("maintained", tables=len(tables))


def _drop_models(ctx: JobContext, referred: References) -> int:
    """Remove rows of `models` that nothing refers to and that are older than the retention; returns how many.

    What is kept, with all its parts: what `recommend.models` uses now, the newest fit of each model, what the rows of
    `recommendations` and the newest ones of `model_metrics` come from, and what MLflow's runs refer to.
    """
    if not ctx.store.exists(MODELS):
        return 0
    columns = ["model", "fingerprint", "parts", "fitted_at", "table_ids"]
    rows = {(row["model"], row["fingerprint"]): row for row in ctx.store.read_small(MODELS, columns).to_pylist()}
    kept = set(_present(ctx).items()) | _newest(ctx, rows)
    kept |= {key for key in rows if key[1] in referred.fitted}
    kept |= _recommended(ctx, rows) | _evaluated(ctx)
    todo = list(kept)
    while todo:
        row = rows.get(todo.pop())
        parts = set(dict(row["parts"] or ()).items()) - kept if row else set()
        kept |= parts
        todo += parts
    latest = datetime.now(UTC) - timedelta(days=ctx.config.maintain.retention_days)
    old = [key for key, row in rows.items() if key not in kept and row["fitted_at"] < latest]
    if old:
        ctx.check_lock()
        where = KeyIn("fingerprint", pa.array(sorted(fingerprint for _, fingerprint in old)))
        commit = Commit(ctx.name, ctx.run_id, ctx.fingerprint, "unreferenced")
        Transaction(ctx.store, MODELS, ctx.store.there(MODELS)).commit(REPORT.empty_table(), commit, where)
    return len(old)


def _present(ctx: JobContext) -> dict[str, str]:
    """The fits that the present configuration uses on the present tables, whether they are stored or not."""
    inputs = {table for tables in INPUTS.values() for table in tables} | {TRACKS, CHALLENGE_PLAYLISTS}
    states = {table.name: ctx.store.state(table) for table in inputs}
    data_ids = {name: state.data_id for name, state in states.items() if state is not None}
    return fingerprints(ctx.config, ctx.config.recommend.models, data_ids)


def _newest(ctx: JobContext, rows: Rows) -> set[Key]:
    """The newest fit of each model, and the newest one on the present table `tracks`, which the CLI uses."""
    state = ctx.store.state(TRACKS)
    found: dict[tuple[str, bool], Key] = {}
    for key, row in sorted(rows.items(), key=lambda item: item[1]["fitted_at"]):
        found[key[0], False] = key
        if state is not None and dict(row["table_ids"]).get(TRACKS.name) == state.id:
            found[key[0], True] = key
    return set(found.values())


def _recommended(ctx: JobContext, rows: Rows) -> set[Key]:
    """The fits that rows of `recommendations` come from; all fits of a model whose rows do not say so."""
    state = ctx.store.state(RECOMMENDATIONS)
    found: set[Key] = set()
    for name in ctx.store.partitions(RECOMMENDATIONS, "model") if state else ():
        fitted = fitted_models(state.changes(), (("model", name),)) if state else None
        found |= {key for key in rows if key[0] == name and (fitted is None or key[1] in fitted)}
    return found


def _evaluated(ctx: JobContext) -> set[Key]:
    """The fits that the newest means of each model are of."""
    rows = ctx.store.read_small(MODEL_METRICS, ["model", "evaluated_at", "fitted"]).to_pylist()
    newest = {row["model"]: row["fitted"] for row in sorted(rows, key=itemgetter("evaluated_at"))}
    return {(name, fitted) for name, fitted in newest.items() if fitted}


def _remove_models(ctx: JobContext) -> int:
    """Delete arrays of fitted models that no row of `models` refers to, such as those of a fit that was killed; returns
    of how many."""
    stored = ModelArrays.of(ctx.config)
    rows = ctx.store.read_small(MODELS, ["model", "fingerprint"]).to_pylist()
    unknown = stored.fitted() - {(row["model"], row["fingerprint"]) for row in rows}
    for model, fingerprint in sorted(unknown):
        ctx.check_lock()
        stored.delete(model, fingerprint)
    return len(unknown)
