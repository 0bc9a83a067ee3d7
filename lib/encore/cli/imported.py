"""What `encore import` prints at the end."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table as Grid

from encore.importing.importer import Imported

_SHOWN = 3


def print_imported(imported: Imported, folder: Path, out: Console, err: Console) -> None:
    """Print what was written and a table of what was lost; to `err`, a line for each reason not to import a file."""
    by_reason: dict[str, list[str]] = {}
    remedies = {refusal.reason: refusal.remedy for refusal in imported.refused}
    for refusal in imported.refused:
        by_reason.setdefault(refusal.reason, []).append(refusal.path)
    for reason, paths in by_reason.items():
        more = f" and {len(paths) - _SHOWN:,} more" if len(paths) > _SHOWN else ""
        remedy = f" ({remedies[reason]})" if remedies[reason] else ""
        line = f"not imported: {', '.join(paths[:_SHOWN])}{more}: {reason}{remedy}"
        err.print(line, highlight=False, markup=False)
    if imported.losses:
        grid = Grid("lost", "count")
        grid.columns[1].justify = "right"
        for loss, count in imported.losses.items():
            grid.add_row(loss, f"{count:,}")
        out.print(grid)
    counts = ((imported.n_playlists, "playlist"), (imported.n_tracks, "track"), (len(imported.slices), "slice"))
    playlists, tracks, slices = (f"{count:,} {unit}{'' if count == 1 else 's'}" for count, unit in counts)
    out.print(
        f"{playlists} with {tracks} in {slices}: {folder}/{imported.name}.slice.*.json",
        highlight=False,
        markup=False,
    )
