"""Pids, slices, replacement and memory of `encore import`."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from encore.errors import InputError
from encore.importing import importer, json_files, m3u, slices, tables
from encore.importing.files import entries
from encore.importing.importer import import_playlists, source_name
from encore.importing.json_files import read_json
from encore.importing.records import Losses
from tests.unit.importing.samples import account, archived, item, playlists, uri, write, write_json

NEW = "Track URI,Track Name,Artist URI(s),Artist Name(s),Added At"


def pids(folder: Path) -> dict[str, int]:
    return {name: playlist["pid"] for name, playlist in playlists(folder).items()}


def all_pids(folder: Path) -> list[int]:
    return [p["pid"] for path in sorted(folder.glob("*.json")) for p in json.loads(path.read_text())["playlists"]]


# pids ---------------------------------------------------------------------------------------------------------------


def test_a_pid_is_a_fixed_function_of_source_and_playlist() -> None:
    """Changing the hash would give everybody's playlists new pids."""
    found = slices.stable_pid("exportify", "mine", "title\0Rain\x001")
    assert found == slices.stable_pid("exportify", "mine", "title\0Rain\x001") == PINNED
    assert 2**32 <= found < 2**53
    others = {
        slices.stable_pid("m3u", "mine", "title\0Rain\x001"),
        slices.stable_pid("exportify", "yours", "title\0Rain\x001"),
        slices.stable_pid("exportify", "mine", "title\0Rain\x002"),
    }
    assert len(others | {found}) == 4


PINNED = 3011068709721499


def test_pids_stay_when_the_order_or_other_playlists_change(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "in" / "Playlist1.json", account(("One", [item(1)]), ("Two", [item(2)])))
    write_json(tmp_path / "b" / "in" / "Playlist1.json", account(("New", [item(3)]), ("Two", [item(9)])))
    write_json(tmp_path / "b" / "in" / "Playlist2.json", account(("One", [item(1)])))
    for side in ("a", "b"):
        import_playlists(tmp_path / side / "in", tmp_path / side / "out")
    before, after = pids(tmp_path / "a" / "out"), pids(tmp_path / "b" / "out")
    assert before == {name: after[name] for name in before}
    assert len(set(after.values())) == 3


def test_pids_of_a_table_do_not_depend_on_the_order_of_its_rows(tmp_path: Path) -> None:
    rows = [f"{pid},List {pid},{pos},{uri(10 * pid + pos)}" for pid in range(20) for pos in range(5)]
    written = []
    for turn in range(2):
        random.Random(turn).shuffle(rows)
        write(tmp_path / "t.csv", "pid,playlist_name,pos,track_uri", *rows)
        (path,) = import_playlists(tmp_path / "t.csv", tmp_path / "out").slices
        written.append(path.read_bytes())
    assert written[0] == written[1]


def test_playlists_of_the_same_title_are_numbered(tmp_path: Path) -> None:
    source = tmp_path / "Playlist1.json"
    write_json(source, account(("Mix", [item(1)]), ("Other", [item(3)]), ("Mix", [item(2)])))
    import_playlists(source, tmp_path / "out")
    first, _, second = all_pids(tmp_path / "out")
    write_json(source, account(("Mix", [item(1)])))
    import_playlists(source, tmp_path / "out")
    assert all_pids(tmp_path / "out") == [first] != [second]


def test_the_name_of_the_source_changes_all_pids(tmp_path: Path) -> None:
    write_json(tmp_path / "Playlist1.json", account(("Mix", [item(1)])))
    import_playlists(tmp_path / "Playlist1.json", tmp_path / "a")
    import_playlists(tmp_path / "Playlist1.json", tmp_path / "b", "ada")
    assert all_pids(tmp_path / "a") != all_pids(tmp_path / "b")


def test_ids_of_a_table_as_whole_numbers_of_pandas_are_the_same(tmp_path: Path) -> None:
    found = []
    for pid in ("7", "7.0", " 7"):
        write(tmp_path / "t.csv", "pid,track_uri", f"{pid},{uri(1)}")
        import_playlists(tmp_path / "t.csv", tmp_path / "out")
        found += all_pids(tmp_path / "out")
    assert len(set(found)) == 1


@pytest.mark.parametrize("kind", ["account", "table", "both"])
def test_a_collision_is_refused_and_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(slices, "LAST_PID", slices.FIRST_PID)
    if kind != "table":
        names = ("Rain", "Sun") if kind == "account" else ("Rain",)
        write_json(tmp_path / "in" / "Playlist1.json", account(*((name, [item(1)]) for name in names)))
    if kind != "account":
        rows = ("Rain", "Sun") if kind == "table" else ("Sun",)
        write(tmp_path / "in" / "t.csv", "playlist_name,track_uri", *(f"{name},{uri(1)}" for name in rows))
    with pytest.raises(InputError, match="get the same pid") as caught:
        import_playlists(tmp_path / "in", tmp_path / "out")
    assert "Rain" in str(caught.value)
    assert "Sun" in str(caught.value)
    assert "--as" in str(caught.value.remedy)
    assert list((tmp_path / "out").iterdir()) == []


