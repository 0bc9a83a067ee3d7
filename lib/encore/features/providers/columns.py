"""Which columns of a file of audio features are read: the features by their names, the track ids by their values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from encore.features.providers.sources import Unreadable
from encore.features.validation import normalise_ids
from encore.vocabulary import FEATURES

ID_SPELLINGS = (
    "trackuri",
    "spotifytrackuri",
    "spotifyuri",
    "spotifytrackid",
    "spotifyid",
    "trackid",
    "uri",
    "id",
    "trackurl",
    "spotifyurl",
    "trackhref",
    "url",
)
"""Names of the track id column, in lower case and without punctuation, the most likely first."""

SAMPLE_ROWS = 1000
"""How many rows of a file decide which of its columns has the track ids."""

Sample = Callable[[Sequence[str]], Mapping[str, pa.Array]]
"""Returns the values in the first SAMPLE_ROWS rows of some columns; a column that cannot be sampled is left out."""

_REMEDY = "provide track ids and all eleven features, or name the columns in features.columns"

_PREFIX = r"(?:spotify|audio|features?|af|track|song|item|music)*"

_ID_SPELLING = re.compile(rf"{_PREFIX}(?:external)?(?P<name>ids?|uris?|urls?|href|link)(?:spotify)?")
"""Further names of columns that may have track ids: song_id, track.id, Url_spotify, ..."""

_FEATURE_SPELLING = re.compile(
    rf"{_PREFIX}(?P<name>{'|'.join(FEATURES)}|(?:beatsperminute)?bpm)(?:score|value|feature|bpm|db)?"
)

_NOT_TRACKS = ("artist", "album", "playlist", "user", "addedby", "genre")
"""Columns with such a word in their names have ids of something else, which may look like track ids."""

_MOSTLY = 0.5


@dataclass(frozen=True)
class Columns:
    """The columns of a file that are read: by Encore's name the file's.

    `why`: why the track ids are taken from their column; `surprising` if it is not the one that its name suggests.
    """

    names: dict[str, str]
    why: str
    surprising: bool


def find_columns(header: list[str], configured: Mapping[str, str], sample: Sample) -> Columns:
    """Map Encore's column names to a file's. `configured` overrides what names and values suggest.

    Features are found by name, whatever its case and punctuation, with or without prefixes such as `track_` and
    `audio_features.`; an exact name wins. Track ids are found by value: among the columns whose names may mean an id,
    the one with the largest share of Spotify ids in the sample, ties broken by the order of ID_SPELLINGS. If none of
    them has mostly Spotify ids, any other column that has. Raises Unreadable with the columns that the file has.
    """
    found: dict[str, str] = {}
    missing: list[str] = []
    for name in FEATURES:
        theirs = [configured[name]] if name in configured else _feature_columns(name, header)
        found |= _only(name, [one for one in header if one in theirs])
        if name not in found:
            missing.append(configured.get(name, name))
    if "track_uri" in configured:
        own = _only("track_uri", [one for one in header if one == configured["track_uri"]])
        chosen = Columns(own, "features.columns says so", False)
        missing = missing if own else [configured["track_uri"], *missing]
    else:
        chosen = _id_column(header, set(found.values()), sample)
        missing = missing if chosen.names else ["track ids", *missing]
    if missing:
        columns = ", ".join(shown(one) for one in header[:40]) + (", ..." if len(header) > 40 else "")
        raise Unreadable(f"no column for {', '.join(missing)}; found: {columns or 'no column at all'}", _REMEDY)
    found |= chosen.names
    if len(set(found.values())) < len(found):
        raise Unreadable("features.columns names one column for several features")
    return Columns(found, chosen.why, chosen.surprising)


def shown(name: str) -> str:
    """A column's name for messages."""
    return name.replace("\0", ".")


def _only(name: str, candidates: list[str]) -> dict[str, str]:
    if len(candidates) > 1:
        listed = ", ".join(shown(theirs) for theirs in candidates)
        raise Unreadable(
            f"expected one column for {name}, found {len(candidates)}: {listed}",
            f"name one of them in features.columns.{name}",
        )
    return {name: candidates[0]} if candidates else {}


def _plain(name: str) -> str:
    return "".join(sign for sign in name.casefold() if sign.isalnum())


def _feature_columns(name: str, header: list[str]) -> list[str]:
    exact = [theirs for theirs in header if _plain(theirs) == name]
    if exact:
        return exact
    matches = [(theirs, _FEATURE_SPELLING.fullmatch(_plain(theirs))) for theirs in header]
    return [theirs for theirs, match in matches if match is not None and _feature(match["name"]) == name]


def _feature(spelling: str) -> str:
    return "tempo" if spelling.endswith("bpm") else spelling


def _rank(name: str) -> int | None:
    """The place of a name among those that may mean a track id, the most likely first; None: it does not mean one."""
    plain = _plain(name)
    if plain in ID_SPELLINGS:
        return ID_SPELLINGS.index(plain)
    match = _ID_SPELLING.fullmatch(plain)
    if match is None:
        return None
    ends = ("uri", "id", "url", "href", "link")
    return len(ID_SPELLINGS) + ends.index(match["name"].removesuffix("s"))


def _id_column(header: list[str], taken: set[str], sample: Sample) -> Columns:
    named = {theirs: rank for theirs in header if theirs not in taken and (rank := _rank(theirs)) is not None}
    values = sample(list(named))
    shares = {theirs: _share(values.get(theirs)) for theirs in named}
    if max(shares.values(), default=0.0) < _MOSTLY:
        others = [one for one in dict.fromkeys(header) if one not in taken | named.keys() and not _is_of_other(one)]
        more = sample(others)
        fitting = {one: share for one in others if (share := _share(more.get(one))) >= _MOSTLY}
        values, shares = {**values, **more}, shares | fitting
    if not shares:
        return Columns({}, "", False)
    last = len(ID_SPELLINGS) + 5
    order = sorted(shares, key=lambda one: (-shares[one], named.get(one, last)))
    best = order[0]
    equal = [
        one for one in header if one in shares and (shares[one], named.get(one)) == (shares[best], named.get(best))
    ]
    names = _only("track_uri", equal)
    # by names alone, this one would have been taken
    expected = min(named, key=lambda one: named[one], default=None)
    why = f"{shares[best]:.0%} of its first {len(values.get(best, ())):,} values are Spotify track ids"
    if expected is not None and expected != best:
        why += f", and {shares[expected]:.0%} of those in {shown(expected)}{_example(values.get(expected))}"
    return Columns(names, why, best != expected)


def _is_of_other(name: str) -> bool:
    return any(word in _plain(name) for word in _NOT_TRACKS)


def _share(values: pa.Array | None) -> float:
    if values is None or len(values) == 0:
        return 0.0
    return float(len(values) - normalise_ids(values).null_count) / len(values)


def _example(values: pa.Array | None) -> str:
    first = next((one for one in (values if values is not None else []) if one.is_valid), None)
    return "" if first is None else f" (such as {str(first.as_py())[:40]!r})"
