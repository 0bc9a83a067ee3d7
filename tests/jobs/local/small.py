"""A lake of three slices on which all jobs have run in this process, for tests of what happens to it afterwards."""

from __future__ import annotations

from pathlib import Path

from deltalake import DeltaTable

from encore.lake.tables import Table
from tests import recompute
from tests.changes import JOBS, Folder, Lake

OVERRIDES = {
    "recommend.k": "4",
    "vectors.transform": "raw",
    "recommend.models": "[popularity,random]",
    "run.chunk_playlists": "5",
}


def opened(folder: Path) -> Lake:
    own = {**OVERRIDES, "raw.features": str(folder / "features" / "features.csv")}
    return Lake(folder / "lake", Folder(folder / "raw"), own)


def run(lake: Lake) -> dict[str, str]:
    """Run all jobs; returns their status."""
    return {job: lake.run(job).status for job in JOBS}


def done(lake: Lake) -> set[str]:
    """Run all jobs; returns those that had work to do."""
    return {job for job, status in run(lake).items() if status == "done"}


def rows(lake: Lake, table: Table) -> list[str]:
    return sorted(map(str, recompute.table(lake.path, table.name)))


def overwrite(lake: Lake, table: Table) -> None:
    """What another program does to a table: it deletes all rows."""
    DeltaTable(str(lake.path / table.name)).delete()
