"""The application archive, built once, and what the checks proved, said at the end of a run of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

_PROVED: list[str] = []

COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""What the archives of tests are said to be of."""


@pytest.fixture
def proved() -> Callable[[str], None]:
    """Say in one line what a test has shown; it stands at the end of the run."""
    return _PROVED.append


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _PROVED:
        terminalreporter.section("proved without an account")
        for line in _PROVED:
            terminalreporter.write_line(f"- {line}")


def nodes_python() -> str:
    """The interpreter that archives of these tests are for: where EMR has it, if it is here, else the tests'."""
    usual = Path("/usr/bin/python3.11")
    return str(usual if usual.exists() else Path(sys.base_prefix) / "bin" / "python3.11")


def packaged(root: Path, out: Path) -> Path:
    """The folder that `make package` makes, from a checkout at `root`."""
    command = [sys.executable, str(root / "deploy" / "package.py"), "--out", str(out), "--python", nodes_python()]
    environment = {**os.environ, "ENCORE_GIT_COMMIT": COMMIT}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packaged(ROOT, tmp_path_factory.mktemp("package") / "package")
