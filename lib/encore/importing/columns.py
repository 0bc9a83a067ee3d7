"""Which column of a table holds what, by the names that public tables give their columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from encore.importing.files import Unreadable
from encore.importing.records import Loss, track, track_uri

SPELLINGS: dict[str, tuple[str, ...]] = {
    "playlist_id": ("pid", "playlistid", "playlisturi", "playlisturl", "playlistspotifyid", "spotifyplaylistid"),
    "playlist_name": ("playlistname", "playlisttitle", "playlist"),
    "user": ("userid", "user", "username", "ownerid", "owner", "playlistowner", "playlistownerid"),
    "track_uri": (
        "trackuri",
        "spotifytrackuri",
        "spotifyuri",
        "spotifytrackid",
        "spotifyid",
        "trackid",
        "trackurl",
        "spotifyurl",
        "trackhref",
        "songuri",
        "songid",
        "uri",
        "id",
        "url",
        "track",
        "song",
    ),
    "track_name": ("trackname", "tracktitle", "songname", "songtitle", "track", "song", "title", "name"),
    "artist_name": ("artistname", "artistnames", "trackartist", "artists", "artist"),
    "artist_uri": ("artisturi", "artisturis", "artistid", "artistids", "trackartistid"),
    "album_name": ("albumname", "trackalbumname", "album"),
    "album_uri": ("albumuri", "albumid", "trackalbumid"),
    "duration_ms": ("durationms", "trackdurationms"),
    "pos": ("pos", "position", "trackpos", "trackposition", "playlistposition"),
    "description": ("description", "playlistdescription"),
    "collaborative": ("collaborative",),
    "modified_at": ("modifiedat",),
    "num_followers": ("numfollowers", "playlistfollowers"),
}
"""Names of columns in lower case, without punctuation, best first."""

PLAYLIST_COLUMNS = ("description", "collaborative", "modified_at", "num_followers")
SAMPLE_ROWS = 1000
_EXPORTIFY = {"addedat", "addedby"}
_EXPORTIFY_NAMES = {"Artist Name(s)", "Artist URI(s)", "Artist IDs"}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """The column of the file, by position, for each column that is known. `is_one_playlist`: a file of Exportify,
    which is one playlist; the others have a column of playlists."""

    places: Mapping[str, int]
    is_one_playlist: bool

    @classmethod
    def find(cls, header: Sequence[str], sample: Sequence[Sequence[Any]]) -> Columns:
        """Find the columns. `sample`: the first rows, by which the column of track ids is chosen if there are several.

        Raises Unreadable, with the names that were looked for and found, if there are no track ids or no playlists.
        """
        plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in header]
        places: dict[str, int] = {}
        for column, spellings in SPELLINGS.items():
            found = [plain.index(name) for name in spellings if name in plain]
            if column == "track_uri" and found:
                place = max(found, key=lambda place: _ids(sample, place))
                if _ids(sample, place) or not sample:
                    places[column] = place
            elif found:
                places[column] = found[0]
        # in a table of both, `name` is that of the playlist
        if "name" in plain and "playlist_name" not in places and plain[places["track_name"]] != "name":
            places["playlist_name"] = plain.index("name")
        shown = ", ".join(header[:30]) or "none"
        if "track_uri" not in places:
            raise Unreadable(
                f"no column has ids of Spotify tracks (looked for {_spelled('track_uri')}); columns: {shown}",
                "Encore knows tracks by their Spotify ids, not by their names: add a column track_uri",
            )
        has_playlists = "playlist_id" in places or "playlist_name" in places
        if not has_playlists and not (_EXPORTIFY & set(plain) or _EXPORTIFY_NAMES & set(header)):
            raise Unreadable(
                f"no column of playlists (looked for {_spelled('playlist_id')}, {_spelled('playlist_name')}); "
                f"columns: {shown}",
                "name the column pid or playlist_name",
            )
        return cls(places, not has_playlists)


def _spelled(column: str) -> str:
    return ", ".join(SPELLINGS[column])


def _ids(sample: Sequence[Sequence[Any]], place: int) -> int:
    """How many rows have a URI or an id of Spotify in a column, also that of a local file or an episode."""
    return sum(track_uri(row[place]) not in (Loss.NO_ID, Loss.BAD_ID) for row in sample)


def row_track(row: Row) -> dict[str, Any] | Loss:
    """The track in a row, by names of SPELLINGS, or why there is none."""
    uri = track_uri(row.get("track_uri"))
    if isinstance(uri, Loss):
        return uri
    artist_uri, artist = _first_artist(row.get("artist_uri"), row.get("artist_name"))
    return track(
        uri,
        name=row.get("track_name"),
        artist=artist,
        artist_uri=artist_uri,
        album=row.get("album_name"),
        album_uri=row.get("album_uri"),
        duration_ms=row.get("duration_ms"),
    )


def _first_artist(uris: object, names: object) -> tuple[str | None, str | None]:
    """The first of several artists, as the dataset has it.

    The names are split only where that gives as many as there are URIs: names may contain commas.
    """
    name = names if isinstance(names, str) else None
    ids = [part.strip() for part in re.split("[,;]", uris) if part.strip()] if isinstance(uris, str) else []
    if name is not None and len(ids) > 1:
        for separator in (r"(?<!\\),\s*", r";\s*"):
            parts = re.split(separator, name)
            if len(parts) == len(ids):
                name = parts[0]
                break
    # Exportify writes a comma in a name as \,
    return (ids[0] if ids else None), (name.replace("\\,", ",") if name is not None else None)
