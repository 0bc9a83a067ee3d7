"""JSON files: Spotify's account export, and playlists of spotify-playlist-archive."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from encore.importing.files import Entry, Unreadable, open_text
from encore.importing.records import Loss, Losses, Playlist, entity_id, epoch_seconds, text, track, track_uri, whole
from encore.mpd.shapes import Shape, shape_of

LIKED = "Liked Songs"
_BLOCK = 1 << 16
_FIRST = 5


def read_json(entry: Entry, losses: Losses) -> Iterator[Playlist]:
    """The playlists of a JSON file of any known shape, each converted as soon as it is read.

    Raises Unreadable for any other file; the playlists before a syntax error have been returned by then.
    """
    rest: dict[str, Any] = {}
    streamed, taken = False, 0
    with open_text(entry) as stream:
        for key, value in _top_level(stream):
            if key != "playlists":
                rest[key] = value
                continue
            streamed = True
            shape = shape_of({key: [value]})
            if shape is Shape.ACCOUNT_PLAYLISTS:
                taken += 1
                yield _account_playlist(value, entry, losses)
            elif shape is Shape.SLICE and not taken:
                raise Unreadable(Shape.SLICE.value)
            else:
                losses[Loss.BAD_RECORD] += 1
    if taken:
        return
    shape = shape_of(rest.get("", rest))
    if streamed or shape is None:
        keys = "a list" if "" in rest else f"the keys {', '.join(list(rest)[:8])}" if rest else "no known record"
        raise Unreadable(f"JSON of no known shape: {keys}")
    if shape is Shape.ACCOUNT_LIBRARY:
        yield _library(rest, entry, losses)
    elif shape is Shape.ARCHIVE_PLAYLIST:
        yield _archived(rest, entry, losses)
    else:
        raise Unreadable(shape.value)


# shapes -------------------------------------------------------------------------------------------------------------


def _account_playlist(record: dict[str, Any], entry: Entry, losses: Losses) -> Playlist:
    """A playlist of Playlist1.json: `items` with a track each, or `tracks` in exports before 2020."""
    items = record.get("items") if isinstance(record.get("items"), list) else record.get("tracks")
    tracks = []
    for item in items if isinstance(items, list) else []:
        given = item.get("track", item) if isinstance(item, dict) else None
        given = given if isinstance(given, dict) else {}
        is_track = "trackUri" in given or "trackName" in given
        found = track_uri(given.get("trackUri")) if is_track else _other_item(item)
        if isinstance(found, Loss):
            losses[found] += 1
        else:
            names = {"name": given.get("trackName"), "artist": given.get("artistName"), "album": given.get("albumName")}
            tracks.append(track(found, **names))
    fields: dict[str, Any] = {
        "description": text(record.get("description")),
        "modified_at": epoch_seconds(record.get("lastModifiedDate")),
        "num_followers": whole(record.get("numberOfFollowers")),
    }
    if isinstance(record.get("collaborators"), list):
        fields["collaborative"] = "true" if record["collaborators"] else "false"
    return Playlist("spotify-account", text(record.get("name")), None, tracks, entry.path, fields)


def _other_item(item: object) -> Loss:
    """What an item of an account export is that is not a track."""
    if isinstance(item, dict):
        if item.get("localTrack"):
            return Loss.LOCAL_FILE
        if item.get("episode"):
            return Loss.EPISODE
        if item.get("audiobook"):
            return Loss.AUDIOBOOK
        if item.get("track"):
            return Loss.NO_ID
    return Loss.EMPTY


def _library(content: dict[str, Any], entry: Entry, losses: Losses) -> Playlist:
    """The liked songs of YourLibrary.json."""
    tracks = []
    for item in content["tracks"]:
        given = item if isinstance(item, dict) else {}
        found = track_uri(given.get("uri")) if given else Loss.EMPTY
        if isinstance(found, Loss):
            losses[found] += 1
        else:
            tracks.append(track(found, name=given.get("track"), artist=given.get("artist"), album=given.get("album")))
    return Playlist("spotify-account-library", LIKED, None, tracks, entry.path)


def _archived(content: dict[str, Any], entry: Entry, losses: Losses) -> Playlist:
    """A file of playlists/pretty; the playlist's id is in its URL or, in early versions, only in the file name."""
    tracks = []
    for item in content["tracks"]:
        given = item if isinstance(item, dict) else {}
        found = track_uri(given.get("url")) if given else Loss.EMPTY
        if isinstance(found, Loss):
            losses[found] += 1
            continue
        artist, album = _first(given.get("artists")), _first([given.get("album")])
        tracks.append(
            track(
                found,
                name=given.get("name"),
                artist=artist.get("name"),
                artist_uri=artist.get("url"),
                album=album.get("name"),
                album_uri=album.get("url"),
                duration_ms=given.get("duration_ms"),
            )
        )
    followers = content.get("num_followers")
    own_id = entity_id("playlist", content.get("url")) or entity_id("playlist", content.get("id"))
    if own_id is None and re.fullmatch("[0-9A-Za-z]{22}", entry.stem):
        own_id = entry.stem
    title = next((text(content[key]) for key in ("original_name", "name", "unique_name") if content.get(key)), None)
    fields = {
        "description": text(content.get("original_description")) or text(content.get("description")),
        "num_followers": whole(followers.get("total") if isinstance(followers, dict) else followers),
    }
    return Playlist("playlist-archive", title or entry.stem, own_id, tracks, entry.path, fields)


