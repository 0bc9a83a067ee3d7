"""Small invented files of every shape that `encore import` reads, and how to read its slices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from encore.mpd.parse import Limits, parse_slice

LIMITS = Limits(max_tracks=10_000, payload_bytes=200)

Json = dict[str, Any]


def number(n: int) -> str:
    return f"{n:022d}"


def uri(n: int, kind: str = "track") -> str:
    return f"spotify:{kind}:{number(n)}"


def url(n: int, kind: str = "track") -> str:
    return f"https://open.spotify.com/{kind}/{number(n)}"


def item(n: int) -> Json:
    """An item of an account export that is a track."""
    track = {"trackName": f"Track {n}", "artistName": "Ada", "albumName": "First", "trackUri": uri(n)}
    return {"track": track, "episode": None, "audiobook": None, "localTrack": None, "addedDate": "2024-02-29"}


def account(*playlists: tuple[str, list[Any]]) -> Json:
    return {
        "playlists": [
            {
                "name": name,
                "lastModifiedDate": "2024-03-01",
                "collaborators": [],
                "items": items,
                "description": None,
                "numberOfFollowers": 2,
            }
            for name, items in playlists
        ]
    }


def archived(n: int, title: str, tracks: list[int]) -> Json:
    """A file of playlists/pretty."""
    return {
        "description": "Rock &amp; Roll",
        "num_followers": 21,
        "original_name": title,
        "owner": {"name": "Ada", "url": "https://open.spotify.com/user/ada"},
        "snapshot_id": "AAAA",
        "tracks": [
            {
                "added_at": "2024-02-29 20:44:12",
                "album": {"name": "First", "url": url(900, "album")},
                "artists": [{"name": "Ada", "url": url(800, "artist")}, {"name": "Bo", "url": url(801, "artist")}],
                "duration_ms": 192000,
                "name": f"Track {track}",
                "url": url(track),
            }
            for track in tracks
        ],
        "unique_name": f"{title} (2)",
        "url": url(n, "playlist"),
    }


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return path


def playlists(folder: Path) -> dict[str, Json]:
    """The playlists of all slices in a folder, by title; ingest accepts each of them as it is."""
    found: dict[str, Json] = {}
    for path in sorted(folder.glob("*.slice.*.json")):
        data = path.read_bytes()
        parsed = parse_slice(data, LIMITS)
        assert parsed.refused == []
        records = json.loads(data)["playlists"]
        assert parsed.playlists["pid"].to_pylist() == [record["pid"] for record in records]
        for record in records:
            assert record["num_tracks"] == len(record["tracks"])
            assert [track["pos"] for track in record["tracks"]] == list(range(len(record["tracks"])))
            assert found.setdefault(record["name"], record) is record
    return found


def uris(playlist: Json) -> list[str]:
    return [track["track_uri"] for track in playlist["tracks"]]
