"""Features from a service, in chunks that are kept even if later ones fail, and from tables that match no track."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from encore.errors import InputError, TransientError
from encore.runtime.pipeline import run_pipeline
from encore.spark.session import Session
from encore.vocabulary import FEATURES
from tests import recompute
from tests.changes import Folder, Killed, Lake, killed_after
from tests.conftest import settings, write_slice
from tests.feature_server import CLIENT, FeatureServer, feature_server, throttled

VALUES = dict(zip(FEATURES, (0.5, 0.6, 7, -8.0, 1, 0.05, 0.1, 0.0, 0.2, 0.7, 120.5), strict=True))


def ids(*numbers: int) -> list[str]:
    return [f"{number:022d}" for number in numbers]


def test_a_service_is_asked_in_chunks_and_goes_on_where_it_broke_off(session: Session, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    # track 0 is in every playlist, track 9 in one: frequent tracks are requested first
    playlists = [
        {"pid": pid, "tracks": [{"track_uri": f"spotify:track:{track}"} for track in ids(*range(10 - pid))]}
        for pid in range(10)
    ]
    write_slice(raw / "mpd.slice.0-9.json", playlists)
    with feature_server("reccobeats") as server:
        server.features = {track: dict(VALUES) for track in ids(*range(9))}
        config = settings(
            tmp_path / "lake",
            f"raw.playlists={raw}",
            "features.provider=reccobeats",
            f"features.api_url={server.url}",
            "features.chunk=4",
            "features.max_wait_seconds=5.0",
        )
        run_pipeline(config, ["ingest_playlists"], session=session)

        from tests.feature_server import Mood

        server.moods = [Mood(), throttled(3600)]
        with pytest.raises(TransientError, match=r"3,?600|hour|later|minutes"):
            run_pipeline(config, ["ingest_features"], session=session)
        first = {row["track_uri"] for row in recompute.table(tmp_path / "lake", "audio_features")}
        assert first == {f"spotify:track:{track}" for track in ids(0, 1, 2, 3)}, "the first chunk stays"

        server.moods, server.batches = [], []
        results = run_pipeline(config, ["ingest_features"], session=session)
        asked = [track for batch in server.batches for track in batch]
        assert sorted(asked) == ids(4, 5, 6, 7, 8, 9), "what is there is not asked for again"
        assert results[0].facts["coverage_tracks"] == pytest.approx(0.9)
        assert results[0].facts["coverage_rows"] == pytest.approx(54 / 55)
        refused = recompute.table(tmp_path / "lake", "quarantine")
        assert [(row["reason"], row["source"]) for row in refused] == [("feature_missing", "reccobeats")]
        assert results[0].rows["quarantine"] == 1


# tables of features, in this process ---------------------------------------------------------------------------------


def mixed(number: int) -> str:
    """A track id with letters of both cases, which differ in more than case."""
    return "aZbY" + f"{number:018d}"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A lake with tracks 0 to 9 of mixed case, in ten playlists, and a setting for its table of features."""
    raw = Folder(tmp_path / "raw")
    playlists = [
        {"pid": pid, "tracks": [{"track_uri": f"spotify:track:{mixed(track)}"} for track in range(10 - pid)]}
        for pid in range(10)
    ]
    raw.put("a.json", json.dumps({"playlists": playlists}))
    made = Lake(tmp_path / "lake", raw, {"raw.features": str(tmp_path / "features.csv")})
    made.ingest()
    return made


def write(lake: Lake, ids: Sequence[str], **changes: Any) -> Path:
    """Write the table of features with these track ids."""
    path = lake.path.parent / "features.csv"
    values = {**VALUES, **changes}
    rows = [["track_id", *values], *([track, *map(str, values.values())] for track in ids)]
    path.write_text("\n".join(",".join(row) for row in rows))
    return path


def covered(lake: Lake) -> set[str]:
    return {row["track_uri"].removeprefix("spotify:track:") for row in recompute.table(lake.path, "audio_features")}


def refused(lake: Lake) -> list[tuple[str, str, str]]:
    rows = recompute.table(lake.path, "quarantine")
    return sorted((row["source"], row["record"], row["reason"]) for row in rows if row["stage"] == "ingest_features")


