"""After any sequence of changes to files, settings and tables, with killed runs, a lake equals a fresh one.

After each completed run, the tables of ingest equal those of a fresh lake of the same folder, except for ids, marked
tracks, and playlists of deleted files if these are kept. Tables derived from ids are checked by recomputing them from
the lake itself. CHANGES_SEQUENCES is the number of sequences that the test draws.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from encore.arrays.ragged import Ragged
from encore.errors import LakeError
from encore.jobs import evaluate
from encore.lake.store import open_store
from encore.lake.tables import ALL, BY_NAME, Table
from encore.log import configure_logging
from encore.runtime import recovery
from encore.splits.holdout import split
from encore.vocabulary import FEATURES
from tests import recompute
from tests.changes import JOBS, Folder, Killed, Lake, fresh, killed_after, plain, uri
from tests.conftest import settings as lake_settings

NAMES = ("a.json", "a (1).json", "b.json", "sub/c.json.gz", "mpd.slice.0-9.JSON")
INGESTED = ("playlists", "challenge_playlists", "tracks", "quarantine", "ingest_ledger")
HOLDERS = ("playlists", "challenge_playlists")
SETTINGS: dict[str, tuple[str, ...]] = {
    "ingest.max_tracks": ("2", "4", "10000"),
    "ingest.payload_bytes": ("7", "500"),
    "ingest.bad_items": ("drop", "refuse"),
    "ingest.vanished": ("keep", "remove"),
    "split.seed": ("1", "2"),
    "run.chunk_playlists": ("2", "5", "250000"),
    "recommend.k": ("2", "4"),
    "recommend.models": ("[cosine,popularity,random]", "[random,popularity]", "[popularity]", "[popularity,cosine]"),
}
DROPPED = (*(table.name for table in ALL if table not in recompute.EVENTS), "job_runs", *2 * INGESTED)

RESTORED = (
    "playlists",
    "tracks",
    "ingest_ledger",
    "audio_features",
    "holdout",
    "models",
    "recommendations",
    "job_runs",
)
"""Tables of which an earlier version is restored."""

names = st.integers(0, len(NAMES) - 1)
pids = st.integers(0, 9)
tracks = st.tuples(st.integers(0, 11), st.sampled_from((6, 6, 6, 6, 4, 0, -1)))
slices = st.dictionaries(pids, st.lists(tracks, max_size=5), max_size=4)
holes = st.sampled_from((0, 0, 2))
"""Of a slice that belongs to a challenge set: how many tracks are withheld after each."""
Operation = tuple[Any, ...]
operations: st.SearchStrategy[Operation] = st.one_of(
    st.tuples(st.just("write"), names, slices, st.booleans(), holes),
    st.tuples(st.just("let go"), names, pids),
    st.tuples(st.just("move"), names, names, pids),
    st.tuples(st.just("rename"), names, names),
    st.tuples(st.just("copy"), names, names),
    st.tuples(st.just("remove"), names),
    st.tuples(st.just("spoil"), names),
    st.tuples(st.just("touch"), names),
    st.tuples(st.just("restore"), names),
    st.sampled_from(sorted(SETTINGS)).flatmap(
        lambda name: st.tuples(st.just("set"), st.just(name), st.sampled_from(SETTINGS[name]))
    ),
    st.tuples(st.just("drop"), st.sampled_from(DROPPED)),
    st.tuples(st.just("go back"), st.sampled_from(RESTORED), st.floats(0, 1)),
)
steps = st.tuples(st.lists(operations, min_size=1, max_size=3), st.one_of(st.none(), st.none(), st.integers(0, 16)))
"""Changes, and the number of commits after which the following run is killed, if it is."""
start = st.dictionaries(names, slices, max_size=4)


Content = tuple[dict[int, Any], bool, int]
"""Tracks by pid, whether there is a record that is not a valid playlist, and the holes of a challenge set."""


class World:
    """A folder, its lake, and the data that the slices were made from."""

    def __init__(self, path: Path) -> None:
        self.raw = Folder(path / "raw")
        self.lake = Lake(path / "lake", self.raw, {"recommend.k": "4", "vectors.transform": "raw"})
        self.slices: dict[str, Content | None] = {}
        self.past: dict[str, tuple[Content | None, bytes, int]] = {}
        self.lost_tracks = False
        features = path / "features" / "features.csv"
        features.parent.mkdir(parents=True)
        rows = [[uri(i), *(str(0.05 * ((i * (j + 2)) % 11) + 0.01) for j in range(len(FEATURES)))] for i in range(10)]
        features.write_text("\n".join(",".join(row) for row in [["track_uri", *FEATURES], *rows]))
        self.lake.overrides["raw.features"] = str(features)
        # always present, so that there is something to derive tables from
        self.raw.write("z.json", {100: plain([0, 1, 2]), 101: plain([1, 3])})

    def write(self, name: str, own: dict[int, Any], has_bad: bool, n_holes: int) -> None:
        """Write a slice, optionally with a record that is not a valid playlist."""
        if name in self.slices:
            path = self.raw.path / name
            self.past[name] = self.slices[name], path.read_bytes(), path.stat().st_mtime_ns
        self.slices[name] = (own, has_bad, n_holes)
        self.raw.write(name, own, *([{"pid": "none", "name": "a long name"}] if has_bad else []), holes=n_holes)

    def change(self, operation: Operation) -> None:
        """Apply one operation, or do nothing if it is not applicable."""
        kind, *rest = operation
        if kind == "set":
            self.lake.overrides[rest[0]] = rest[1]
            return
        if kind == "drop":
            self.lost_tracks |= rest[0] == "tracks"
            shutil.rmtree(self.lake.path / rest[0], ignore_errors=True)
            return
        if kind == "go back":
            self.go_back(BY_NAME[rest[0]], rest[1])
            return
        name = NAMES[rest[0]]
        if kind == "write":
            self.write(name, *rest[1:])
            return
        if name not in self.slices:
            return
        content, other = self.slices[name], NAMES[rest[1] if kind in ("move", "rename", "copy") else 0]
        if kind == "touch":
            self.raw.touch(name)
        elif kind == "restore" and name in self.past:
            # restore it like a backup, with its old modification time
            self.slices[name], data, modified_ns = self.past[name]
            self.raw.put(name, data)
            os.utime(self.raw.path / name, ns=(modified_ns, modified_ns))
        elif kind == "spoil":
            self.slices[name] = None
            self.raw.put(name, '{"playlists": [')
        elif kind == "remove":
            del self.slices[name]
            self.raw.remove(name)
        elif kind == "rename" and other not in self.slices:
            self.slices[other] = self.slices.pop(name)
            self.raw.rename(name, other)
        elif kind == "copy" and other not in self.slices:
            self.slices[other] = content
            self.raw.put(other, (self.raw.path / name).read_bytes())
        elif kind in ("let go", "move") and content is not None and rest[-1] in content[0]:
            target = self.slices.get(other) if kind == "move" and other != name else None
            if target is not None:
                self.write(other, {**target[0], rest[-1]: content[0][rest[-1]]}, *target[1:])
            self.write(name, {pid: own for pid, own in content[0].items() if pid != rest[-1]}, *content[1:])

    def go_back(self, table: Table, share: float) -> None:
        """Restore a table to a version, 0 to 1 of its newest; do nothing if it is not there, or was not there then."""
        try:
            store = open_store(self.lake.config)
            planned = recovery.plan(store, table, version=round(share * store.there(table).version()))
            recovery.run(self.lake.config, store, planned, "restored")
        except LakeError:
            return

    def run(self) -> list[str]:
        """Run all jobs except the report; returns their statuses."""
        return [self.lake.run(job).status for job in (*JOBS, "evaluate")]

    def before(self) -> dict[int, str]:
        """The file of each playlist in the lake, by pid, challenge playlists included."""
        there = [name for name in HOLDERS if (self.lake.path / name).is_dir()]
        return {row["pid"]: row["slice"] for name in there for row in recompute.table(self.lake.path, name)}

    def check(self, before: dict[int, str]) -> None:
        """Fail unless the lake is as expected; `before`: what it contained before the last completed run."""
        expected, found = fresh(self.lake), self.lake.contents()
        there = {*self.slices, "z.json"}
        # the two tables have no pid in common
        wanted, playlists = ({pid: row for name in HOLDERS for pid, row in c[name].items()} for c in (expected, found))
        assert len(playlists) == sum(len(found[name]) for name in HOLDERS)
        kept = {pid: name for pid, name in before.items() if name not in there and pid not in wanted}
        if self.lake.overrides.get("ingest.vanished") == "remove":
            kept = {}
        if self.lost_tracks:
            # playlists that had not been read again with the new ids are gone
            kept = {pid: name for pid, name in kept.items() if pid in playlists}
        self.lost_tracks = False
        assert {pid: row["slice"] for pid, row in playlists.items()} == {
            **{pid: row["slice"] for pid, row in wanted.items()},
            **kept,
        }
        for name in HOLDERS:
            assert {pid: row for pid, row in found[name].items() if pid not in kept} == expected[name], name
        held = {track for pid in kept for track in playlists[pid]["track_ids"]}
        assert set(found["tracks"]) == set(expected["tracks"]) | held
        for track, row in expected["tracks"].items():
            # a record in a deleted file cannot be read again
            assert track in held or found["tracks"][track] == row
        sources = {row[0] for row in found["quarantine"]} - there
        assert sources <= set(kept.values())
        assert [row for row in found["quarantine"] if row[0] in there] == expected["quarantine"]
        assert {name: row for name, row in found["ledger"].items() if name in there} == expected["ledger"]
        gone = {name: row["n_playlists"] for name, row in found["ledger"].items() if name not in there}
        assert gone.items() <= Counter(kept.values()).items()
        self._check_derived(*({pid: row["track_ids"] for pid, row in found[name].items()} for name in HOLDERS))

    def _check_derived(self, playlists: dict[int, list[str]], challenge: dict[int, list[str]]) -> None:
        lake, overrides = self.lake.path, self.lake.overrides
        models = self.lake.config.recommend.models
        wrong = recompute.problems(lake, playlists, k=int(overrides["recommend.k"]), models=models, challenge=challenge)
        assert wrong == [], wrong
        rows = sorted(recompute.table(lake, "playlists"), key=lambda row: row["pid"])
        lists = [row["track_ids"] for row in rows]
        values = np.array([track for own in lists for track in own], np.int32)
        ragged = Ragged.from_lengths(np.array([len(own) for own in lists]), values)
        train, _ = split(
            np.array([row["pid"] for row in rows]), ragged, seed=self.lake.config.split.seed, fraction=0.25
        )
        holdout = {row["pid"]: row["train"] for row in recompute.table(lake, "holdout")}
        assert holdout == {row["pid"]: own for row, own in zip(rows, train.tolist(), strict=True)}


def follow(path: Path, initial: dict[int, Any], sequence: list[tuple[list[Operation], int | None]]) -> None:
    """Apply a drawn sequence, and check the lake after each completed run."""
    world = World(path)
    for number, own in initial.items():
        world.write(NAMES[number], own, number % 2 == 1, 2 * (number == 2))
    for changes, kill_after in [([], None), *sequence]:
        for operation in changes:
            world.change(operation)
        before = world.before()
        if kill_after is not None:
            with killed_after(kill_after):
                try:
                    world.run()
                except Killed:
                    continue
        else:
            world.run()
        world.check(before)
        again = world.run()
        assert again == ["up_to_date"] * len(again), again


@pytest.fixture(autouse=True, scope="module")
def _without_figures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Skip figures for MLflow: they would take most of the time of such small runs, and nothing is logged."""
    configure_logging(lake_settings(tmp_path_factory.mktemp("changes") / "lake").log)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(evaluate, "_log", lambda *_: None)
        yield


# shrinking takes as long as all other sequences: a failing sequence is printed as it was drawn
@pytest.mark.slow
@settings(
    max_examples=int(os.environ.get("CHANGES_SEQUENCES", "200")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
@given(start, st.lists(steps, min_size=2, max_size=5))
def test_sequences(initial: dict[int, Any], sequence: list[tuple[list[Operation], int | None]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        follow(Path(folder), initial, sequence)
