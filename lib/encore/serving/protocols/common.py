"""What all protocols share: the refusal of a request, and the checks of its fields.

Messages name the field, what was expected and the type that was found. They never contain a value of the request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from encore.recommenders.base import NO_PID
from encore.serving.scorer import Playlist
from encore.serving.settings import Settings

INVALID: Final = "INVALID_PARAMETER_VALUE"
MALFORMED: Final = "MALFORMED_REQUEST"
NOT_FOUND: Final = "RESOURCE_DOES_NOT_EXIST"
UNAVAILABLE: Final = "TEMPORARILY_UNAVAILABLE"

MAX_PID: Final = 2**63 - 1
MAX_TITLE: Final = 1000
"""Characters of a title."""


class Refused(Exception):
    """A request that is not answered: HTTP status, an error code of MLflow's protocol, a message and headers."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}

    def body(self, *, inference: bool = False) -> bytes:
        """The JSON of the error; `inference`: with the field `error` of KServe's protocols."""
        more = {"error": str(self)} if inference else {}
        return orjson.dumps({"error_code": self.code, "message": str(self), **more})


@dataclass(frozen=True)
class Asked:
    """A request for recommendations. `model`: None for the one that is served; `explain`: whether to give reasons."""

    playlists: list[Playlist]
    k: int
    model: str | None = None
    explain: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    """What the answer of the protocol repeats, such as the id of a V2 request."""


def invalid(message: str) -> Refused:
    """The refusal of a field: status 400."""
    return Refused(400, INVALID, message)


def kind(value: Any) -> str:
    """The JSON type of a value, for a message."""
    if value is None:
        return "null"
    for types, name in (
        (bool, "true or false"),
        (str, "a string"),
        ((int, float), "a number"),
        (list, "a list"),
        (dict, "an object"),
    ):
        if isinstance(value, types):  # type: ignore[arg-type]
            return name
    return "another type"


def parsed(body: bytes) -> Any:
    """The JSON of a body. Raises Refused with status 400 if it is not JSON; NaN and infinities are not."""
    if not body:
        raise Refused(400, MALFORMED, "body: expected JSON, found nothing")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # the message of the library may contain a piece of the body
        raise Refused(400, MALFORMED, f"body: not JSON, at line {error.lineno}, column {error.colno}") from None


def an_object(where: str, value: Any, known: Sequence[str] = ()) -> dict[str, Any]:
    """A JSON object; if `known` is given, without other fields."""
    if not isinstance(value, dict):
        raise invalid(f"{where}: expected an object, found {kind(value)}")
    if known and not value.keys() <= set(known):
        raise invalid(f"{where}: unknown field; known are: {', '.join(known)}")
    return value


def a_list(where: str, value: Any) -> list[Any]:
    """A JSON list."""
    if not isinstance(value, list):
        raise invalid(f"{where}: expected a list, found {kind(value)}")
    return value


def whole_number(where: str, value: Any, low: int, high: int) -> int:
    """An integer between two bounds, which are included."""
    if isinstance(value, bool) or not isinstance(value, int):
        found = "a number that is not whole" if isinstance(value, float) else kind(value)
        raise invalid(f"{where}: expected a whole number from {low} to {high}, found {found}")
    if not low <= value <= high:
        raise invalid(f"{where}: expected a whole number from {low} to {high}, found one outside of this range")
    return value


def k_of(where: str, value: Any, settings: Settings) -> int:
    """The number of recommendations for a playlist."""
    return whole_number(where, value, 1, settings.max_k)


def tracks_of(where: str, value: Any, settings: Settings) -> list[str]:
    """URIs or ids of tracks."""
    found = a_list(where, value)
    if len(found) > settings.max_seeds:
        raise invalid(f"{where}: expected at most {settings.max_seeds} tracks, found {len(found)}")
    for i, track in enumerate(found):
        if not isinstance(track, str):
            raise invalid(f"{where}[{i}]: expected a string, the URI or id of a track, found {kind(track)}")
    return found


def title_of(where: str, value: Any) -> str | None:
    """A title, or None."""
    if value is not None and not isinstance(value, str):
        raise invalid(f"{where}: expected a string or null, found {kind(value)}")
    if value is not None and len(value) > MAX_TITLE:
        raise invalid(f"{where}: expected at most {MAX_TITLE} characters, found {len(value)}")
    return value


def pid_of(where: str, value: Any) -> int:
    """The pid of a playlist, or NO_PID for null."""
    return NO_PID if value is None else whole_number(where, value, 0, MAX_PID)


def playlist_of(where: str, value: Any, settings: Settings) -> Playlist:
    """A playlist as a record of the protocols: `tracks`, and perhaps `title`."""
    record = an_object(where, value, ("tracks", "title"))
    if "tracks" not in record:
        raise invalid(f"{where}.tracks: expected a list of URIs or ids of tracks, found no such field")
    return Playlist(
        tracks_of(f"{where}.tracks", record["tracks"], settings), title_of(f"{where}.title", record.get("title"))
    )


def playlists_of(where: str, value: Any, settings: Settings) -> list[Playlist]:
    """A list of records."""
    rows = count_checked(where, a_list(where, value), settings)
    return [playlist_of(f"{where}[{i}]", row, settings) for i, row in enumerate(rows)]


def count_checked(where: str, rows: list[Any], settings: Settings) -> list[Any]:
    """The rows of a request, unless they are too many."""
    if len(rows) > settings.max_playlists:
        raise invalid(f"{where}: expected at most {settings.max_playlists} playlists, found {len(rows)}")
    return rows
