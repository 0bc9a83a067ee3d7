"""Ingest playlists and tracks from slices. Only files whose rows could differ are read; bad input is quarantined.

Tracks that raw.tracks lists get an id too, even if no playlist contains them.

After each run the tables equal those of a fresh lake of the same files, with three exceptions: tracks keep their ids;
tracks that are neither in a playlist nor listed any more stay and are marked; and playlists of deleted files stay if
ingest.vanished is keep and no other file has them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encore.arrays.track_keys import load_loops
from encore.errors import InputError
from encore.lake.parquet import REPORT
from encore.lake.scan import KeyIn, KeyRange
from encore.lake.tables import CHALLENGE_PLAYLISTS, INGEST_LEDGER, PLAYLISTS, QUARANTINE, TRACKS, Table, arrow_schema
from encore.lake.track_arrays import count_tracks, listed_tracks, track_words
from encore.mpd import ingest
from encore.mpd.held import Held, count_values
from encore.mpd.listed import BY_FILE, ListedTracks, listed_files, listed_rows, read_listed
from encore.mpd.parse import Limits, is_item
from encore.mpd.reading import Reading
from encore.mpd.sources import Sources, find_slices
from encore.progress import meter
from encore.runtime.context import JobContext
from encore.runtime.fingerprint import code_digest

READS = (PLAYLISTS, CHALLENGE_PLAYLISTS, TRACKS, QUARANTINE, INGEST_LEDGER)
WRITES = (PLAYLISTS, CHALLENGE_PLAYLISTS, TRACKS, QUARANTINE, INGEST_LEDGER)
SECOND_PASS = (TRACKS, PLAYLISTS, CHALLENGE_PLAYLISTS, QUARANTINE)
"""Tables that the second pass writes."""
SETTINGS = ("ingest",)
STAGE = "ingest_playlists"
PARSER = "encore.mpd.tracks"
"""The module that, with its imports, turns files into rows: if their code changes, every file is read again."""


def sources(ctx: JobContext) -> Sources:
    """The files that raw.playlists refers to. InputError if there are no slices among them."""
    raw = ctx.config.raw
    return find_slices(raw.playlists, raw.features, ctx.config.s3, raw.tracks)


def state(ctx: JobContext) -> str:
    """Digest of the file listing: names, sizes, and modification times or entity tags; of ignored files, names."""
    digest, found = hashlib.blake2b(digest_size=16), sources(ctx)
    for file in found.slices:
        digest.update(f"{file.name}\0{file.size}\0{file.etag or file.modified_ns}\n".encode())
    for file in found.others:
        digest.update(f"{file.name}\0ignored\n".encode())
    for file in listed_files(ctx.config.raw.tracks, ctx.config.s3):
        digest.update(f"{file.name}\0{file.size}\0{file.etag or file.modified_ns}\0listed\n".encode())
    if not ctx.config.ingest.trust_timestamps:
        digest.update(datetime.now(UTC).isoformat().encode())
    return digest.hexdigest()


def run(ctx: JobContext) -> None:
    """Bring the five tables up to date with the files that exist.

    A file's row in the ledger is deleted before its first row elsewhere is replaced, and written after the last one. If
    a run is interrupted in between, the next one reads the file again, whatever has happened to it since.
    """
    found, listed = sources(ctx), _listed(ctx)
    files = {file.name: file for file in ingest.by_number(found.slices)}
    held = _held(ctx, set(files))
    limits = Limits(
        ctx.config.ingest.max_tracks, ctx.config.ingest.payload_bytes, bad_items=ctx.config.ingest.bad_items
    )
    parser, trust = code_digest(PARSER), ctx.config.ingest.trust_timestamps
    again = {name for name in files if ctx.force or held.is_outdated(name, limits, parser)}
    todo = [
        file for name, file in files.items() if name in again or held.may_have_changed(file, trust_timestamps=trust)
    ]
    ctx.log.info("files", found=len(files), to_read=len(todo), gone=len(held.gone))
    if todo:
        # compile here, so that workers on this machine find the compiled loops in the cache
        load_loops()
    with ctx.store.scratch(STAGE) as place:
        reading = Reading(ctx, files, held, limits, ingest.Staging(place, ctx.config.s3))
        reading.read(todo, again)
        gone = Gone.of(held, reading)
        had_tracks = _n_rows(ctx, TRACKS) > 0
        has_changed = bool(reading.changed or gone.names)
        if has_changed:
            _write(ctx, reading, gone)
        if len(listed) or (had_tracks and (has_changed or _has_listed(ctx))):
            _settle_tracks(ctx, listed)
        _write_ledger(ctx, reading, gone, limits, parser)
    _tell(ctx, found, reading, gone, listed)
    _check_any_taken(ctx, len(files))


def _listed(ctx: JobContext) -> ListedTracks:
    """The tracks of raw.tracks."""
    return read_listed(listed_files(ctx.config.raw.tracks, ctx.config.s3), ctx.config.s3)


def _tell(ctx: JobContext, found: Sources, reading: Reading, gone: Gone, listed: ListedTracks) -> None:
    """Record the facts of a run, and a note for each that the user should know."""
    ctx.facts["files_read"] = len(reading.changed)
    n_dropped = pc.sum(reading.about["n_dropped"]).as_py() or 0
    vanished = ctx.config.ingest.vanished
    gone_note = gone.note(reading.held, vanished)
    challenge = _challenge_note(_n_rows(ctx, CHALLENGE_PLAYLISTS))
    notes = [found.note(), _dropped_note(n_dropped), challenge, gone_note, listed.note()]
    if ctx.config.raw.tracks is not None:
        ctx.facts |= {"tracks_listed": len(listed), "listed_refused": listed.n_refused}
    if found.others:
        ctx.facts["files_ignored"] = len(found.others)
    if n_dropped:
        ctx.facts["items_dropped"] = n_dropped
    if gone_note is not None:
        ctx.facts |= {"files_gone": len(gone.names), "playlists_kept": sum(gone.kept.values())}
        ctx.facts["playlists_removed"] = gone.removed
        ctx.log.info("files_gone", vanished=vanished, note=gone_note)
    if any(notes):
        ctx.facts["notes"] = [note for note in notes if note is not None]


def _dropped_note(n: int) -> str | None:
    if not n:
        return None
    what = "1 item that is not a track was" if n == 1 else f"{n:,} items that are not tracks were"
    return f"{what} dropped from playlists (ingest.bad_items: drop): see quarantine"


def _challenge_note(n: int) -> str | None:
    if not n:
        return None
    return f"{n:,} challenge {'playlist' if n == 1 else 'playlists'} (challenge_playlists): not used for training"


def _check_any_taken(ctx: JobContext, n_files: int) -> None:
    """Raise InputError with the first rejected record if the lake has no playlists: no later job could do anything."""
    playlists = ctx.store.state(PLAYLISTS)
    if playlists is None or playlists.rows:
        return
    columns = ["source", "record", "reason", "detail", "stage"]
    rows = [row for row in ctx.store.read_small(QUARANTINE, columns).to_pylist() if row["stage"] == STAGE]
    refused = [row for row in rows if not is_item(row["record"])]
    n_challenge = _n_rows(ctx, CHALLENGE_PLAYLISTS)
    if not refused:
        only = f": they contain only {n_challenge:,} challenge playlist(s)" if n_challenge else ""
        raise InputError(
            f"no playlists to train on in {n_files:,} file(s) of {ctx.config.raw.playlists}{only}",
            remedy="put slices of the dataset beside the challenge set" if n_challenge else None,
        )
    first = min(refused, key=lambda row: (row["source"], row["reason"]))
    raise InputError(
        f"no usable playlist in {n_files:,} file(s): {len(refused):,} record(s) were refused, the first in "
        f"{first['source']}: {first['reason']}: {first['detail']}",
        remedy='`encore sql "SELECT source, reason, detail FROM quarantine"` shows all of them',
    )


def _held(ctx: JobContext, files: set[str]) -> Held:
    """What the lake contains from files that were read before."""
    ledger = {row["slice"]: row for row in ctx.store.read_small(INGEST_LEDGER).to_pylist()}
    ordinary, challenge = (_columns(ctx, table, ("pid", "slice")) for table in (PLAYLISTS, CHALLENGE_PLAYLISTS))
    playlists = pa.concat_tables([ordinary, challenge])
    refused = _columns(ctx, QUARANTINE, ("source", "pid", "taken_by"), KeyRange((("stage", STAGE),)))
    table = ctx.transaction(TRACKS).id
    tables = {row["tracks_table"] for row in ledger.values() if row["n_playlists"]} - {None}
    # without a ledger: playlists, but no tracks
    lost = tables != {table} if tables else playlists.num_rows > 0 and _n_rows(ctx, TRACKS) == 0
    return Held(ledger, playlists, challenge.num_rows, refused, files, table, lost)


def _n_rows(ctx: JobContext, table: Table) -> int:
    return ctx.scan(table, table.key).rows


def _columns(ctx: JobContext, table: Table, names: tuple[str, ...], where: KeyRange | None = None) -> pa.Table:
    return pa.concat_tables([arrow_schema(table, names).empty_table(), *ctx.stream(table, names, where)])


@dataclass(frozen=True, eq=False)
class Gone:
    """Deleted files that the lake still contains rows from: `names`.

    `staying`: which rows of `playlists` stay as they are, bool. `kept`: number of playlists that stay, by deleted
    file; `removed`: number of playlists that are removed although no other file has them. `rewritten`: files that lose
    playlists; `dropped`: files of which nothing remains.
    """

    names: tuple[str, ...]
    staying: np.ndarray
    kept: Counter[str]
    removed: int
    rewritten: list[str]
    dropped: list[str]

    @classmethod
    def of(cls, held: Held, reading: Reading) -> Gone:
        """Determined by ingest.vanished and by the playlists of the files that exist."""
        staying = reading.staying
        slices = held.playlists["slice"]
        theirs = pc.is_in(slices, value_set=pa.array(held.gone, pa.string())).to_numpy()
        kept = count_values(slices.filter(pa.array(theirs & staying)))
        alone = np.isin(held.playlists["pid"].to_numpy(), reading.claimed, invert=True)
        return cls(
            names=held.gone,
            staying=staying,
            kept=kept,
            removed=int((theirs & alone & ~staying).sum()),
            rewritten=sorted(count_values(slices.filter(pa.array(theirs & ~staying)))),
            dropped=[name for name in held.gone if not kept[name]],
        )

    def note(self, held: Held, vanished: str) -> str | None:
        """One line about these files for the terminal; None if no file was deleted."""
        if not self.names:
            return None
        one = len(self.names) == 1
        shown = ", ".join(self.names[:3]) + (", ..." if len(self.names) > 3 else "")
        text = f"{len(self.names):,} {'file is' if one else 'files are'} gone ({shown})"
        # if the table is gone, it is unknown which of these playlists other files have too
        lost = (
            0
            if held.playlists.num_rows
            else sum(held.ledger[name]["n_playlists"] for name in self.names if name in held.ledger)
        )
        if n := sum(self.kept.values()):
            text += f"; {_alone(n, 'stays', 'stay')} (ingest.vanished: {vanished})"
        elif self.removed and held.tracks_lost:
            text += f"; {_alone(self.removed, 'was', 'were')} removed and cannot be made again:"
            text += " the table tracks, to which their track ids belong, was dropped"
        elif self.removed:
            text += f"; {_alone(self.removed, 'was', 'were')} removed (ingest.vanished: {vanished})"
        elif lost:
            text += f"; up to {lost:,} {'playlist' if lost == 1 else 'playlists'} cannot be made again:"
            text += " the table playlists was dropped"
        else:
            text += "; no playlist was lost"
        return text


def _alone(n: int, one: str, many: str) -> str:
    return f"{n:,} {'playlist' if n == 1 else 'playlists'} that no other file has {one if n == 1 else many}"


def _write(ctx: JobContext, reading: Reading, gone: Gone) -> None:
    """Assign ids, run the second pass and commit. An interruption after any commit is repaired by the next run.

    The new rows depend on all rows that were read, so a commit by another writer is a conflict.
    """
    held, changed = reading.held, reading.changed
    known = reading.known_tracks() if changed else None
    if held.tracks_lost:
        # before new ids are assigned: a playlist must never refer to tracks that are not its own
        for table in held.tables:
            if _n_rows(ctx, table):
                ctx.write(table, [], KeyRange(), part="ids of a dropped table", exclusive=True)
    forgotten = [name for name in changed if name in held.ledger]
    if forgotten:
        ctx.write(INGEST_LEDGER, [], KeyIn("slice", pa.array(forgotten)), part="files to be replaced", exclusive=True)
    written = {table.name: REPORT.empty_table() for table in SECOND_PASS}
    if known is not None:
        ids = ingest.assign_ids(reading.tasks(), known)
        written = _second_pass(ctx, reading, ids)
        ctx.commit_files(TRACKS, written[TRACKS.name], KeyIn("track_id", pa.array(ids.changed)), exclusive=True)
        ctx.facts["new_tracks"] = ids.n_new
    if slices := [*changed, *gone.rewritten]:
        where = KeyRange() if held.is_empty else KeyIn("slice", pa.array(slices))
        for table, own in held.tables.items():
            rows = pa.concat_tables([written[table.name], _rest(ctx, table, held, gone)])
            # most lakes have no challenge set, and need no commit for it
            replaced = pc.is_in(held.playlists["slice"][own], value_set=pa.array(slices))
            if table is PLAYLISTS or rows.num_rows or pc.any(replaced, min_count=0).as_py():
                ctx.commit_files(table, rows, where, exclusive=True)
    stage = (("stage", STAGE),)
    if sources := [*changed, *(name for name in gone.dropped if held.n_refused[name])]:
        refused = KeyRange(stage) if held.is_empty else KeyIn("source", pa.array(sources), stage)
        ctx.commit_files(QUARANTINE, written[QUARANTINE.name], refused, exclusive=True)


def _second_pass(ctx: JobContext, reading: Reading, ids: ingest.Ids) -> dict[str, pa.Table]:
    places = {table.name: ctx.store.location(table) for table in SECOND_PASS}
    n_playlists = pc.sum(reading.about["n_playlists"]).as_py() or 0
    with meter(f"{ctx.name} tables", "playlists", n_playlists) as shown, ctx.watched(shown, n_playlists):
        return ingest.write_files(ctx.spark, ids, ingest.Writing(reading.aside, reading.scratch, STAGE, places))


def _rest(ctx: JobContext, table: Table, held: Held, gone: Gone) -> pa.Table:
    """Write the rows of a table that remain of deleted files that lose playlists; returns reports of the data files."""
    writer = ctx.writer(table)
    names = pa.array([name for name in gone.rewritten if gone.kept[name]], pa.string())
    if len(names):
        own = held.tables[table]
        pids = held.playlists["pid"][own].filter(pa.array(gone.staying[own]))
        for part in ctx.stream(table, table.names):
            wanted = pc.and_(pc.is_in(part["slice"], names), pc.is_in(part["pid"], pids.combine_chunks()))
            writer.write(part.filter(wanted))
    return pa.Table.from_batches([writer.close()], REPORT)


def _has_listed(ctx: JobContext) -> bool:
    """Whether a track got its names from raw.tracks in an earlier run."""
    return any(pc.any(pc.equal(part["first_pid"], BY_FILE)).as_py() for part in ctx.stream(TRACKS, ("first_pid",)))


def _settle_tracks(ctx: JobContext, listed: ListedTracks) -> None:
    """Mark the tracks that are neither in a playlist nor listed, and unmark the others. Tracks that are listed and in
    no playlist have the names of the list; those that are new get the next ids."""
    n_tracks, keys = _n_rows(ctx, TRACKS), listed.keys
    is_held = np.zeros(n_tracks, np.bool_)
    for table in (PLAYLISTS, CHALLENGE_PLAYLISTS):
        is_held |= count_tracks(ctx.stream(table, ["track_ids"]), table, "track_ids", n_tracks) > 0
    if not len(listed):
        stays = listed_tracks(ctx.stream(TRACKS, ("track_id", "orphaned")), n_tracks)
        if np.array_equal(is_held, stays):
            # the usual case, which reads no names
            ctx.facts["orphaned_tracks"] = int((~is_held).sum())
            return
    is_kept, is_known, parts = is_held.copy(), np.zeros(len(listed), np.bool_), []
    for part in ctx.stream(TRACKS, TRACKS.names):
        ids, row = part["track_id"].to_numpy(), keys.find(track_words(TRACKS, part["track_uri"]))
        is_known[row[row >= 0]] = True
        by_list = (row >= 0) & ~is_held[ids]
        is_kept[ids[by_list]] = True
        named, others = part.filter(pa.array(by_list)), part.filter(pa.array(~by_list))
        rows = listed_rows(listed.table.take(pa.array(row[by_list])), named["track_id"].to_numpy())
        wrong = is_kept[ids[~by_list]] == pc.fill_null(others["orphaned"], False).to_numpy()
        marks = pa.array(np.ones(len(others), np.bool_), mask=is_held[others["track_id"].to_numpy()])
        others = others.set_column(others.schema.get_field_index("orphaned"), "orphaned", marks)
        parts += [rows.filter(_differs(rows, named)), others.filter(pa.array(wrong))]
    new = listed.table.filter(pa.array(~is_known))
    parts.append(listed_rows(new, np.arange(n_tracks, n_tracks + len(new), dtype=np.int32)))
    changed = pa.concat_tables(parts)
    if len(changed):
        where = KeyIn("track_id", changed["track_id"].combine_chunks())
        ctx.write(TRACKS, [changed], where, part="tracks in no playlist", exclusive=True)
    ctx.facts["orphaned_tracks"] = int((~is_kept).sum())


def _differs(rows: pa.Table, others: pa.Table) -> pa.Array:
    """Which rows differ between two tables with the same columns and number of rows."""
    found = np.zeros(len(rows), np.bool_)
    for name in rows.column_names:
        one, other = rows[name], others[name]
        found |= pc.fill_null(pc.not_equal(one, other), False).to_numpy()
        found |= one.is_null().to_numpy() != other.is_null().to_numpy()
    return pa.array(found)


def _write_ledger(ctx: JobContext, reading: Reading, gone: Gone, limits: Limits, parser: str) -> None:
    """Write the rows of files that were read, changing only the modification time if the content is unchanged, and
    update or delete the rows of deleted files."""
    now, rows, ledger = datetime.now(UTC), [], reading.held.ledger
    read_with = {"parser": parser, "tracks_table": reading.held.tracks_table, **limits.__dict__}
    for found in reading.about.drop_columns(["task", "scratch", "pids", "n_dropped"]).to_pylist():
        if found["status"] == "same":
            before = ledger[found["slice"]]
            rows.append({**before, "modified_ns": found["modified_ns"], "size_bytes": found["size_bytes"]})
        else:
            rows.append({**found, **read_with, "ingested_at": now, "vanished_at": None})
    for name in gone.names:
        if name in ledger and gone.kept[name]:
            before = ledger[name]
            rows.append({**before, "n_playlists": gone.kept[name], "vanished_at": before["vanished_at"] or now})
    rows = [row for row in rows if row != ledger.get(row["slice"])]
    names = [*(row["slice"] for row in rows), *(name for name in gone.dropped if name in ledger)]
    if names:
        table = pa.Table.from_pylist(rows, schema=arrow_schema(INGEST_LEDGER))
        ctx.write(INGEST_LEDGER, [table], KeyIn("slice", pa.array(names)), exclusive=True)
