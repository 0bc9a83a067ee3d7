"""Cleanup after runs that did not finish because they were killed or their machine was lost.

A job that has work to do creates a folder in the lake, `_scratch/<job>-<id>`, for its intermediate files and for a file
that identifies the process and the versions of its tables at the start. A job that succeeds removes the folder. If a
folder from an earlier run exists, that run did not finish: the next run of the same job removes the folder and, of the
data files added to the job's tables since then, those that no version of the table has ever referenced. Files of older
versions are kept.

Only a job that has work to do cleans up, and only its own folders, so a run with nothing to do has no overhead.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import structlog

from encore import temporary
from encore.config import S3Config
from encore.errors import EncoreError
from encore.lake.filesystem import SourceFile, delete_files, delete_folder, files_below, read_bytes, write_bytes
from encore.lake.store import Store
from encore.lake.tables import Table

OWNER = "owner.json"

log = structlog.get_logger("encore.runtime.leftovers")


@dataclass
class Cleaned:
    """What was cleaned up after earlier runs: temporary folders of this machine, scratch files in the lake, data files
    that no version of a table references, and the number of MLflow runs that were marked as killed."""

    folders: int = 0
    folder_bytes: int = 0
    set_aside: int = 0
    set_aside_bytes: int = 0
    data_files: int = 0
    data_bytes: int = 0
    mlflow_runs: int = 0

    def line(self) -> str | None:
        """A one-line summary; None if nothing was cleaned up."""
        parts = [
            f"{count:,} {what} ({_megabytes(size)})"
            for count, what, size in (
                (self.folders, "temporary folder(s)", self.folder_bytes),
                (self.set_aside, "scratch file(s)", self.set_aside_bytes),
                (self.data_files, "unreferenced data file(s)", self.data_bytes),
            )
            if count
        ]
        if self.mlflow_runs:
            parts.append(f"{self.mlflow_runs:,} MLflow run(s) marked as killed")
        return f"Cleaned up after runs that did not end: {', '.join(parts)}" if parts else None


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


@contextmanager
def working(store: Store, job: str, run_id: str, tables: Sequence[Table], cleaned: Cleaned) -> Iterator[None]:
    """Clean up after earlier attempts of a job, and mark in the lake that it is working on its tables.

    The caller must hold the lake's lock, or accept that a run of the same job on another machine loses its files.
    """
    s3, prefix = store.s3, f"{store.root}/_scratch/{job}-"
    folder = f"{prefix}{uuid.uuid4().hex[:12]}"
    _clean(store, prefix, tables, cleaned)
    owner = {
        "job": job,
        "run_id": run_id,
        "machine": temporary.machine(),
        "pid": os.getpid(),
        "start": temporary.start_of(os.getpid()),
        "tables": {table.name: [state.id, state.version] for table in tables if (state := store.state(table))},
    }
    write_bytes(f"{folder}/{OWNER}", json.dumps(owner, sort_keys=True).encode(), s3)
    store.workplace = folder
    try:
        yield
        # not after a failure: tasks may have left uncommitted files in the tables, which the next run cleans up
        delete_folder(folder, s3)
    finally:
        store.workplace = None


def _clean(store: Store, prefix: str, tables: Sequence[Table], cleaned: Cleaned) -> None:
    """Remove the folders of earlier attempts of a job, and the files that these left in its tables."""
    folders: dict[str, list[SourceFile]] = {}
    for file in files_below(prefix, store.s3):
        folders.setdefault(file.url[len(prefix) :].split("/", 1)[0], []).append(file)
    for name, files in sorted(folders.items()):
        folder = f"{prefix}{name}"
        marker = next((file for file in files if file.url == f"{folder}/{OWNER}"), None)
        owner = _read(marker, store.s3)
        if owner.get("machine") == temporary.machine() and temporary.is_running(owner["pid"], owner["start"]):
            continue
        if marker is not None:
            for table in tables:
                _clean_table(store, table, marker.modified_ns, owner.get("tables", {}).get(table.name), cleaned)
        cleaned.set_aside += len(files) - (marker is not None)
        cleaned.set_aside_bytes += sum(file.size for file in files if file is not marker)
        delete_folder(folder, store.s3)
        log.info("cleaned", folder=folder, run_id=owner.get("run_id"))


def _read(marker: SourceFile | None, s3: S3Config) -> dict[str, Any]:
    """The contents of a marker file; empty if it is truncated or does not exist."""
    if marker is None:
        return {}
    try:
        found = json.loads(read_bytes(marker.url, s3))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _clean_table(store: Store, table: Table, since_ns: int, began: Any, cleaned: Cleaned) -> None:
    """Remove the data files of a table that are newer than `since_ns` and that no entry of its log references.

    `began`: id and version of the table at that time; None if it did not exist. Files written since then can only be
    referenced by later versions. The log entries of all of these are read; if one is missing, nothing is removed.
    """
    found = store.open(table)
    if found is None:
        return
    first = int(began[1]) + 1 if began and began[0] == str(found.metadata().id) else 0
    root, known = store.url(table), set()
    for version in range(first, found.version() + 1):
        try:
            text = read_bytes(f"{root}/_delta_log/{version:020d}.json", store.s3).decode()
        except EncoreError as error:
            log.warning("not_cleaned", table=table.name, reason=str(error))
            return
        for line in text.splitlines():
            action = json.loads(line)
            known |= {unquote(action[kind]["path"]) for kind in ("add", "remove") if kind in action}
    # the log is read before the files are listed; a commit in between could only be this run's, which has not started
    # writing
    unknown = [
        file
        for file in files_below(f"{root}/", store.s3)
        if file.name.endswith(".parquet")
        and not file.url[len(root) + 1 :].startswith("_")
        and file.modified_ns >= since_ns
        and file.url[len(root) + 1 :] not in known
    ]
    delete_files([file.url for file in unknown], store.s3)
    cleaned.data_files += len(unknown)
    cleaned.data_bytes += sum(file.size for file in unknown)
