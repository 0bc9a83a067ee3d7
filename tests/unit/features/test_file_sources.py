"""Which files and columns of audio features are read, and what is said of the others."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encore.config import S3Config
from encore.errors import InputError
from encore.features.providers.file import FileProvider
from tests.s3server import S3Server
from tests.unit.features.test_file_provider import (
    ENDS,
    VALUES,
    details,
    fetch,
    file_provider,
    reasons,
    row,
    track,
    uri,
    write,
)

MSD = "TRIOREW128F424EAF0"


def notes(path: Path | str) -> list[str]:
    """What the user is told of the files."""
    provider = file_provider(path)
    for _ in provider.fetch(iter([])):
        pass
    return provider.notes


# the column of ids ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ENDS)
def test_the_column_of_ids_is_the_one_with_spotify_ids(tmp_path: Path, end: str) -> None:
    path = write(tmp_path / f"f.{end}", [{**row(n), "track_id": MSD, "id": track(n)} for n in (1, 2)])
    assert fetch(path).features["track_uri"].to_pylist() == [uri(1), uri(2)]
    assert notes(path) == [
        f"f.{end}: track ids are read from the column id: 100% of its first 2 values are Spotify track ids, and 0% of "
        f"those in track_id (such as {MSD!r})"
    ]


@pytest.mark.s3
@pytest.mark.parametrize("end", ["csv.gz", "jsonl", "parquet"])
def test_the_column_of_ids_in_s3(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    bucket = f"features-{end.replace('.', '-')}"
    client = s3_server.client()
    client.create_bucket(Bucket=bucket)
    path = write(tmp_path / f"f.{end}", [{**row(1), "track_id": MSD, "id": track(1)}])
    client.put_object(Bucket=bucket, Key=f"x/F.{end.upper()}", Body=path.read_bytes())
    client.put_object(Bucket=bucket, Key="x/f.xlsx", Body=b"PK")
    s3 = S3Config(endpoint=s3_server.environment()["AWS_ENDPOINT_URL"], region="us-east-1", path_style=True)
    provider = FileProvider(f"s3://{bucket}/x", s3, {}, 500)
    (batch,) = provider.fetch(iter([]))
    assert batch.features["track_uri"].to_pylist() == [uri(1)]
    assert [note.split(":")[0] for note in provider.notes] == [
        "files of features that are not read",
        f"F.{end.upper()}",
    ]


def test_the_largest_share_of_ids_wins_and_ties_go_to_the_likelier_name(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [{**row(n), "uri": uri(n + 10) if n < 3 else ""} for n in range(4)])
    assert fetch(tmp_path / "a.csv").features["track_uri"].to_pylist() == [uri(n) for n in range(4)]
    write(tmp_path / "b.csv", [{**row(n), "uri": uri(n + 10), "track_uri": uri(n + 20)} for n in range(4)])
    assert fetch(tmp_path / "b.csv").features["track_uri"].to_pylist() == [uri(n + 20) for n in range(4)]
    assert notes(tmp_path / "b.csv") == []


def test_only_a_sample_decides(tmp_path: Path) -> None:
    rows = [{**row(n), "track_id": MSD if n < 1000 else track(n), "uri": uri(n)} for n in range(2500)]
    write(tmp_path / "f.csv", rows)
    assert fetch(tmp_path / "f.csv").features.num_rows == 2500
    assert "100% of its first 1,000 values" in notes(tmp_path / "f.csv")[0]


@pytest.mark.parametrize("end", ["csv", "jsonl", "parquet"])
def test_ids_in_a_column_of_any_name_but_not_those_of_artists(tmp_path: Path, end: str) -> None:
    rows = [{"artist_id": track(90 + n), "Song": uri(n), **VALUES, "number": n} for n in (1, 2)]
    path = write(tmp_path / f"f.{end}", rows)
    assert fetch(path).features["track_uri"].to_pylist() == [uri(1), uri(2)]
    assert notes(path) == [
        f"f.{end}: track ids are read from the column Song: 100% of its first 2 values are Spotify track ids"
    ]
    path = write(
        tmp_path / f"g.{end}", [{name: value for name, value in one.items() if name != "Song"} for one in rows]
    )
    with pytest.raises(InputError, match="no column for track ids; found: artist_id, danceability"):
        fetch(path)


@pytest.mark.parametrize("end", ["csv", "jsonl", "parquet"])
def test_if_no_column_has_spotify_ids_every_row_is_refused_by_the_likeliest_one(tmp_path: Path, end: str) -> None:
    fetched = fetch(write(tmp_path / f"f.{end}", [{**row(n), "track_id": MSD, "id": n} for n in (1, 2)]))
    assert fetched.features.num_rows == 0
    assert details(fetched)["row 1"] == (
        f"track_uri: expected a Spotify track id of 22 letters and digits, found {MSD!r}"
    )


def test_a_configured_column_of_ids_is_read_whatever_its_values(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", [{**row(1), "id": track(2), "old": track(3)}])
    assert fetch(path, {"track_uri": "old"}).features["track_uri"].to_pylist() == [uri(3)]
    path = write(tmp_path / "f.csv", [{**row(1), "old": MSD}])
    assert list(reasons(fetch(path, {"track_uri": "old"})).values()) == ["feature_id_malformed"]


def test_links_to_the_web_api_are_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", [row(1, track_id=f"https://api.spotify.com/v1/tracks/{track(1)}")])
    assert fetch(path).features["track_uri"].to_pylist() == [uri(1)]


# keys and modes in words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["csv", "tsv.gz", "jsonl", "parquet"])
def test_modes_and_keys_in_words(tmp_path: Path, end: str) -> None:
    modes = {"Major": 1, "minor": 0, "MAJOR": 1, "True": 1, "false": 0, " Minor ": 0, "1": 1, "0.0": 0}
    keys = {
        "C": 0, "c#": 1, "Db": 1, "C♯": 1, "D♭": 1, "C#/Db": 1, "C♯/D♭": 1, "Db/C#": 1, "D": 2, "Eb": 3, "E": 4,
        "E#": 5, "F#": 6, "Gb": 6, "G": 7, "Ab": 8, "A": 9, "A#": 10, "Bb": 10, "bb": 10, "B": 11, "b": 11, "Cb": 11,
        "7": 7, "-1": -1,
    }  # fmt: skip
    rows = [row(n, mode=text) for n, text in enumerate(modes)]
    rows += [row(100 + n, key=text) for n, text in enumerate(keys)]
    # as text, as in a table of one type per column
    rows = [{**one, "mode": str(one["mode"]), "key": str(one["key"])} for one in rows]
    fetched = fetch(write(tmp_path / f"f.{end}", rows))
    assert reasons(fetched) == {}
    assert fetched.features["mode"].to_pylist()[: len(modes)] == list(modes.values())
    assert fetched.features["key"].to_pylist()[len(modes) :] == list(keys.values())


@pytest.mark.parametrize("end", ["jsonl", "parquet"])
def test_booleans_are_modes_and_no_other_feature(tmp_path: Path, end: str) -> None:
    fetched = fetch(write(tmp_path / f"f.{end}", [row(1, mode=True), row(2, mode=False), row(3, mode=None)]))
    assert fetched.features["mode"].to_pylist() == [1, 0]
    assert reasons(fetched) == {"row 3": "feature_missing"}
    fetched = fetch(write(tmp_path / f"g.{end}", [row(1, energy=True), row(2, energy=False)]))
    assert list(reasons(fetched).values()) == ["feature_not_a_number"] * 2


@pytest.mark.parametrize("end", ["csv", "jsonl", "parquet"])
def test_other_words_are_refused(tmp_path: Path, end: str) -> None:
    rows = [row(1, mode="dorian", key="1"), row(2, mode="1", key="H"), row(3, mode="1", key="C#/Eb")]
    rows += [row(4, mode="1", key="C minor"), row(5, mode="C#", key="1"), row(6, mode="1", key="major")]
    fetched = fetch(write(tmp_path / f"f.{end}", rows))
    assert list(reasons(fetched).values()) == ["feature_not_a_number"] * 6
    assert details(fetched)["row 1"] == "mode: expected a number from 0 to 1, major or minor, found 'dorian'"
    assert details(fetched)["row 2"] == "key: expected a number from -1 to 11 or a note such as C#, found 'H'"


# files that are not read ---------------------------------------------------------------------------------------------

OTHERS = {
    "songs.xlsx": ("a spreadsheet", "save the sheet as CSV UTF-8"),
    "songs.XLS": ("a spreadsheet", "save the sheet as CSV UTF-8"),
    "songs.ods": ("a spreadsheet", "save the sheet as CSV UTF-8"),
    "songs.rds": ("R data", 'load it as x in R, then readr::write_csv(x, "features.csv")'),
    "songs.RData": ("R data", 'readr::write_csv(x, "features.csv")'),
    "songs.rda": ("R data", 'readr::write_csv(x, "features.csv")'),
    "songs.zip": ("compressed or an archive", "unzip"),
    "songs.csv.zip": ("compressed or an archive", "unzip"),
    "songs.csv.bz2": ("compressed or an archive", "bunzip2"),
    "songs.tar.gz": ("compressed or an archive", "tar -xf"),
    "songs.parquet.gz": ("compressed or an archive", "gunzip"),
    "songs.feather": ("Feather, Arrow, ORC or Avro", "convert it to Parquet"),
    "songs.arrow": ("Feather, Arrow, ORC or Avro", "convert it to Parquet"),
    "songs.pkl": ("data of another program", "export the table as CSV or Parquet"),
    "songs.txt": ("not a table by its name", "give it a name that ends in .csv, .tsv"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_kind_of_file_is_named_with_a_remedy(tmp_path: Path, name: str) -> None:
    what, remedy = OTHERS[name]
    other = tmp_path / name
    other.write_bytes(b"x")
    for url in (tmp_path, other, tmp_path / "songs*"):
        with pytest.raises(InputError, match="no file of audio features") as caught:
            fetch(url)
        assert f"{name} is {what}" in str(caught.value)
        assert remedy in str(caught.value.remedy)
        assert "column" not in str(caught.value)
    write(tmp_path / "features.csv", [row(1)])
    assert fetch(tmp_path).features.num_rows == 1
    (note,) = notes(tmp_path)
    assert note.startswith(f"files of features that are not read: {name} ({what}; ")
    assert remedy in note


def test_files_that_are_not_read_are_one_line_by_kind(tmp_path: Path) -> None:
    for name in ("1.xlsx", "2.xlsx", "3.xlsx", "4.xlsx", "5.rds", ".DS_Store", "_SUCCESS"):
        (tmp_path / name).write_bytes(b"x")
    write(tmp_path / "features.csv", [row(1)])
    assert notes(tmp_path) == [
        "files of features that are not read: "
        "1.xlsx, 2.xlsx, 3.xlsx and 1 more (a spreadsheet; save the sheet as CSV UTF-8); "
        '5.rds (R data; load it as x in R, then readr::write_csv(x, "features.csv"))'
    ]


@pytest.mark.parametrize("end", ENDS)
def test_the_case_of_an_extension_does_not_matter(tmp_path: Path, end: str) -> None:
    path = write(tmp_path / f"f.{end}", [row(1)])
    path.rename(tmp_path / f"F.{end.upper()}")
    assert fetch(tmp_path).features["track_uri"].to_pylist() == [uri(1)]


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"PK\x03\x04...", "expected text, found an Excel workbook or a zip archive; save the sheet as CSV UTF-8"),
        (b"\xd0\xcf\x11\xe0...", "expected text, found an Excel workbook or a zip archive"),
        (b"PAR1...", "expected text, found Parquet; rename f.csv so that it ends in .parquet"),
    ],
)
def test_another_format_under_the_name_of_a_text(tmp_path: Path, content: bytes, detail: str) -> None:
    (tmp_path / "f.csv").write_bytes(content)
    write(tmp_path / "good.csv", [row(1)])
    assert details(fetch(tmp_path))["file"].startswith(detail)
    assert notes(tmp_path)[0].startswith(f"f.csv: refused: {detail}")


# texts that cannot be read -------------------------------------------------------------------------------------------


def rejected_as(path: Path) -> tuple[str, str | None]:
    """The message and the remedy of the error for a file that is all there is."""
    with pytest.raises(InputError) as caught:
        fetch(path)
    return str(caught.value).partition("can be used: ")[2], caught.value.remedy


def encoded(path: Path, change: Callable[[str], bytes], *, zipped: bool) -> Path:
    text = write(path.with_name("plain.csv"), [row(1, name="x"), row(2, name="é")]).read_bytes().decode()
    path.write_bytes(gzip.compress(change(text)) if zipped else change(text))
    return path


@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_from_windows_is_refused_with_its_byte_line_and_a_remedy(tmp_path: Path, zipped: bool) -> None:
    name = "f.csv.gz" if zipped else "f.csv"
    path = encoded(tmp_path / name, lambda text: text.encode("cp1252"), zipped=zipped)
    position = (tmp_path / "plain.csv").read_bytes().index("é".encode())
    message, remedy = rejected_as(path)
    assert message == f"{name}: expected UTF-8, found the byte 0xE9 at position {position} (line 3)"
    start = "gunzip -c f.csv.gz | iconv -f WINDOWS-1252 -t UTF-8" if zipped else "iconv -f WINDOWS-1252 -t UTF-8 f.csv"
    assert remedy == f"if it is from Windows: {start} > utf8-f.csv"


def test_the_position_of_a_byte_far_into_a_file_is_right(tmp_path: Path) -> None:
    # the character before it straddles the blocks that are read
    text = b"x" * ((1 << 20) - 2) + b"\n" + "é".encode() * 3 + b"\n\x80\n"
    (tmp_path / "f.csv").write_bytes(text)
    message, _ = rejected_as(tmp_path / "f.csv")
    assert message.endswith(f"found the byte 0x80 at position {text.index(0x80):,} (line 3)")


@pytest.mark.parametrize(
    ("encoding", "found", "source"),
    [
        ("utf-16", "UTF-16 (byte order mark)", "UTF-16"),
        ("utf-16-le", "UTF-16 without a byte order mark", "UTF-16LE"),
        ("utf-16-be", "UTF-16 without a byte order mark", "UTF-16BE"),
    ],
)
def test_utf_16_is_recognised(tmp_path: Path, encoding: str, found: str, source: str) -> None:
    path = encoded(tmp_path / "f.csv", lambda text: text.encode(encoding), zipped=False)
    remedy = f"iconv -f {source} -t UTF-8 f.csv > utf8-f.csv"
    assert rejected_as(path) == (f"f.csv: expected UTF-8, found {found}", remedy)


def test_a_file_that_was_cut_within_a_character(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", [row(1, name="é")])
    path.write_bytes(path.read_bytes().partition("é".encode())[0] + b"\xc3")
    message, remedy = rejected_as(path)
    assert message == "f.csv: expected UTF-8, found a file that ends in the middle of a character: is it complete?"
    assert remedy is None


OBJECT = {"track_id": track(1), **VALUES}


@pytest.mark.parametrize(
    ("text", "found", "expression"),
    [
        (json.dumps(OBJECT, indent=2), "an object over several lines (pretty-printed)", "."),
        (json.dumps([OBJECT]), "an array", ".[]"),
        (json.dumps([OBJECT], indent=2), "an array", ".[]"),
        ("\ufeff\n " + json.dumps([OBJECT]), "an array", ".[]"),
    ],
)
def test_json_that_is_not_in_lines_is_refused_with_the_command_that_converts_it(
    tmp_path: Path, text: str, found: str, expression: str
) -> None:
    (tmp_path / "f.json").write_text(text)
    remedy = f"convert it: jq -c '{expression}' f.json > features.jsonl"
    assert rejected_as(tmp_path / "f.json") == (f"f.json: expected one JSON object per line, found {found}", remedy)
    (tmp_path / "f.json").unlink()
    (tmp_path / "f.json.gz").write_bytes(gzip.compress(text.encode()))
    assert rejected_as(tmp_path / "f.json.gz")[1] == (
        f"convert it: gunzip -c f.json.gz | jq -c '{expression}' > features.jsonl"
    )


def test_a_file_of_json_lines_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text("track_id,energy\n1,2\n")
    assert rejected_as(tmp_path / "f.jsonl") == (
        "f.jsonl: expected one JSON object per line, found 'track_id,energy'",
        None,
    )


def test_lines_of_json_say_what_was_found(tmp_path: Path) -> None:
    lines: list[Any] = [OBJECT, [1], "text", 7, True]
    (tmp_path / "f.jsonl").write_text("\n".join([*map(json.dumps, lines), "{"]))
    assert list(details(fetch(tmp_path / "f.jsonl")).values()) == [
        f"expected a JSON object, found {what}"
        for what in ("an array", "a string", "a number", "true or false", "text that is not JSON")
    ]


@pytest.mark.parametrize(
    ("value", "kind", "detail"),
    [
        ([1.0], pa.list_(pa.float64()), "column tempo: expected numbers, found lists"),
        ([("a", 1.0)], pa.map_(pa.string(), pa.float64()), "column tempo: expected numbers, found maps"),
        (7, pa.timestamp("us"), "column tempo: expected numbers, found dates or times"),
    ],
)
def test_types_of_parquet_are_named_in_words(tmp_path: Path, value: Any, kind: pa.DataType, detail: str) -> None:
    table = pa.Table.from_pylist([row(1)])
    table = table.set_column(table.column_names.index("tempo"), "tempo", pa.array([value], kind))
    pq.write_table(table, tmp_path / "f.parquet")
    assert rejected_as(tmp_path / "f.parquet")[0] == f"f.parquet: {detail}"
