"""Slices to playlists and tracks: only new and changed files are read, and bad input is set aside with its reason."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encore.arrays.track_keys import loops
from encore.errors import InputError
from encore.lake.filesystem import SourceFile, list_files
from encore.lake.scan import KeyIn, KeyRange
from encore.lake.tables import INGEST_LEDGER, PLAYLISTS, QUARANTINE, TRACKS, arrow_schema
from encore.mpd import ingest
from encore.mpd.parse import TRACK_FIELDS, Limits
from encore.progress import meter
from encore.runtime.context import JobContext

READS = (PLAYLISTS, TRACKS, INGEST_LEDGER)
WRITES = (PLAYLISTS, TRACKS, QUARANTINE, INGEST_LEDGER)
SETTINGS = ("ingest",)
STAGE = "ingest_playlists"
IDENTITY = ("track_id", "track_uri", "first_pid")


def source_files(ctx: JobContext) -> list[SourceFile]:
    """The files that raw.playlists names. InputError where there are none, or two of one name."""
    files = list_files(ctx.config.raw.playlists, "*.json", ctx.config.s3)
    if not files:
        raise InputError(
            f"no slices (*.json) in {ctx.config.raw.playlists}",
            remedy="set raw.playlists, or call `encore generate`",
        )
    for one, other in pairwise(files):
        if one.name == other.name:
            raise InputError(f"two files are named {one.name}: {one.url} and {other.url}", remedy="rename one of them")
    return files


def state(ctx: JobContext) -> str:
    """Digest of the listing: names, sizes and times of change or entity tags."""
    digest = hashlib.blake2b(digest_size=16)
    for file in source_files(ctx):
        digest.update(f"{file.name}\0{file.size}\0{file.etag or file.modified_ns}\n".encode())
    if not ctx.config.ingest.trust_timestamps:
        digest.update(datetime.now(UTC).isoformat().encode())
    return digest.hexdigest()


def run(ctx: JobContext) -> None:
    """The four tables from the files that are new or have changed.

    The order of the commits makes a run that broke off safe to repeat: tracks, then playlists, then quarantine, and
    the ledger, which says that a file is done, at the end.
    """
    files = ingest.by_number(source_files(ctx))
    ledger = {row["slice"]: row for row in ctx.store.read_small(INGEST_LEDGER).to_pylist()}
    todo = [file for file in files if _is_new(ctx, file, ledger.get(file.name))]
    ctx.log.info("files", found=len(files), to_read=len(todo))
    if not todo:
        return
    # compiled here, so that workers on this machine find it
    loops()
    runs = ingest.tasks_of(todo, ctx.config.ingest.slices_per_task, ctx.spark.sparkContext.defaultParallelism)
    with ctx.store.scratch(STAGE) as place:
        aside = ingest.Staging(place, ctx.config.s3)
        about, changed = _parse(ctx, runs, aside, ledger)
        if changed:
            _write(ctx, about, changed, aside, is_first=not ledger)
        _write_ledger(ctx, about, ledger)
    ctx.facts["files_read"] = len(changed)


def _parse(
    ctx: JobContext, runs: list[list[SourceFile]], aside: ingest.Staging, ledger: dict[str, dict[str, Any]]
) -> tuple[pa.Table, list[str]]:
    """The first pass: what it says of the files, and which of them are not the same as before."""
    limits = Limits(ctx.config.ingest.max_tracks, ctx.config.ingest.payload_bytes)
    digests = {} if ctx.force else {name: row["digest"] for name, row in ledger.items()}
    n_files = sum(map(len, runs))
    taken: dict[str, list[int]] = {}
    with meter(ctx.name, "files", n_files) as shown:
        while True:
            with ctx.watched(shown, n_files):
                about = ingest.parse_files(ctx.spark, runs, ingest.Parsing(limits, aside, digests, taken))
            changed = about.filter(pc.not_equal(about["status"], "same"))["slice"].to_pylist()
            lost = ingest.losers(_owned(about), _others(ctx, changed, ledger))
            ctx.io_stats.read_rows += pc.sum(about["n_playlists"]).as_py() or 0
            ctx.io_stats.read_bytes += pc.sum(about["size_bytes"]).as_py() or 0
            if not lost:
                return about, changed
            # Rare: two files claim a playlist. What the other one has of it must leave no trace, so read again.
            for name, pids in lost.items():
                taken.setdefault(name, []).extend(pids)


def _owned(about: pa.Table) -> pa.Table:
    """`pid` and `slice` of the playlists that the first pass has taken."""
    pids = about["pids"].combine_chunks()
    slices = about["slice"].combine_chunks().dictionary_encode().take(pc.list_parent_indices(pids))
    return pa.table({"pid": pids.flatten(), "slice": slices})


def _others(ctx: JobContext, changed: list[str], ledger: dict[str, dict[str, Any]]) -> pa.Table:
    """`pid` and `slice` of the playlists in the lake that are of other files."""
    schema = pa.schema([("pid", pa.int64()), ("slice", pa.string())])
    parts = ctx.stream(PLAYLISTS, schema.names) if ledger else ()
    mine = pa.array(changed, pa.string())
    kept = [part.filter(pc.invert(pc.is_in(part["slice"], mine))) for part in parts]
    return pa.concat_tables([schema.empty_table(), *kept])


def _is_new(ctx: JobContext, file: SourceFile, row: dict[str, Any] | None) -> bool:
    if row is None or ctx.force or not ctx.config.ingest.trust_timestamps:
        return True
    if file.etag is not None:
        return bool(row["digest"] != f"etag:{file.etag}")
    return bool(row["size_bytes"] != file.size or row["modified_ns"] != file.modified_ns)


def _write(ctx: JobContext, about: pa.Table, changed: list[str], aside: ingest.Staging, *, is_first: bool) -> None:
    """Ids, the second pass, and a commit a table."""
    tasks = dict(zip(about["task"].to_pylist(), about["scratch"].to_pylist(), strict=True))
    scratch = [tasks[task] for task in sorted(tasks)]
    n_playlists = sum(about["n_playlists"].to_pylist())
    ids = ingest.assign_ids((ingest.TaskTracks.read(aside, name) for name in scratch), _existing(ctx))
    places = {table.name: ctx.store.location(table) for table in (TRACKS, PLAYLISTS, QUARANTINE)}
    with meter(f"{ctx.name} tables", "playlists", n_playlists) as shown, ctx.watched(shown, n_playlists):
        written = ingest.write_files(ctx.spark, ids, ingest.Writing(aside, scratch, STAGE, places))
    ctx.commit_files(TRACKS, written[TRACKS.name], KeyIn("track_id", pa.array(ids.changed)))
    mine, stage = pa.array(changed, pa.string()), (("stage", STAGE),)
    ctx.commit_files(PLAYLISTS, written[PLAYLISTS.name], KeyRange() if is_first else KeyIn("slice", mine))
    ctx.commit_files(
        QUARANTINE, written[QUARANTINE.name], KeyRange(stage) if is_first else KeyIn("source", mine, stage)
    )
    ctx.facts["new_tracks"] = ids.n_new


def _existing(ctx: JobContext) -> pa.Table:
    """The tracks that are there: track_id, track_uri, first_pid, and how many of TRACK_FIELDS are null."""
    schema = pa.schema([*arrow_schema(TRACKS, IDENTITY), ("n_missing", pa.int8())])
    parts = [schema.empty_table()]
    # by what is there and not by the ledger: a first run that broke off has left tracks, and their ids stay
    for rows in ctx.stream(TRACKS, (*IDENTITY, *TRACK_FIELDS)):
        missing = np.zeros(rows.num_rows, np.int8)
        for name in TRACK_FIELDS:
            missing += rows[name].is_null().to_numpy()
        parts.append(rows.select(IDENTITY).append_column("n_missing", pa.array(missing)))
    return pa.concat_tables(parts)


def _write_ledger(ctx: JobContext, about: pa.Table, ledger: dict[str, dict[str, Any]]) -> None:
    """The rows of these files: with a new time of change alone where they are the same as before."""
    now, rows = datetime.now(UTC), []
    for row in about.select([c for c in INGEST_LEDGER.names if c != "ingested_at"]).to_pylist():
        if row["status"] == "same":
            before = ledger[row["slice"]]
            row = {**before, "modified_ns": row["modified_ns"], "size_bytes": row["size_bytes"]}
        else:
            row["ingested_at"] = now
        rows.append(row)
    table = pa.Table.from_pylist(rows, schema=arrow_schema(INGEST_LEDGER))
    ctx.write(INGEST_LEDGER, [table], KeyIn("slice", about["slice"].combine_chunks()))
