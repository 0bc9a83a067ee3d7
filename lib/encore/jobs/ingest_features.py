"""Ingest audio features of tracks, from files or from a service that is queried only for missing tracks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encore.arrays.track_keys import U64, KeyTable
from encore.errors import InputError
from encore.features.providers.registry import FeatureBatch, Provider, provider
from encore.lake.parquet import REPORT
from encore.lake.scan import KeyIn, KeyRange
from encore.lake.tables import AUDIO_FEATURES, PLAYLISTS, QUARANTINE, TRACKS, arrow_schema
from encore.lake.track_arrays import add_unique, checked_tracks, count_tracks, track_words, without_orphans
from encore.progress import meter
from encore.runtime.context import JobContext

READS = (TRACKS, PLAYLISTS, AUDIO_FEATURES, QUARANTINE)
WRITES = (AUDIO_FEATURES, QUARANTINE)
SETTINGS = ("features",)
STAGE = "ingest_features"
_STAGE = (("stage", STAGE),)
_FEW = 0.01
"""A smaller share of matching ids than this is explained to the user."""

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
    """Write `audio_features` and rejected records, then report the share of tracks and of rows that have features.

    Raises InputError if no track of the lake has features afterwards: no later job could do anything.
    """
    source = provider(ctx.config)
    if source.is_service:
        _ask(ctx, source)
    else:
        _take_all(ctx, source)


@dataclass
class Rejected:
    """The number of records that a provider rejected, and the first of them in words."""

    n: int = 0
    first: str | None = None

    def add(self, rejected: pa.Table) -> None:
        """Count the rows of a provider's `rejected`."""
        if rejected.num_rows and self.first is None:
            row = rejected.slice(0, 1).to_pylist()[0]
            self.first = f"{row['source']} {row['record']}: {row['detail']}"
        self.n += rejected.num_rows


def _take_all(ctx: JobContext, source: Provider) -> None:
    """Replace all features with the content of the files, in one commit per table. Does not need Spark.

    If no track of the lake would have features, InputError: `audio_features` stays as it is, and `quarantine` has what
    was rejected.
    """
    writer, refused = ctx.writer(AUDIO_FEATURES), ctx.writer(QUARANTINE)
    features, rejected = KeyTable(), Rejected()
    try:
        with meter(ctx.name, "tracks") as shown:
            for fetched in source.fetch(iter(())):
                writer.write(fetched.features)
                features.add(track_words(AUDIO_FEATURES, fetched.features["track_uri"]))
                rejected.add(fetched.rejected)
                if fetched.rejected.num_rows:
                    refused.write(_quarantine_rows(fetched.rejected))
                shown.update(shown.done + fetched.features.num_rows)
    except InputError:
        if rejected.n:
            _replace_rejected(ctx, refused.close())
        raise
    _replace_rejected(ctx, refused.close())
    if source.notes:
        ctx.facts["notes"] = source.notes
    _report_coverage(ctx, features, rejected)
    ctx.commit_files(AUDIO_FEATURES, pa.Table.from_batches([writer.close()], REPORT), KeyRange())


def _replace_rejected(ctx: JobContext, reports: pa.RecordBatch) -> None:
    ctx.commit_files(QUARANTINE, pa.Table.from_batches([reports], REPORT), KeyRange(_STAGE))


def _quarantine_rows(refused: pa.Table) -> pa.Table:
    rows = refused.append_column("pid", pa.nulls(refused.num_rows, pa.int64()))
    rows = rows.append_column("stage", pa.repeat(STAGE, refused.num_rows))
    rows = rows.append_column("taken_by", pa.nulls(refused.num_rows, pa.string()))
    return rows.select(QUARANTINE.names).cast(arrow_schema(QUARANTINE))


