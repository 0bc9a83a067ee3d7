"""Tries what jobs do with a lake in a folder of its own, which no table, job or query uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder, write_deltalake
from deltalake.exceptions import DeltaError

from encore.errors import LakeError
from encore.lake.delta import Tables
from encore.lake.failures import delta_error
from encore.lake.filesystem import delete_files, delete_folder, is_s3, read_bytes, s3_client, write_bytes, write_if

FOLDER = "_smoke"
"""The folder in the lake in which all of this happens."""

_CONTENT = b"written by Encore's smoke job"


@contextmanager
def probe_folder(tables: Tables, run_id: str) -> Iterator[str]:
    """An empty folder for a run. At the end it is removed, with whatever a run that was killed has left."""
    root = f"{tables.root}/{FOLDER}"
    delete_folder(root, tables.s3)
    try:
        yield f"{root}/{run_id}"
    finally:
        delete_folder(root, tables.s3)


def write_object(tables: Tables, folder: str) -> str:
    """Write a file, or an object with boto3; returns its URL.

    Raises LakeError if the server ignores the condition of a put, on which the lock and commits depend.
    """
    url = f"{folder}/object"
    write_bytes(url, _CONTENT, tables.s3)
    if is_s3(url):
        client, other = s3_client(tables.s3), f"{folder}/conditional"
        if not write_if(client, other, _CONTENT, "") or write_if(client, other, _CONTENT, ""):
            raise LakeError(
                f"{other}: the server ignores If-None-Match, on which the lock of the lake and commits depend",
                remedy="put the lake on a server with conditional puts, such as AWS S3",
            )
    return url


def read_object(tables: Tables, url: str) -> None:
    """Read what `write_object` wrote. Raises LakeError if it is something else."""
    found = read_bytes(url, tables.s3)
    if found != _CONTENT:
        raise LakeError(f"{url}: {_CONTENT!r} expected, {found[:100]!r} found")


def delete_object(tables: Tables, url: str) -> None:
    """Delete what `write_object` wrote."""
    delete_files([url], tables.s3)


def try_delta(tables: Tables, folder: str) -> None:
    """Create, read and change a table with delta-rs. Raises LakeError if its rows are not the expected ones."""
    url = f"{folder}/table".replace("s3a://", "s3://", 1)
    try:
        for first in (0, 3):
            rows = pa.table({"id": pa.array(range(first, first + 3), pa.int64())})
            write_deltalake(url, rows, mode="append", storage_options=tables.options)
        DeltaTable(url, storage_options=tables.options).delete("id % 2 = 0")
        opened = DeltaTable(url, storage_options=tables.options)
        answer = QueryBuilder().register("probe", opened).execute("SELECT id FROM probe ORDER BY id")
        found = pa.RecordBatchReader.from_stream(answer).read_all()["id"].to_pylist()
    except (DeltaError, OSError) as error:
        raise delta_error(f"{url}: cannot be written and read with delta-rs", error) from error
    if found != [1, 3, 5]:
        raise LakeError(f"{url}: rows 1, 3 and 5 expected, {found} found")