def _first(records: object) -> dict[str, Any]:
    return records[0] if isinstance(records, list) and records and isinstance(records[0], dict) else {}


# streaming ----------------------------------------------------------------------------------------------------------


def _top_level(stream: TextIO) -> Iterator[tuple[str, Any]]:
    """The members of a JSON object, but each element of the list `playlists` alone, so that memory holds only one.

    For a list, its first elements under the key "". Raises Unreadable at a syntax error.
    """
    reader = _Reader(stream)
    if reader.peek() == "[":
        reader.take("[")
        head: list[Any] = []
        while reader.peek() != "]" and len(head) < _FIRST:
            head.append(reader.value())
            reader.separator("]")
        yield "", head
        return
    if reader.peek() != "{":
        raise Unreadable("JSON of no known shape: an object expected" if reader.peek() else "the file is empty")
    reader.take("{")
    while reader.peek() != "}":
        key = reader.value()
        reader.take(":")
        if key == "playlists" and reader.peek() == "[":
            reader.take("[")
            while reader.peek() != "]":
                yield key, reader.value()
                reader.separator("]")
            reader.take("]")
        else:
            yield str(key), reader.value()
        reader.separator("}")
    reader.take("}")
    if reader.peek():
        raise Unreadable(f"one JSON document expected, another one starts at character {reader.position}")


class _Reader:
    """Reads one JSON value after the other from a text of any length."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._text, self._at = stream, "", 0
        self._before, self._ended = 0, False
        self._decoder = json.JSONDecoder()

    @property
    def position(self) -> int:
        """The number of characters before the next one."""
        return self._before + self._at

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def take(self, sign: str) -> None:
        """Skip a character that has to be there."""
        if self.peek() != sign:
            found = repr(self.peek()) if self.peek() else "the end of the file"
            raise Unreadable(f"not JSON: {sign!r} expected at character {self.position}, {found} found")
        self._at += 1

    def separator(self, end: str) -> None:
        """Skip the comma after a value unless it is the last one."""
        if self.peek() != end:
            self.take(",")

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                # a number at the end of the text may continue
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            except RecursionError as error:
                raise Unreadable("JSON of no known shape: too deeply nested") from error
            except json.JSONDecodeError as error:
                is_cut = error.pos > len(self._text) - 16 or error.msg.startswith("Unterminated string")
                if self._ended or not is_cut:
                    raise Unreadable(f"not JSON: {error.msg} at character {self._before + error.pos}") from error
            self._more()

    def _more(self) -> None:
        """Read as much again as is still there, so that a long value is not parsed often."""
        block = self._stream.read(max(_BLOCK, len(self._text) - self._at))
        self._ended = not block
        self._before += self._at
        self._text, self._at = self._text[self._at :] + block, 0
