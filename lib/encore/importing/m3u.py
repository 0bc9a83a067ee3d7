"""M3U playlists with Spotify URIs or URLs."""

from __future__ import annotations

import re

from encore.importing.files import Entry, open_text
from encore.importing.records import Loss, Losses, Playlist, text, track, track_uri, whole

_INFO = re.compile(r"#EXTINF:\s*(?P<seconds>-?\d+(?:\.\d+)?)?[^,]*,(?P<label>.*)", re.IGNORECASE)
_TITLE = re.compile(r"#PLAYLIST:(?P<title>.*)", re.IGNORECASE)


def read_m3u(entry: Entry, losses: Losses) -> Playlist:
    """The playlist of an M3U file, named by #PLAYLIST or after the file. Raises Unreadable for a bad encoding.

    An #EXTINF line holds the duration in seconds and `Artist - Title`, or only a title.
    """
    title: str | None = None
    tracks = []
    found: re.Match[str] | None = None
    with open_text(entry) as stream:
        for line in (line.strip() for line in stream):
            if line.startswith("#"):
                found = _INFO.fullmatch(line) or found
                named = _TITLE.fullmatch(line)
                title = text(named["title"].strip()) if named else title
            elif line:
                uri = track_uri(line)
                if isinstance(uri, Loss):
                    losses[_reason(line, uri)] += 1
                else:
                    tracks.append(_track(uri, found))
                found = None
    return Playlist("m3u", title or entry.stem, None, tracks, entry.path)


def _track(uri: str, info: re.Match[str] | None) -> dict[str, object]:
    if info is None:
        return track(uri)
    artist, dash, name = info["label"].strip().partition(" - ")
    seconds = float(info["seconds"] or 0)
    names = {"artist": artist.strip(), "name": name.strip()} if dash else {"name": artist}
    return track(uri, **names, duration_ms=whole(round(seconds * 1000)))


def _reason(line: str, reason: Loss) -> Loss:
    """A line that is neither a URI nor the URL of a page is the path of a file."""
    is_path = reason is Loss.BAD_ID and (line.lower().startswith("file:") or not re.match(r"[A-Za-z]{2,}:", line))
    return Loss.LOCAL_FILE if is_path else reason
