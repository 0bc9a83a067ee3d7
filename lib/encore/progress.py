"""Progress of long work on standard error: a bar on a terminal, otherwise a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PLAIN_EVERY_SECONDS = 15.0


def _count(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 10 * size:
            return f"{value / size:,.0f} {unit}"
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


@dataclass
class Meter:
    """The progress of a piece of work: call `update(done)` with the number of units finished so far."""

    label: str
    unit: str
    total: int | None
    bar: Progress | None = None
    task: TaskID | None = None
    started: float = field(default_factory=time.monotonic)
    printed_at: float = field(default_factory=time.monotonic)
    done: int = 0

    def rate(self) -> float:
        """Units per second since the start."""
        return self.done / max(time.monotonic() - self.started, 1e-9)

    def update(self, done: int, total: int | None = None) -> None:
        """Report that `done` units are finished; progress never goes backwards."""
        self.done = max(done, self.done)
        self.total = total if total is not None else self.total
        if self.bar is not None and self.task is not None:
            self.bar.update(
                self.task, completed=self.done, total=self.total, rate=f"{_count(self.rate())} {self.unit}/s"
            )
        elif time.monotonic() - self.printed_at >= PLAIN_EVERY_SECONDS:
            self.printed_at = time.monotonic()
            sys.stderr.write(self.line() + "\n")
            sys.stderr.flush()

    def line(self) -> str:
        """The progress as a plain line."""
        rate = self.rate()
        of = f" of {self.total:,}" if self.total else ""
        left = f", {(self.total - self.done) / rate:,.0f} s left" if self.total and rate > 0 else ""
        return f"{self.label}: {self.done:,}{of} {self.unit}, {_count(rate)} {self.unit}/s{left}"


@contextmanager
def meter(label: str, unit: str, total: int | None = None) -> Iterator[Meter]:
    """A Meter that is displayed while the block runs."""
    if not sys.stderr.isatty():
        yield Meter(label, unit, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}" if total else "{task.completed:,.0f}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Meter(label, unit, total, bar, bar.add_task(label, total=total, rate=""))
