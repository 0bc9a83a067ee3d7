"""Check what was evaluated: whether models serve as many playlists, and do as well, as in the last good run."""

from __future__ import annotations

from encore.lake.tables import CHECKS, MODEL_METRICS, PLAYLIST_METRICS
from encore.runtime.checks import run_checks, settings_digest
from encore.runtime.context import JobContext

READS = (PLAYLIST_METRICS, MODEL_METRICS, CHECKS)
WRITES = (CHECKS,)
BEFORE = ("register_models", "report")
SETTINGS = ()


def state(ctx: JobContext) -> str:
    """The settings of the expectations, without what is accepted."""
    return settings_digest(ctx)


def run(ctx: JobContext) -> None:
    """Write rows of `checks`. InputError if an expectation of severity `fail` is not met."""
    run_checks(ctx)
