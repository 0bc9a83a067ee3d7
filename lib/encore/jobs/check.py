"""Check what was ingested: the numbers of playlists and tracks, how much was refused, how many tracks have features."""

from __future__ import annotations

from encore.config import Config
from encore.lake.expectations import check_settings
from encore.lake.tables import AUDIO_FEATURES, CHECKS, INGEST_LEDGER, PLAYLISTS, QUARANTINE, TRACKS
from encore.runtime.checks import run_checks, settings_digest
from encore.runtime.context import JobContext

READS = (PLAYLISTS, TRACKS, INGEST_LEDGER, QUARANTINE, AUDIO_FEATURES, CHECKS)
WRITES = (CHECKS,)
BEFORE = ("build_track_vectors", "split_holdout")
SETTINGS = ()


def check(config: Config) -> None:
    """Raise ConfigError unless the settings `check` are about the declared expectations."""
    check_settings(config)


def state(ctx: JobContext) -> str:
    """The settings of the expectations, without what is accepted."""
    return settings_digest(ctx)


def run(ctx: JobContext) -> None:
    """Write rows of `checks`. InputError if an expectation of severity `fail` is not met."""
    run_checks(ctx)
