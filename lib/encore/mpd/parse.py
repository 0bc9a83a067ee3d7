"""Parses slices of the dataset into arrays, with a fast path for valid files and a slow one that reports errors.

A slice is `{"info": {...}, "playlists": [{"pid": 0, "name": ..., "tracks": [{"pos": 0, "track_uri": ...}]}]}`. Only
`pid` and `tracks[].track_uri` are required. Both paths give the same arrays for the same valid playlists. The fast path
gives up at the first unexpected value; the slow path then decides record by record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from numpy.typing import NDArray

from encore.arrays.ragged import I64, Ragged
from encore.arrays.track_keys import id_words

U64 = NDArray[np.uint64]

TRACK_URI = re.compile(r"spotify:track:[0-9A-Za-z]{22}")
_OBJECT = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\{")
TRACK_FIELDS = ("track_name", "artist_uri", "artist_name", "album_uri", "album_name", "duration_ms")
"""The fields that `tracks` takes from a track's record, besides its URI."""
NAMING_FIELDS = ("track_name", "artist_uri", "artist_name", "album_uri", "album_name", "duration_ms")
"""A track's metadata comes from the record with the fewest of these fields missing. Do not add new columns of `tracks`
here: a record that has them would change the metadata of existing tracks."""
LATEST = 253402300799
"""The last second of the year 9999, in epoch seconds: later times are out of range for a timestamp column."""

_TRACK = pa.struct(
    [
        ("pos", pa.int64()),
        ("artist_name", pa.string()),
        ("track_uri", pa.string()),
        ("artist_uri", pa.string()),
        ("track_name", pa.string()),
        ("album_uri", pa.string()),
        ("duration_ms", pa.int64()),
        ("album_name", pa.string()),
    ]
)
_PLAYLIST = pa.struct(
    [
        ("name", pa.string()),
        ("description", pa.string()),
        ("collaborative", pa.string()),
        ("pid", pa.int64()),
        ("modified_at", pa.int64()),
        ("num_tracks", pa.int32()),
        ("num_albums", pa.int32()),
        ("num_artists", pa.int32()),
        ("num_followers", pa.int32()),
        ("num_edits", pa.int32()),
        ("duration_ms", pa.int64()),
        ("tracks", pa.list_(_TRACK)),
    ]
)
_SLICE = pa.schema([("playlists", pa.list_(_PLAYLIST))])
PLAYLIST_FIELDS = (
    "name",
    "description",
    "collaborative",
    "modified_at",
    "num_tracks",
    "num_albums",
    "num_artists",
    "num_followers",
    "num_edits",
    "duration_ms",
)


@dataclass(frozen=True)
class Refused:
    """A rejected record. `record`: its position in the file, or the word `file` if the whole file is rejected;
    `taken_by`: the other file that the playlist is taken from, if that is the reason."""

    record: str
    pid: int | None
    reason: str
    detail: str
    payload: str | None
    taken_by: str | None = None


@dataclass(frozen=True)
class Limits:
    """The maximum length of a playlist, and how much of a rejected record is kept: see IngestConfig."""

    max_tracks: int
    payload_bytes: int


@dataclass(frozen=True, eq=False)
class Slice:
    """A parsed file.

    `playlists`: pid and the fields of the table `playlists`, one row per valid playlist, in file order. For their m
    tracks, also in file order: `records`, structs with `track_uri` and TRACK_FIELDS; `words`, the ids in the URIs,
    uint64 (m, 3); `pids` int64 (m,); `missing` int8 (m,), the number of NAMING_FIELDS that are null. `offsets` int64:
    playlist i has tracks offsets[i] to offsets[i + 1] - 1. `order` int64 (m,) sorts the tracks into playlist order;
    None if they already are. `longest`: number of tracks of the longest playlist in the file, valid or not.
    """

    playlists: pa.Table
    records: pa.StructArray
    words: U64
    pids: I64
    missing: NDArray[np.int8]
    offsets: I64
    order: I64 | None
    refused: list[Refused] = field(default_factory=list)
    longest: int = 0

    @property
    def is_refused(self) -> bool:
        """Whether the file was rejected as a whole."""
        return any(refused.record == "file" for refused in self.refused)

    def lists(self, values: NDArray[Any]) -> Ragged:
        """Per-track values, (m,), as one row per playlist, in playlist order."""
        return Ragged(self.offsets, values if self.order is None else values[self.order])


class _NotClean(Exception):
    """The fast path found something that the slow path must handle."""


def parse_slice(data: bytes, limits: Limits, taken: Mapping[int, str] = MappingProxyType({})) -> Slice:
    """Parse the content of a file. Invalid records and files are returned in `refused` and never raise.

    `taken`: pids that belong to another file, and its name; they are rejected here as duplicates.
    """
    try:
        return _to_slice(_fast(data, limits, taken))
    except (_NotClean, pa.ArrowInvalid, pa.ArrowNotImplementedError, OverflowError):
        return _slow(data, limits, taken)


