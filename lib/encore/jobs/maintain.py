"""Maintain the lake: compact small files, remove unreferenced ones and arrays of unknown models. Changes no row.

Not a job of the pipeline: it runs when requested by name, or on its own schedule. Table versions that an MLflow run
refers to stay readable as long as that run exists: to release them, delete the run.
"""

from __future__ import annotations

from datetime import UTC, datetime

from encore.errors import TransientError
from encore.lake import maintenance
from encore.lake.model_arrays import ModelArrays
from encore.lake.tables import ALL, MODELS
from encore.runtime.context import JobContext

READS = ()
WRITES = ()
UPKEEP = ALL
SETTINGS = ("maintain",)


def state(ctx: JobContext) -> str:
    """The date, because once a day is enough."""
    return datetime.now(UTC).date().isoformat()


def run(ctx: JobContext) -> None:
    """OPTIMIZE, then VACUUM every existing table.

    Raises TransientError, and removes nothing, if MLflow cannot report which versions its runs refer to.
    """
    limits = ctx.config.maintain
    tables = [table for table in ALL if ctx.store.exists(table)]
    for table in tables:
        ctx.check_lock()
        merged = maintenance.optimize(ctx.store, table, limits.small_files)
        ctx.facts[f"{table.name}/files_merged"] = merged
    referred = ctx.tracking.versions()
    if referred is None:
        raise TransientError(
            f"MLflow does not say which versions its runs refer to, so no file was removed: {ctx.tracking.failed}",
            remedy="fix tracking.uri or tracking.login, or wait until the server answers, and run it again",
        )
    for table in tables:
        ctx.check_lock()
        kept = sorted(referred.get(table.name, set()))
        ctx.facts[f"{table.name}/files_removed"] = maintenance.vacuum(ctx.store, table, kept, limits.retention_days)
        ctx.facts[f"{table.name}/versions_kept"] = len(kept)
    ctx.facts["models_removed"] = _remove_models(ctx)
    ctx.log.info("maintained", tables=len(tables))


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
