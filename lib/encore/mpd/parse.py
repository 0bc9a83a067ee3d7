"""Parses slices of the dataset into arrays, with a fast path for valid files and a slow one that reports errors.

A slice is `{"info": {...}, "playlists": [{"pid": 0, "name": ..., "tracks": [{"pos": 0, "track_uri": ...}]}]}`, either
plain or compressed with gzip. Only `pid` and `tracks[].track_uri` are required. A playlist with `num_holdouts` belongs
to a challenge set. Both paths give the same arrays for the same valid playlists. The fast path gives up at the first
unexpected value; the slow path then decides record by record.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NoReturn

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from numpy.typing import NDArray

from encore.arrays.ragged import I64, Ragged
from encore.arrays.track_keys import id_words
from encore.mpd.shapes import recognise

U64 = NDArray[np.uint64]

TRACK_URI = re.compile(r"spotify:track:[0-9A-Za-z]{22}")
_GZIP = b"\x1f\x8b"
"""The first bytes of a file that gzip wrote."""
_OBJECT = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\{")
TRACK_FIELDS = ("track_name", "artist_uri", "artist_name", "album_uri", "album_name", "duration_ms")
"""The fields that `tracks` takes from a track's record, besides its URI."""
NAMING_FIELDS = ("track_name", "artist_uri", "artist_name", "album_uri", "album_name", "duration_ms")
"""A track's metadata comes from the record with the fewest of these fields missing. Do not add new columns of `tracks`
here: a record that has them would change the metadata of existing tracks."""
LATEST = 253402300799
"""The last second of the year 9999, in epoch seconds: later times are out of range for a timestamp column."""

_OTHER_ITEMS = {
    "spotify:local:": ("item_local", "a local file of the playlist's owner"),
    "spotify:episode:": ("item_episode", "an episode of a podcast"),
}
"""Items of playlists that are not tracks of Spotify's catalogue, by the start of their URIs: reason and meaning."""
_OTHER_ENCODINGS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"{\0": "UTF-16LE",
    b"\0{": "UTF-16BE",
}
"""Encodings by the first bytes of a file: a byte order mark, or the first character of a slice."""

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
        ("num_holdouts", pa.int32()),
        ("num_samples", pa.int32()),
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
CHALLENGE_FIELDS = ("num_holdouts", "num_samples")
"""The fields that only playlists of a challenge set have; every one of them has the first."""


@dataclass(frozen=True)
class Refused:
    """A rejected record: a file, a playlist, or an item that was dropped from a playlist.

    `record`: `file`, `playlist 3` or `playlist 3, item 5`, by positions from 0; `pid`: that of the playlist;
    `taken_by`: the other file that the playlist is taken from, if that is the reason.
    """

    record: str
    pid: int | None
    reason: str
    detail: str
    payload: str | None
    taken_by: str | None = None


@dataclass(frozen=True)
class Limits:
    """The maximum length of a playlist, how much of a rejected record is kept, and whether a bad item is dropped or its
    playlist refused: see IngestConfig."""

    max_tracks: int
    payload_bytes: int
    bad_items: Literal["drop", "refuse"] = "drop"


