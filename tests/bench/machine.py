"""The machine that a benchmark runs on: its description, and an environment that slows down no peer."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from encore.runtime.provenance import commit_of
from encore.spark.session import find_java
from tests.bench.figures import Found, figure

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = (
    "encore",
    "pyspark",
    "delta-spark",
    "numpy",
    "numba",
    "pyarrow",
    "scikit-learn",
    "faiss-cpu",
    "scipy",
    "polars",
    "duckdb",
    "orjson",
)
FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "asimd", "sve")

_LIBRARY_VARIABLES = re.compile(r"(OPENBLAS|GOTO|MKL|OMP|BLIS|VECLIB|NUMEXPR|NUMBA|POLARS|NVPL_BLAS)_\w+")
"""Variables that select kernels or thread counts of the libraries being compared."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def clean_environment(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The environment without variables that affect BLAS kernels and threads, and the names of those removed."""
    removed = sorted(name for name in environment if _LIBRARY_VARIABLES.fullmatch(name))
    return {name: value for name, value in environment.items() if name not in removed}, removed


def describe() -> dict[str, Any]:
    """The machine, its current load, and the installed versions."""
    info = _cpuinfo()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "flags": [flag for flag in FLAGS if flag in info.get("flags", info.get("Features", "")).split()],
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "memory_free_gb": round(psutil.virtual_memory().available / 1e9, 1),
        "os": platform.platform(),
        "load_at_start": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "java": _java(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "git_commit": commit_of(),
    }


def second_core(repeats: int = 3) -> Found:
    """The speed-up from a second core for a loop that shares nothing and fits into the cache: an upper bound.

    Virtual cores may be two threads of one physical core, and other virtual machines share the hardware.
    """
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_spin, [1, 1]))
        alone, together = [], []
        for _ in range(repeats):
            alone += list(pool.map(_spin, [20]))
            together += [max(pool.map(_spin, [20, 20]))]
    one, two = (figure(f"machine.spin{n}", "s", values) for n, values in ((1, alone), (2, together)))
    gain = figure("machine.second_core", "x", [2 * one.value / two.value], better="neither", work=second_core.__name__)
    return Found([one, two, gain])


def _spin(rounds: int) -> float:
    values = np.random.default_rng(0).random(20_000).astype(np.float32)
    began = time.perf_counter()
    for _ in range(rounds * 200):
        np.sqrt(values * values + 1).sum()
    return time.perf_counter() - began


def blas() -> list[str]:
    """The BLAS and OpenMP libraries loaded in this process, with the kernel that each selected."""
    from threadpoolctl import threadpool_info

    return [
        " ".join(
            str(entry[key])
            for key in ("internal_api", "version", "architecture", "threading_layer")
            if entry.get(key) is not None
        )
        + f" ({Path(entry['filepath']).parent.name.removesuffix('.libs')})"
        for entry in threadpool_info()
    ]


def load_warning() -> str | None:
    """A warning if the machine is busy with other work; None if it is not."""
    load = os.getloadavg()[0]
    if load > 0.5 * cores():
        return f"the load is {load:.1f} on {cores()} cores before the benchmarks start: expect noise"
    return None


def _cpuinfo() -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        name, separator, value = line.partition(":")
        if separator:
            found.setdefault(name.strip(), value.strip())
    return found


def _java() -> str | None:
    java = find_java()
    if java is None:
        return None
    output = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    return output.splitlines()[0] if output else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def python(*arguments: str) -> list[str]:
    """The command that runs a module with this interpreter."""
    return [sys.executable, "-m", *arguments]
