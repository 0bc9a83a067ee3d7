"""Validation of audio features, the same for every provider: which rows are accepted, which are rejected and why.

Works on whole Arrow columns; only rejected rows are processed one by one.
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
"""Columns of `audio_features`: track_uri, the eleven features as float64, and source; none is null."""

REJECTED_SCHEMA: pa.Schema = pa.schema(
    [
        pa.field(column.name, _ARROW_TYPES[column.type], column.nullable)
        for column in QUARANTINE.columns
        if column.name not in ("pid", "stage", "taken_by")
    ]
)
"""Columns of `quarantine` that a provider fills: source, record, reason, detail and payload, which is nullable."""

WHOLE_FILE = "file"
"""The `record` of a source that is rejected as a whole."""

URI_PREFIX = "spotify:track:"

TRACK_ID = (
    r"^\s*(?:spotify:track:|(?:https?://)?(?:open\.spotify\.com/(?:intl-[A-Za-z]+/)?track"
    r"|api\.spotify\.com/v1/(?:tracks|audio-features))/)?"
    r"(?P<id>[0-9A-Za-z]{22})(?:[?#].*)?\s*$"
)
"""RE2 pattern of a track id, bare, in a URI or in a link to Spotify's page or API: 22 base-62 digits."""

MISSING = ("", "null", "none", "na", "n/a", "#n/a", "\\n", "-")
"""Strings, in lower case, that stand for a missing value."""

_PITCHES = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}
_SHARPS = {note + sign: (pitch + 1) % 12 for note, pitch in _PITCHES.items() for sign in "#♯"}
_FLATS = {note + sign: (pitch - 1) % 12 for note, pitch in _PITCHES.items() for sign in "b♭"}
_PAIRS = {f"{one}/{other}": p for one, p in _SHARPS.items() for other, q in _FLATS.items() if p == q}

WORDS: dict[str, dict[str, int]] = {
    "key": {**_PITCHES, **_SHARPS, **_FLATS, **_PAIRS, **{"/".join(k.split("/")[::-1]): p for k, p in _PAIRS.items()}},
    "mode": {"major": 1, "minor": 0, "true": 1, "false": 0},
}
"""Texts, in lower case, that are numbers of a feature: notes (C, C#, Db, C♯/D♭), and the names of the modes."""

_NUMBER = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"


@dataclass(frozen=True)
class FeatureBatch:
    """One batch of a provider's result: `features` of FEATURE_SCHEMA and `rejected` records of REJECTED_SCHEMA.

    The size is bounded. Over all batches of a result, each track is in `features` at most once and each record in
    `rejected` at most once.
    """

    features: pa.Table
    rejected: pa.Table


def normalise_ids(strings: pa.Array) -> pa.Array:
    """Extract track ids from ids, URIs or open.spotify.com links: 22 characters, or null if there is none."""
    return pc.struct_field(pc.extract_regex(_text(strings), TRACK_ID), "id")


def no_features() -> pa.Table:
    """An empty table of FEATURE_SCHEMA."""
    return FEATURE_SCHEMA.empty_table()


def rejections(rows: list[tuple[str, str, str, str, str | None]], payload_bytes: int) -> pa.Table:
    """A table of REJECTED_SCHEMA from (source, record, reason, detail, payload); payloads are truncated."""
    columns: list[list[str | None]] = [[row[column] for row in rows] for column in range(len(REJECTED_SCHEMA))]
    columns[-1] = [bounded(payload, payload_bytes) for payload in columns[-1]]
    return pa.table(
        [pa.array(column, pa.string()) for column in columns],
        schema=REJECTED_SCHEMA,
    )


def bounded(payload: str | None, payload_bytes: int) -> str | None:
    """A payload truncated to at most `payload_bytes` bytes of UTF-8."""
    if payload is None or len(payload.encode(errors="replace")) <= payload_bytes:
        return payload
    return payload.encode(errors="replace")[:payload_bytes].decode(errors="ignore")


class TrackSet:
    """The tracks seen so far, in eight bytes each: 64-bit hashes in sorted runs that grow geometrically.

    The probability that any two of n tracks share a hash is about n^2 / 2^65: 1 in 7 million for the 2.26 million
    tracks of the Million Playlist Dataset. The later track would be mistaken for a duplicate.
    """

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def add(self, ids: pa.Array) -> NDArray[np.bool_]:
        """Add ids of 22 characters, none null; True for each id that is new and did not occur earlier in `ids`."""
        hashes = _hash(ids)
        distinct, first = np.unique(hashes, return_index=True)
        seen = np.zeros(len(distinct), dtype=bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, distinct), len(run) - 1)
            seen |= run[at] == distinct
        new = np.zeros(len(hashes), dtype=bool)
        new[first[~seen]] = True
        fresh = distinct[~seen]
        # Merging only runs of similar size keeps the total work at n log n.
        while self._runs and len(self._runs[-1]) <= 2 * len(fresh):
            fresh = np.concatenate([self._runs.pop(), fresh])
            fresh.sort()
        if len(fresh):
            self._runs.append(fresh)
        return new


