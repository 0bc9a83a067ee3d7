"""The generated challenge set has the shape of the official one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encore.errors import InputError
from encore.synthetic.challenge import CHALLENGE_FILE, write_challenge
from encore.synthetic.generate import generate
from encore.vocabulary import KINDS

N = 50


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A folder with 1,000 playlists and a challenge set, and the tracks that occur in the playlists."""
    out = tmp_path_factory.mktemp("generated")
    tracks = generate(out, 1000, seed=3, coverage=0.0, processes=1).tracks
    write_challenge(out, N, seed=3, tracks=tracks)
    return out, tracks


@pytest.fixture(scope="module")
def playlists(made: tuple[Path, np.ndarray]) -> list[dict[str, Any]]:
    content = json.loads((made[0] / CHALLENGE_FILE).read_text())
    assert set(content) == {"date", "version", "name", "playlists"}
    found: list[dict[str, Any]] = content["playlists"]
    return found


def test_it_has_a_tenth_of_each_kind(playlists: list[dict[str, Any]]) -> None:
    def kind_of(playlist: dict[str, Any]) -> tuple[bool, int, bool]:
        places = [track["pos"] for track in playlist["tracks"]]
        return "name" in playlist, len(places), places != list(range(len(places)))

    kinds = Counter(kind_of(playlist) for playlist in playlists)
    assert kinds == {(kind.has_title, kind.n_seeds, kind.is_random): N // 10 for kind in KINDS}
    lengths = {(kind.has_title, kind.n_seeds, kind.is_random): (kind.low, kind.high) for kind in KINDS}
    for playlist in playlists:
        low, high = lengths[kind_of(playlist)]
        assert low <= playlist["num_tracks"] <= high


def test_its_numbers_fit_and_its_tracks_are_those_of_the_playlists(
    made: tuple[Path, np.ndarray], playlists: list[dict[str, Any]]
) -> None:
    slices = json.loads(next(made[0].glob("mpd.slice.*.json")).read_text())["playlists"]
    records = {track["track_uri"]: track for playlist in slices for track in playlist["tracks"]}
    for playlist in playlists:
        assert playlist["pid"] >= 1_000_000
        assert playlist["num_samples"] == len(playlist["tracks"])
        assert playlist["num_holdouts"] == playlist["num_tracks"] - playlist["num_samples"] > 0
        assert len({track["track_uri"] for track in playlist["tracks"]}) == len(playlist["tracks"])
        for track in playlist["tracks"]:
            assert {**track, "pos": 0} == {**records[track["track_uri"]], "pos": 0}
            assert track["pos"] < playlist["num_tracks"]
    assert [playlist["pid"] for playlist in playlists] == sorted({playlist["pid"] for playlist in playlists})


def test_the_same_seed_gives_the_same_set(made: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    write_challenge(tmp_path, N, seed=3, tracks=made[1])
    assert (tmp_path / CHALLENGE_FILE).read_bytes() == (made[0] / CHALLENGE_FILE).read_bytes()
    write_challenge(tmp_path, N, seed=4, tracks=made[1])
    assert (tmp_path / CHALLENGE_FILE).read_bytes() != (made[0] / CHALLENGE_FILE).read_bytes()


def test_a_dataset_that_is_too_small_is_refused(
    made: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encore.synthetic.challenge._MOST_SLICES", 1)
    with pytest.raises(InputError, match="a challenge set of 50 playlists cannot be drawn: too few have"):
        write_challenge(tmp_path, N, seed=3, tracks=made[1][:300])
    assert list(tmp_path.iterdir()) == []
