"""Writes slices: 1,000 playlists a file, in the layout of the published ones."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Final

from encore.errors import InputError
from encore.importing.records import Playlist

SLICE_PLAYLISTS: Final = 1000
FIRST_PID = 2**32
"""Pids from here on are free: above the dataset's and the challenge's, which end below 2,000,000."""
LAST_PID = 2**53 - 1
"""The largest integer up to which every JSON reader is exact."""
_MARK: Final = '"generator": "encore import"'
_MARK_WITHIN: Final = 4096


def stable_pid(kind: str, name: str, key: str) -> int:
    """The pid of a playlist: a hash of the kind and the name of its source and of the playlist's key in it."""
    text = "\0".join(unicodedata.normalize("NFC", part) for part in (kind, name, key))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return FIRST_PID + int.from_bytes(digest, "big") % (LAST_PID + 1 - FIRST_PID)


class Pids:
    """Gives playlists their pids, by id or by title; the second, third ... of a title also by its number.

    Holds the pid and a description of every playlist: about 300 bytes each.
    """

    def __init__(self, source: str) -> None:
        """`source`: the name of the source, on which all pids depend."""
        self._source = source
        self._taken: dict[int, tuple[str, str]] = {}
        self._titles: Counter[tuple[str, str]] = Counter()

    def pid(self, playlist: Playlist) -> int | None:
        """The pid of the next playlist; None if it has the same id in the source as an earlier one.

        Raises InputError if another playlist has this pid.
        """
        if playlist.own_id is not None:
            key = f"id\0{playlist.own_id}"
        else:
            title = unicodedata.normalize("NFC", playlist.title or "")
            self._titles[playlist.kind, title] += 1
            key = f"title\0{title}\0{self._titles[playlist.kind, title]}"
        pid = stable_pid(playlist.kind, self._source, key)
        identity = f"{playlist.kind}\0{key}"
        if pid in self._taken and self._taken[pid][0] == identity:
            return None
        self.check(pid, playlist)
        self._taken[pid] = identity, str(playlist)
        return pid

    def check(self, pid: int, playlist: Playlist) -> None:
        """Raise InputError if the pid of a playlist was given to another one."""
        if pid in self._taken:
            raise collision(self._taken[pid][1], str(playlist))


def collision(one: str, other: str) -> InputError:
    """The error for two playlists that would get the same pid."""
    return InputError(
        f"the playlists {one} and {other} get the same pid", remedy="choose another --as NAME: pids depend on it"
    )


class SliceWriter:
    """Writes `<name>.slice.<first>-<last>.json` to a folder, all at the end; `first` and `last` count playlists from 0.

    Until `finish`, the playlists are in a hidden folder inside `out`, and earlier slices stay as they are.
    """

    def __init__(self, out: Path, name: str) -> None:
        """Raises InputError if slices of that name exist that `encore import` did not write."""
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is not a folder", remedy="name a folder for the slices with --out")
        self._out, self._name = out, name
        self._pattern = re.compile(re.escape(name) + r"\.slice\.\d+-\d+\.json")
        for path in self._existing():
            with open(path, "rb") as file:
                if _MARK.encode() not in file.read(_MARK_WITHIN):
                    raise InputError(
                        f"{path} was not written by `encore import`",
                        remedy="choose another --as NAME or another --out DIR",
                    )
        out.mkdir(parents=True, exist_ok=True)
        self.folder = out / f".{name}.importing"
        # left by an import that was killed
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self._body: IO[str] | None = None
        self.n_playlists = self.n_tracks = 0

    def _existing(self) -> list[Path]:
        return [path for path in self._out.glob("*.json") if self._pattern.fullmatch(path.name)]

    def _part(self, first: int) -> Path:
        return self.folder / f"{first}.playlists"

    def add(self, pid: int, playlist: Playlist) -> None:
        """Write a playlist, which has at least one track."""
        if self.n_playlists % SLICE_PLAYLISTS == 0:
            self._close()
            self._body = open(self._part(self.n_playlists), "w", encoding="ascii")  # noqa: SIM115
        assert self._body is not None
        if self.n_playlists % SLICE_PLAYLISTS:
            self._body.write(", \n")
        self._body.write(_object(_record(pid, playlist), 8))
        self.n_playlists += 1
        self.n_tracks += len(playlist.tracks)

    def _close(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None

    def finish(self, info: Mapping[str, Any]) -> list[Path]:
        """Put the slices in place of all earlier ones of that name; `info` is added to that of each."""
        self._close()
        new = []
        for first in range(0, self.n_playlists, SLICE_PLAYLISTS):
            last = min(first + SLICE_PLAYLISTS, self.n_playlists) - 1
            path = self.folder / f"{self._name}.slice.{first}-{last}.json"
            head = {"generator": "encore import", "slice": f"{first}-{last}", "version": "v1", **info}
            with open(path, "w", encoding="ascii") as file, open(self._part(first), encoding="ascii") as body:
                file.write('{\n    "info": ' + _object(head, 4).lstrip() + ', \n    "playlists": [\n')
                shutil.copyfileobj(body, file, 1 << 20)
                file.write("\n    ]\n}")
            self._part(first).unlink()
            new.append(path)
        stale = {path.name for path in self._existing()} - {path.name for path in new}
        placed = [self._out / path.name for path in new]
        for path, target in zip(new, placed, strict=True):
            os.replace(path, target)
        for name in stale:
            (self._out / name).unlink()
        return placed

    def __enter__(self) -> SliceWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what is not in place."""
        self._close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _record(pid: int, playlist: Playlist) -> dict[str, Any]:
    """A playlist as in the published slices; what the source lacks is left out."""
    tracks, fields = playlist.tracks, playlist.fields
    known = {
        "name": playlist.title,
        "collaborative": fields.get("collaborative"),
        "pid": pid,
        "modified_at": fields.get("modified_at"),
        "num_tracks": len(tracks),
        "num_albums": _distinct(tracks, "album_uri"),
        "num_followers": fields.get("num_followers"),
        "tracks": [{"pos": pos, **track} for pos, track in enumerate(tracks)],
        "duration_ms": _total(track.get("duration_ms") for track in tracks),
        "num_artists": _distinct(tracks, "artist_uri"),
        "description": fields.get("description"),
        "source_id": playlist.own_id,
    }
    return {name: value for name, value in known.items() if value is not None}


def _distinct(tracks: list[dict[str, Any]], field: str) -> int | None:
    values = {track.get(field) for track in tracks}
    return None if None in values else len(values)


def _total(values: Iterable[int | None]) -> int | None:
    given = list(values)
    return None if None in given else sum(value for value in given if value is not None)


def _object(record: Mapping[str, Any], indent: int) -> str:
    """An object in the layout of Python 2's `json.dump(..., indent=4)`, as in the published slices."""
    margin, inner = " " * indent, " " * (indent + 4)
    parts = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            written = _object(value, indent + 4).lstrip() if value else "{}"
        elif isinstance(value, list):
            written = "[\n" + ", \n".join(_object(item, indent + 8) for item in value) + f"\n{inner}]"
        else:
            written = json.dumps(value)
        parts.append(f"{inner}{json.dumps(name)}: {written}")
    return f"{margin}{{\n" + ", \n".join(parts) + f"\n{margin}}}"
