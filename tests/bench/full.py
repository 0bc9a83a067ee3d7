"""Full size: the pipeline on an eighth, a quarter, half and all of a million playlists, and once with limited memory.

An interrupted run can be resumed: measurements are kept, and jobs that were done are not repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.bench.data import CACHE, first_slices, playlists_in, slices_of
from tests.bench.figures import Found
from tests.bench.line import Ran, figures_of, growth, run_line

PLAYLISTS = 1_000_000
DIVISORS = (8, 4, 2, 1)

SMALL_MEMORY = {
    "spark.driver_memory": "1g",
    "ingest.slices_per_task": "16",
    "run.chunk_playlists": "100000",
}
"""Settings with which a machine with 8 GB of memory can run it, more slowly."""


def run(data: Path | None, limit: int | None, only: list[int], on_progress: Callable[[str], None]) -> Found:
    """Figures full.n<playlists>... for each size. `data`: slices of any origin; None for generated ones.

    With a `limit` on memory, in bytes, only the full size is run, with the settings SMALL_MEMORY, as full.limited...
    """
    folder = data or slices_of(PLAYLISTS)
    total = playlists_in(folder)
    sizes = [total] if limit else [total // divisor for divisor in DIVISORS]
    found = Found()
    before: tuple[int, Ran] | None = None
    for n in sizes:
        if only and n not in only:
            continue
        home = CACHE / "full" / (f"{n}-limit-{limit}" if limit else str(n))
        raw, origin = first_slices(folder, n // 1000, CACHE / "full" / f"slices-{n}")
        on_progress(f"{n:,} playlists, {origin}: {home}")
        ran = run_line(raw, raw / "features", home, settings=SMALL_MEMORY if limit else {}, limit=limit)
        prefix = "full.limited" if limit else "full"
        found += figures_of(n, ran, prefix)
        if before is not None and not limit:
            found += growth(before[0], before[1], n, ran, prefix)
        before = (n, ran)
        on_progress(
            f"{n:,} playlists: {ran.seconds:,.0f} s, {ran.peak / 1e9:.1f} GB, {ran.disk / ran.input:.2f} x the input"
        )
    return found
