"""Recognises files that are not slices but that `encore import` can convert, so that an error can say so."""

from __future__ import annotations

import re
from enum import Enum

_COMMAND = "`encore import FILE --out DIR` converts it"
_ARCHIVE_FIELDS = {"original_name", "unique_name", "snapshot_id", "original_description"}
_LIBRARY_FIELDS = {"albums", "shows", "episodes", "bannedTracks", "artists", "bannedArtists", "other"}


class Shape(Enum):
    """What a JSON file holds, with the sentence that describes it."""

    ACCOUNT_PLAYLISTS = f"playlists of a Spotify account export: {_COMMAND}"
    ACCOUNT_LIBRARY = f"the library of a Spotify account export: {_COMMAND}"
    ARCHIVE_PLAYLIST = f"a playlist of spotify-playlist-archive: {_COMMAND}"
    ARCHIVE_HISTORY = (
        "a cumulative file of spotify-playlist-archive, which also lists removed tracks, in no order: "
        "`encore import FOLDER --out DIR` converts the files in playlists/pretty instead"
    )
    STREAMING_HISTORY = "the streaming history of a Spotify account, which lists plays, not playlists"
    SLICE = "a slice of the dataset, which `encore run` reads without conversion"


def shape_of(content: object) -> Shape | None:
    """The shape of the value of a JSON file; None if it is unknown. Looks only at the first records of a list."""
    if isinstance(content, list):
        return Shape.STREAMING_HISTORY if _has(content, {"endTime", "msPlayed"}, {"ts", "ms_played"}) else None
    if not isinstance(content, dict):
        return None
    playlists, tracks = content.get("playlists"), content.get("tracks")
    if isinstance(playlists, list):
        if _has(playlists, {"pid", "tracks"}):
            return Shape.SLICE
        return Shape.ACCOUNT_PLAYLISTS if _has(playlists, {"items"}, {"lastModifiedDate", "tracks"}) else None
    if not isinstance(tracks, list):
        return None
    if "date_first_scraped" in content or _has(tracks, {"date_added", "date_removed", "url"}):
        return Shape.ARCHIVE_HISTORY
    if content.keys() & _ARCHIVE_FIELDS or _has(tracks, {"album", "artists", "url"}):
        return Shape.ARCHIVE_PLAYLIST
    if content.keys() & _LIBRARY_FIELDS or _has(tracks, {"artist", "track", "uri"}):
        return Shape.ACCOUNT_LIBRARY
    return None


def recognise(content: object) -> str | None:
    """Describe the value of a JSON file that is not a slice, and name the command that converts it; None if unknown."""
    shape = shape_of(content)
    return None if shape in (None, Shape.SLICE) else shape.value


def recognise_name(name: str) -> str | None:
    """Describe a file that is not JSON by its name, and name the command that converts it; None if unknown."""
    ending = re.sub(r"\.gz$", "", name.lower()).rpartition(".")[2]
    if ending in ("csv", "tsv", "parquet"):
        return f"a table: if it lists the tracks of playlists, {_COMMAND}"
    if ending in ("m3u", "m3u8"):
        return f"an M3U playlist: {_COMMAND}"
    if ending == "zip":
        return f"a ZIP archive: if it holds playlists, {_COMMAND}"
    return None


def _has(records: list[object], *fields: set[str]) -> bool:
    """Whether one of the first records has all fields of one of the sets."""
    return any(isinstance(record, dict) and any(wanted <= record.keys() for wanted in fields) for record in records[:5])
