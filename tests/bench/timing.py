"""The clock: repeats of a call, and whether it used as many threads as was said."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.figures import Check


@dataclass(frozen=True)
class Timed:
    """Seconds of each repeat, seconds of CPU of all threads of this process in each, and the last result."""

    seconds: list[float]
    cpu: list[float]
    result: Any

    @property
    def threads(self) -> float:
        """Cores that were busy, on average."""
        return sum(self.cpu) / max(sum(self.seconds), 1e-9)


def timed(work: Callable[[], Any], repeats: int, *, at_most: float = float("inf")) -> Timed:
    """Call `work` up to `repeats` times; no new repeat starts after `at_most` seconds. At least one is made."""
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
    """Repeats that were made one by one, as one; with the last result. At least one."""
    return Timed([s for part in parts for s in part.seconds], [s for part in parts for s in part.cpu], parts[-1].result)


def check_threads(name: str, found: Timed, asked: int) -> Check:
    """Whether a call used at most as many cores as it was given.

    Using fewer is not refused, since a library may not scale and the machine may be busy; it stands in the detail.
    """
    detail = f"{found.threads:.2f} cores busy on average, {asked} given"
    return Check(f"threads.{name}", found.threads <= asked + 0.15, detail)
