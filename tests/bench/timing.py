"""Timing: repeated calls, and whether they used the stated number of threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.figures import Check


@dataclass(frozen=True)
class Timed:
    """Wall-clock seconds and CPU seconds (of all threads of this process) of each repeat, and the last result."""

    seconds: list[float]
    cpu: list[float]
    result: Any

    @property
    def threads(self) -> float:
        """The average number of busy cores."""
        return sum(self.cpu) / max(sum(self.seconds), 1e-9)


def timed(work: Callable[[], Any], repeats: int, *, at_most: float = float("inf")) -> Timed:
    """Call `work` up to `repeats` times, at least once; no repeat starts after `at_most` seconds in total."""
    seconds: list[float] = []
    cpu: list[float] = []
    result: Any = None
    while not seconds or (len(seconds) < repeats and sum(seconds) < at_most):
        del result
        wall, busy = time.perf_counter(), time.process_time()
        result = work()
        seconds.append(time.perf_counter() - wall)
        cpu.append(time.process_time() - busy)
    return Timed(seconds, cpu, result)


def joined(parts: Sequence[Timed]) -> Timed:
    """Combine repeats that were timed one by one, with the last result. At least one is needed."""
    return Timed([s for part in parts for s in part.seconds], [s for part in parts for s in part.cpu], parts[-1].result)


def check_threads(name: str, found: Timed, threads: int) -> Check:
    """Whether a call used at most `threads` cores.

    Using fewer is accepted, since a library may not scale and the machine may be busy; the detail shows it.
    """
    detail = f"{found.threads:.2f} cores busy on average, {threads} given"
    return Check(f"threads.{name}", found.threads <= threads + 0.15, detail)