def _hash(ids: pa.Array) -> NDArray[np.uint64]:
    """64-bit hashes of ids of 22 characters: three words, mixed with the SplitMix64 finaliser."""
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
    """Checks raw rows, and remembers accepted tracks so that each is accepted once."""

    def __init__(self, payload_bytes: int) -> None:
        self._payload_bytes = payload_bytes
        self._taken = TrackSet()

    def check(self, source: str, records: pa.Array, ids: pa.Array, values: Mapping[str, pa.Array]) -> FeatureBatch:
        """Split rows into accepted and rejected ones, the latter with the first of these reasons that applies.

        feature_id_malformed, feature_missing (null, or a string in MISSING), feature_not_a_number (including NaN),
        feature_out_of_range (vocabulary.RANGES; including infinity), feature_duplicate (the first valid row of a track
        is kept). `records`: strings, unique within `source`; `ids`: strings as for normalise_ids; `values`: the eleven
        features as numbers or strings, such as in WORDS, `mode` also as booleans; all of the same length.
        """
        n = len(records)
        track_ids = normalise_ids(ids)
        numbers = {name: to_numbers(values[name], name) for name in FEATURES}
        reason = np.full(n, "", dtype=object)
        column = np.full(n, -1, dtype=np.int8)

        def mark(rows: NDArray[np.bool_], why: str, which: int) -> None:
            reason[rows] = why
            column[rows] = which

        # Lowest priority first, so that the reason with the highest priority, and its first column, remains.
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
            return FeatureBatch(features, rejections([], self._payload_bytes))
        return FeatureBatch(features, self._rejected(source, bad, reason[bad], column[bad], records, ids, values))

    def _rejected(
        self,
        source: str,
        rows: NDArray[np.int64],
        reasons: NDArray[np.object_],
        columns: NDArray[np.int8],
        records: pa.Array,
        ids: pa.Array,
        values: Mapping[str, pa.Array],
    ) -> pa.Table:
        at = pa.array(rows)
        names = records.take(at).to_pylist()
        given_ids = _text(ids.take(at)).to_pylist()
        given = [_text(values[name].take(at)).to_pylist() for name in FEATURES]
        table: list[tuple[str, str, str, str, str | None]] = []
        for position, (reason, which) in enumerate(zip(reasons.tolist(), columns.tolist(), strict=True)):
            found = given[which][position] if which >= 0 else given_ids[position]
            detail = _detail(reason, FEATURES[which], found)
            record = {"id": given_ids[position]}
            record.update({name: column[position] for name, column in zip(FEATURES, given, strict=True)})
            table.append((source, names[position], reason, detail, orjson.dumps(record).decode()))
        return rejections(table, self._payload_bytes)


_OR_WORDS = {"key": " or a note such as C#", "mode": ", major or minor"}


def _detail(reason: str, name: str, found: str | None) -> str:
    shown = "nothing" if found is None else repr(found if len(found) <= 80 else found[:80] + "...")
    if reason == "feature_id_malformed":
        return f"track_uri: expected a Spotify track id of 22 letters and digits, found {shown}"
    if reason == "feature_duplicate":
        return f"track_uri: expected one row per track, found {shown} again; the first row is kept"
    low, high = RANGES[name]
    if reason == "feature_out_of_range":
        return f"{name}: expected {low:g} to {high:g}, found {found}"
    expected = f"a number from {low:g} to {high:g}{_OR_WORDS.get(name, '')}"
    return f"{name}: expected {expected}, found {shown}"


@dataclass(frozen=True)
class Numbers:
    """A column as numbers: `values` float64, NaN for rows in either of the masks `missing` and `not_a_number`."""

    values: NDArray[np.float64]
    missing: NDArray[np.bool_]
    not_a_number: NDArray[np.bool_]


def to_numbers(column: pa.Array, name: str = "") -> Numbers:
    """Convert an Arrow column of numbers or strings; values of any other type are not numbers.

    `name`: the feature, of which WORDS are numbers too; of `mode`, booleans are.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if name == "mode" and pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if _is_number(column.type):
        cast = column.cast(pa.float64(), safe=False)
        missing = _flags(pc.is_null(cast))
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        try:
            cast = column.cast(pa.float64())
            missing = _flags(pc.is_null(cast))
        except pa.ArrowInvalid:
            trimmed = _without_words(pc.utf8_trim_whitespace(column), WORDS.get(name, {}))
            absent = pc.is_in(pc.utf8_lower(trimmed), value_set=pa.array(MISSING, column.type))
            missing = _flags(pc.or_(pc.is_null(column), absent))
            number = pc.match_substring_regex(trimmed, _NUMBER)
            # Infinity counts as out of range, not as not a number, so keep it.
            infinite = pc.match_substring_regex(trimmed, r"(?i)^[+-]?inf(?:inity)?$")
            cast = pc.if_else(pc.or_(number, infinite), trimmed, None).cast(pa.float64())
    else:
        cast = pa.nulls(len(column), pa.float64())
        missing = _flags(pc.is_null(column))
    values = np.asarray(cast.to_numpy(zero_copy_only=False), dtype=np.float64)
    return Numbers(values, missing, np.isnan(values) & ~missing)


def _without_words(trimmed: pa.Array, words: Mapping[str, int]) -> pa.Array:
    """Strings with each one that is one of the words, in any case, replaced by its number."""
    if not words:
        return trimmed
    place = pc.index_in(pc.utf8_lower(trimmed), value_set=pa.array(list(words), trimmed.type))
    return pc.coalesce(pa.array([str(number) for number in words.values()], trimmed.type).take(place), trimmed)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _text(column: pa.Array) -> pa.Array:
    """The values as strings, for parsing ids and for messages."""
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
