"""A session for tests whose tasks need no JVM."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from encore.spark.session import Session
from encore.vocabulary import FEATURES
from tests.changes import Folder, Lake, plain, uri
from tests.conftest import settings
from tests.jobs.local.small import opened, run
from tests.local_spark import LocalSession


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Runs tasks in this process, because what they compute is tested elsewhere."""
    folder = tmp_path_factory.mktemp("tasks")
    return LocalSession(settings(folder / "lake"), folder / "files")


@pytest.fixture(scope="session")
def small_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three slices and audio features, and a lake on which all jobs have run."""
    folder = tmp_path_factory.mktemp("made")
    raw = Folder(folder / "raw")
    for i, name in enumerate(("a.json", "b.json", "c.json")):
        raw.write(name, {10 * i + j: plain([(i + j + k) % 12 for k in range(4)]) for j in range(4)})
    features = folder / "features" / "features.csv"
    features.parent.mkdir()
    rows = [[uri(i), *(str(0.05 * ((i * (j + 2)) % 11) + 0.01) for j in range(len(FEATURES)))] for i in range(10)]
    features.write_text("\n".join(",".join(row) for row in [["track_uri", *FEATURES], *rows]))
    assert set(run(opened(folder)).values()) == {"done"}
    return folder


@pytest.fixture
def lake(small_made: Path, tmp_path: Path) -> Lake:
    """A copy of `small_made`."""
    shutil.copytree(small_made, tmp_path, dirs_exist_ok=True)
    return opened(tmp_path)