# slices -------------------------------------------------------------------------------------------------------------


def test_a_thousand_playlists_a_file(tmp_path: Path) -> None:
    write_json(tmp_path / "Playlist1.json", account(*((f"List {n}", [item(n)]) for n in range(2001))))
    done = import_playlists(tmp_path / "Playlist1.json", tmp_path / "out", "me")
    assert [path.name for path in done.slices] == [
        "me.slice.0-999.json",
        "me.slice.1000-1999.json",
        "me.slice.2000-2000.json",
    ]
    assert len(playlists(tmp_path / "out")) == done.n_playlists == 2001


def test_the_layout_is_that_of_the_published_slices(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", archived(50, "Façade", [1]))
    (path,) = import_playlists(tmp_path / "x.json", tmp_path / "out").slices
    data = path.read_bytes()
    assert data.isascii()
    text = data.decode()
    assert '\n    "playlists": [\n        {\n            "name": "Fa\\u00e7ade", \n' in text
    assert '\n            "tracks": [\n                {\n                    "pos": 0, \n' in text
    assert text.endswith("\n        }\n    ]\n}")
    assert ": " in text
    assert [line for line in text.splitlines() if line.endswith(",")] == []


# replacement --------------------------------------------------------------------------------------------------------


def test_a_second_import_replaces_the_slices_of_the_first_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_json(out / "mpd.slice.0-0.json", {"playlists": [{"pid": 0, "tracks": []}]})
    write(tmp_path / "m.m3u", uri(1))
    import_playlists(tmp_path / "m.m3u", out)
    write_json(tmp_path / "Playlist1.json", account(*((f"List {n}", [item(n)]) for n in range(1001))))
    import_playlists(tmp_path / "Playlist1.json", out, "me")
    write_json(tmp_path / "Playlist1.json", account(("One", [item(1)])))
    import_playlists(tmp_path / "Playlist1.json", out, "me")
    assert {path.name for path in out.iterdir()} == {
        "m.slice.0-0.json",
        "me.slice.0-0.json",
        "mpd.slice.0-0.json",
    }


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "Playlist1.json", account(("One", [item(1), None])))
    written = {import_playlists(tmp_path / "Playlist1.json", tmp_path / "out").slices[0].read_bytes() for _ in range(2)}
    assert len(written) == 1


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda text: text[:-30], id="cut off"),
        pytest.param(lambda text: text + "{}", id="two documents"),
        pytest.param(lambda text: text.replace('"Two"', "Two"), id="syntax error"),
    ],
)
def test_a_file_that_breaks_off_leaves_the_earlier_slices(tmp_path: Path, damage: object) -> None:
    source, out = tmp_path / "Playlist1.json", tmp_path / "out"
    write_json(source, account(("One", [item(1)]), ("Two", [item(2)])))
    (path,) = import_playlists(source, out).slices
    before = path.read_bytes()
    assert callable(damage)
    source.write_text(damage(source.read_text()))
    with pytest.raises(InputError, match=r"Playlist1.json breaks off after some playlists were read: .*character"):
        import_playlists(source, out)
    assert path.read_bytes() == before
    assert list(out.iterdir()) == [path]


