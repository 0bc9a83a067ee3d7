"""Slices to playlists and tracks: only new and changed files are read, and bad input is set aside with its reason."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encore.errors import InputError
from encore.files import SourceFile, list_files
from encore.job import JobContext
from encore.mpd import ingest
from encore.mpd.parse import TRACK_FIELDS, Limits
from encore.progress import meter
from encore.rows import Kernel, Mapped, map_rows
from encore.tables import INGEST_LEDGER, PLAYLISTS, QUARANTINE, TRACKS, arrow_schema

READS = (PLAYLISTS, TRACKS, INGEST_LEDGER)
WRITES = (PLAYLISTS, TRACKS, QUARANTINE, INGEST_LEDGER)
SETTINGS = ("ingest",)
STAGE = "ingest_playlists"


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
    known = {} if ctx.force else {name: row["digest"] for name, row in ledger.items()}
    limits = Limits(ctx.config.ingest.max_tracks, ctx.config.ingest.payload_bytes)
    runs = ingest.tasks_of(todo, ctx.config.ingest.slices_per_task, ctx.spark.sparkContext.defaultParallelism)
    owners = ctx.read(PLAYLISTS).select("pid", "slice").toArrow() if ledger else arrow_schema(PLAYLISTS).empty_table()
    with ctx.store.scratch(STAGE) as place:
        taken: dict[str, list[int]] = {}
        with meter(ctx.name, "files", len(todo)) as shown:
            while True:
                parsed = ingest.parse_files(ctx.spark, runs, limits, ctx.config.s3, known, taken)
                with ctx.watched(shown, len(todo)):
                    parsed.write.mode("overwrite").option("compression", "zstd").parquet(place)
                scratch = ctx.spark.read.schema(ingest.SCRATCH_DDL).parquet(place)
                about = scratch.where("kind = 'file'").toArrow()
                changed = [row["slice"] for row in about.to_pylist() if row["status"] != "same"]
                others = owners.filter(pc.invert(pc.is_in(owners["slice"], pa.array(changed, pa.string()))))
                lost = ingest.losers(scratch.where("kind = 'playlist'").select("pid", "slice").toArrow(), others)
                if not lost:
                    break
                # Rare: two files claim a playlist. What the other one has of it must leave no trace, so read again.
                for name, pids in lost.items():
                    taken.setdefault(name, []).extend(pids)
        if changed:
            _write(ctx, scratch, about, changed, len(runs), is_first=not ledger)
        _write_ledger(ctx, about, ledger)
    ctx.facts["files_read"] = len(changed)


def _is_new(ctx: JobContext, file: SourceFile, row: dict[str, Any] | None) -> bool:
    if row is None or ctx.force or not ctx.config.ingest.trust_timestamps:
        return True
    if file.etag is not None:
        return bool(row["digest"] != f"etag:{file.etag}")
    return bool(row["size_bytes"] != file.size or row["modified_ns"] != file.modified_ns)


def _write(
    ctx: JobContext, scratch: Any, about: pa.Table, changed: Sequence[str], n_tasks: int, *, is_first: bool
) -> None:
    before = ctx.store.state(TRACKS)
    # by what is there and not by the ledger: a first run that broke off has left tracks, and their ids stay
    existing = ctx.read(TRACKS) if before and before.rows else None
    columns = ("task", "code", "track_uri", "first_pid", "n_missing", "n_rows")
    tracks = scratch.where("kind = 'track'")
    ids = ingest.assign_ids(tracks.select(*columns).toArrow(), n_tasks, _existing(existing))

    offsets = np.concatenate([[0], np.cumsum([len(part) for part in ids.writes])]).astype(np.int64)
    shipped = ctx.ship(writes=np.concatenate([*ids.writes, np.empty(0, np.int32)]), offsets=offsets)
    ddl = ", ".join(f"`{column.name}` {column.type}" for column in TRACKS.columns)

    def make_tracks(batches: Any) -> Any:
        arrays, schema = shipped.open(), arrow_schema(TRACKS)
        for batch in batches:
            rows = ingest.track_rows(pa.Table.from_batches([batch]), arrays["writes"], arrays["offsets"])
            yield from rows.cast(schema).combine_chunks().to_batches()

    made = tracks.select("task", "code", *(c for c in TRACKS.names if c != "track_id")).mapInArrow(make_tracks, ddl)
    if existing is not None:
        ctx.merge(TRACKS, made)
    else:
        ctx.append(TRACKS, made)

    starts: dict[str, int] = {}
    parts, at = [], 0
    for name, task, codes in zip(about["slice"].to_pylist(), about["task"].to_pylist(), about["codes"], strict=True):
        own = codes.values.to_numpy()
        starts[name] = at
        parts.append(ids.of_task[task][own])
        at += len(own)
    lookup = ctx.ship(ids=np.concatenate([*parts, np.empty(0, np.int32)]))

    def start() -> Kernel:
        array = lookup.open()["ids"]
        return lambda rows: (None, ingest.playlist_columns(rows, array, starts))

    source = scratch.where("kind = 'playlist'").select("codes", *(c for c in PLAYLISTS.names if c != "track_ids"))
    names = ", ".join("'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'" for name in changed)
    playlists: Mapped = map_rows(source, start, PLAYLISTS, block=20_000)
    ctx.replace(PLAYLISTS, playlists, where=None if is_first else f"slice IN ({names})")

    refused = scratch.where("kind = 'refused'").selectExpr(
        "slice AS source", "record", "pid", "reason", "detail", "payload", f"'{STAGE}' AS stage"
    )
    ctx.replace(QUARANTINE, refused, where=f"stage = '{STAGE}'" + ("" if is_first else f" AND source IN ({names})"))
    ctx.facts["new_tracks"] = ids.n_new


def _existing(tracks: Any | None) -> pa.Table:
    if tracks is None:
        schema = pa.schema(
            [
                ("track_id", pa.int32()),
                ("track_uri", pa.string()),
                ("first_pid", pa.int64()),
                ("n_missing", pa.int32()),
            ]
        )
        return schema.empty_table()
    missing = " + ".join(f"int({name} IS NULL)" for name in TRACK_FIELDS)
    return tracks.selectExpr("track_id", "track_uri", "first_pid", f"{missing} AS n_missing").toArrow()


def _write_ledger(ctx: JobContext, about: pa.Table, ledger: dict[str, dict[str, Any]]) -> None:
    now, rows = datetime.now(UTC), []
    for row in about.select([c for c in INGEST_LEDGER.names if c != "ingested_at"]).to_pylist():
        if row["status"] == "same":
            before = ledger[row["slice"]]
            row = {**before, "modified_ns": row["modified_ns"], "size_bytes": row["size_bytes"]}
        else:
            row["ingested_at"] = now
        rows.append(row)
    frame = ctx.spark.createDataFrame(pa.Table.from_pylist(rows, schema=arrow_schema(INGEST_LEDGER)))
    if ledger:
        ctx.merge(INGEST_LEDGER, frame)
    else:
        ctx.append(INGEST_LEDGER, frame)
