"""The rules for audio features, the same for every provider: what is taken, what is refused and why.

Works on Arrow columns as a whole; only what is refused is looked at one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encore.lake.tables import AUDIO_FEATURES, QUARANTINE
from encore.vocabulary import FEATURES, RANGES

_ARROW_TYPES = {"string": pa.string(), "double": pa.float64()}

FEATURE_SCHEMA: pa.Schema = pa.schema(
    [pa.field(column.name, _ARROW_TYPES[column.type], column.nullable) for column in AUDIO_FEATURES.columns]
)
"""Columns of `audio_features`: track_uri, the eleven as float64, source; none is null."""

REFUSED_SCHEMA: pa.Schema = pa.schema(
    [
        pa.field(column.name, _ARROW_TYPES[column.type], column.nullable)
        for column in QUARANTINE.columns
        if column.name not in ("pid", "stage", "taken_by")
    ]
)
"""Columns of `quarantine` that a provider knows: source, record, reason, detail, payload (may be null)."""

WHOLE_FILE = "file"
"""`record` of a source that is refused as a whole."""

URI_PREFIX = "spotify:track:"

TRACK_ID = (
    r"^\s*(?:spotify:track:|(?:https?://)?open\.spotify\.com/(?:intl-[A-Za-z]+/)?track/)?"
    r"(?P<id>[0-9A-Za-z]{22})(?:[?#].*)?\s*$"
)
"""A track's id, bare, in a URI or in a link, for RE2: 22 digits to base 62."""

MISSING = ("", "null", "none", "na", "n/a", "#n/a", "\\n", "-")
"""Texts, in small letters, that stand for no value."""

_NUMBER = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"


@dataclass(frozen=True)
class Fetched:
    """One bounded chunk of an answer: `features` of FEATURE_SCHEMA and `refused` of REFUSED_SCHEMA.

    A track is in `features` of at most one chunk of an answer; a record in `refused` of at most one.
    """

    features: pa.Table
    refused: pa.Table


def normalise_ids(texts: pa.Array) -> pa.Array:
    """Track ids, 22 characters or null where there is none, of ids, URIs or open.spotify.com links."""
    return pc.struct_field(pc.extract_regex(_text(texts), TRACK_ID), "id")


def no_features() -> pa.Table:
    """A table of FEATURE_SCHEMA without rows."""
    return FEATURE_SCHEMA.empty_table()


def refusals(rows: list[tuple[str, str, str, str, str | None]], payload_bytes: int) -> pa.Table:
    """A table of REFUSED_SCHEMA of (source, record, reason, detail, payload), payloads cut to their bound."""
    columns: list[list[str | None]] = [[row[place] for row in rows] for place in range(len(REFUSED_SCHEMA))]
    columns[-1] = [bounded(payload, payload_bytes) for payload in columns[-1]]
    return pa.table(
        [pa.array(column, pa.string()) for column in columns],
        schema=REFUSED_SCHEMA,
    )


def bounded(payload: str | None, payload_bytes: int) -> str | None:
    """The beginning of a payload, at most `payload_bytes` bytes of UTF-8."""
    if payload is None or len(payload.encode(errors="replace")) <= payload_bytes:
        return payload
    return payload.encode(errors="replace")[:payload_bytes].decode(errors="ignore")


class TrackSet:
    """The tracks seen so far, in eight bytes each: 64-bit hashes in sorted runs that grow geometrically.

    Two of n tracks share a hash with a chance of n^2 / 2^65: for the 2.26 million of the Million Playlist
    Dataset, 1 in 7 million. The later one would be taken for a duplicate.
    """

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def add(self, ids: pa.Array) -> NDArray[np.bool_]:
        """Add ids of 22 characters, none null; True where one was not there, nor earlier in `ids`."""
        hashes = _hash(ids)
        distinct, first = np.unique(hashes, return_index=True)
        seen = np.zeros(len(distinct), dtype=bool)
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, distinct), len(run) - 1)
            seen |= run[place] == distinct
        new = np.zeros(len(hashes), dtype=bool)
        new[first[~seen]] = True
        fresh = distinct[~seen]
        # Merging runs of like size only keeps the work at n log n over all chunks.
        while self._runs and len(self._runs[-1]) <= 2 * len(fresh):
            fresh = np.concatenate([self._runs.pop(), fresh])
            fresh.sort()
        if len(fresh):
            self._runs.append(fresh)
        return new


def _hash(ids: pa.Array) -> NDArray[np.uint64]:
    """64-bit hashes of ids of 22 characters: three words, mixed by the finaliser of SplitMix64."""
    padded = np.zeros((len(ids), 24), dtype=np.uint8)
    padded[:, :22] = (
        np.array(ids.cast(pa.binary(22)).to_numpy(zero_copy_only=False), dtype="S22")
        .view(np.uint8)
        .reshape(len(ids), 22)
    )
    mixed = np.zeros(len(ids), dtype=np.uint64)
    for word in padded.view(np.uint64).T:
        mixed = mixed + word + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed


class Validator:
    """Checks raw rows and remembers the tracks that it took, so that each is taken once."""

    def __init__(self, payload_bytes: int) -> None:
        self._payload_bytes = payload_bytes
        self._taken = TrackSet()

    def check(self, source: str, records: pa.Array, ids: pa.Array, values: Mapping[str, pa.Array]) -> Fetched:
        """Split rows into those taken and those refused, each with the first of these reasons that applies.

        feature_id_malformed, feature_missing (null, or a text of MISSING), feature_not_a_number (also NaN),
        feature_out_of_range (tables.RANGES, also infinite), feature_duplicate (the track was taken before: of
        the good rows of a track, the first stays). `records`: strings, unique within `source`; `ids`: texts
        that normalise_ids takes; `values`: the eleven, numbers or texts; all of one length.
        """
        n = len(records)
        track_ids = normalise_ids(ids)
        numbers = {name: to_numbers(values[name]) for name in FEATURES}
        reason = np.full(n, "", dtype=object)
        column = np.full(n, -1, dtype=np.int8)

        def mark(rows: NDArray[np.bool_], why: str, which: int) -> None:
            reason[rows] = why
            column[rows] = which

        # Last to first, so that the reason of most weight, and the first column it holds for, is what
        # remains.
        plain: dict[str, NDArray[np.float64]] = {}
        for which, name in reversed(list(enumerate(FEATURES))):
            plain[name] = numbers[name].values
            low, high = RANGES[name]
            outside = ~((plain[name] >= low) & (plain[name] <= high))
            if outside.any():
                mark(outside, "feature_out_of_range", which)
        for why in ("feature_not_a_number", "feature_missing"):
            for which, name in reversed(list(enumerate(FEATURES))):
                mask = numbers[name].missing if why == "feature_missing" else numbers[name].not_a_number
                if mask.any():
                    mark(mask, why, which)
        malformed = _flags(pc.is_null(track_ids))
        mark(malformed, "feature_id_malformed", -1)
        good = np.flatnonzero(reason == "")
        new = self._taken.add(track_ids.take(pa.array(good)))
        reason[good[~new]] = "feature_duplicate"
        kept = pa.array(good[new])
        uris = pc.binary_join_element_wise(URI_PREFIX, track_ids.take(kept), "")
        taken = [uris, *(pa.array(plain[name][good[new]]) for name in FEATURES), pa.repeat(source, len(kept))]
        features = pa.table([pa.array(part) for part in taken], schema=FEATURE_SCHEMA)
        bad = np.flatnonzero(reason != "")
        if len(bad) == 0:
            return Fetched(features, refusals([], self._payload_bytes))
        return Fetched(features, self._refused(source, bad, reason[bad], column[bad], records, ids, values))

    def _refused(
        self,
        source: str,
        rows: NDArray[np.int64],
        reasons: NDArray[np.object_],
        columns: NDArray[np.int8],
        records: pa.Array,
        ids: pa.Array,
        values: Mapping[str, pa.Array],
    ) -> pa.Table:
        place = pa.array(rows)
        names = records.take(place).to_pylist()
        given_ids = _text(ids.take(place)).to_pylist()
        given = [_text(values[name].take(place)).to_pylist() for name in FEATURES]
        table: list[tuple[str, str, str, str, str | None]] = []
        for position, (reason, which) in enumerate(zip(reasons.tolist(), columns.tolist(), strict=True)):
            found = given[which][position] if which >= 0 else given_ids[position]
            detail = _detail(reason, FEATURES[which], found)
            record = {"id": given_ids[position]}
            record.update({name: column[position] for name, column in zip(FEATURES, given, strict=True)})
            table.append((source, names[position], reason, detail, orjson.dumps(record).decode()))
        return refusals(table, self._payload_bytes)


def _detail(reason: str, name: str, found: str | None) -> str:
    shown = "nothing" if found is None else repr(found if len(found) <= 80 else found[:80] + "...")
    if reason == "feature_id_malformed":
        return f"track_uri: a Spotify track id of 22 letters and digits expected, {shown} found"
    if reason == "feature_duplicate":
        return f"track_uri: one row a track expected, {shown} found again; the first one stays"
    low, high = RANGES[name]
    if reason == "feature_out_of_range":
        return f"{name}: {low:g} to {high:g} expected, {found} found"
    return f"{name}: a number from {low:g} to {high:g} expected, {shown} found"


@dataclass(frozen=True)
class Numbers:
    """A column as numbers: `values` float64, NaN where there is none; why there is none, as two masks."""

    values: NDArray[np.float64]
    missing: NDArray[np.bool_]
    not_a_number: NDArray[np.bool_]


def to_numbers(column: pa.Array) -> Numbers:
    """Numbers of an Arrow column of numbers or texts; of other types, booleans too, nothing is one."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_number(column.type):
        cast = column.cast(pa.float64(), safe=False)
        missing = _flags(pc.is_null(cast))
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        try:
            cast = column.cast(pa.float64())
            missing = _flags(pc.is_null(cast))
        except pa.ArrowInvalid:
            trimmed = pc.utf8_trim_whitespace(column)
            absent = pc.is_in(pc.utf8_lower(trimmed), value_set=pa.array(MISSING, column.type))
            missing = _flags(pc.or_(pc.is_null(column), absent))
            number = pc.match_substring_regex(trimmed, _NUMBER)
            # An infinite number is out of range rather than no number: keep its text.
            infinite = pc.match_substring_regex(trimmed, r"(?i)^[+-]?inf(?:inity)?$")
            cast = pc.if_else(pc.or_(number, infinite), trimmed, None).cast(pa.float64())
    else:
        cast = pa.nulls(len(column), pa.float64())
        missing = _flags(pc.is_null(column))
    values = np.asarray(cast.to_numpy(zero_copy_only=False), dtype=np.float64)
    return Numbers(values, missing, np.isnan(values) & ~missing)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _text(column: pa.Array) -> pa.Array:
    """The values as texts, for reading ids and for showing what was found."""
    if pa.types.is_string(column.type):
        return column
    if pa.types.is_nested(column.type):
        return pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        shown = [None if value is None else value.decode(errors="replace") for value in column.to_pylist()]
        return pa.array(shown, pa.string())
    return column.cast(pa.string())


def _flags(column: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.bool_)
