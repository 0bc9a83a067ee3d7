"""What the checks proved, said at the end of a run of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

_PROVED: list[str] = []


@pytest.fixture
def proved() -> Callable[[str], None]:
    """Say in one line what a test has shown; it stands at the end of the run."""
    return _PROVED.append


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _PROVED:
        terminalreporter.section("proved without an account")
        for line in _PROVED:
            terminalreporter.write_line(f"- {line}")