@dataclass(frozen=True, eq=False)
class Slice:
    """A parsed file.

    `playlists`: pid, the fields of the table `playlists`, and CHALLENGE_FIELDS, which are null unless the playlist
    belongs to a challenge set; one row per valid playlist, in file order. For their m tracks, also in file order:
    `records`, structs with `track_uri` and TRACK_FIELDS; `words`, the ids in the URIs, uint64 (m, 3); `pids` int64
    (m,); `missing` int8 (m,), the number of NAMING_FIELDS that are null. `offsets` int64: playlist i has tracks
    offsets[i] to offsets[i + 1] - 1. `order` int64 (m,) sorts the tracks into playlist order; None if they already are.
    `positions`: for each playlist of a challenge set, the positions of its tracks in the whole playlist, int32, in
    playlist order; other rows are empty. `longest`: number of items of the longest playlist in the file, valid or not.
    """

    playlists: pa.Table
    records: pa.StructArray
    words: U64
    pids: I64
    missing: NDArray[np.int8]
    offsets: I64
    order: I64 | None
    positions: Ragged
    refused: list[Refused] = field(default_factory=list)
    longest: int = 0

    @property
    def is_refused(self) -> bool:
        """Whether the file was rejected as a whole."""
        return any(refused.record == "file" for refused in self.refused)

    @property
    def n_dropped(self) -> int:
        """Number of items that were dropped from playlists."""
        return sum(is_item(refused.record) for refused in self.refused)

    def lists(self, values: NDArray[Any]) -> Ragged:
        """Per-track values, (m,), as one row per playlist, in playlist order."""
        return Ragged(self.offsets, values if self.order is None else values[self.order])


class _NotClean(Exception):
    """The fast path found something that the slow path must handle."""


def parse_slice(data: bytes, limits: Limits, taken: Mapping[int, str] = MappingProxyType({})) -> Slice:
    """Parse the content of a file. Invalid records and files are returned in `refused` and never raise.

    `taken`: pids that belong to another file, and its name; they are rejected here as duplicates.
    """
    if data.startswith(_GZIP):
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            detail = f"expected a file that gzip can decompress, found a damaged one: {error}"
            return refused_file(Refused("file", None, "unreadable", detail, None))
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
    holdouts = playlists.field("num_holdouts")
    if holdouts.null_count < len(holdouts):
        is_challenge = np.repeat(holdouts.is_valid().to_numpy(zero_copy_only=False), lengths)
        pos = items.field("pos").filter(pa.array(is_challenge)).drop_null().to_numpy()
        if pc.min(holdouts).as_py() < 0 or (len(pos) and (pos.min() < 0 or pos.max() >= 2**31)):
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
    records = _without_bad_durations(lists.flatten())
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
    for name in (*PLAYLIST_FIELDS, *CHALLENGE_FIELDS):
        fields[name] = playlists.field(name)
    fields["duration_ms"] = _null_below(fields["duration_ms"], 0)
    fields["collaborative"] = pc.equal(fields["collaborative"], "true")
    fields["modified_at"] = fields["modified_at"].cast(pa.timestamp("s", "UTC")).cast(pa.timestamp("us", "UTC"))
    pids = np.repeat(playlists.field("pid").to_numpy(), np.diff(offsets))
    keys = _sort_keys(records.field("pos"), offsets)
    order = _in_order(keys, offsets)
    positions = _challenge_positions(playlists.field("num_holdouts"), keys if order is None else keys[order], offsets)
    longest = max(longest, int(np.diff(offsets).max(initial=0)))
    return Slice(pa.table(fields), records, words, pids, missing, offsets, order, positions, list(refused), longest)


def _without_bad_durations(records: pa.StructArray) -> pa.StructArray:
    """Tracks with null for a `duration_ms` of 0 or less, which means that it is unknown."""
    durations = records.field("duration_ms")
    positive = _null_below(durations, 1)
    if positive is durations:
        return records
    names = [field.name for field in _TRACK]
    return pa.StructArray.from_arrays(
        [positive if name == "duration_ms" else records.field(name) for name in names], names
    )


def _null_below(numbers: pa.Array, least: int) -> pa.Array:
    """The numbers with null for those below `least`; the same array if there are none."""
    lowest = pc.min(numbers).as_py()
    if lowest is None or lowest >= least:
        return numbers
    return pc.if_else(pc.greater_equal(numbers, least), numbers, pa.scalar(None, numbers.type))


def _sort_keys(pos: pa.Array, offsets: I64) -> I64:
    """The number by which each track is sorted within its playlist: `pos`, or in a playlist where any track lacks it,
    the track's place in the file, from 0."""
    if not pos.null_count:
        return np.asarray(pos.to_numpy())
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    lacking = np.zeros(len(offsets) - 1, bool)
    lacking[rows[pos.is_null().to_numpy(zero_copy_only=False)]] = True
    return np.where(lacking[rows], np.arange(len(rows)) - offsets[rows], pos.fill_null(0).to_numpy())


