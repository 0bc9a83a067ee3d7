"""One page for people."""

from __future__ import annotations

from encore.job import JobContext
from encore.tables import PLAYLIST_METRICS

READS = (PLAYLIST_METRICS,)
WRITES = ()
SETTINGS = ("report",)


def run(ctx: JobContext) -> None:
    """Nothing yet."""
