"""Fixtures shared by several test packages: a Spark session, settings for a fresh lake, generated slices."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog

from encore.config import Config, load_config
from encore.log import configure_logging
from encore.runtime.tracking import MLFLOW_SETTINGS
from encore.spark.session import Session
from encore.synthetic.generate import generate
from tests.s3server import S3Server
from tests.s3server import s3_server as started_s3_server

# tests import mlflow themselves, and it must find the same settings as in a run
os.environ.update(MLFLOW_SETTINGS)

# the first example of a property may compile the code under test, and no test depends on timing
hypothesis.settings.register_profile("encore", deadline=None)
hypothesis.settings.load_profile("encore")

ROOT = Path(__file__).resolve().parents[1]

QUICK_MODELS = "recommend.models=[cosine,popularity,random]"
"""Models that are fitted at once, for tests of everything else."""

REGISTERED = "registry.models=[popularity]"

FAST_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""Tests are too short for the optimising compiler to pay off."""


def settings(lake: Path | str, *overrides: str) -> Config:
    """The local configuration with a lake, and an MLflow store in a folder of the test. One model is registered."""
    lake = str(lake)
    own = [
        f"lake.path={lake}",
        f"tracking.uri=sqlite:///{lake}-mlflow.db",
        f"tracking.artifacts={lake}-artifacts",
        f"report.path={lake}-report",
        "spark.master=local[2]",
        "log.level=error",
        QUICK_MODELS,
        REGISTERED,
    ]
    return load_config("local", [*own, *overrides])


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """One Spark session for all tests, which have separate lakes but can share the session."""
    config = settings(tmp_path_factory.mktemp("session") / "lake")
    configure_logging(config.log)
    options = {**config.spark.settings, "spark.driver.extraJavaOptions": FAST_JVM, "spark.driver.memory": "2g"}
    spark = config.spark.model_copy(update={"settings": options})
    made = Session(config.model_copy(update={"spark": spark}))
    yield made
    made.stop()


@pytest.fixture
def lake_settings(tmp_path: Path) -> Callable[..., Config]:
    """Settings for a separate lake for this test: `lake_settings("a.b=value", ...)`."""
    return lambda *overrides: settings(tmp_path / "lake", *overrides)


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 generated playlists in six slices of 50, and their audio features in features/."""
    whole, parts = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("mpd")
    generate(whole, 300, seed=7, coverage=0.9, processes=1)
    content = json.loads(next(whole.glob("*.json")).read_text())
    for start in range(0, 300, 50):
        write_slice(parts / f"mpd.slice.{start}-{start + 49}.json", content["playlists"][start : start + 50])
    (whole / "features").rename(parts / "features")
    return parts


def write_slice(path: Path, playlists: list[dict]) -> None:  # type: ignore[type-arg]
    """Write playlists in the format of the dataset."""
    info = {"generated_on": "2017-12-03 08:41:42.057563", "slice": path.name.split(".")[2], "version": "v1"}
    path.write_text(json.dumps({"info": info, "playlists": playlists}, indent=4, separators=(", ", ": ")))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3 server for all tests, each of which creates its own buckets."""
    with started_s3_server() as server:
        yield server


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Restore the logging configuration after each test, because tests may change it as commands do."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.configure(**before)