def _ask(ctx: JobContext, source: Provider) -> None:
    """Query a service for tracks that are not in the table and were not rejected before, with one commit per chunk.

    A forced run also queries it for the tracks that it did not know or had unusable features of; what it answers
    replaces their rows in quarantine, and those that it knows now leave it.
    """
    features = KeyTable()
    known_parts = []
    for part in ctx.stream(AUDIO_FEATURES, ["track_uri"]):
        add_unique(features, AUDIO_FEATURES, part["track_uri"])
        known_parts.append(part["track_uri"])
    known = _combined(known_parts)
    before = Quarantined.read(ctx, source.name)
    parts, n_left = [TRACKS_ASKED.empty_table()], 0
    for part in without_orphans(ctx.stream(TRACKS, (*TRACKS_ASKED.names, "orphaned"))):
        missing = part.filter(pc.invert(pc.is_in(part["track_uri"], known)))
        if not ctx.force:
            is_rejected = pc.is_in(missing["track_uri"], before.own)
            n_left += pc.sum(is_rejected).as_py() or 0
            missing = missing.filter(pc.invert(is_rejected))
        parts.append(missing)
    # ids are assigned by frequency, so the most frequent tracks are requested first
    todo = pa.concat_tables(parts).combine_chunks().sort_by("track_id")
    uris = todo["track_uri"].to_pylist()[: ctx.config.features.max_tracks]
    step = ctx.config.features.chunk
    if n_left:
        _note(ctx, _not_requested(source.name, n_left))

    def wanted() -> Iterator[list[str]]:
        for start in range(0, len(uris), step):
            yield uris[start : start + step]

    rejected = Rejected()
    with meter(ctx.name, "tracks", len(uris)) as shown:
        for number, fetched in enumerate(source.fetch(wanted())):
            asked = pa.array(uris[number * step : (number + 1) * step], pa.string())
            _commit(ctx, fetched, before.of(asked), f"chunk {number}")
            features.add(track_words(AUDIO_FEATURES, fetched.features["track_uri"]))
            rejected.add(fetched.rejected)
            shown.update(min(len(uris), (number + 1) * step))
    ctx.facts["tracks_asked"] = len(uris)
    _report_coverage(ctx, features, rejected)


def _not_requested(service: str, n: int) -> str:
    one = n == 1
    return (
        f"{n:,} {'track' if one else 'tracks'} of which {service} had no usable features "
        f"{'is' if one else 'are'} not requested again; --force requests {'it' if one else 'them'}"
    )


def _combined(columns: list[pa.ChunkedArray]) -> pa.Array:
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string()).combine_chunks()


@dataclass(frozen=True)
class Quarantined:
    """Rows of `quarantine` for single tracks: the URIs that a service rejected, `own`, and other services' rows."""

    own: pa.Array
    others: pa.Table = field(repr=False)

    @classmethod
    def read(cls, ctx: JobContext, service: str) -> Quarantined:
        """All rows of this job; those about files have no URI as their record."""
        own, others = [], [arrow_schema(QUARANTINE).empty_table()]
        for part in ctx.stream(QUARANTINE, QUARANTINE.names, KeyRange(_STAGE)):
            is_own = pc.equal(part["source"], service)
            own.append(part.filter(is_own)["record"])
            others.append(part.filter(pc.and_not(pc.starts_with(part["record"], "spotify:track:"), is_own)))
        return cls(_combined(own), pa.concat_tables(others))

    def of(self, uris: pa.Array) -> Quarantined:
        """The rows of some tracks."""
        theirs = self.others.filter(pc.is_in(self.others["record"], uris))
        return Quarantined(self.own.filter(pc.is_in(self.own, uris)), theirs)

    @property
    def uris(self) -> pa.Array:
        """The tracks that have such rows; repeated if several services rejected them."""
        return _combined([pa.chunked_array([self.own]), self.others["record"]])


def _commit(ctx: JobContext, fetched: FeatureBatch, before: Quarantined, part: str) -> None:
    """Commit a chunk. `before`: the rows in quarantine of the tracks in it, which are replaced.

    `quarantine` first: a track that is in neither table is requested again, should the job end in between.
    """
    rejected = _quarantine_rows(fetched.rejected)
    if len(before.uris):
        is_known = pc.is_in(before.others["record"], fetched.features["track_uri"].combine_chunks())
        rows = [rejected, before.others.filter(pc.invert(is_known))]
        ctx.write(QUARANTINE, rows, KeyIn("record", before.uris, _STAGE), part=part)
    elif rejected.num_rows:
        ctx.append(QUARANTINE, rejected, part=part)
    if fetched.features.num_rows:
        ctx.append(AUDIO_FEATURES, fetched.features, part=part)