def test_if_every_row_is_refused_the_error_has_the_first_refusal_and_the_features_stay(lake: Lake) -> None:
    write(lake, [mixed(0), mixed(1)])
    lake.run("ingest_features")
    write(lake, [mixed(0), mixed(1), mixed(2)], energy=80)
    message = (
        "0 of 10 tracks have features; first refusal: features.csv row 1: energy: expected 0 to 1, found 80 "
        "(3 refusals in all)"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$") as caught:
        lake.run("ingest_features")
    assert caught.value.exit_code == 3
    assert "FROM quarantine" in str(caught.value.remedy)
    assert covered(lake) == {mixed(0), mixed(1)}, "a table that gives nothing replaces nothing"
    assert refused(lake) == [("features.csv", f"row {n}", "feature_out_of_range") for n in (1, 2, 3)]


def test_a_table_without_rows_gives_no_features(lake: Lake) -> None:
    write(lake, [])
    with pytest.raises(InputError, match=r"^0 of 10 tracks have features; nothing was read$"):
        lake.run("ingest_features")


def test_what_files_were_refused_for_is_in_quarantine_if_none_can_be_used(lake: Lake) -> None:
    (lake.path.parent / "features.csv").write_text("x,y\n1,2\n")
    with pytest.raises(InputError, match=r"none of its 1 file.*found: x, y"):
        lake.run("ingest_features")
    assert refused(lake) == [("features.csv", "file", "features_unreadable")]


def test_ids_of_other_tracks_match_none(lake: Lake) -> None:
    write(lake, [mixed(n) for n in range(100, 120)])
    message = (
        f"0 of 10 tracks have features: the 20 ids with features, such as {mixed(100)}, match none of the tracks, "
        f"such as {mixed(0)}"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        lake.run("ingest_features")


@pytest.mark.parametrize("lose", [str.lower, str.upper])
def test_ids_that_lost_their_case_are_recognised(lake: Lake, lose: Callable[[str], str]) -> None:
    write(lake, [lose(mixed(n)) for n in range(8)])
    with pytest.raises(InputError, match="without regard to case, 8 tracks match") as caught:
        lake.run("ingest_features")
    assert caught.value.remedy == "take the table from a source that kept the case; spreadsheets and lower() lose it"


def test_few_matches_are_a_note(tmp_path: Path) -> None:
    raw = Folder(tmp_path / "raw")
    raw.put("a.json", json.dumps({"playlists": [
        {"pid": 1, "tracks": [{"track_uri": f"spotify:track:{mixed(n)}"} for n in range(300)]}
    ]}))  # fmt: skip
    lake = Lake(tmp_path / "lake", raw, {"raw.features": str(tmp_path / "features.csv")})
    lake.ingest()
    write(lake, [mixed(0), *(mixed(n).lower() for n in range(1, 300))])
    facts = lake.run("ingest_features").facts
    assert facts["coverage_tracks"] == pytest.approx(1 / 300)
    (note,) = facts["notes"]
    assert note.startswith("1 of 300 tracks have features: the 300 ids with features")
    assert "without regard to case, 300 tracks match" in note
    write(lake, [mixed(n) for n in range(10)])
    assert "notes" not in lake.run("ingest_features").facts, "a table of few tracks that match is not suspicious"


def test_what_the_files_need_said_is_in_the_notes(lake: Lake, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    write(lake, [f"TRIOREW{n:011d}" for n in range(4)]).rename(folder / "msd.csv")
    lines = (folder / "msd.csv").read_text().splitlines()
    ids = ["id", *(mixed(n) for n in range(4))]
    (folder / "msd.csv").write_text("\n".join(f"{one},{line}" for one, line in zip(ids, lines, strict=True)))
    (folder / "Songs.XLSX").write_bytes(b"PK")
    (folder / "other.csv").write_text("x\n1\n")
    lake.overrides["raw.features"] = str(folder)
    result = lake.run("ingest_features")
    assert covered(lake) == {mixed(n) for n in range(4)}
    ignored, ids_from, rejected = result.facts["notes"]
    assert ignored == ("files of features that are not read: Songs.XLSX (a spreadsheet; save the sheet as CSV UTF-8)")
    assert ids_from == (
        "msd.csv: track ids are read from the column id: 100% of its first 4 values are Spotify track "
        "ids, and 0% of those in track_id (such as 'TRIOREW00000000000')"
    )
    assert rejected.startswith("other.csv: refused: no column for track ids, danceability")


# tracks that a service does not know ---------------------------------------------------------------------------------


@pytest.fixture
def service(lake: Lake) -> Iterator[FeatureServer]:
    """A service that knows tracks 0 to 6 of the lake, and has a value of track 7 that is out of range."""
    with feature_server("reccobeats") as server:
        server.features = {mixed(track): dict(VALUES) for track in range(7)}
        server.features[mixed(7)] = {**VALUES, "energy": 5}
        lake.overrides |= {"features.provider": "reccobeats", "features.api_url": server.url, "features.chunk": "2"}
        yield server


def asked(server: FeatureServer) -> set[str]:
    found = {track for batch in server.batches for track in batch}
    server.batches = []
    return found


def uri(number: int) -> str:
    return f"spotify:track:{mixed(number)}"


def test_tracks_that_a_service_does_not_know_are_requested_again_only_if_forced(
    lake: Lake, service: FeatureServer
) -> None:
    assert "notes" not in lake.run("ingest_features").facts
    missing = [("reccobeats", uri(8), "feature_missing"), ("reccobeats", uri(9), "feature_missing")]
    assert refused(lake) == [("reccobeats", uri(7), "feature_out_of_range"), *missing]
    asked(service)

    lake.overrides["features.timeout_seconds"] = "29"
    assert lake.run("ingest_features").facts["notes"] == [
        "3 tracks of which reccobeats had no usable features are not requested again; --force requests them"
    ]
    assert asked(service) == set()

    service.features[mixed(8)] = dict(VALUES)
    service.features[mixed(7)] = dict(VALUES)
    facts = lake.run("ingest_features", force=True).facts
    assert asked(service) == {mixed(7), mixed(8), mixed(9)}, "not the tracks that have features"
    assert "notes" not in facts
    assert covered(lake) == {mixed(n) for n in range(9)}
    assert refused(lake) == missing[1:], "what is known now leaves quarantine, and the rest is there once"
    lake.run("ingest_features", force=True)
    assert refused(lake) == missing[1:]


@pytest.mark.parametrize("n_commits", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 2, 3))])
def test_a_forced_request_that_ends_between_commits_loses_no_track(
    lake: Lake, service: FeatureServer, n_commits: int
) -> None:
    lake.run("ingest_features")
    service.features |= {mixed(track): dict(VALUES) for track in (7, 8, 9)}
    with pytest.raises(Killed), killed_after(n_commits):
        lake.run("ingest_features", force=True)
    either = covered(lake) | {record.removeprefix("spotify:track:") for _, record, _ in refused(lake)}
    lost = {mixed(n) for n in range(10)} - either
    assert not covered(lake) & {record.removeprefix("spotify:track:") for _, record, _ in refused(lake)}
    asked(service)
    lake.run("ingest_features")
    assert lost <= asked(service), "a track in neither table is requested even without --force"
    lake.run("ingest_features", force=True)
    assert covered(lake) == {mixed(n) for n in range(10)}
    assert refused(lake) == []