def _fast(data: bytes, limits: Limits, taken: Mapping[int, str]) -> pa.StructArray:
    """The playlists of an entirely valid file as one struct array. Raises _NotClean or ArrowInvalid for any other."""
    # pyarrow crashes on a file that contains just `null`, so pass it only objects
    if not _OBJECT.match(data) or not (data.isascii() or _is_utf8(data)):
        raise _NotClean
    table = pj.read_json(
        pa.BufferReader(data),
        read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 64),
        parse_options=pj.ParseOptions(
            explicit_schema=_SLICE, newlines_in_values=True, unexpected_field_behavior="ignore"
        ),
    )
    if table.num_rows != 1 or table["playlists"].null_count:
        raise _NotClean
    playlists = table["playlists"].chunk(0).flatten()
    pids, tracks = playlists.field("pid"), playlists.field("tracks")
    if playlists.null_count or pids.null_count or tracks.null_count:
        raise _NotClean
    ids = pids.to_numpy()
    if len(ids) and (ids.min() < 0 or len(np.unique(ids)) != len(ids) or not taken.keys().isdisjoint(ids.tolist())):
        raise _NotClean
    items = tracks.flatten()
    lengths = np.diff(tracks.offsets.to_numpy())
    if items.null_count or items.field("track_uri").null_count or (len(lengths) and lengths.max() > limits.max_tracks):
        raise _NotClean
    flags = pc.unique(playlists.field("collaborative")).to_pylist()
    if not set(flags) <= {"true", "false", None}:
        raise _NotClean
    modified = playlists.field("modified_at").drop_null().to_numpy()
    if len(modified) and (modified.min() < 0 or modified.max() > LATEST):
        raise _NotClean
    return playlists


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _to_slice(playlists: pa.StructArray, refused: Sequence[Refused] = (), longest: int = 0) -> Slice:
    """Convert a struct array of valid playlists to arrays. Raises _NotClean for a malformed URI.

    `longest`: as in Slice, but over the records that are not in `playlists`.
    """
    lists = playlists.field("tracks")
    records = lists.flatten()
    words = id_words(records.field("track_uri"))
    if words is None:
        raise _NotClean
    offsets = lists.offsets.to_numpy().astype(np.int64)
    offsets -= offsets[0]
    missing = np.zeros(len(records), np.int8)
    for name in NAMING_FIELDS:
        if records.field(name).null_count:
            missing += records.field(name).is_null().to_numpy(zero_copy_only=False)
    fields: dict[str, Any] = {"pid": playlists.field("pid")}
    for name in PLAYLIST_FIELDS:
        fields[name] = playlists.field(name)
    fields["collaborative"] = pc.equal(fields["collaborative"], "true")
    fields["modified_at"] = fields["modified_at"].cast(pa.timestamp("s", "UTC")).cast(pa.timestamp("us", "UTC"))
    pids = np.repeat(playlists.field("pid").to_numpy(), np.diff(offsets))
    order = _by_position(records.field("pos"), offsets)
    longest = max(longest, int(np.diff(offsets).max(initial=0)))
    return Slice(pa.table(fields), records, words, pids, missing, offsets, order, list(refused), longest)


def _by_position(pos: pa.Array, offsets: I64) -> I64 | None:
    """The permutation that sorts tracks by playlist and `pos`; a playlist with a missing `pos` keeps file order.

    None if the tracks are already sorted.
    """
    if not pos.null_count:
        given = pos.to_numpy()
        falls = np.flatnonzero(given[1:] < given[:-1]) + 1
        # `pos` decreases only where a new playlist starts
        if np.isin(falls, offsets).all():
            return None
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    place = np.arange(len(rows)) - offsets[rows]
    if pos.null_count:
        lacking = np.zeros(len(offsets) - 1, bool)
        lacking[rows[pos.is_null().to_numpy(zero_copy_only=False)]] = True
        key = np.where(lacking[rows], place, pos.fill_null(0).to_numpy())
    else:
        key = pos.to_numpy()
    return np.lexsort((place, key, rows))


