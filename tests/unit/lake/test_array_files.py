"""Arrays in files that a driver and its executors share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from encore.config import S3Config
from encore.errors import EncoreError, LakeError
from encore.lake.array_files import ArrayFiles
from tests.s3server import S3Server

LOCAL = S3Config(endpoint=None, region=None, path_style=False)
ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture(params=["local", "s3"])
def files(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArrayFiles:
    if request.param == "local":
        return ArrayFiles(str(tmp_path / "folder"), LOCAL)
    server: S3Server = request.getfixturevalue("s3_server")
    bucket = f"arrays-{os.getpid()}-{tmp_path.name[-8:].strip('-_').lower()}".replace("_", "-")
    server.client().create_bucket(Bucket=bucket)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return ArrayFiles(f"s3://{bucket}/folder", S3Config(endpoint=server.endpoint, region="us-east-1", path_style=True))


def test_arrays_are_written_read_concatenated_and_deleted(files: ArrayFiles) -> None:
    assert files.names() == set()
    files.write("step1-0", ROWS)
    files.write("step1-1", ROWS[:1] + 10)
    files.write("step12-0", ROWS)
    files.write_bytes("progress.json", b"{}")
    assert files.names() == {"step1-0.npy", "step1-1.npy", "step12-0.npy", "progress.json"}
    assert files.read_bytes("progress.json") == b"{}"
    assert np.array_equal(files.read("step1-1"), ROWS[:1] + 10)
    parts = ["step1-1", "step1-0"]
    whole = files.concatenated("step1-all", parts, (4, 2))
    assert np.array_equal(whole, np.concatenate([ROWS[:1] + 10, ROWS]))
    # it is made once
    files.write("step1-1", ROWS[:1])
    again = files.concatenated("step1-all", parts, (4, 2))
    assert np.array_equal(again, whole)
    files.delete("step1-")
    assert files.names() == {"step12-0.npy", "progress.json"}
    assert np.array_equal(files.concatenated("step1-all", ["step12-0"], (3, 2)), ROWS)


def test_a_wrong_number_of_rows_is_an_error(files: ArrayFiles) -> None:
    files.write("a", ROWS)
    with pytest.raises(LakeError, match=r"b: expected 4 rows, found 3"):
        files.concatenated("b", ["a"], (4, 2))
    # and leaves nothing behind that would be taken for the rows
    assert np.array_equal(files.concatenated("b", ["a"], (3, 2)), ROWS)


def test_no_rows(tmp_path: Path) -> None:
    files = ArrayFiles(str(tmp_path), LOCAL)
    assert files.concatenated("none", [], (0, 4)).shape == (0, 4)


def test_a_missing_file_is_named(files: ArrayFiles) -> None:
    files.write("a", ROWS)
    with pytest.raises(EncoreError, match=r"folder/b\.npy"):
        files.read("b")


def test_a_writer_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ArrayFiles(str(tmp_path), LOCAL)
    files.write("a", ROWS)

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", fails)
    for write in (lambda: files.write("a", ROWS + 1), lambda: files.write("b", ROWS)):
        with pytest.raises(KeyboardInterrupt):
            write()
    assert {name for name in files.names() if name.endswith(".npy")} == {"a.npy"}
    assert np.array_equal(files.read("a"), ROWS)