def test_another_service_s_refusals_stay_until_the_track_is_known(lake: Lake, service: FeatureServer) -> None:
    lake.run("ingest_features")
    with feature_server("spotify") as server:
        server.features = {mixed(8): dict(VALUES)}
        lake.overrides |= {"features.provider": "spotify", "features.api_url": server.url}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SPOTIPY_CLIENT_ID", CLIENT[0])
            patch.setenv("SPOTIPY_CLIENT_SECRET", CLIENT[1])
            lake.run("ingest_features")
    assert refused(lake) == [
        ("reccobeats", uri(7), "feature_out_of_range"),
        ("reccobeats", uri(9), "feature_missing"),
        ("spotify", uri(7), "feature_missing"),
        ("spotify", uri(9), "feature_missing"),
    ]


def test_a_service_that_knows_no_track_is_an_error_that_says_what_to_do(lake: Lake, service: FeatureServer) -> None:
    service.features = {}
    first = f"reccobeats {uri(0)}: reccobeats has no features of this track"
    message = f"0 of 10 tracks have features; first refusal: {first} (10 refusals in all)"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        lake.run("ingest_features")
    with pytest.raises(InputError, match="nothing was read") as caught:
        lake.run("ingest_features")
    assert caught.value.remedy == "request the tracks again with --force, or choose another features.provider"
