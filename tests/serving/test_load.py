"""Load: throughput and latency by the number of connections, a soak, overload. Figures are printed, not asserted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from encore.serving.scorer import Scorer
from tests.serving.process import Running, scorer

SECONDS = int(os.environ.get("ENCORE_LOAD_SECONDS", "5"))
"""Of each measurement."""
SOAK_SECONDS = int(os.environ.get("ENCORE_SOAK_SECONDS", "60"))
"""600 for a soak of ten minutes."""
BUNDLE = os.environ.get("ENCORE_BENCH_BUNDLE")
"""The folder of a bundle; a small one by default."""
GROWTH = 20_000_000
"""Bytes by which the memory may grow during the soak."""

SCRIPT = """
local bodies = {}
for line in io.lines("BODIES") do bodies[#bodies + 1] = line end
local i = 0
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
request = function()
  i = i % #bodies + 1
  return wrk.format(nil, nil, nil, bodies[i])
end
done = function(summary, latency, requests)
  io.write(string.format("RESULT %d %d %d %d %d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9), latency.max,
    summary.errors.status, summary.errors.timeout, summary.errors.connect + summary.errors.read + summary.errors.write))
end
"""


@dataclass(frozen=True)
class Load:
    """What wrk counted. Latencies in ms; `status`: answers of 400 and above; `broken`: connections that failed."""

    requests: int
    per_second: float
    p50: float
    p99: float
    p999: float
    slowest: float
    status: int
    timeout: int
    broken: int


def generate(
    wrk: str, running: Running, script: Path, connections: int, seconds: int, path: str = "/invocations"
) -> Load:
    """Put load on a server by wrk."""
    threads = str(min(2, connections))
    command = [wrk, f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--timeout", "15s", "-s", str(script)]
    done = subprocess.run(
        [*command, running.url + path], capture_output=True, text=True, timeout=seconds + 60, check=True
    )
    found = re.search(r"RESULT ([\d ]+)", done.stdout)
    assert found, done.stdout
    n, micro, p50, p99, p999, slowest, status, timeout, broken = map(int, found[1].split())
    return Load(n, n / (micro / 1e6), p50 / 1e3, p99 / 1e3, p999 / 1e3, slowest / 1e3, status, timeout, broken)


def write_script(folder: Path, bundle: Path, n: int = 200, seeds: int = 50, k: int = 500) -> Path:
    """A script of wrk with requests for popular tracks of a bundle."""
    scorer = Scorer.open(bundle)
    popularity = scorer.catalogue.arrays["popularity"].astype(np.float64) + 1
    draw = np.random.default_rng(0)
    size = min(seeds, len(popularity) // 2)
    bodies = folder / "bodies"
    with bodies.open("w") as file:
        for _ in range(n):
            ids = draw.choice(len(popularity), size, replace=False, p=popularity / popularity.sum())
            record = {"tracks": scorer.catalogue.uris(ids), "title": "summer"}
            file.write(json.dumps({"instances": [record], "params": {"k": k}}) + "\n")
    script = folder / "load.lua"
    script.write_text(SCRIPT.replace("BODIES", str(bodies)))
    return script


def shown(name: str, load: Load) -> str:
    """A line of figures."""
    return (
        f"{name}: {load.per_second:,.0f} requests/s, p50 {load.p50:.1f} ms, p99 {load.p99:.1f} ms, "
        f"p99.9 {load.p999:.1f} ms, slowest {load.slowest:.0f} ms, "
        f"{load.requests:,} requests, {load.status} refused, {load.broken} broken"
    )


def test_throughput_and_latency(wrk: str, bundle: Path, tmp_path: Path) -> None:
    folder = Path(BUNDLE) if BUNDLE else bundle
    script = write_script(tmp_path, folder)
    with scorer(folder) as running:
        generate(wrk, running, script, 2, 2)
        for connections in (1, 8, 64):
            load = generate(wrk, running, script, connections, SECONDS)
            print(shown(f"{connections} connections", load))  # noqa: T201
            assert (load.status, load.timeout, load.broken) == (0, 0, 0)
            assert load.requests > 0


@pytest.mark.timeout(SOAK_SECONDS + 240)
def test_a_soak_leaves_memory_flat(wrk: str, bundle: Path, tmp_path: Path) -> None:
    folder = Path(BUNDLE) if BUNDLE else bundle
    script = write_script(tmp_path, folder)
    with scorer(folder) as running:
        generate(wrk, running, script, 8, 5)
        before, handles = running.private_bytes(), running.process.num_fds()
        load = generate(wrk, running, script, 8, SOAK_SECONDS)
        grown = running.private_bytes() - before
        print(shown(f"soak of {SOAK_SECONDS} s, memory grew by {grown / 1e6:.1f} MB", load))  # noqa: T201
        assert (load.status, load.timeout, load.broken) == (0, 0, 0)
        assert grown < GROWTH
        time.sleep(0.5)
        assert running.process.num_fds() <= handles + 2


def test_overload_is_refused_fast_and_passes(wrk: str, bundle: Path, tmp_path: Path) -> None:
    """Five times as many connections as can be computed and may wait; afterwards, all is as before."""
    folder = Path(BUNDLE) if BUNDLE else bundle
    script = write_script(tmp_path, folder)
    with scorer(folder, threads=2, max_waiting=6) as running:
        before = generate(wrk, running, script, 8, SECONDS)
        probes: list[int] = []
        stop = threading.Event()

        def probe() -> None:
            while not stop.is_set():
                probes.append(running.status())
                stop.wait(0.1)

        thread = threading.Thread(target=probe)
        thread.start()
        over = generate(wrk, running, script, 40, SECONDS)
        stop.set()
        thread.join()
        # what wrk left behind is still being computed
        time.sleep(2)
        after = generate(wrk, running, script, 8, SECONDS)
    for name, load in (("8 connections", before), ("40 connections", over), ("8 connections after", after)):
        print(shown(name, load))  # noqa: T201
    assert (before.status, after.status) == (0, 0)
    assert over.status > 0
    assert (over.timeout, over.broken) == (0, 0)
    # some were answered all the time, and probes too
    assert over.requests - over.status > 0
    assert probes
    assert set(probes) == {200}
    assert after.requests > 0