def _note(ctx: JobContext, text: str) -> None:
    ctx.facts.setdefault("notes", []).append(text)
    ctx.log.info("note", text=text)


def _report_coverage(ctx: JobContext, features: KeyTable, rejected: Rejected) -> None:
    """Report the share of the tracks, and of the rows of all playlists, that have features.

    `features`: the tracks with features. Raises InputError if none of them is a track of the lake; a note if few are.
    """
    n = ctx.n_rows(TRACKS)
    covered, n_listed, n_found = np.zeros(n, bool), 0, 0
    for part in without_orphans(checked_tracks(ctx.stream(TRACKS, ("track_id", "track_uri", "orphaned")), n)):
        n_listed += part.num_rows
        is_found = features.find(track_words(TRACKS, part["track_uri"])) >= 0
        n_found += int(is_found.sum())
        covered[part["track_id"].to_numpy()] = is_found
    if n_listed and n_found < _FEW * min(n_listed, max(len(features), 1)):
        _explain_few(ctx, features, rejected, n_listed, n_found)
    counts = count_tracks(ctx.stream(PLAYLISTS, ["track_ids"]), PLAYLISTS, "track_ids", n)
    rows = int(counts.sum())
    ctx.facts["coverage_tracks"] = float(n_found / n_listed) if n_listed else 0.0
    ctx.facts["coverage_rows"] = float(counts[covered].sum() / rows) if rows else 0.0
    ctx.log.info("coverage", tracks=ctx.facts["coverage_tracks"], rows=ctx.facts["coverage_rows"])


def _explain_few(ctx: JobContext, features: KeyTable, rejected: Rejected, n_listed: int, n_found: int) -> None:
    """Note why few tracks have features; InputError if none has."""
    have = f"{n_found:,} of {n_listed:,} tracks have features"
    if len(features) == 0:
        raise InputError(f"{have}; {_why_none(rejected)}", remedy=_remedy_for_none(ctx, rejected))
    example, n_same = _without_case(ctx, features)
    ids = f"the {len(features):,} ids with features, such as {_id_text(features.words[0])}, match"
    what = f"{have}: {ids} {'few' if n_found else 'none'} of the tracks, such as {example}"
    remedy = "provide features of the tracks that are in the playlists"
    if n_same > n_found:
        what += f"; without regard to case, {n_same:,} tracks match, so the ids have lost their upper or lower case"
        remedy = "take the table from a source that kept the case; spreadsheets and lower() lose it"
    if n_found == 0:
        raise InputError(what, remedy=remedy)
    _note(ctx, f"{what}; {remedy}")


def _why_none(rejected: Rejected) -> str:
    if rejected.first is None:
        return "nothing was read"
    more = f" ({rejected.n:,} refusals in all)" if rejected.n > 1 else ""
    return f"first refusal: {rejected.first}{more}"


def _remedy_for_none(ctx: JobContext, rejected: Rejected) -> str:
    if rejected.first is not None:
        return '`encore sql "SELECT source, record, reason, detail FROM quarantine"` shows all refusals'
    if ctx.config.features.provider == "file":
        return "provide files that have rows, or choose another features.provider"
    again = "" if ctx.force else "request the tracks again with --force, or "
    return f"{again}choose another features.provider"


def _without_case(ctx: JobContext, features: KeyTable) -> tuple[str, int]:
    """The id of one of the tracks, and how many tracks have features if the case of ids is ignored."""
    lower, example, n_same = KeyTable(), "", 0
    lower.add(_lower(features.words))
    for part in without_orphans(ctx.stream(TRACKS, ("track_uri", "orphaned"))):
        words = track_words(TRACKS, part["track_uri"])
        example = example or (_id_text(words[0]) if len(words) else "")
        n_same += int((lower.find(_lower(words)) >= 0).sum())
    return example, n_same


def _lower(words: U64) -> U64:
    """Ids, as `track_keys` packs them, in lower case."""
    signs = np.ascontiguousarray(words).view(np.uint8)
    is_upper = (signs >= ord("A")) & (signs <= ord("Z"))
    return np.asarray((signs + is_upper * np.uint8(ord("a") - ord("A"))).view(np.uint64))


def _id_text(words: U64) -> str:
    return b"".join(int(word).to_bytes(n, "big") for word, n in zip(words, (8, 8, 6), strict=True)).decode()
