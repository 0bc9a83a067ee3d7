"""Folders of small slices that change, a lake that follows them, and the contents of a fresh lake for comparison."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

from encore.config import Config
from encore.lake.transaction import Transaction
from encore.runtime.runner import run_job
from encore.runtime.tracking import Tracking
from tests import recompute
from tests.conftest import settings
from tests.local_spark import LocalSession

Track = tuple[int, int]
"""Number of a track, and how many of its naming fields are present: 0 to 6; -1: an item that is not a track."""
Slice = dict[int, list[Track]]
"""Tracks by pid."""
FIELDS = ("track_name", "artist_uri", "artist_name", "album_uri", "album_name", "duration_ms")
_CLOCK = count(1_600_000_000)

JOBS = (
    "ingest_playlists",
    "ingest_features",
    "build_track_vectors",
    "split_holdout",
    "build_centroids",
    "fit_models",
    "recommend",
)
"""The jobs that make the tables of a lake, up to the recommendations."""


def uri(track: int) -> str:
    """The URI of a track."""
    return f"spotify:track:{track:022d}"


def record(pid: int, track: Track) -> dict[str, Any]:
    """A track's record in a playlist: its metadata shows which playlist it comes from."""
    number, n_fields = track
    names = {name: f"{name} of {number} in {pid}" for name in FIELDS[:n_fields]}
    names |= {name: f"spotify:artist:{number % 3}" for name in ("artist_uri",) if name in names}
    return {"track_uri": uri(number), **names, **({"duration_ms": pid} if n_fields == len(FIELDS) else {})}


def playlist_record(pid: int, tracks: Sequence[Track]) -> dict[str, Any]:
    """A playlist's record."""
    return {"pid": pid, "name": f"list {pid}", "tracks": [item(pid, track) for track in tracks]}


def challenge_record(pid: int, tracks: Sequence[Track], holes: int) -> dict[str, Any]:
    """The record of a playlist of a challenge set, of which `holes` tracks are withheld after each."""
    items = [item(pid, track) for track in tracks]
    given = [{**one, "pos": i * (holes + 1)} if one is not None else None for i, one in enumerate(items)]
    sizes = {"num_tracks": len(tracks) * (holes + 1), "num_holdouts": len(tracks) * holes, "num_samples": len(tracks)}
    return {"pid": pid, **sizes, "tracks": given}


def item(pid: int, track: Track) -> dict[str, Any] | None:
    """An item of a playlist; a negative number of fields stands for an item that is not a track."""
    if track[1] >= 0:
        return record(pid, track)
    uris = ("spotify:local:a:b:c:10", "spotify:episode:" + "e" * 22)
    return ({"track_uri": uris[track[0] % 3 - 1]}) if track[0] % 3 else None


def plain(tracks: Sequence[int]) -> list[Track]:
    """Tracks with complete metadata."""
    return [(number, len(FIELDS)) for number in tracks]


