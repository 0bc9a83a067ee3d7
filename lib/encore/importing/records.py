"""A playlist on its way into a slice, the values of its fields, and counts of what is lost."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from encore.mpd.parse import LATEST

TRACK_FIELDS = ("artist_name", "track_uri", "artist_uri", "track_name", "album_uri", "duration_ms", "album_name")
"""The fields of a track besides `pos`, in the order of the published slices."""

_ID = "[0-9A-Za-z]{22}"
_ENTITY = re.compile(
    r"(?:spotify:|(?:https?://)?(?:open|play)\.spotify\.com/(?:intl-[A-Za-z-]+/)?(?:embed/)?)"
    r"(?:user[:/][^:/]*[:/])?(?P<kind>[a-z]+)[:/](?P<rest>.*)",
    re.DOTALL,
)
_LEADING_ID = re.compile(rf"(?P<id>{_ID})(?:[/?#].*)?", re.DOTALL)
_NOTHING = {"", "null", "undefined", "none", "nan", "n/a"}


class Loss(Enum):
    """Why something in a source is not in the slices; the value is the plural that is shown."""

    LOCAL_FILE = "local files"
    EPISODE = "podcast episodes"
    AUDIOBOOK = "audiobooks"
    NO_ID = "items without an id"
    BAD_ID = "malformed ids"
    EMPTY = "empty rows"
    BAD_ROW = "rows with too many or too few fields"
    NO_PLAYLIST = "rows without a playlist"
    BAD_RECORD = "records that are not playlists"
    REPEATED = "repeated playlists"
    NO_TRACK = "playlists without a usable track"
    FILE = "files that were not imported"


Losses = Counter[Loss]


@dataclass
class Playlist:
    """A playlist as found. `kind`: the kind of source. `own_id`: its id in the source, if the source has ids.

    `tracks`: dicts with some of TRACK_FIELDS, always with `track_uri`, in order. `fields`: other fields of a playlist
    in a slice. `place`: the file it comes from, for messages.
    """

    kind: str
    title: str | None
    own_id: str | None
    tracks: list[dict[str, Any]]
    place: str
    fields: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        name = repr(self.title) if self.title is not None else f"id {self.own_id}"
        return f"{name} in {self.place}"


def track_uri(value: object) -> str | Loss:
    """The URI of a track given as URI, URL or bare id, or why there is none."""
    given = value.strip() if isinstance(value, str) else ""
    if given.lower() in _NOTHING:
        return Loss.NO_ID
    if re.fullmatch(_ID, given):
        return f"spotify:track:{given}"
    found = _ENTITY.fullmatch(given)
    if found is None:
        return Loss.BAD_ID
    if found["kind"] in ("local", "episode", "show", "audiobook", "chapter"):
        kinds = {"local": Loss.LOCAL_FILE, "episode": Loss.EPISODE, "show": Loss.EPISODE}
        return kinds.get(found["kind"], Loss.AUDIOBOOK)
    return _uri("track", given) or Loss.BAD_ID


def _uri(kind: str, value: object) -> str | None:
    """The URI of an artist, album, track or playlist given as URI, URL or bare id; None if it is none of these."""
    given = value.strip() if isinstance(value, str) else ""
    if re.fullmatch(_ID, given):
        return f"spotify:{kind}:{given}"
    found = _ENTITY.fullmatch(given)
    inner = _LEADING_ID.fullmatch(found["rest"]) if found and found["kind"] == kind else None
    return f"spotify:{kind}:{inner['id']}" if inner else None


def entity_id(kind: str, value: object) -> str | None:
    """The bare id in a URI or URL of an artist, album or playlist; None if there is none."""
    uri = _uri(kind, value)
    return None if uri is None else uri.rpartition(":")[2]


def text(value: object) -> str | None:
    """A text that can be written as UTF-8; None if it is blank or not a text. Lone surrogates become U+FFFD."""
    if not isinstance(value, str) or not value.strip():
        return None
    return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def whole(value: object, most: int = 2**31 - 1) -> int | None:
    """A whole number from 0 to `most`, given as number or text (`1234`, `1234.0`); None if it is not."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return int(number) if math.isfinite(number) and number == int(number) and 0 <= number <= most else None


def epoch_seconds(value: object) -> int | None:
    """Epoch seconds of a date or time in ISO 8601, UTC by default, or given as such; None if it is neither."""
    given = whole(value, LATEST)
    if given is not None or not isinstance(value, str):
        return given
    try:
        moment = datetime.fromisoformat(value.strip())
    except ValueError:
        return None
    return whole(int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()), LATEST)


def track(
    uri: str,
    *,
    name: object = None,
    artist: object = None,
    artist_uri: object = None,
    album: object = None,
    album_uri: object = None,
    duration_ms: object = None,
) -> dict[str, Any]:
    """A track of a playlist; fields that are missing or unusable are left out."""
    values = {
        "artist_name": text(artist),
        "track_uri": uri,
        "artist_uri": _uri("artist", artist_uri),
        "track_name": text(name),
        "album_uri": _uri("album", album_uri),
        # 0 is how services say that they do not know a duration
        "duration_ms": whole(duration_ms) or None,
        "album_name": text(album),
    }
    return {name: value for name, value in values.items() if value is not None}
