"""Table maintenance: compacts small files and removes unreferenced ones. Changes no row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from deltalake.exceptions import DeltaError

from encore.errors import LakeError
from encore.lake.delta import Tables, data_files
from encore.lake.failures import delta_error
from encore.lake.schema import LOG_RETENTION
from encore.lake.tables import Table

SMALL_BYTES = 16 * 1024**2
"""Files below this size are compacted: opening a file on S3 costs about as much as reading this many bytes."""


def optimize(tables: Tables, table: Table, small_files: int) -> int:
    """Compact the small files of each partition that has at least `small_files`; returns how many were merged."""
    found = tables.there(table)
    small: dict[tuple[str, ...], int] = {}
    for file in data_files(found):
        if file["size_bytes"] < SMALL_BYTES:
            partition = tuple(str(file[f"partition.{name}"]) for name in table.partition_by)
            small[partition] = small.get(partition, 0) + 1
    merged = 0
    for partition, count in small.items():
        if count >= small_files:
            # merging a partition may take as long as credentials are valid
            found = tables.there(table)
            where = [(name, "=", value) for name, value in zip(table.partition_by, partition, strict=True)]
            with _maintaining(table):
                # a file is either small or left as it is
                done = found.optimize.compact(partition_filters=where or None, target_size=SMALL_BYTES)
            merged += int(done["numFilesRemoved"])
    return merged


def vacuum(tables: Tables, table: Table, keep_versions: Sequence[int], retention_days: int) -> int:
    """Remove files older than the retention that neither the newest version nor `keep_versions` refer to; returns
    how many. The log entries of kept versions stay, too."""
    found = tables.there(table)
    with _maintaining(table):
        if found.metadata().configuration.get(LOG_RETENTION[0]) != LOG_RETENTION[1]:
            found.alter.set_table_properties(dict([LOG_RETENTION]))
        kept = [version for version in keep_versions if _readable(tables, table, version)]
        found.update_incremental()
        removed = found.vacuum(
            retention_hours=24 * retention_days,
            dry_run=False,
            enforce_retention_duration=False,
            keep_versions=kept or None,
        )
    return len(removed)


def _readable(tables: Tables, table: Table, version: int) -> bool:
    """Whether a version can still be read; a run of another lake may name one that never existed here."""
    try:
        return tables.at(table, version).version() == version
    except LakeError:
        return False


@contextmanager
def _maintaining(table: Table) -> Iterator[None]:
    try:
        yield
    except (DeltaError, OSError) as error:
        raise delta_error(f"{table.name}: cannot be maintained", error) from error
