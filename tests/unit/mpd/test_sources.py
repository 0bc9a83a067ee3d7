"""Which files are slices: endings, subfolders, the files of raw.features, and what is said of the others."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from encore.config import S3Config
from encore.errors import InputError
from encore.lake.filesystem import read_bytes
from encore.mpd.sources import find_slices
from tests.s3server import S3Server

AWS = S3Config(endpoint=None, region=None, path_style=False)
FILES = (
    "a.json",
    "B.JSON",
    "c.json.gz",
    "C.Json.GZ",
    "list.csv",
    "other.CSV",
    "notes.md",
    "LICENSE",
    "features/x.csv",
    "features/y.json",
    "sub/a.json",
    "sub/deep/d.json",
    "sub/deep/songs.m3u8",
    ".hidden.json",
    ".git/e.json",
    "_SUCCESS",
    "_old/f.json",
    "__MACOSX/._a.json",
)
SLICES = ["B.JSON", "C.Json.GZ", "a.json", "c.json.gz", "sub/a.json", "sub/deep/d.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        path = tmp_path / "mpd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "mpd"


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, S3Config]:
    """A folder with FILES on a local disk and in S3, and the settings to reach it."""
    if request.param == "local":
        return str(request.getfixturevalue("folder")), AWS
    server: S3Server = request.getfixturevalue("s3_server")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    bucket, client = f"bucket-{uuid.uuid4().hex[:12]}", server.client()
    client.create_bucket(Bucket=bucket)
    for name in FILES:
        client.put_object(Bucket=bucket, Key=f"raw/mpd/{name}", Body=name.encode())
    client.put_object(Bucket=bucket, Key="raw/mpd/empty/", Body=b"")
    return f"s3://{bucket}/raw/mpd", S3Config(endpoint=server.endpoint, region="us-east-1", path_style=True)


def names(url: str, s3: S3Config, features: str | None = None) -> list[str]:
    return [file.name for file in find_slices(url, features, s3).slices]


def test_slices_of_a_folder_have_any_case_and_depth_and_may_be_compressed(place: tuple[str, S3Config]) -> None:
    root, s3 = place
    found = find_slices(root, f"{root}/features", s3)
    assert [file.name for file in found.slices] == SLICES
    assert [file.name for file in found.others] == [
        "LICENSE",
        "list.csv",
        "notes.md",
        "other.CSV",
        "sub/deep/songs.m3u8",
    ]
    for file in found.slices:
        assert read_bytes(file.url, s3).decode() == file.name
    assert names(f"{root}/", s3, f"{root}/features/") == SLICES


def test_a_subfolder_may_be_given_itself(place: tuple[str, S3Config]) -> None:
    root, s3 = place
    assert names(f"{root}/sub", s3, f"{root}/features") == ["a.json", "deep/d.json"]
    assert names(f"{root}/_old", s3) == ["f.json"], "an address may name what is skipped elsewhere"


def test_a_prefix_of_a_name_is_no_folder(place: tuple[str, S3Config]) -> None:
    root, s3 = place
    with pytest.raises(InputError):
        find_slices(f"{root}/su", None, s3)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.json", ["a.json"]),
        ("sub/*", ["a.json", "deep/d.json"]),
        ("su*", ["sub/a.json", "sub/deep/d.json"]),
        ("*/*.json", ["features/y.json", "sub/a.json"]),
        ("su*/a.json", ["a.json"]),
        ("*/deep/*.json", ["d.json"]),
        ("_ol*/*.json", ["f.json"]),
    ],
)
def test_names_of_a_glob_are_relative_if_several_folders_match(
    place: tuple[str, S3Config], pattern: str, expected: list[str]
) -> None:
    root, s3 = place
    assert names(f"{root}/{pattern}", s3) == expected


@pytest.mark.parametrize(
    ("features", "left_out"),
    [
        ("features", {"features/y.json", "features/x.csv"}),
        ("features/y.json", {"features/y.json"}),
        ("features/*", {"features/y.json", "features/x.csv"}),
        ("features/*.csv", {"features/x.csv"}),
        ("*.csv", {"list.csv"}),
        ("", {"LICENSE", "list.csv", "notes.md", "other.CSV", "sub/deep/songs.m3u8", "features/x.csv"}),
        ("../elsewhere", set()),
    ],
)
def test_files_of_features_are_left_out(folder: Path, features: str, left_out: set[str]) -> None:
    every = find_slices(str(folder), None, AWS)
    found = find_slices(str(folder), f"{folder}/{features}", AWS)
    assert {file.name for file in [*every.slices, *every.others]} - {
        file.name for file in [*found.slices, *found.others]
    } == left_out


def test_slices_within_a_folder_of_features_are_read(folder: Path) -> None:
    assert names(f"{folder}/sub", AWS, str(folder)) == ["a.json", "deep/d.json"]


def test_what_is_ignored_is_said_in_one_line(folder: Path) -> None:
    note = find_slices(str(folder), f"{folder}/features", AWS).note()
    table = "a table: if it lists the tracks of playlists, `encore import FILE --out DIR` converts it"
    assert note == (
        f"5 files were ignored in {folder}, not being .json or .json.gz: 2 .csv ({table}), "
        "1 .m3u8 (an M3U playlist: `encore import FILE --out DIR` converts it), 1 .md, 1 without an extension"
    )
    assert find_slices(f"{folder}/sub/a.json", None, AWS).note() is None


def test_a_folder_of_other_files_names_them_and_the_command(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv.gz", "c.txt"):
        (tmp_path / name).touch()
    with pytest.raises(InputError) as caught:
        find_slices(str(tmp_path), None, AWS)
    assert str(caught.value) == f"no slices (.json or .json.gz) in {tmp_path}, only 1 .csv, 1 .csv.gz, 1 .txt"
    assert "encore import" in str(caught.value.remedy)


def test_an_empty_folder_has_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        find_slices(str(tmp_path), None, AWS)
    assert str(caught.value) == f"no slices (.json or .json.gz) in {tmp_path}"
    assert "encore generate" in str(caught.value.remedy)


def test_files_that_are_named_may_have_any_name_unless_it_says_what_they_are(folder: Path) -> None:
    assert names(f"{folder}/LICENSE", AWS) == ["LICENSE"]
    assert names(f"{folder}/LIC*", AWS) == ["LICENSE"]
    assert names(f"{folder}/*", AWS, f"{folder}/features") == SLICES, "beside slices they are ignored"
    with pytest.raises(InputError) as caught:
        find_slices(f"{folder}/list.csv", None, AWS)
    assert "encore import" in str(caught.value.remedy)


def test_a_folder_that_contains_itself_is_read_once(folder: Path) -> None:
    (folder / "sub" / "again").symlink_to(folder, target_is_directory=True)
    (folder / "linked").symlink_to(folder / "_old", target_is_directory=True)
    assert names(str(folder), AWS, f"{folder}/features") == sorted([*SLICES, "linked/f.json"])
