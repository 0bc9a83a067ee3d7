"""Ingest audio features of tracks, from files or from a service that is queried only for missing tracks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encore.arrays.track_keys import KeyTable
from encore.errors import InputError
from encore.features.providers.registry import FeatureBatch, provider
from encore.lake.parquet import REPORT
from encore.lake.scan import KeyRange
from encore.lake.tables import AUDIO_FEATURES, PLAYLISTS, QUARANTINE, TRACKS, arrow_schema
from encore.lake.track_arrays import add_unique, checked_tracks, count_tracks, track_words, without_orphans
from encore.progress import meter
from encore.runtime.context import JobContext

READS = (TRACKS, PLAYLISTS, AUDIO_FEATURES, QUARANTINE)
WRITES = (AUDIO_FEATURES, QUARANTINE)
SETTINGS = ("features",)
STAGE = "ingest_features"
TRACKS_ASKED = arrow_schema(TRACKS, ("track_id", "track_uri"))


def state(ctx: JobContext) -> str:
    """What the provider's result depends on: the listing of its files, or its address."""
    _require_source(ctx)
    return provider(ctx.config).fingerprint()


def _require_source(ctx: JobContext) -> None:
    if ctx.config.features.provider == "file" and ctx.config.raw.features is None:
        raise InputError(
            "no audio features are given: raw.features is not set",
            remedy="set raw.features (make run FEATURES=...) to a file or folder, or features.provider to reccobeats",
        )


def run(ctx: JobContext) -> None:
    """Write `audio_features` and rejected records, then report the share of tracks and of rows that have features."""
    source = provider(ctx.config)
    if source.is_service:
        _ask(ctx, source)
    else:
        _take_all(ctx, source)
    _report_coverage(ctx)


def _take_all(ctx: JobContext, source: Any) -> None:
    """Replace all features with the content of the files, in one commit per table. Does not need Spark."""
    writer, refused = ctx.writer(AUDIO_FEATURES), ctx.writer(QUARANTINE)
    with meter(ctx.name, "tracks") as shown:
        for fetched in source.fetch(iter(())):
            writer.write(fetched.features)
            if fetched.rejected.num_rows:
                refused.write(_quarantine_rows(fetched.rejected))
            shown.update(shown.done + fetched.features.num_rows)
    ctx.commit_files(AUDIO_FEATURES, pa.Table.from_batches([writer.close()], REPORT), KeyRange())
    ctx.commit_files(QUARANTINE, pa.Table.from_batches([refused.close()], REPORT), KeyRange((("stage", STAGE),)))


def _quarantine_rows(refused: pa.Table) -> pa.Table:
    rows = refused.append_column("pid", pa.nulls(refused.num_rows, pa.int64()))
    rows = rows.append_column("stage", pa.repeat(STAGE, refused.num_rows))
    rows = rows.append_column("taken_by", pa.nulls(refused.num_rows, pa.string()))
    return rows.select(QUARANTINE.names).cast(arrow_schema(QUARANTINE))


def _ask(ctx: JobContext, source: Any) -> None:
    """Query a service for tracks that are not in the table and were not rejected before, with one commit per chunk."""
    known = [part["track_uri"] for part in ctx.stream(AUDIO_FEATURES, ["track_uri"])]
    for part in ctx.stream(QUARANTINE, ("source", "record"), KeyRange((("stage", STAGE),))):
        known.append(part.filter(pc.equal(part["source"], source.name))["record"])
    done = pa.chunked_array([chunk for column in known for chunk in column.chunks], pa.string())
    parts = [TRACKS_ASKED.empty_table()]
    for part in without_orphans(ctx.stream(TRACKS, (*TRACKS_ASKED.names, "orphaned"))):
        parts.append(part.filter(pc.invert(pc.is_in(part["track_uri"], done.combine_chunks()))))
    # ids are assigned by frequency, so the most frequent tracks are requested first
    todo = pa.concat_tables(parts).combine_chunks().sort_by("track_id")
    uris = todo["track_uri"].to_pylist()[: ctx.config.features.max_tracks]
    step = ctx.config.features.chunk

    def wanted() -> Iterator[list[str]]:
        for start in range(0, len(uris), step):
            yield uris[start : start + step]

    with meter(ctx.name, "tracks", len(uris)) as shown:
        for number, fetched in enumerate(source.fetch(wanted())):
            _commit(ctx, fetched, number)
            shown.update(min(len(uris), (number + 1) * step))
    ctx.facts["tracks_asked"] = len(uris)


def _commit(ctx: JobContext, fetched: FeatureBatch, number: int) -> None:
    if fetched.features.num_rows:
        ctx.append(AUDIO_FEATURES, fetched.features, part=f"chunk {number}")
    if fetched.rejected.num_rows:
        ctx.append(QUARANTINE, _quarantine_rows(fetched.rejected), part=f"chunk {number}")


def _report_coverage(ctx: JobContext) -> None:
    """Report the share of the tracks, and of the rows of all playlists, that have features."""
    features = KeyTable()
    for part in ctx.stream(AUDIO_FEATURES, ["track_uri"]):
        add_unique(features, AUDIO_FEATURES, part["track_uri"])
    n = ctx.n_rows(TRACKS)
    covered, n_listed = np.zeros(n, bool), 0
    for part in without_orphans(checked_tracks(ctx.stream(TRACKS, ("track_id", "track_uri", "orphaned")), n)):
        n_listed += part.num_rows
        covered[part["track_id"].to_numpy()] = features.find(track_words(TRACKS, part["track_uri"])) >= 0
    counts = count_tracks(ctx.stream(PLAYLISTS, ["track_ids"]), PLAYLISTS, "track_ids", n)
    rows = int(counts.sum())
    ctx.facts["coverage_tracks"] = float(covered.sum() / n_listed) if n_listed else 0.0
    ctx.facts["coverage_rows"] = float(counts[covered].sum() / rows) if rows else 0.0
    ctx.log.info("coverage", tracks=ctx.facts["coverage_tracks"], rows=ctx.facts["coverage_rows"])
