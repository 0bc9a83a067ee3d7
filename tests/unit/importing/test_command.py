"""The command `encore import`: what it prints and how it exits."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from encore.cli import app as cli
from tests.unit.importing.samples import account, item, playlists, write, write_json


def encore(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_it_writes_slices_and_prints_what_was_lost(tmp_path: Path) -> None:
    write_json(tmp_path / "in" / "Playlist1.json", account(("One", [item(1), None, None]), ("Two", [item(2)])))
    for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
        write(tmp_path / "in" / name, "x")
    done = encore("import", tmp_path / "in", "--out", tmp_path / "out", "--as", "me")
    assert done.exit_code == 0, done.output
    assert set(playlists(tmp_path / "out")) == {"One", "Two"}
    assert f"2 playlists with 2 tracks in 1 slice: {tmp_path}/out/me.slice.*.json" in done.stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert rows == [["empty rows", "2"], ["files that were not imported", "4"]]
    assert "not imported: a.txt, b.txt, c.txt and 1 more: unknown kind of file .txt" in done.stderr


def test_nothing_usable_exits_with_3_and_a_remedy(tmp_path: Path) -> None:
    source = write(tmp_path / "songs.csv", "user_id,artistname,trackname,playlistname", "u,Ada,One,Rain")
    done = encore("import", source, "--out", tmp_path / "out")
    assert done.exit_code == 3
    assert "no playlist with a usable track found" in done.stderr
    assert "columns: user_id, artistname, trackname, playlistname" in done.stderr
    assert "add a column track_uri" in done.stderr


def test_a_missing_source_exits_with_3(tmp_path: Path) -> None:
    assert encore("import", tmp_path / "none", "--out", tmp_path / "out").exit_code == 3
