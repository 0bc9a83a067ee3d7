"""Sampled memory and disk usage of a process and all its descendants.

Memory is proportional set size: a page mapped by n processes counts 1/n in each, so that arrays mapped by all workers
are counted once in a sum. Where the system does not report it, resident set size is used and labelled as such, although
a sum of those is too large.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

KINDS = ("jvm", "python", "other")


@dataclass
class Peaks:
    """Peaks in bytes: memory in total and by kind of process, each at its own time, and disk."""

    total: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)
    disk: int = 0
    measure: str = "pss"
    samples: int = 0

    def note(self, current: dict[str, int]) -> None:
        """Add one sample of memory."""
        self.samples += 1
        self.total = max(self.total, sum(current.values()))
        for kind, size in current.items():
            self.by_kind[kind] = max(self.by_kind.get(kind, 0), size)


def kind_of(name: str) -> str:
    """The kind of a process by the name of its program: jvm, python or other."""
    if name.startswith("java"):
        return "jvm"
    return "python" if name.startswith(("python", "encore", "spark-submit", "pyspark")) else "other"


def tree_memory(root: int) -> tuple[dict[str, int], str]:
    """Current memory of `root` and all its descendants, bytes by kind, and the measure used: pss or rss."""
    found: dict[str, int] = {}
    measure = "pss"
    with suppress(psutil.Error):
        parent = psutil.Process(root)
        for process in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.Error, OSError):
                size, measure = _memory(process)
                kind = kind_of(process.name())
                found[kind] = found.get(kind, 0) + size
    return found, measure


def _memory(process: psutil.Process) -> tuple[int, str]:
    try:
        # summed up by the kernel: far faster than reading all mappings of a JVM
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024, "pss"
    except OSError:
        pass
    return process.memory_info().rss, "rss"


def folder_bytes(folders: Iterable[Path]) -> int:
    """Total size of the files in some folders; links are not followed, files that vanish meanwhile are skipped."""
    total = 0
    waiting = [str(folder) for folder in folders]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        total += entry.stat(follow_symlinks=False).st_size
    return total


class Sampler:
    """Samples a process tree while it runs: `with Sampler(pid) as peaks: ...`.

    `folders` are measured at every fifth sample. `on_sample` is called after each sample with the peaks so far; an
    error in it ends the sampling.
    """

    def __init__(
        self,
        root: int,
        *,
        every: float = 0.5,
        folders: Sequence[Path] = (),
        on_sample: Callable[[Peaks], None] | None = None,
    ) -> None:
        self.peaks = Peaks()
        self._root, self._every, self._folders, self._on_sample = root, every, folders, on_sample
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self.peaks

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._disk()

    def _disk(self) -> None:
        self.peaks.disk = max(self.peaks.disk, folder_bytes(self._folders))

    def _run(self) -> None:
        while True:
            began = time.monotonic()
            current, self.peaks.measure = tree_memory(self._root)
            self.peaks.note(current)
            if self.peaks.samples % 5 == 1:
                self._disk()
            if self._on_sample:
                self._on_sample(self.peaks)
            # keep the sampler's own share of the time below a tenth
            if self._stop.wait(max(self._every, 10 * (time.monotonic() - began))):
                return
