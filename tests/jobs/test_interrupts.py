"""Signals at many moments of real commands. `python -m tests.interrupting` prints statistics of more tries."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.interrupting import attempt


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("command", "group"), [("run", True), ("run", False), ("submit", False), ("generate", True)])
@pytest.mark.parametrize("moment", [0.5, 3.0, 6.0, 10.0, 15.0])
def test_a_command_ends_as_it_was_told(
    generated: Path, command: str, group: bool, number: signal.Signals, moment: float
) -> None:
    ended = attempt(generated, command, number, moment, group=group)
    if ended.seconds >= 0:
        assert ended.fault(128 + number, within=5.0) == "", ended.stderr