@dataclass
class Folder:
    """A folder of slices. Each write gets a later modification time than all previous ones, as if hours lay between."""

    path: Path

    def write(self, name: str, playlists: Mapping[int, Sequence[Track]], *more: Any, holes: int = 0) -> None:
        """Write a slice of these playlists, followed by any further records unchanged. `holes`: of a challenge set,
        with this many tracks withheld after each."""
        records = [challenge_record(pid, own, holes) if holes else playlist_record(pid, own) for pid, own in
                   playlists.items()]  # fmt: skip
        self.put(name, json.dumps({"playlists": [*records, *more]}))

    def put(self, name: str, content: str | bytes) -> None:
        """Write a file with any content, compressed if its name says so."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        is_compressed = name.endswith(".gz") and not data.startswith(b"\x1f\x8b")
        (self.path / name).write_bytes(gzip.compress(data, mtime=0) if is_compressed else data)
        self.touch(name)

    def touch(self, name: str) -> None:
        """Give a file a new modification time."""
        now = next(_CLOCK)
        os.utime(self.path / name, (now, now))

    def remove(self, name: str) -> None:
        """Delete a file."""
        (self.path / name).unlink()

    def rename(self, name: str, to: str) -> None:
        """Rename a file, which keeps its modification time."""
        (self.path / to).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).rename(self.path / to)


# loading the layered settings takes longer than a job on so few playlists
_settings = lru_cache(maxsize=16)(settings)


@dataclass
class Lake:
    """A lake with data from a folder, and the settings of its runs."""

    path: Path
    raw: Folder
    overrides: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        """The settings."""
        own = [f"raw.playlists={self.raw.path}", *(f"{name}={value}" for name, value in self.overrides.items())]
        return _settings(self.path, *own)

    def ingest(self, *, force: bool = False) -> Any:
        """Run ingest_playlists and return its result."""
        return self.run("ingest_playlists", force=force)

    def run(self, job: str, *, force: bool = False) -> Any:
        """Run a job in this process, without logging to MLflow."""
        config = self.config
        tracking = Tracking(config, f"run {next(_CLOCK)}")
        tracking.failed = "switched off"
        session = LocalSession(config, self.path.parent / f"{self.path.name}-sent")
        return run_job(job, config, session, tracking, force=force)

    def playlists(self, name: str = "playlists") -> dict[int, dict[str, Any]]:
        """Rows of `playlists` or of `challenge_playlists` by pid, with their tracks as URIs."""
        uris = {row["track_id"]: row["track_uri"] for row in recompute.table(self.path, "tracks")}
        rows = recompute.table(self.path, name)
        found = {row["pid"]: {**row, "track_ids": [uris[i] for i in row["track_ids"]]} for row in rows}
        assert len(found) == len(rows), "a pid repeats"
        return found

    def tracks(self) -> dict[str, dict[str, Any]]:
        """Rows of `tracks` by URI, without ids and without orphaned tracks."""
        rows = recompute.table(self.path, "tracks")
        assert sorted(row["track_id"] for row in rows) == list(range(len(rows))), "ids are dense"
        assert len({row["track_uri"] for row in rows}) == len(rows), "a URI repeats"
        skipped = ("track_id", "orphaned")
        return {
            row["track_uri"]: {k: v for k, v in row.items() if k not in skipped} for row in rows if not row["orphaned"]
        }

    def ids(self) -> dict[str, int]:
        """Ids of all tracks by URI."""
        return {row["track_uri"]: row["track_id"] for row in recompute.table(self.path, "tracks")}

    def quarantine(self) -> list[tuple[Any, ...]]:
        """Rows of `quarantine`, in order."""
        return sorted(tuple(map(str, row.values())) for row in recompute.table(self.path, "quarantine"))

    def ledger(self) -> dict[str, dict[str, Any]]:
        """Status and counts of each file in the ledger."""
        names = ("status", "n_playlists", "n_quarantined", "longest", "vanished_at")
        return {
            row["slice"]: {name: row.get(name) for name in names} for row in recompute.table(self.path, "ingest_ledger")
        }

    def contents(self) -> dict[str, Any]:
        """Everything that does not depend on what was in the folder before."""
        return {
            "playlists": self.playlists(),
            "challenge_playlists": self.playlists("challenge_playlists"),
            "tracks": self.tracks(),
            "quarantine": self.quarantine(),
            "ledger": self.ledger(),
        }


_FRESH = count()


def fresh(lake: Lake) -> dict[str, Any]:
    """The contents of a new lake of the same folder and settings."""
    other = Lake(lake.path.parent / f"fresh-{next(_FRESH)}" / "lake", lake.raw, lake.overrides)
    other.ingest()
    return other.contents()


class Killed(Exception):
    """Simulates the end of the process."""


@contextmanager
def killed_after(n_commits: int) -> Iterator[None]:
    """Let this many commits of a run succeed; the next one kills it."""
    commit, left = Transaction.commit, [n_commits]

    def breaks_off(self: Transaction, *args: Any, **named: Any) -> int:
        if left[0] <= 0:
            raise Killed
        left[0] -= 1
        return commit(self, *args, **named)

    with patch.object(Transaction, "commit", breaks_off):
        yield
