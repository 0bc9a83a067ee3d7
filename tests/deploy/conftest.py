"""The application archive, built once per session, and a summary of what the tests verified."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.conftest import ROOT

_VERIFIED: list[str] = []

COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""The commit that archives built by tests are labelled with."""


@pytest.fixture(autouse=True, scope="module")
def credentials_of_its_own() -> Iterator[None]:
    """Let what comes after a module find its own credentials: boto3's session keeps those of mock accounts."""
    yield
    boto3.DEFAULT_SESSION = None


@pytest.fixture
def verified() -> Callable[[str], None]:
    """Add one line to the summary of what was verified, printed at the end of the run."""
    return _VERIFIED.append


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _VERIFIED:
        terminalreporter.section("verified without an account")
        for line in _VERIFIED:
            terminalreporter.write_line(f"- {line}")


def packaged(root: Path, out: Path) -> Path:
    """The folder that `make package` builds from a checkout at `root`."""
    command = [sys.executable, str(root / "deploy" / "package.py"), "--out", str(out)]
    environment = {**os.environ, "ENCORE_GIT_COMMIT": COMMIT}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packaged(ROOT, tmp_path_factory.mktemp("package") / "package")
