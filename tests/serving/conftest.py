"""Fixtures of the checks of the scorer as a process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.generated import generated_bundle
from tests.serving.process import Running, scorer
from tests.unit.serving.bundles import small_bundle


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of `pytest tests/serving`."""
    parser.addoption("--pictures", action="store_true", help="write the pictures of the page in the README")


@pytest.fixture(scope="session")
def page_bundle(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A bundle of the model `ranker`, fitted on generated playlists: for pictures as many as `make run` generates."""
    playlists = 2000 if pytestconfig.getoption("--pictures") else 800
    return generated_bundle(tmp_path_factory.mktemp("generated"), playlists)


@pytest.fixture(scope="session")
def bundle() -> Path:
    """A small bundle of a ranker."""
    return small_bundle("ranker")


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A scorer with the default settings, except for time-outs of a second."""
    log = tmp_path_factory.mktemp("scorer") / "log"
    with scorer(bundle, log, seconds=1, keep_alive_seconds=2, max_connections=100) as running:
        yield running


@pytest.fixture(scope="session")
def wrk() -> str:
    """The load generator."""
    found = shutil.which("wrk")
    if found is None:
        pytest.skip("wrk is not installed: apt-get install wrk")
    return found