def _in_order(keys: I64, offsets: I64) -> I64 | None:
    """The permutation that sorts tracks by playlist and key; equal keys keep file order. None if they are sorted."""
    falls = np.flatnonzero(keys[1:] < keys[:-1]) + 1
    # in a sorted file, keys decrease only where a new playlist starts
    if np.isin(falls, offsets).all():
        return None
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return np.lexsort((keys, rows))


def _challenge_positions(holdouts: pa.Array, keys: I64, offsets: I64) -> Ragged:
    """See Slice.positions; `keys` are those of _sort_keys in playlist order."""
    if holdouts.null_count == len(holdouts):
        return Ragged.empty(len(holdouts))
    is_challenge = holdouts.is_valid().to_numpy(zero_copy_only=False)
    lengths = np.diff(offsets)
    own = keys[np.repeat(is_challenge, lengths)].astype(np.int32)
    return Ragged.from_lengths(np.where(is_challenge, lengths, 0), own)


class _FileRefused(Exception):
    """The whole file cannot be used: reason and detail."""


class _RecordRefused(Exception):
    """A playlist or an item cannot be used: reason and detail."""


def _slow(data: bytes, limits: Limits, taken: Mapping[int, str]) -> Slice:
    """Parse record by record: valid playlists as in `_fast`, and a reason for each of the others."""
    try:
        records = _records(data)
    except _FileRefused as error:
        reason, detail = error.args
        payload = data[: limits.payload_bytes].decode("utf-8", "replace")
        return refused_file(Refused("file", None, reason, detail, payload))
    refused: list[Refused] = []
    good: list[dict[str, Any]] = []
    seen: set[int] = set()
    longest = 0
    for place, record in enumerate(records):
        tracks = record.get("tracks") if isinstance(record, dict) else None
        # rejected records count too: with another limit they could be accepted, or rejected for another reason
        longest = max(longest, len(tracks) if isinstance(tracks, list) else 0)
        try:
            playlist, dropped = _playlist(place, record, seen, taken, limits)
        except _RecordRefused as error:
            reason, detail = error.args
            pid = _whole_number(record.get("pid")) if isinstance(record, dict) else None
            known = pid if pid is not None and abs(pid) < 2**63 else None
            other = taken.get(known) if reason == "pid_duplicate" and known is not None else None
            payload = _shown(record, limits.payload_bytes)
            refused.append(Refused(f"playlist {place}", known, reason, detail, payload, other))
            continue
        seen.add(playlist["pid"])
        good.append(playlist)
        refused += dropped
    return _to_slice(pa.array(good, _PLAYLIST), refused, longest)


def is_item(record: str) -> bool:
    """Whether `Refused.record` is that of an item that was dropped from a playlist."""
    return ", item " in record


def refused_file(refused: Refused) -> Slice:
    """The slice of a file that is rejected as a whole."""
    return _to_slice(pa.array([], _PLAYLIST), [refused])


def _records(data: bytes) -> list[Any]:
    """The list `playlists` of a file. Raises _FileRefused."""
    content = _json(_text(data))
    if not isinstance(content, dict) or not isinstance(content.get("playlists"), list):
        found = recognise(content)
        if found is None and not isinstance(content, dict):
            found = _shown(content)
        elif found is None:
            found = (
                f"playlists: {_shown(content['playlists'])}"
                if "playlists" in content
                else f"the keys {_shown(list(content)[:8])}"
            )
        raise _FileRefused("not_a_slice", f"expected an object with a list `playlists`, found {found}")
    records: list[Any] = content["playlists"]
    if records and not any(isinstance(record, dict) and record.get("pid") is not None for record in records):
        found = recognise(content) or f"{len(records):,} without one, the first of them {_shown(records[0])}"
        raise _FileRefused("not_a_slice", f"expected playlists with a pid, found {found}")
    return records


