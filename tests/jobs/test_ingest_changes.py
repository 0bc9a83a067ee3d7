"""Ingest after changes to files, settings or tables: the result equals that of a fresh lake of the same folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from encore.errors import InputError
from encore.lake.delta import Tables
from encore.lake.inspection import inspect
from encore.mpd import parse
from encore.reports import page
from encore.runtime import runner
from encore.runtime.fingerprint import code_digest
from encore.vocabulary import FEATURES
from tests.changes import Folder, Killed, Lake, fresh, killed_after, plain, uri
from tests.recompute import table

SMALL = ("playlists", "challenge_playlists", "tracks", "quarantine", "ingest_ledger")


@pytest.fixture
def raw(tmp_path: Path) -> Folder:
    """An empty folder for slices."""
    return Folder(tmp_path / "raw")


@pytest.fixture
def lake(tmp_path: Path, raw: Folder) -> Lake:
    """A lake for that folder, still empty."""
    return Lake(tmp_path / "lake", raw)


def is_fresh(lake: Lake) -> None:
    """Fail unless the lake equals a fresh one of the same folder and is found to be up to date."""
    expected, found = fresh(lake), lake.contents()
    for name, rows in expected.items():
        assert found[name] == rows, name
    assert lake.ingest().status == "up_to_date"


# settings and code -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(3, 10), (10, 3)])
def test_another_bound_of_tracks_reaches_files_that_were_read(raw: Folder, lake: Lake, before: int, after: int) -> None:
    raw.write("a.json", {1: plain([1, 2]), 2: plain([1, 2, 3, 4])})
    raw.write("b.json", {3: plain([5, 6])})
    lake.overrides["ingest.max_tracks"] = str(before)
    lake.ingest()
    lake.overrides["ingest.max_tracks"] = str(after)
    assert lake.ingest().facts["files_read"] == 1, "that of the long list alone"
    assert (2 in lake.playlists()) == (after == 10)
    is_fresh(lake)


def test_a_bound_that_no_list_reaches_reads_nothing(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1, 2])}, {"pid": None, "tracks": [{}, {}, {}]})
    lake.ingest()
    lake.overrides["ingest.max_tracks"] = "4"
    assert lake.ingest().facts["files_read"] == 0
    lake.overrides["ingest.max_tracks"] = "2"
    assert lake.ingest().facts["files_read"] == 1, "the list of a refused record counts"


def test_a_list_that_was_left_to_another_file_is_bounded_too(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1])})
    raw.write("b.json", {1: plain([1, 2, 3]), 2: plain([3])})
    lake.ingest()
    lake.overrides["ingest.max_tracks"] = "2"
    lake.ingest()
    assert [row["reason"] for row in table(lake.path, "quarantine")] == ["too_many_tracks"]
    is_fresh(lake)


def test_another_length_of_payloads_reaches_files_with_refused_records_alone(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1])}, {"pid": None, "name": "x" * 50})
    raw.write("b.json", {2: plain([2])})
    lake.ingest()
    lake.overrides["ingest.payload_bytes"] = "20"
    assert lake.ingest().facts["files_read"] == 1
    assert [len(row["payload"]) for row in table(lake.path, "quarantine")] == [20]
    is_fresh(lake)


def test_another_parser_reads_every_file(raw: Folder, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    raw.write("a.json", {1: plain([1])})
    raw.write("b.json", {2: plain([2])})
    lake.ingest()

    def fixed(data: bytes, *more: Any) -> parse.Slice:
        return plain_parse(data.replace(b"list 1", b"LIST 1"), *more)

    from encore.jobs import ingest_playlists
    from encore.mpd import ingest

    plain_parse = parse.parse_slice
    monkeypatch.setattr(ingest, "parse_slice", fixed)
    for module in (ingest_playlists, runner):
        monkeypatch.setattr(module, "code_digest", lambda name: f"fixed {code_digest(name)}", raising=False)
    assert lake.ingest().facts["files_read"] == 2
    assert lake.playlists()[1]["name"] == "LIST 1"
    is_fresh(lake)


def test_a_ledger_of_before_these_columns_reads_every_file_once(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1])})
    lake.ingest()
    rows = table(lake.path, "ingest_ledger")
    forget(lake, {**rows[0], **dict.fromkeys(("parser", "max_tracks", "payload_bytes", "longest", "tracks_table"))})
    assert lake.ingest().facts["files_read"] == 1
    is_fresh(lake)


def test_a_ledger_of_before_bad_items_reads_every_file_once(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1])})
    lake.ingest()
    forget(lake, {**table(lake.path, "ingest_ledger")[0], "bad_items": None})
    assert lake.ingest().facts["files_read"] == 1
    is_fresh(lake)


def test_dropping_or_refusing_bad_items_reaches_files_with_such_items_alone(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1]), 2: [(3, 6), (0, -1), (1, -1), (2, -1)]})
    raw.write("b.json", {3: plain([2])})
    result = lake.ingest()
    assert lake.playlists()[2]["track_ids"] == [uri(3)]
    found = {row["record"]: row for row in table(lake.path, "quarantine")}
    assert {record: (row["pid"], row["reason"]) for record, row in found.items()} == {
        "playlist 1, item 1": (2, "item_missing"),
        "playlist 1, item 2": (2, "item_local"),
        "playlist 1, item 3": (2, "item_episode"),
    }
    assert lake.ledger()["a.json"]["n_quarantined"] == 3
    assert result.facts["items_dropped"] == 3
    assert result.facts["notes"] == [
        "3 items that are not tracks were dropped from playlists (ingest.bad_items: drop): see quarantine"
    ]
    lake.overrides["ingest.bad_items"] = "refuse"
    assert lake.ingest().facts["files_read"] == 1
    assert set(lake.playlists()) == {1, 3}
    assert [(row["record"], row["reason"]) for row in table(lake.path, "quarantine")] == [
        ("playlist 1", "item_missing")
    ]
    is_fresh(lake)
    lake.overrides["ingest.bad_items"] = "drop"
    lake.ingest()
    assert set(lake.playlists()) == {1, 2, 3}
    is_fresh(lake)


def forget(lake: Lake, row: dict[str, Any]) -> None:
    """Replace the whole ledger by one row."""
    import pyarrow as pa
    from deltalake import write_deltalake

    from encore.lake.tables import INGEST_LEDGER, arrow_schema

    rows = pa.Table.from_pylist([row], schema=arrow_schema(INGEST_LEDGER))
    write_deltalake(str(lake.path / "ingest_ledger"), rows, mode="overwrite")


def test_force_reads_every_file(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1])})
    raw.write("b.json", {1: plain([2]), 2: plain([2])})
    lake.ingest()
    assert lake.ingest(force=True).facts["files_read"] == 2
    is_fresh(lake)


# tracks ------------------------------------------------------------------------------------------------------------


def test_a_track_that_no_playlist_holds_is_marked_and_unmarked_when_it_is_back(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1, 2]), 2: plain([3])})
    lake.ingest()
    ids = lake.ids()
    raw.write("a.json", {1: plain([1]), 2: plain([3, 4])})
    assert lake.ingest().facts["orphaned_tracks"] == 1
    assert set(lake.tracks()) == {uri(i) for i in (1, 3, 4)}
    assert {u: i for u, i in lake.ids().items() if u in ids} == ids, "ids never change"
    is_fresh(lake)
    raw.write("b.json", {3: plain([2])})
    assert lake.ingest().facts["orphaned_tracks"] == 0
    assert lake.ids() == {**ids, uri(4): 3}
    is_fresh(lake)


def test_an_orphaned_track_has_no_vector_and_counts_nowhere(
    raw: Folder, lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = tmp_path / "features.csv"
    rows = [[uri(i), *("0.25" if i % 2 else "0.5" for _ in FEATURES)] for i in range(5)]
    features.write_text("\n".join(",".join(row) for row in [["track_uri", *FEATURES], *rows]))
    lake.overrides |= {"raw.features": str(features), "vectors.transform": "raw"}
    raw.write("a.json", {1: plain([1, 2, 3]), 2: plain([7])})
    lake.ingest()
    raw.write("a.json", {1: plain([1, 3, 8])})
    pages: list[page.Content] = []

    def render(content: page.Content) -> str:
        pages.append(content)
        return ""

    monkeypatch.setattr(page, "render", render)
    coverages, vectors = [], []
    for own in (lake, Lake(tmp_path / "other", raw, lake.overrides)):
        own.ingest()
        coverages.append(own.run("ingest_features").facts)
        own.run("build_track_vectors")
        own.run("report")
        ids = {track: track_uri for track_uri, track in own.ids().items()}
        vectors.append({ids[row["track_id"]] for row in table(own.path, "track_vectors")})
    assert len(lake.ids()) == 5
    assert coverages[0] == coverages[1] == {"coverage_tracks": 2 / 3, "coverage_rows": 2 / 3}
    assert vectors == [{uri(1), uri(3)}] * 2
    one, other = pages
    for name in ("key_figures", "coverage", "artists", "tracks"):
        assert getattr(one, name) == getattr(other, name), name


def test_a_track_is_named_by_the_best_record_that_is_left(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1, 2]), 2: plain([2])})
    raw.write("b.json", {3: [(1, 4)], 4: plain([5])})
    raw.write("c.json", {6: [(1, 5)], 7: [(1, 5)]})
    raw.write("d.json", {8: plain([9])})
    lake.ingest()
    raw.write("a.json", {2: plain([2])})
    assert lake.ingest().facts["files_read"] == 3, "those that hold the track"
    assert lake.tracks()[uri(1)]["first_pid"] == 6
    is_fresh(lake)


def test_the_first_playlist_that_is_left_names_a_track_if_its_record_lacks_nothing(raw: Folder, lake: Lake) -> None:
    for i in range(1, 9):
        raw.write(f"{i}.json", {i: plain([1, 10 + i])})
    lake.ingest()
    raw.write("1.json", {1: plain([11])})
    assert lake.ingest().facts["files_read"] == 2
    assert lake.tracks()[uri(1)]["first_pid"] == 2
    is_fresh(lake)


def test_a_changed_name_is_taken_from_the_same_playlist(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1])})
    lake.ingest()
    raw.put("a.json", (raw.path / "a.json").read_text().replace("track_name of 1", "another name of 1"))
    lake.ingest()
    assert lake.tracks()[uri(1)]["track_name"] == "another name of 1 in 1"
    is_fresh(lake)


def test_a_new_column_of_tracks_renames_none(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = ("track_name", "artist_uri", "artist_name", "album_uri", "album_name", "duration_ms")
    assert fields == parse.NAMING_FIELDS
    monkeypatch.setattr(parse, "TRACK_FIELDS", (*parse.TRACK_FIELDS, "pos"))
    track = {"track_uri": uri(1), **dict.fromkeys(fields[:5], "x")}
    content = json.dumps({"playlists": [{"pid": 1, "tracks": [track]}]}).encode()
    assert parse.parse_slice(content, parse.Limits(10, 10)).missing.tolist() == [1]


# tables that were dropped -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dropped", [(name,) for name in SMALL] + [("tracks", "ingest_ledger")])
def test_a_dropped_table_is_made_again(raw: Folder, lake: Lake, dropped: tuple[str, ...]) -> None:
    raw.write("a.json", {1: plain([1, 2]), 2: plain([3])})
    raw.write("b.json", {1: plain([1]), 3: plain([4])}, {"pid": None})
    raw.write("c.json", {2: plain([3]), 8: plain([1, 5])}, holes=2)
    lake.ingest()
    for name in dropped:
        shutil.rmtree(lake.path / name)
    assert lake.ingest().status == "done"
    assert set(lake.playlists("challenge_playlists")) == {8}
    assert set(lake.playlists()) == {1, 2, 3}
    is_fresh(lake)


@pytest.mark.parametrize("dropped", ["playlists", "tracks", "quarantine", "ingest_ledger"])
def test_a_dropped_table_says_what_cannot_be_made_again(raw: Folder, lake: Lake, dropped: str) -> None:
    raw.write("a.json", {1: plain([1, 2]), 2: plain([3])})
    raw.write("b.json", {3: plain([4])})
    lake.ingest()
    raw.remove("b.json")
    lake.ingest()
    shutil.rmtree(lake.path / dropped)
    (note,) = lake.ingest().facts["notes"]
    if dropped in ("playlists", "tracks"):
        assert "1 playlist" in note
        assert "cannot be made again" in note
        assert dropped in note
        is_fresh(lake)
    else:
        assert "1 playlist that no other file has stays" in note
        assert set(lake.playlists()) == {1, 2, 3}


# challenge sets ----------------------------------------------------------------------------------------------------


def test_a_challenge_set_has_a_table_of_its_own(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1, 2]), 2: plain([3])})
    raw.write("challenge_set.json", {8: plain([1, 5]), 9: []}, holes=2)
    result = lake.ingest()
    assert set(lake.playlists()) == {1, 2}
    rows = lake.playlists("challenge_playlists")
    assert {pid: (row["track_ids"], row["positions"]) for pid, row in rows.items()} == {
        8: ([uri(1), uri(5)], [0, 3]),
        9: ([], []),
    }
    assert {name: rows[8][name] for name in ("name", "num_tracks", "num_holdouts", "num_samples", "slice")} == {
        "name": None,
        "num_tracks": 6,
        "num_holdouts": 4,
        "num_samples": 2,
        "slice": "challenge_set.json",
    }
    assert lake.ledger()["challenge_set.json"]["n_playlists"] == 2
    assert result.facts["notes"] == ["2 challenge playlists (challenge_playlists): not used for training"]
    lake.run("split_holdout")
    assert {row["pid"] for row in table(lake.path, "holdout")} == {1, 2}, "nothing of it is held out"
    problems = [finding.fact for finding in inspect(Tables(lake.config)) if finding.remedy is not None]
    assert problems == []
    is_fresh(lake)


def test_a_challenge_set_that_changes_is_followed(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1, 2]), 2: plain([3])})
    raw.write("c.json", {8: plain([1, 5]), 9: plain([6])}, holes=2)
    lake.ingest()
    raw.write("c.json", {9: plain([7])}, holes=2)
    assert lake.ingest().facts["orphaned_tracks"] == 2
    is_fresh(lake)
    raw.write("c.json", {9: plain([5])})
    lake.ingest()
    assert (set(lake.playlists()), lake.playlists("challenge_playlists")) == ({1, 2, 9}, {}), "no longer withheld"
    is_fresh(lake)
    raw.write("a.json", {1: plain([1, 2]), 2: plain([3])}, holes=1)
    lake.ingest()
    assert (set(lake.playlists()), set(lake.playlists("challenge_playlists"))) == ({9}, {1, 2})
    is_fresh(lake)


def test_a_track_of_a_challenge_playlist_alone_is_not_orphaned(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1, 2])})
    raw.write("c.json", {8: plain([2, 5])}, holes=2)
    lake.ingest()
    raw.write("a.json", {1: plain([1])})
    assert lake.ingest().facts["orphaned_tracks"] == 0
    assert lake.tracks()[uri(2)]["first_pid"] == 8
    is_fresh(lake)


def test_a_pid_of_a_challenge_set_and_of_a_slice_is_taken_from_the_first_file(raw: Folder, lake: Lake) -> None:
    raw.write("b.json", {1: plain([1]), 2: plain([2])})
    raw.write("c.json", {1: plain([3]), 8: plain([5])}, holes=2)
    lake.ingest()
    assert (set(lake.playlists()), set(lake.playlists("challenge_playlists"))) == ({1, 2}, {8})
    raw.write("a.json", {2: plain([4])}, holes=2)
    lake.ingest()
    assert (set(lake.playlists()), set(lake.playlists("challenge_playlists"))) == ({1}, {2, 8})
    is_fresh(lake)
    raw.write("b.json", {7: plain([1])})
    lake.ingest()
    assert (set(lake.playlists()), set(lake.playlists("challenge_playlists"))) == ({7}, {1, 2, 8})
    is_fresh(lake)


def test_challenge_playlists_of_a_file_that_is_gone_stay_or_go(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1])})
    raw.write("c.json", {8: plain([1, 2]), 9: plain([3])}, holes=2)
    raw.write("d.json", {8: plain([4])}, holes=2)
    lake.ingest()
    raw.remove("c.json")
    lake.ingest()
    assert {pid: row["slice"] for pid, row in lake.playlists("challenge_playlists").items()} == {
        8: "d.json",
        9: "c.json",
    }
    assert lake.ingest().status == "up_to_date"
    lake.overrides["ingest.vanished"] = "remove"
    assert lake.ingest().facts["playlists_removed"] == 1
    is_fresh(lake)


def test_a_lake_of_a_challenge_set_alone_has_nothing_to_train_on(raw: Folder, lake: Lake) -> None:
    raw.write("challenge_set.json", {8: [(1, 6), (1, -1)]}, holes=2)
    with pytest.raises(InputError, match="they contain only 1 challenge playlist") as caught:
        lake.ingest()
    assert caught.value.remedy is not None
    raw.write("a.json", {1: plain([1])})
    lake.ingest()
    is_fresh(lake)


# where slices are ----------------------------------------------------------------------------------------------------


def test_slices_in_subfolders_and_compressed_ones_are_read_and_others_named(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1])})
    raw.write("sub/deep/b.json.gz", {2: plain([2])})
    raw.write("C.JSON", {3: plain([3])})
    raw.put("features/x.json", "{}")
    raw.put("list.csv", "")
    lake.overrides["raw.features"] = f"{raw.path}/features"
    result = lake.ingest()
    assert {pid: row["slice"] for pid, row in lake.playlists().items()} == {
        1: "a.json",
        2: "sub/deep/b.json.gz",
        3: "C.JSON",
    }
    (note,) = result.facts["notes"]
    assert note.startswith(f"1 file was ignored in {raw.path}, not being .json or .json.gz: 1 .csv (")
    assert "encore import" in note
    is_fresh(lake)
    raw.put("notes.txt", "")
    assert "1 .csv" in lake.ingest().facts["notes"][0], "another file to name is reason enough for a run"


def test_a_damaged_compressed_file_is_read_again_only_when_it_changes(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1])})
    raw.write("b.json.gz", {2: plain([2])})
    whole = (raw.path / "b.json.gz").read_bytes()
    raw.put("b.json.gz", whole[:-9])
    lake.ingest()
    (refused,) = table(lake.path, "quarantine")
    assert (refused["source"], refused["reason"]) == ("b.json.gz", "unreadable")
    assert "gzip" in refused["detail"]
    raw.touch("a.json")
    assert lake.ingest().facts["files_read"] == 0
    raw.put("b.json.gz", whole)
    assert lake.ingest().facts["files_read"] == 1
    assert set(lake.playlists()) == {1, 2}
    is_fresh(lake)


def test_an_unknown_duration_is_taken_from_another_record(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1])})
    raw.put("b.json", (raw.path / "a.json").read_text().replace('"pid": 1', '"pid": 2'))
    raw.put("a.json", (raw.path / "a.json").read_text().replace('"duration_ms": 1', '"duration_ms": 0'))
    lake.ingest()
    assert {name: lake.tracks()[uri(1)][name] for name in ("duration_ms", "first_pid")} == {
        "duration_ms": 1,
        "first_pid": 2,
    }
    raw.remove("b.json")
    lake.overrides["ingest.vanished"] = "remove"
    lake.ingest()
    assert lake.tracks()[uri(1)]["duration_ms"] is None
    is_fresh(lake)


# files that move ----------------------------------------------------------------------------------------------------


def test_a_playlist_that_one_file_lets_go_is_taken_from_the_other(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1]), 2: plain([2])})
    raw.write("b.json", {1: plain([3]), 3: plain([4])})
    lake.ingest()
    (refused,) = table(lake.path, "quarantine")
    assert (refused["source"], refused["pid"], refused["taken_by"]) == ("b.json", 1, "a.json")
    assert "a.json" in refused["detail"]
    raw.write("a.json", {2: plain([2])})
    lake.ingest()
    assert lake.playlists()[1]["slice"] == "b.json"
    is_fresh(lake)


def test_a_file_that_comes_later_wins_by_name(raw: Folder, lake: Lake) -> None:
    raw.write("b.json", {1: plain([1]), 2: plain([2])})
    raw.write("c.json", {1: plain([3])})
    lake.ingest()
    raw.write("a.json", {1: plain([4])})
    lake.ingest()
    assert lake.playlists()[1]["slice"] == "a.json"
    assert [row["taken_by"] for row in table(lake.path, "quarantine")] == ["a.json", "a.json"]
    is_fresh(lake)


def test_a_renamed_file_is_followed(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1]), 2: plain([2])})
    lake.ingest()
    raw.rename("a.json", "z.json")
    result = lake.ingest()
    assert result.facts["notes"] == ["1 file is gone (a.json); no playlist was lost"]
    assert {row["slice"] for row in lake.playlists().values()} == {"z.json"}
    is_fresh(lake)
    raw.write("z.json", {1: plain([5]), 2: plain([2])})
    lake.ingest()
    is_fresh(lake)


def test_a_copy_that_is_deleted_again_leaves_the_slice_in_possession(raw: Folder, lake: Lake) -> None:
    raw.write("mpd.slice.0-99.json", {1: plain([1]), 2: plain([2])})
    lake.ingest()
    copy = "mpd.slice.0-99 (1).json"
    raw.put(copy, (raw.path / "mpd.slice.0-99.json").read_text())
    lake.ingest()
    is_fresh(lake)
    raw.remove(copy)
    lake.ingest()
    assert {row["slice"] for row in lake.playlists().values()} == {"mpd.slice.0-99.json"}
    assert table(lake.path, "quarantine") == []
    is_fresh(lake)


def test_a_new_lake_of_two_files_that_swap_their_playlists(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1]), 2: plain([2])})
    raw.write("b.json", {3: plain([3]), 4: plain([4])})
    lake.ingest()
    raw.write("a.json", {3: plain([3]), 2: plain([2])})
    raw.write("b.json", {1: plain([1]), 4: plain([4])})
    lake.ingest()
    is_fresh(lake)


def test_playlists_of_a_file_that_is_gone_stay_or_go(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1, 2]), 2: plain([2, 3])}, {"pid": None})
    raw.write("b.json", {2: plain([4]), 3: plain([4])})
    lake.ingest()
    raw.remove("a.json")
    result = lake.ingest()
    assert result.facts["notes"] == [
        "1 file is gone (a.json); 1 playlist that no other file has stays (ingest.vanished: keep)"
    ]
    assert (result.facts["playlists_kept"], result.facts["playlists_removed"]) == (1, 0)
    assert {pid: row["slice"] for pid, row in lake.playlists().items()} == {1: "a.json", 2: "b.json", 3: "b.json"}
    gone = lake.ledger()["a.json"]
    assert gone["n_playlists"] == 1
    assert gone["vanished_at"] is not None
    assert lake.ingest().status == "up_to_date"

    raw.write("c.json", {9: plain([1])})
    lake.ingest()
    assert set(lake.playlists()) == {1, 2, 3, 9}, "they stay through later runs"
    lake.overrides["ingest.vanished"] = "remove"
    result = lake.ingest()
    assert result.facts["playlists_removed"] == 1
    is_fresh(lake)


def test_a_file_that_comes_back_is_read_again(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1]), 2: plain([2])})
    raw.write("b.json", {2: plain([4]), 3: plain([4])})
    lake.ingest()
    raw.rename("a.json", "elsewhere")
    lake.ingest()
    raw.rename("elsewhere", "a.json")
    lake.ingest()
    is_fresh(lake)


def test_a_file_that_was_refused_as_a_whole_and_is_gone_leaves_nothing(raw: Folder, lake: Lake) -> None:
    raw.write("a.json", {1: plain([1])})
    raw.put("b.json", "{")
    lake.ingest()
    raw.remove("b.json")
    lake.ingest()
    is_fresh(lake)


# interrupted runs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_commits", [1, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 5, 6))])
def test_a_run_that_breaks_off_is_made_good(raw: Folder, lake: Lake, n_commits: int) -> None:
    """After any of its commits; then the file changes back, so that its size and time are those in the ledger."""
    raw.write("a.json", {1: plain([1, 2, 9]), 2: [(3, 2)]})
    raw.write("b.json", {1: plain([1]), 3: plain([2, 3])})
    lake.ingest()
    before = (raw.path / "a.json").read_text(), (raw.path / "a.json").stat().st_mtime_ns
    raw.write("a.json", {2: plain([3, 7]), 5: plain([8])})
    with killed_after(n_commits):
        try:
            lake.ingest()
        except Killed:
            pass
        else:
            assert n_commits == 6, "the run has as many commits"
    (raw.path / "a.json").write_text(before[0])
    import os

    os.utime(raw.path / "a.json", ns=(before[1], before[1]))
    lake.ingest()
    is_fresh(lake)
