"""Tracks of raw.tracks: they have ids without a playlist, and are recommended for their audio features alone."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from encore.errors import InputError
from encore.runtime.pipeline import plan, run_pipeline
from encore.spark.session import Session
from encore.vocabulary import FEATURES
from tests import recompute
from tests.changes import Folder, Killed, Lake, fresh, killed_after, plain, uri
from tests.conftest import settings
from tests.local_spark import LocalSession

_CLOCK = count(1_500_000_000)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A lake of tracks 1 to 3 in two files, and a setting for its list of tracks."""
    raw = Folder(tmp_path / "raw")
    raw.write("a.json", {1: plain([1, 2])})
    raw.write("b.json", {2: plain([2, 3])})
    made = Lake(tmp_path / "lake", raw, {"raw.tracks": str(tmp_path / "tracks.csv")})
    write(made, {8: "new", 9: "newer"})
    return made


def write(lake: Lake, names: dict[int, str]) -> None:
    """Write the list of tracks, by number, with their names."""
    path = lake.path.parent / "tracks.csv"
    path.write_text("track_uri,track_name\n" + "".join(f"{uri(n)},{name}\n" for n, name in names.items()))
    now = next(_CLOCK)
    os.utime(path, (now, now))


def is_fresh(lake: Lake) -> None:
    expected, found = fresh(lake), lake.contents()
    for name, rows in expected.items():
        assert found[name] == rows, name
    assert lake.ingest().status == "up_to_date"


def orphaned(lake: Lake) -> set[str]:
    return {row["track_uri"] for row in recompute.table(lake.path, "tracks") if row["orphaned"]}


def test_listed_tracks_get_the_next_ids_and_the_names_of_the_list(lake: Lake) -> None:
    result = lake.ingest()
    assert (result.facts["tracks_listed"], result.facts["orphaned_tracks"]) == (2, 0)
    assert {lake.ids()[uri(n)] for n in (1, 2, 3)} == {0, 1, 2}
    assert (lake.ids()[uri(8)], lake.ids()[uri(9)]) == (3, 4)
    rows = lake.tracks()
    assert {name: value for name, value in rows[uri(8)].items() if value is not None} == {
        "track_uri": uri(8),
        "track_name": "new",
        "first_pid": -1,
    }
    assert rows[uri(2)]["track_name"] == "track_name of 2 in 1"
    is_fresh(lake)


def test_a_list_that_changes_is_followed_and_no_slice_is_read(lake: Lake) -> None:
    lake.ingest()
    before = lake.ids()
    write(lake, {9: "renamed", 7: "third", 2: "known"})
    assert lake.ingest().facts["files_read"] == 0
    assert {name: id_ for name, id_ in lake.ids().items() if name in before} == before
    assert lake.ids()[uri(7)] == 5
    assert lake.tracks()[uri(9)]["track_name"] == "renamed"
    assert lake.tracks()[uri(2)]["track_name"] == "track_name of 2 in 1", "a playlist has it"
    assert orphaned(lake) == {uri(8)}
    is_fresh(lake)


def test_without_the_list_its_tracks_are_orphaned_and_with_it_they_are_back(lake: Lake) -> None:
    lake.ingest()
    place = lake.overrides.pop("raw.tracks")
    lake.ingest()
    assert orphaned(lake) == {uri(8), uri(9)}
    is_fresh(lake)
    lake.overrides["raw.tracks"] = place
    lake.ingest()
    assert orphaned(lake) == set()
    is_fresh(lake)


def test_a_track_that_a_playlist_takes_up_has_the_names_of_the_playlist_until_it_is_gone(lake: Lake) -> None:
    lake.overrides["ingest.vanished"] = "remove"
    lake.ingest()
    before = lake.ids()
    lake.raw.write("c.json", {3: plain([3, 8])})
    lake.ingest()
    assert lake.tracks()[uri(8)]["track_name"] == "track_name of 8 in 3"
    assert lake.tracks()[uri(8)]["first_pid"] == 3
    assert lake.ids() == before
    is_fresh(lake)
    lake.raw.remove("c.json")
    lake.ingest()
    assert lake.tracks()[uri(8)]["track_name"] == "new"
    assert lake.tracks()[uri(8)]["album_name"] is None
    is_fresh(lake)