def _text(data: bytes) -> str:
    """The text of a file without its byte order mark. Raises _FileRefused if it is not UTF-8."""
    for start, encoding in _OTHER_ENCODINGS.items():
        if data.startswith(start):
            raise _FileRefused("not_utf8", f"expected UTF-8, found {encoding}: {_conversion(encoding)}")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _FileRefused(
            "not_utf8",
            f"expected UTF-8, found the byte 0x{data[error.start]:02x} at position {error.start:,} (line {line:,}): "
            f"if the file is in Windows-1252, {_conversion('WINDOWS-1252')}",
        ) from error


def _conversion(encoding: str) -> str:
    return f"convert it with `iconv -f {encoding} -t UTF-8 FILE > NEW_FILE`"


def _json(text: str) -> Any:
    """The value of a JSON document. Raises _FileRefused."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        # the standard library accepts what orjson rejects: large integers, lone surrogates, NaN
        return json.loads(text)
    except json.JSONDecodeError as error:
        _refuse_json(text, error)
    except RecursionError as error:
        raise _FileRefused("not_json", "expected JSON, found values that are nested too deeply") from error
    except ValueError as error:
        raise _FileRefused("not_json", f"expected JSON, found a number that cannot be read: {error}") from error


def _refuse_json(text: str, error: json.JSONDecodeError) -> NoReturn:
    """Raise _FileRefused with what the parser found and where."""
    if not text.strip():
        raise _FileRefused("not_json", "expected JSON, found an empty file") from error
    where = f"line {error.lineno:,}, column {error.colno:,} (character {error.pos:,} of {len(text):,})"
    if error.msg != "Extra data":
        is_cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        cut = "; the file may be incomplete" if is_cut else ""
        raise _FileRefused("not_json", f"expected JSON, found an error at {where}: {error.msg}{cut}") from error
    try:
        json.JSONDecoder().raw_decode(text, error.pos)
    except (ValueError, RecursionError):
        more = _shown(text[error.pos : error.pos + 40])
        detail = f"expected the end of the file after the JSON document, found more at {where}: {more}"
    else:
        detail = f"expected one JSON document, found several: the second starts at {where}; split the file"
    raise _FileRefused("not_json", detail) from error


def _shown(value: Any, most: int = 100) -> str:
    """The start of a value as ASCII JSON, which is printable and has one byte per character."""
    try:
        return json.dumps(value, ensure_ascii=True)[:most]
    except RecursionError:
        return "a deeply nested value"[:most]


def _whole_number(value: Any) -> int | None:
    """The value of a JSON number without a fraction, such as 3 or 3.0; None for anything else."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _playlist(
    place: int, record: Any, seen: set[int], taken: Mapping[int, str], limits: Limits
) -> tuple[dict[str, Any], list[Refused]]:
    """A valid playlist with only the fields of the schema, and the items that were dropped from it.

    `place`: its position in the file. Raises _RecordRefused.
    """
    if not isinstance(record, dict):
        raise _RecordRefused("pid_missing", f"expected an object with a pid, found {_shown(record)}")
    if record.get("pid") is None:
        raise _RecordRefused("pid_missing", "pid: expected a whole number, found nothing")
    pid = _whole_number(record["pid"])
    if pid is None or not 0 <= pid < 2**63:
        reason = ", which is too large" if pid is not None and pid > 0 else ""
        raise _RecordRefused(
            "pid_not_integer", f"pid: expected a whole number from 0, found {_shown(record['pid'])}{reason}"
        )
    if pid in seen:
        raise _RecordRefused("pid_duplicate", f"pid: {pid} occurs earlier in this file")
    if pid in taken:
        raise _RecordRefused("pid_duplicate", f"pid: {pid} is taken from {taken[pid]}")
    plain = _fields(record, _PLAYLIST, "")
    tracks = record.get("tracks")
    is_challenge = plain["num_holdouts"] is not None
    if tracks is None and is_challenge:
        tracks = []
    if not isinstance(tracks, list):
        raise _RecordRefused("tracks_missing", f"tracks: expected a list, found {_shown(tracks)}")
    if len(tracks) > limits.max_tracks:
        raise _RecordRefused("too_many_tracks", f"tracks: expected at most {limits.max_tracks}, found {len(tracks)}")
    items: list[dict[str, Any]] = []
    dropped: list[Refused] = []
    for number, item in enumerate(tracks):
        try:
            items.append(_item(item, f"tracks[{number}]", is_challenge))
        except _RecordRefused as error:
            if limits.bad_items == "refuse":
                raise
            reason, detail = error.args
            payload = _shown(item, limits.payload_bytes)
            dropped.append(Refused(f"playlist {place}, item {number}", pid, reason, detail, payload))
    return {**plain, "pid": pid, "tracks": items}, dropped


