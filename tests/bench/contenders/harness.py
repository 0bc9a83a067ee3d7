"""Runs one contender in this process and measures it. Needs only NumPy, SciPy and threadpoolctl.

`python -m tests.bench.contenders.harness MODULE FOLDER OUT SETTINGS`: the module has `start(task, settings)`, which
returns `fit() -> model` and `recommend(model, rows) -> lists`. What `start` does is not measured.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]

K = 500
FIT_THREADS, QUERY_THREADS = 2, 1
MOST_MEMORY = 18 << 30
"""A contender that needs more fails."""


@dataclass(frozen=True, eq=False)
class Task:
    """What contenders are given.

    `folder`: where the arrays are, and what only some contenders need. `lists` float32 (N, M): 1 where playlist u has
    track i among its training tracks, in playlist order within a row. `rows` int64 (q,): the playlists to continue, by
    their rows in `lists`, which are all that is known of them. `batch`: how many are asked for at a time. `artist_of`
    int32 (M,).
    """

    folder: Path
    lists: sparse.csr_matrix
    rows: I64
    batch: int
    artist_of: I32

    @classmethod
    def read(cls, folder: Path) -> Task:
        """Read the arrays that tests.bench.models has written."""
        offsets, tracks = (np.load(folder / f"{name}.npy") for name in ("offsets", "tracks"))
        sizes = json.loads((folder / "sizes.json").read_text(encoding="utf-8"))
        ones = np.ones(len(tracks), np.float32)
        lists = sparse.csr_matrix((ones, tracks, offsets), shape=(len(offsets) - 1, sizes["tracks"]))
        return cls(folder, lists, np.load(folder / "rows.npy"), sizes["batch"], np.load(folder / "artist_of.npy"))


Fit = Callable[[], Any]
Recommend = Callable[[Any, I64], I32]
"""The K best tracks for each of some rows, without their own tracks, best first: int32 (n, K), -1 after the last."""


def best(scores: F32, known: sparse.csr_matrix, k: int = K) -> I32:
    """The k best columns of each row of `scores` (n, M), which is overwritten, without those in `known`."""
    scores[np.repeat(np.arange(len(scores)), np.diff(known.indptr)), known.indices] = -np.inf
    k = min(k, scores.shape[1])
    found = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    ranked = np.take_along_axis(scores, found, axis=1)
    order = np.argsort(-ranked, axis=1, kind="stable")
    lists = np.take_along_axis(found, order, axis=1).astype(np.int32)
    lists[np.take_along_axis(ranked, order, axis=1) == -np.inf] = -1
    return padded(lists)


def padded(lists: NDArray[Any]) -> I32:
    """Lists int32 (n, K), -1 after the last."""
    found = np.full((len(lists), K), -1, np.int32)
    found[:, : lists.shape[1]] = lists
    return found


def measure(task: Task, fit: Fit, recommend: Recommend) -> tuple[I32, dict[str, float]]:
    """The lists of all rows of the task, and the measurements.

    These are fit_seconds; fit_cpu, of this process, in seconds; query_ms and query_cpu_ms, per query; and memory, in
    bytes: by how much the peak of this process and its children exceeds their resident sizes before the fit.
    """
    gc.collect()
    before = _resident("VmRSS")
    _reset_peaks()
    wall, cpu = time.perf_counter(), time.process_time()
    with threadpool_limits(FIT_THREADS):
        model = fit()
    measured = {"fit_seconds": time.perf_counter() - wall, "fit_cpu": time.process_time() - cpu}
    with threadpool_limits(QUERY_THREADS):
        recommend(model, task.rows[: min(8, task.batch)])
        wall, cpu = time.perf_counter(), time.process_time()
        parts = [recommend(model, task.rows[i : i + task.batch]) for i in range(0, len(task.rows), task.batch)]
        seconds, busy = time.perf_counter() - wall, time.process_time() - cpu
    peak = _resident("VmHWM")
    n = max(1, len(task.rows))
    measured |= {"query_ms": seconds / n * 1e3, "query_cpu_ms": busy / n * 1e3, "memory": float(peak - before)}
    return np.concatenate(parts), measured


def _processes() -> list[int]:
    """This process and its descendants."""
    found, waiting = [], [os.getpid()]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):
                waiting += [int(child) for child in children.read_text().split()]
    return found


def _resident(field: str) -> int:
    """A field of /proc/<pid>/status, in bytes, summed over this process and its descendants."""
    total = 0
    for pid in _processes():
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(f"{field}:"):
                    total += int(line.split()[1]) * 1024
    return total


def _reset_peaks() -> None:
    for pid in _processes():
        with suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def version(*packages: str) -> str:
    """Names and versions of some packages."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def run(module: str, folder: Path, out: Path, settings: Mapping[str, Any]) -> None:
    """Measure a contender; write its lists to <out>.npy, then the measurements to <out>.json."""
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    task = Task.read(folder)
    contender = importlib.import_module(f"tests.bench.contenders.{module}")
    fit, recommend = contender.start(task, settings)
    lists, measured = measure(task, fit, recommend)
    np.save(out.with_suffix(".npy"), lists)
    out.with_suffix(".json").write_text(json.dumps({**measured, "version": contender.VERSION()}), encoding="utf-8")


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