def test_a_table_that_breaks_off_leaves_the_earlier_slices(tmp_path: Path) -> None:
    source, out = tmp_path / "t.csv", tmp_path / "out"
    rows = [f"{n},{uri(n)}" for n in range(2000)]
    write(source, "pid,track_uri", *rows)
    import_playlists(source, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    source.write_bytes(source.read_bytes() + b"1,\xe9\n")
    with pytest.raises(InputError, match=r"t\.csv: UTF-8 expected, byte 0xe9 at position"):
        import_playlists(source, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_slices_that_another_program_wrote_are_not_replaced(tmp_path: Path) -> None:
    theirs = write_json(tmp_path / "out" / "mpd.slice.0-999.json", {"info": {}, "playlists": []})
    with pytest.raises(InputError, match="was not written by `encore import`") as caught:
        import_playlists(write(tmp_path / "m.m3u", uri(1)), tmp_path / "out", "mpd")
    assert "--as" in str(caught.value.remedy)
    assert theirs.exists()


def test_slices_inside_the_source_are_not_imported_again(tmp_path: Path) -> None:
    write(tmp_path / "m.m3u", uri(1))
    first = import_playlists(tmp_path, tmp_path, "me")
    second = import_playlists(tmp_path, tmp_path, "me")
    assert (second.n_playlists, second.losses) == (first.n_playlists, {})


def test_what_a_killed_import_left_is_removed(tmp_path: Path) -> None:
    write(tmp_path / "out" / ".m.importing" / "0.playlists", "x")
    import_playlists(write(tmp_path / "m.m3u", uri(1)), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.slice.0-0.json"]


# what cannot be imported --------------------------------------------------------------------------------------------


def test_a_source_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        import_playlists(tmp_path / "none", tmp_path / "out")


def test_a_source_without_anything_usable_says_what_was_there(tmp_path: Path) -> None:
    write_json(tmp_path / "in" / "Playlist1.json", account(("One", [None, None])))
    write(tmp_path / "in" / "notes.txt", "x")
    with pytest.raises(InputError) as caught:
        import_playlists(tmp_path / "in", tmp_path / "out")
    for said in ("empty rows: 2", "playlists without a usable track: 1", "notes.txt: unknown kind of file .txt"):
        assert said in str(caught.value)


@pytest.mark.parametrize("name", ["", ".x", "a/b", "a\\b"])
def test_a_name_that_cannot_be_part_of_a_file_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be part of a file name"):
        source_name(tmp_path, name)


def test_the_default_name_is_that_of_the_file_or_folder(tmp_path: Path) -> None:
    (tmp_path / "my.data").mkdir()
    assert source_name(tmp_path / "my.data") == "my.data"
    assert source_name(tmp_path / "table.csv.gz") == "table"
    assert source_name(tmp_path / "v1.2 mix.m3u8") == "v1.2 mix"


@pytest.mark.parametrize("name", ["a.zip", "a.parquet", "a.csv.gz"])
def test_damaged_files_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        import_playlists(write(tmp_path / name, "PK nonsense"), tmp_path / "out")
    assert name in str(caught.value)


# memory -------------------------------------------------------------------------------------------------------------


def test_an_account_export_is_read_one_playlist_at_a_time(tmp_path: Path) -> None:
    source = tmp_path / "Playlist1.json"
    write_json(source, account(*((f"List {n}", [item(k) for k in range(200)]) for n in range(60))))
    size = source.stat().st_size
    assert size > 2_000_000
    (entry,) = entries(source, tmp_path)
    tracemalloc.start()
    n = sum(len(playlist.tracks) for playlist in read_json(entry, Losses()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n == 60 * 200
    assert peak < size / 3


@pytest.mark.parametrize("block", [1, 7, 64])
def test_the_size_of_the_blocks_does_not_change_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    content = {"version": 123456, "note": 'é\\u00e9 "', **account(("One", [item(1)]), ("Two ☕", [item(2), None]))}
    source = write_json(tmp_path / "Playlist1.json", content)
    (expected,) = import_playlists(source, tmp_path / "out").slices
    before = expected.read_bytes()
    monkeypatch.setattr(json_files, "_BLOCK", block)
    (path,) = import_playlists(source, tmp_path / "out").slices
    assert path.read_bytes() == before


def test_a_table_is_sorted_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More buckets and smaller batches change nothing but the memory."""
    rows = [f"{n % 50},{n},{uri(n)}" for n in range(1000)]
    random.Random(1).shuffle(rows)
    write(tmp_path / "t.csv", "pid,pos,track_uri", *rows)
    (one,) = import_playlists(tmp_path / "t.csv", tmp_path / "out").slices
    expected = one.read_bytes()
    monkeypatch.setattr(tables, "BUCKET_BYTES", 2000)
    monkeypatch.setattr(tables, "BATCH_ROWS", 64)
    longest: list[int] = []
    grouped = tables._grouped

    def counted(path: Path, *rest: object) -> object:
        longest.append(path.stat().st_size)
        return grouped(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tables, "_grouped", counted)
    seen: list[int] = []
    (two,) = import_playlists(tmp_path / "t.csv", tmp_path / "out", on_progress=seen.append).slices
    assert two.read_bytes() == expected
    assert len(longest) == 1 + (tmp_path / "t.csv").stat().st_size // 2000 > 10
    assert seen == sorted(seen)
    assert seen[-1] == 1000


def test_playlists_are_taken_and_written_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(5):
        write(tmp_path / "in" / f"{n}.m3u", uri(n))
    events: list[str] = []

    def noting(event: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            events.append(event)
            return function(*given)

        return call

    monkeypatch.setattr(importer, "read_m3u", noting("read", m3u.read_m3u))
    monkeypatch.setattr(slices.SliceWriter, "add", noting("write", slices.SliceWriter.add))
    import_playlists(tmp_path / "in", tmp_path / "out")
    assert events == ["read", "write"] * 5
