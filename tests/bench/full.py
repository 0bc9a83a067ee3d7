"""Full size: the line on an eighth, a quarter, half and all of a million playlists, and once in little memory.

A run that is broken off goes on where it was: what is measured is kept, and jobs that were done are not done again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.bench.data import CACHE, first_slices, playlists_in, slices_of
from tests.bench.figures import Found
from tests.bench.line import Ran, figures_of, growth, run_line

PLAYLISTS = 1_000_000
SHARES = (8, 4, 2, 1)

SMALL_MEMORY = {
    "spark.driver_memory": "1g",
    "ingest.slices_per_task": "16",
    "run.chunk_playlists": "100000",
}
"""Settings with which a machine of 8 GB does it, slower."""


def run(data: Path | None, limit: int | None, only: list[int], said: Callable[[str], None]) -> Found:
    """Figures full.n<playlists>... for each share; `data`: slices of any origin, generated ones where it is None.

    With a `limit`, in bytes, all playlists alone are worked on, by the settings SMALL_MEMORY, as full.limited...
    """
    folder = data or slices_of(PLAYLISTS)
    total = playlists_in(folder)
    sizes = [total] if limit else [total // share for share in SHARES]
    found = Found()
    before: tuple[int, Ran] | None = None
    for n in sizes:
        if only and n not in only:
            continue
        home = CACHE / "full" / (f"{n}-limit-{limit}" if limit else str(n))
        raw, origin = first_slices(folder, n // 1000, CACHE / "full" / f"slices-{n}")
        said(f"{n:,} playlists, {origin}: {home}")
        ran = run_line(raw, raw / "features", home, settings=SMALL_MEMORY if limit else {}, limit=limit)
        prefix = "full.limited" if limit else "full"
        found += figures_of(n, ran, prefix)
        if before is not None and not limit:
            found += growth(before[0], before[1], n, ran, prefix)
        before = (n, ran)
        said(f"{n:,} playlists: {ran.seconds:,.0f} s, {ran.peak / 1e9:.1f} GB, {ran.disk / ran.input:.2f} x the input")
    return found