def test_an_orphaned_track_that_is_listed_is_one_no_more(lake: Lake) -> None:
    lake.overrides["ingest.vanished"] = "remove"
    lake.ingest()
    lake.raw.remove("b.json")
    lake.ingest()
    assert orphaned(lake) == {uri(3)}
    write(lake, {3: "kept"})
    lake.ingest()
    assert orphaned(lake) == {uri(8), uri(9)}
    assert lake.tracks()[uri(3)]["track_name"] == "kept"
    is_fresh(lake)


@pytest.mark.parametrize("n_commits", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 5))])
def test_a_run_that_is_killed_is_made_up_for(lake: Lake, n_commits: int) -> None:
    with killed_after(n_commits), suppress(Killed):
        lake.ingest()
    lake.ingest()
    is_fresh(lake)


def test_a_bad_list_is_an_error_before_anything_is_written(lake: Lake) -> None:
    (lake.path.parent / "tracks.csv").write_text("uri\nx\n")
    with pytest.raises(InputError, match="no column track_uri; columns found: uri"):
        lake.ingest()
    assert recompute.table(lake.path, "playlists") == []


def test_a_list_inside_the_folder_of_slices_is_not_ignored_with_a_note(lake: Lake) -> None:
    lake.raw.put("new.csv", f"track_uri\n{uri(8)}\n\n")
    lake.overrides["raw.tracks"] = f"{lake.raw.path}/new.csv"
    result = lake.ingest()
    assert "files_ignored" not in result.facts
    assert uri(8) in lake.tracks()


# from raw files to recommendations -----------------------------------------------------------------------------------

QUICK = ("adjacency", "artist", "title", "popularity", "cosine")
ALL = ("ranker", "fusion", "ials", "item_knn", "playlist_knn", *QUICK)
GROUPS, EACH = 4, 8


def features(rows: Iterable[tuple[str, int, float]], path: Path) -> None:
    """A table of audio features: a track's group decides its sound, `shift` moves it a little."""
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["track_uri", *FEATURES])
        for name, group, shift in rows:
            sound = {feature: 0.5 for feature in FEATURES}
            sound |= {"key": 5, "mode": 1, "loudness": -10 - group, "tempo": 100 + 10 * group + shift}
            sound |= {"energy": 0.1 + 0.2 * group + shift / 100, "valence": 0.9 - 0.2 * group}
            out.writerow([name, *(sound[feature] for feature in FEATURES)])


@pytest.mark.parametrize("models", [QUICK, pytest.param(ALL, marks=pytest.mark.slow)], ids=["quick", "all"])
def test_a_new_track_with_audio_features_alone_is_recommended_by_cosine_and_no_other_model(
    tmp_path: Path, models: tuple[str, ...]
) -> None:
    """Playlists of tracks of one sound; a track that no playlist has sounds like those of the first group."""
    raw, new = Folder(tmp_path / "raw"), uri(999)
    for start in range(0, 60, 20):
        playlists = {
            pid: plain([1 + EACH * (pid % GROUPS) + (pid + i) % EACH for i in range(5)])
            for pid in range(start, start + 20)
        }
        raw.write(f"mpd.slice.{start}-{start + 19}.json", playlists)
    known = [(uri(1 + EACH * group + i), group, float(i)) for group in range(GROUPS) for i in range(EACH)]
    features([*known, (new, 0, 3.5)], tmp_path / "features.csv")
    (tmp_path / "tracks.csv").write_text(f"track_uri,track_name,artist_name\n{new},New,Nobody\n")
    own = (f"raw.playlists={raw.path}", f"raw.features={tmp_path}/features.csv", f"raw.tracks={tmp_path}/tracks.csv")
    shape = ("recommend.k=10", f"recommend.models=[{','.join(models)}]", "vectors.transform=zscore")
    config = settings(tmp_path / "lake", *own, *shape)
    session: Session = LocalSession(config, tmp_path / "sent")
    run_pipeline(config, plan(last="recommend"), session=session, run_id="first")

    tracks = {row["track_uri"]: row for row in recompute.table(tmp_path / "lake", "tracks")}
    assert (tracks[new]["track_id"], tracks[new]["track_name"]) == (GROUPS * EACH, "New")
    by_model: dict[str, set[int]] = {}
    for row in recompute.table(tmp_path / "lake", "recommendations"):
        by_model.setdefault(row["model"], set()).update(row["track_ids"])
    assert set(by_model) == set(models)
    assert {model for model, found in by_model.items() if tracks[new]["track_id"] in found} == {"cosine"}