def _item(item: Any, where: str, is_challenge: bool) -> dict[str, Any]:
    """A valid track with only the fields of the schema. Raises _RecordRefused."""
    if not isinstance(item, dict):
        raise _RecordRefused("item_missing", f"{where}: expected a track, found {_shown(item)}")
    uri = item.get("track_uri")
    if uri is None or uri == "":
        raise _RecordRefused("item_missing", f"{where}.track_uri: expected a URI, found {_shown(uri)}")
    if not isinstance(uri, str) or not TRACK_URI.fullmatch(uri):
        found = f"{where}.track_uri: expected spotify:track: and 22 letters or digits, found {_shown(uri)}"
        for start, (reason, what) in _OTHER_ITEMS.items():
            if isinstance(uri, str) and uri.startswith(start):
                raise _RecordRefused(reason, f"{found}, {what}")
        raise _RecordRefused("track_uri_malformed", found)
    plain = _fields(item, _TRACK, f"{where}.")
    if is_challenge and plain["pos"] is not None and not 0 <= plain["pos"] < 2**31:
        raise _RecordRefused("field_malformed", f"{where}.pos: expected a whole number from 0, found {plain['pos']}")
    return {**plain, "track_uri": uri}


def _fields(record: dict[str, Any], struct: pa.StructType, prefix: str) -> dict[str, Any]:
    """The values of a record's fields, except those that are checked elsewhere. Raises _RecordRefused."""
    found: dict[str, Any] = {}
    for i in range(struct.num_fields):
        name, kind = struct.field(i).name, struct.field(i).type
        if name in ("pid", "tracks", "track_uri"):
            continue
        value, expected, why = record.get(name), None, ""
        if value is None:
            found[name] = None
        elif name == "collaborative":
            found[name] = str(value).lower() if isinstance(value, bool) else value
            expected = None if found[name] in ("true", "false") else "true or false"
        elif pa.types.is_string(kind):
            found[name] = value
            expected = None if isinstance(value, str) and _encodes(value) else "text"
        else:
            found[name] = _whole_number(value)
            expected, why = _number_expected(name, found[name], 31 if pa.types.is_int32(kind) else 63)
        if expected is not None:
            raise _RecordRefused("field_malformed", f"{prefix}{name}: expected {expected}, found {_shown(value)}{why}")
    return found


def _number_expected(name: str, number: int | None, bits: int) -> tuple[str | None, str]:
    """What is expected instead of a number, and what is wrong with it; None if it is valid."""
    if name == "modified_at":
        if number is not None and number > LATEST:
            return "seconds since 1970", ", which is after the year 9999 (milliseconds?)"
        return (None if number is not None and number >= 0 else "seconds since 1970"), ""
    if number is None:
        return "a whole number", ""
    if name == "num_holdouts" and number < 0:
        return "a whole number from 0", ""
    if not -(2**bits) <= number < 2**bits:
        return "a whole number", f", which is too {'large' if number > 0 else 'small'}"
    return None, ""


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
