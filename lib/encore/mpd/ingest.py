"""Slices to `playlists` and `tracks` on Spark, in two passes and without a shuffle.

First pass: each Python task parses some files. Its rows go to a scratch place in the lake: playlists whose tracks are
numbers within their file, the distinct tracks of the task, and what it has to say of each file. The driver then sees
each distinct track of each task once, as a URI and four numbers, and gives ids. Second pass: a look-up in an array
turns numbers within a file into ids, and the best record of each track becomes its row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from encore.config import S3Config
from encore.errors import InputError
from encore.files import SourceFile, read_bytes
from encore.mpd.parse import (
    PLAYLIST_FIELDS,
    TRACK_FIELDS,
    Limits,
    Refused,
    join_tracks,
    parse_slice,
    refused_file,
)
from encore.ragged import Ragged
from encore.tables import PLAYLISTS, TRACKS, arrow_type

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

TRACKS_A_ROW_GROUP = 50_000

_FIELDS: dict[str, str] = {
    "kind": "string",
    "task": "int",
    "slice": "string",
    "pid": "bigint",
    **{name: PLAYLISTS.column(name).type for name in PLAYLIST_FIELDS},
    "codes": "array<int>",
    "code": "int",
    "track_uri": "string",
    "first_pid": "bigint",
    "n_missing": "int",
    "n_rows": "bigint",
    **{name: TRACKS.column(name).type for name in TRACK_FIELDS if name != "duration_ms"},
    "size_bytes": "bigint",
    "digest": "string",
    "modified_ns": "bigint",
    "n_playlists": "bigint",
    "n_quarantined": "bigint",
    "status": "string",
    "record": "string",
    "reason": "string",
    "detail": "string",
    "payload": "string",
}
SCRATCH_DDL = ", ".join(f"`{name}` {kind}" for name, kind in _FIELDS.items())
SCRATCH_SCHEMA = pa.schema([(name, arrow_type(kind)) for name, kind in _FIELDS.items()])
"""Rows of the first pass. `kind`: playlist, track (of a task), file (codes: its tracks' codes in the task), refused."""


def by_number(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Files in the order of the numbers in their names, so that neighbours hold neighbouring pids."""

    def key(file: SourceFile) -> tuple[tuple[int, int, str], ...]:
        parts = re.split(r"(\d+)", file.name)
        return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts)

    return sorted(files, key=key)


def tasks_of(files: Sequence[SourceFile], each: int, parallelism: int) -> list[list[SourceFile]]:
    """Files, in their order, in runs of at most `each`, of bytes as equal as that allows, and as many runs as keep all
    cores busy. No run is empty."""
    n = max(-(-len(files) // each), min(len(files), parallelism))
    n = min(len(files), -(-n // parallelism) * parallelism)
    runs: list[list[SourceFile]] = []
    total, before = sum(file.size for file in files) or 1, 0
    for i, file in enumerate(files):
        left = len(files) - i
        # the run that its bytes ask for, but so that what is left finds room in the runs that are left
        place = min(before * n // total, n - -(-left // each))
        if not runs or len(runs[-1]) == each or place >= len(runs) or n - len(runs) >= left:
            runs.append([])
        runs[-1].append(file)
        before += file.size
    return runs


def parse_files(
    spark: SparkSession,
    runs: Sequence[Sequence[SourceFile]],
    limits: Limits,
    s3: S3Config,
    known: Mapping[str, str],
    taken: Mapping[str, Sequence[int]],
) -> DataFrame:
    """The first pass, a task for each run of files. `known`: digests by file name, of files taken before; a file of
    the same digest gives its `file` row alone, with status same. `taken`: pids by file name that are another file's."""
    files = [list(run) for run in runs]

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for task in batch.column(0).to_pylist():
                for rows in parse_run(task, files[task], limits, s3, known, taken):
                    yield from rows.combine_chunks().to_batches()

    return spark.range(0, len(files), 1, len(files)).mapInArrow(work, SCRATCH_DDL)


def parse_run(
    task: int,
    files: Sequence[SourceFile],
    limits: Limits,
    s3: S3Config,
    known: Mapping[str, str],
    taken: Mapping[str, Sequence[int]],
) -> Iterator[pa.Table]:
    """Rows of SCRATCH_SCHEMA of some files: playlists file by file, then the tracks of all of them, then the files."""
    about: list[dict[str, Any]] = []
    tracks: list[pa.Table] = []
    for file in files:
        row = {"slice": file.name, "size_bytes": file.size, "modified_ns": file.modified_ns}
        try:
            data = read_bytes(file.url, s3)
        except InputError as error:
            parsed, digest = refused_file(Refused("file", None, "unreadable", str(error), None)), "unreadable"
        else:
            digest = f"etag:{file.etag}" if file.etag else f"xxh3:{xxhash.xxh3_128_hexdigest(data)}"
            if known.get(file.name) == digest:
                about.append({**row, "digest": digest, "n_playlists": 0, "n_quarantined": 0, "status": "same"})
                tracks.append(refused_file(Refused("", None, "", "", None)).tracks)
                continue
            parsed = parse_slice(data, limits, frozenset(taken.get(file.name, ())))
            del data
        about.append(
            {
                **row,
                "digest": digest,
                "n_playlists": parsed.playlists.num_rows,
                "n_quarantined": len(parsed.refused),
                "status": "refused" if parsed.is_refused else "ingested",
            }
        )
        tracks.append(parsed.tracks)
        columns = {name: parsed.playlists[name] for name in parsed.playlists.column_names}
        yield _scratch(
            "playlist",
            task,
            parsed.playlists.num_rows,
            slice=file.name,
            codes=parsed.codes.to_arrow(),
            **columns,
        )
        if parsed.refused:
            fields = ("record", "pid", "reason", "detail", "payload")
            values = {name: [getattr(record, name) for record in parsed.refused] for name in fields}
            yield _scratch("refused", task, len(parsed.refused), slice=file.name, **values)
    joined, codes = join_tracks(tracks)
    for start in range(0, joined.num_rows, TRACKS_A_ROW_GROUP):
        part = joined.slice(start, TRACKS_A_ROW_GROUP)
        columns = {name: part[name] for name in part.column_names}
        yield _scratch("track", task, part.num_rows, code=np.arange(start, start + part.num_rows), **columns)
    for row, mine in zip(about, codes, strict=True):
        yield _scratch("file", task, 1, codes=[mine], **{name: [value] for name, value in row.items()})


def _scratch(kind: str, task: int, n: int, **columns: Any) -> pa.Table:
    """`n` rows of SCRATCH_SCHEMA; text stands for a whole column, what is not given is null."""
    values = {"kind": kind, "task": pa.scalar(task, pa.int32()), **columns}
    arrays = []
    for field in SCRATCH_SCHEMA:
        value = values.get(field.name)
        if value is None:
            arrays.append(pa.nulls(n, field.type))
        elif isinstance(value, (str, pa.Scalar)):
            arrays.append(pa.repeat(value, n))
        elif isinstance(value, (pa.Array, pa.ChunkedArray)):
            arrays.append(value.cast(field.type))
        else:
            arrays.append(pa.array(value, field.type))
    return pa.Table.from_arrays(arrays, schema=SCRATCH_SCHEMA)


def losers(playlists: pa.Table, owners: pa.Table) -> dict[str, list[int]]:
    """Pids by file name that another file has: one already in the lake (`owners`), else the first by name.

    Both tables have `pid` and `slice`.
    """
    pids = np.concatenate([owners["pid"].to_numpy(), playlists["pid"].to_numpy()])
    unique, counts = np.unique(pids, return_counts=True)
    twice = unique[counts > 1]
    if not len(twice):
        return {}
    wanted = pa.array(twice)
    kept = {row["pid"]: "" for row in owners.filter(pc.is_in(owners["pid"], wanted)).to_pylist()}
    lost: dict[str, list[int]] = {}
    rows = playlists.filter(pc.is_in(playlists["pid"], wanted)).to_pylist()
    for row in sorted(rows, key=lambda row: (row["slice"], row["pid"])):
        if kept.setdefault(row["pid"], row["slice"]) != row["slice"]:
            lost.setdefault(row["slice"], []).append(row["pid"])
    return lost


@dataclass(frozen=True)
class Ids:
    """Ids of the tracks of the first pass. `of_task[t][c]`: id of code c of task t. `writes[t][c]`: the same where that
    record becomes the track's row, else -1. `n_new`: tracks that were not there before; `n_changed`: rows that a better
    record replaces."""

    of_task: list[np.ndarray]
    writes: list[np.ndarray]
    n_new: int
    n_changed: int


def assign_ids(tracks: pa.Table, n_tasks: int, existing: pa.Table) -> Ids:
    """Give ids to the distinct tracks of all tasks: known ones keep theirs, new ones go on after the highest.

    `tracks`: task, code, track_uri, first_pid, n_missing, n_rows of each track of each task, in any order; `existing`:
    track_id, track_uri, first_pid, n_missing of the table. New tracks are ordered by how often they stand in the new
    files, the most frequent first, then by URI: so the ids do not depend on tasks, and frequent tracks, having small
    ids, cost little space.
    """
    encoded = tracks["track_uri"].combine_chunks().dictionary_encode()
    uris, codes = encoded.dictionary, encoded.indices.to_numpy(zero_copy_only=False)
    n = len(uris)
    rows = np.bincount(codes, weights=tracks["n_rows"].to_numpy(), minlength=n).astype(np.int64)
    missing, pids = tracks["n_missing"].to_numpy(), tracks["first_pid"].to_numpy()
    order = np.lexsort((pids, missing))[::-1]
    best = np.full(n, -1, np.int64)
    best[codes[order]] = order

    at = (
        pc.index_in(uris, value_set=existing["track_uri"].combine_chunks()).fill_null(-1).to_numpy(zero_copy_only=False)
    )
    known = at >= 0
    ids = np.empty(n, np.int32)
    existing_ids = existing["track_id"].to_numpy()
    ids[known] = existing_ids[at[known]]
    fresh = np.flatnonzero(~known)
    by_uri = pc.sort_indices(
        pa.table({"rows": -rows[fresh], "uri": uris.take(pa.array(fresh))}),
        sort_keys=[("rows", "ascending"), ("uri", "ascending")],
    ).to_numpy()
    start = int(existing_ids.max()) + 1 if len(existing_ids) else 0
    ids[fresh[by_uri]] = np.arange(start, start + len(fresh), dtype=np.int32)

    better = np.zeros(n, bool)
    mine = best[known]
    old_missing, old_pids = (
        existing["n_missing"].to_numpy()[at[known]],
        existing["first_pid"].to_numpy()[at[known]],
    )
    better[known] = (missing[mine] < old_missing) | ((missing[mine] == old_missing) & (pids[mine] < old_pids))
    writes_row = np.full(len(codes), -1, np.int32)
    chosen = np.flatnonzero(~known | better)
    writes_row[best[chosen]] = ids[chosen]

    task, code = tracks["task"].to_numpy(), tracks["code"].to_numpy()
    of_task, writes = [], []
    for t in range(n_tasks):
        rows_of = np.flatnonzero(task == t)
        own, own_writes = np.empty(len(rows_of), np.int32), np.empty(len(rows_of), np.int32)
        own[code[rows_of]] = ids[codes[rows_of]]
        own_writes[code[rows_of]] = writes_row[rows_of]
        of_task.append(own)
        writes.append(own_writes)
    return Ids(of_task, writes, len(fresh), int(better.sum()))


def track_rows(scratch: pa.Table, writes: np.ndarray, offsets: np.ndarray) -> pa.Table:
    """Rows of `tracks` of those scratch rows (kind track) that a track's row is made of."""
    ids = writes[offsets[scratch["task"].to_numpy()] + scratch["code"].to_numpy()]
    chosen = scratch.filter(pa.array(ids >= 0))
    columns = {"track_id": pa.array(ids[ids >= 0], pa.int32())}
    columns.update({name: chosen[name] for name in TRACKS.names if name != "track_id"})
    return pa.table(columns)


def playlist_columns(scratch: pa.Table, ids: np.ndarray, offsets: Mapping[str, int]) -> dict[str, Any]:
    """Columns of `playlists` but its key, of scratch rows of kind playlist.

    `ids` from `offsets[slice]` on are the track ids of the codes of that file.
    """
    names = scratch["slice"].combine_chunks().dictionary_encode()
    starts = np.array([offsets[name] for name in names.dictionary.to_pylist()], np.int64)
    codes = Ragged.from_arrow(scratch["codes"])
    base = np.repeat(starts[names.indices.to_numpy(zero_copy_only=False)], codes.lengths)
    track_ids = Ragged(codes.offsets, ids[base + codes.values])
    columns = {name: scratch[name] for name in PLAYLISTS.names if name not in ("pid", "track_ids")}
    return {**columns, "track_ids": track_ids.to_arrow()}
