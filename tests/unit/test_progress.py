"""Progress: a plain line now and then on standard error, a bar on a terminal, and nothing on standard output."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from encore import progress
from encore.progress import PLAIN_EVERY_SECONDS, Meter, meter


class Clock:
    """Seconds since the work began."""

    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def started(total: int | None = None, label: str = "recommend", unit: str = "playlists") -> Meter:
    return Meter(label, unit, total, started=0.0, printed_at=0.0)


@pytest.mark.parametrize(
    ("done", "total", "seconds", "expected"),
    [
        (250_000, 1_000_000, 10, "recommend: 250,000 of 1,000,000 playlists, 25 k playlists/s, 30 s left"),
        (1_000, 4_000, 10, "recommend: 1,000 of 4,000 playlists, 100 playlists/s, 30 s left"),
        (4_000, 4_000, 10, "recommend: 4,000 of 4,000 playlists, 400 playlists/s, 0 s left"),
        (10, 500, 10, "recommend: 10 of 500 playlists, 1.0 playlists/s, 490 s left"),
        (3, 500, 10, "recommend: 3 of 500 playlists, 0.3 playlists/s, 1,657 s left"),
        (0, 500, 10, "recommend: 0 of 500 playlists, 0 playlists/s"),
        (700, None, 10, "recommend: 700 playlists, 70 playlists/s"),
        (20_000_000, None, 1, "recommend: 20,000,000 playlists, 20 M playlists/s"),
        (99_999, None, 10, "recommend: 99,999 playlists, 10,000 playlists/s"),
    ],
)
def test_a_line_shows_progress_rate_and_remaining_time(
    clock: Clock, done: int, total: int | None, seconds: float, expected: str
) -> None:
    shown = started(total)
    clock.now = seconds
    shown.update(done)
    assert shown.line() == expected


def test_a_line_at_the_very_start_is_defined(clock: Clock) -> None:
    assert started(5).line() == "recommend: 0 of 5 playlists, 0 playlists/s"


def test_progress_never_goes_backwards(clock: Clock) -> None:
    shown = started(100)
    shown.update(40)
    shown.update(30)
    assert shown.done == 40
    shown.update(41)
    assert shown.done == 41


def test_the_total_may_become_known_later(clock: Clock) -> None:
    shown = started()
    clock.now = 10
    shown.update(10, total=20)
    shown.update(10)
    assert shown.line() == "recommend: 10 of 20 playlists, 1.0 playlists/s, 10 s left"


def test_a_line_is_written_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = started(1000)
    for second in range(100):
        clock.now = second
        shown.update(second)
    found = capsys.readouterr()
    assert found.out == ""
    lines = found.err.splitlines()
    assert len(lines) == 99 // int(PLAIN_EVERY_SECONDS)
    assert lines[0] == "recommend: 15 of 1,000 playlists, 1.0 playlists/s, 985 s left"


def test_short_work_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with meter("generate", "playlists", 10) as shown:
        for i in range(10):
            shown.update(i + 1)
    assert shown.done == 10
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("total", [10, None])
def test_a_terminal_gets_a_bar_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], total: int | None
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with meter("generate", "playlists", total) as shown:
        shown.update(4)
        shown.update(3)
        assert shown.bar is not None
        (task,) = shown.bar.tasks
        assert (task.completed, task.total) == (4, total)
        assert "playlists/s" in task.fields["rate"]
    assert "generate" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_an_error_in_the_work_propagates() -> None:
    with pytest.raises(ValueError, match="in the work"), meter("generate", "playlists", 10):
        raise ValueError("in the work")