def _slow(data: bytes, limits: Limits, taken: Mapping[int, str]) -> Slice:
    """Parse record by record: valid playlists as in `_fast`, and a reason for each of the others."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _whole(
            data, limits, "not_utf8", f"UTF-8 expected, byte 0x{data[error.start]:02x} at {error.start} found"
        )
    text = text.removeprefix("\ufeff")
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            # the standard library accepts what orjson rejects: large integers, lone surrogates, NaN
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            found = "an empty file" if not text.strip() else f"{error} (of {len(data)} bytes)"
            return _whole(data, limits, "not_json", f"JSON expected, found: {found}")
    if not isinstance(content, dict) or not isinstance(content.get("playlists"), list):
        if not isinstance(content, dict):
            found = _shown(content)
        elif "playlists" in content:
            found = f"playlists: {_shown(content['playlists'])}"
        else:
            found = f"the keys {_shown(list(content)[:8])}"
        return _whole(data, limits, "not_a_slice", f"an object with a list `playlists` expected, {found} found")
    refused: list[Refused] = []
    good: list[dict[str, Any]] = []
    seen: set[int] = set()
    longest = 0
    for place, record in enumerate(content["playlists"]):
        problem = _problem(record, seen, taken, limits)
        pid, tracks = (record.get("pid"), record.get("tracks")) if isinstance(record, dict) else (None, None)
        # rejected records count too: with another limit they could be accepted, or rejected for another reason
        longest = max(longest, len(tracks) if isinstance(tracks, list) else 0)
        if problem is None:
            seen.add(record["pid"])
            good.append(_plain(record))
        else:
            known = pid if isinstance(pid, int) and not isinstance(pid, bool) and abs(pid) < 2**63 else None
            reason, detail = problem
            other = taken.get(known) if reason == "pid_duplicate" and known is not None else None
            payload = _shown(record, limits.payload_bytes)
            refused.append(Refused(f"playlist {place}", known, reason, detail, payload, other))
    return _to_slice(pa.array(good, _PLAYLIST), refused, longest)


def _whole(data: bytes, limits: Limits, reason: str, detail: str) -> Slice:
    payload = data[: limits.payload_bytes].decode("utf-8", "replace")
    return refused_file(Refused("file", None, reason, detail, payload))


def refused_file(refused: Refused) -> Slice:
    """The slice of a file that is rejected as a whole."""
    return _to_slice(pa.array([], _PLAYLIST), [refused])


def _shown(value: Any, most: int = 100) -> str:
    """The start of a value as ASCII JSON, which is printable and has one byte per character."""
    try:
        return json.dumps(value, ensure_ascii=True)[:most]
    except RecursionError:
        return "a deeply nested value"[:most]


def _problem(record: Any, seen: set[int], taken: Mapping[int, str], limits: Limits) -> tuple[str, str] | None:
    """Why a playlist is rejected, as reason and detail; None if it is valid."""
    if not isinstance(record, dict):
        return "pid_missing", f"an object with a pid expected, {_shown(record)} found"
    pid = record.get("pid")
    if pid is None:
        return "pid_missing", "pid: an integer expected, nothing found"
    if isinstance(pid, bool) or not isinstance(pid, int) or not 0 <= pid < 2**63:
        return "pid_not_integer", f"pid: an integer from 0 expected, {_shown(pid)} found"
    if pid in seen:
        return "pid_duplicate", f"pid: {pid} occurs earlier in this file"
    if pid in taken:
        return "pid_duplicate", f"pid: {pid} is taken from {taken[pid]}"
    tracks = record.get("tracks")
    if not isinstance(tracks, list):
        return "tracks_missing", f"tracks: a list expected, {_shown(tracks)} found"
    if len(tracks) > limits.max_tracks:
        return "too_many_tracks", f"tracks: at most {limits.max_tracks} expected, {len(tracks)} found"
    for place, track in enumerate(tracks):
        if not isinstance(track, dict):
            return "track_uri_malformed", f"tracks[{place}]: an object expected, {_shown(track)} found"
        uri = track.get("track_uri")
        if not isinstance(uri, str) or not TRACK_URI.fullmatch(uri):
            return (
                "track_uri_malformed",
                f"tracks[{place}].track_uri: spotify:track: and 22 letters or digits expected, {_shown(uri)} found",
            )
        wrong = _wrong_field(track, _TRACK, f"tracks[{place}].")
        if wrong:
            return "field_malformed", wrong
    wrong = _wrong_field(record, _PLAYLIST, "")
    return ("field_malformed", wrong) if wrong else None


def _wrong_field(record: dict[str, Any], struct: pa.StructType, prefix: str) -> str | None:
    for i in range(struct.num_fields):
        name, kind = struct.field(i).name, struct.field(i).type
        value = record.get(name)
        if value is None or name in ("pid", "tracks", "track_uri"):
            continue
        if name == "collaborative":
            right = isinstance(value, bool) or value in ("true", "false")
            expected = "true or false"
        elif pa.types.is_string(kind):
            right, expected = isinstance(value, str) and _encodes(value), "text"
        else:
            bits = 31 if pa.types.is_int32(kind) else 63
            low, high = (0, LATEST) if name == "modified_at" else (-(2**bits), 2**bits - 1)
            right = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
            expected = f"an integer from {low} to {high}"
        if not right:
            return f"{prefix}{name}: {expected} expected, {_shown(value)} found"
    return None


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """A valid playlist with only the fields of the schema."""
    plain = {field.name: record.get(field.name) for field in _PLAYLIST}
    if isinstance(plain["collaborative"], bool):
        plain["collaborative"] = str(plain["collaborative"]).lower()
    plain["tracks"] = [{field.name: track.get(field.name) for field in _TRACK} for track in record["tracks"]]
    return plain
