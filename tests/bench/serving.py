"""The scorer over HTTP, beside MLflow's own scoring server and a FastAPI server with the same model.

All get the same bytes: a playlist of 50 tracks and its title, k = 500. The bundles are BENCH_BUNDLE, of the champion,
and BENCH_COSINE_BUNDLE; by default, that of the champion is fitted here on generated playlists, and that of cosine on
the tracks of a million of them. The playlists are taken from the part `interactions` of the first bundle if both have
as many tracks, else tracks are drawn by popularity.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from encore.arrays.ragged import Ragged
from encore.config import load_config
from encore.recommenders.base import TrainingData
from encore.recommenders.registry import model
from encore.serving import bundle as bundles
from encore.serving import catalogue
from encore.serving.scorer import Scorer
from tests.bench.data import _GENERATOR, CACHE, SEED, _digest, search_data
from tests.bench.figures import Check, Found, figure, ratio
from tests.serving import generated
from tests.serving.oracle import mlflow_server, save_model
from tests.serving.process import Running, free_port, scorer, started
from tests.unit.recommenders.cases import new_tools

SEEDS: Final = 50
K: Final = 500

Server = Callable[[], AbstractContextManager[Running]]


@dataclass(frozen=True)
class Sizes:
    """`playlists` are generated for the champion, `slices` of 1,000 for cosine; `requests` are measured, after as many
    to warm up; `seconds` of load with `connections`, if wrk is installed."""

    playlists: int = 2000
    slices: int = 1000
    requests: int = 1000
    seconds: int = 10
    connections: int = 8


QUICK = Sizes(playlists=300, slices=2, requests=30, seconds=1)


def run(sizes: Sizes) -> Found:
    """Figures serving.<model>.<server>.{p50, p99, cpu, ready, private, throughput}; ratios .ours_over.<peer>."""
    champion = _champion(sizes)
    found = Found()
    for name, folder in (("champion", champion), ("cosine", _cosine(sizes))):
        found += _model(name, folder, champion, sizes)
    return found


def _champion(sizes: Sizes) -> Path:
    given = os.environ.get("BENCH_BUNDLE")
    if given:
        return Path(given)
    folder = CACHE / f"bundle-{sizes.playlists}-{_digest(*_GENERATOR, generated, catalogue, bundles)}"
    if not (folder / "bundle" / bundles.MANIFEST).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        generated.generated_bundle(folder, sizes.playlists)
    return folder / "bundle"


def _cosine(sizes: Sizes) -> Path:
    """A bundle of cosine with the vectors of all tracks of some slices."""
    given = os.environ.get("BENCH_COSINE_BUNDLE")
    if given:
        return Path(given)
    folder = CACHE / f"cosine-{sizes.slices}-{_digest(*_GENERATOR, catalogue, bundles)}"
    if (folder / "bundle" / bundles.MANIFEST).is_file():
        return folder / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    search = search_data(sizes.slices, 1000)
    n, config = len(search.vectors), load_config("local").recommend
    train = TrainingData(n_tracks=n, vector_ids=search.ids, vectors=search.vectors)
    (folder / "arrays").mkdir(parents=True)
    arrays = {}
    for name, array in model("cosine").fit(train, config, {}, new_tools()).items():
        arrays[name] = folder / "arrays" / f"{name}.npy"
        np.save(arrays[name], array)
    rows = [f"spotify:track:{i:022d}" for i in range(n)]
    bundles.write(
        folder / "bundle",
        model="cosine",
        arrays={"cosine": arrays},
        catalogue=catalogue.build(
            _texts(rows), _texts([f"Track {i}" for i in range(n)]), _texts([""] * n), np.arange(n, 0, -1)
        ),
        fingerprints={"cosine": "bench"},
        settings=config.model_dump(mode="json"),
        versions={},
        table_ids={},
        n_tracks=n,
        created="2026-01-01T00:00:00+00:00",
    )
    return folder / "bundle"


def _texts(rows: list[str]) -> Ragged:
    encoded = [row.encode() for row in rows]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    return Ragged.from_lengths(lengths, np.frombuffer(b"".join(encoded), np.uint8))


def bodies(folder: Path, playlists: Path, n: int) -> list[bytes]:
    """Requests for n playlists of SEEDS tracks."""
    own = Scorer.open(folder)
    draw = np.random.default_rng(SEED)
    interactions = playlists / "models" / "interactions"
    if interactions.is_dir() and bundles.Manifest.read(playlists).n_tracks == len(own.catalogue):
        offsets, tracks = (np.load(interactions / f"{name}.npy", mmap_mode="r") for name in ("offsets", "tracks"))
        long = np.flatnonzero(np.diff(offsets) >= SEEDS)
        ids = [np.asarray(tracks[offsets[i] : offsets[i] + SEEDS]) for i in draw.choice(long, n)]
    else:
        popularity = own.catalogue.arrays["popularity"].astype(np.float64) + 1
        share = popularity / popularity.sum()
        ids = [draw.choice(len(share), SEEDS, replace=False, p=share) for _ in range(n)]
    return [
        json.dumps(
            {
                "dataframe_split": {"columns": ["tracks", "title"], "data": [[own.catalogue.uris(row), "summer"]]},
                "params": {"k": K},
            }
        ).encode()
        for row in ids
    ]


def _model(name: str, folder: Path, playlists: Path, sizes: Sizes) -> Found:
    requests = bodies(folder, playlists, sizes.requests)
    tracks = bundles.Manifest.read(folder).n_tracks
    what = f"{tracks:,} tracks, {SEEDS} seeds, k = {K}"
    scratch = CACHE / "scratch" / f"serving-{os.getpid()}"
    saved = save_model(folder, scratch)
    servers: dict[str, Server] = {
        "ours": lambda: scorer(folder),
        "fastapi": lambda: _fastapi(folder),
        "mlflow": lambda: mlflow_server(saved),
    }
    found, answers = Found(), {}
    for who, server in servers.items():
        # the first start compiles, for those whose loops are not compiled ahead of time
        with server() as running:
            running.post("/invocations", requests[0], 300)
        with server() as running:
            found += _measured(f"serving.{name}.{who}", running, requests, what, sizes)
            answers[who] = json.loads(running.post("/invocations", requests[0])[1])["predictions"]
    shutil.rmtree(scratch)
    agree = all(answer == answers["ours"] for answer in answers.values())
    found += Found(checks=[Check(f"serving.{name}.agrees", agree, "the rows of all servers are equal")])
    for peer in ("fastapi", "mlflow"):
        above, below = (found[f"serving.{name}.{who}.throughput"] for who in ("ours", peer))
        found += Found([ratio(f"serving.{name}.ours_over.{peer}.throughput", above, below)])
    return found


@contextmanager
def _fastapi(folder: Path) -> Iterator[Running]:
    port = free_port()
    command = [sys.executable, "-m", "tests.serving.fastapi_server", str(folder), str(port)]
    with started(command, port, {}) as running:
        yield running


def _measured(name: str, running: Running, requests: list[bytes], what: str, sizes: Sizes) -> Found:
    connection = running.connection()
    seconds: list[float] = []
    for timing in (False, True):
        busy = running.cpu_seconds()
        for body in requests:
            began = time.perf_counter()
            connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if timing:
                seconds.append(time.perf_counter() - began)
            if answer.status != 200:
                return Found(checks=[Check(f"{name}.answers", False, f"status {answer.status}")])
    cpu = (running.cpu_seconds() - busy) / len(requests)
    milliseconds = np.array(seconds) * 1e3
    figures = [
        figure(f"{name}.p50", "ms", [float(np.percentile(milliseconds, 50))], work=what),
        figure(f"{name}.p99", "ms", [float(np.percentile(milliseconds, 99))], work=what),
        figure(f"{name}.cpu", "ms", [cpu * 1e3], work=what, note="CPU time a request, all processes"),
        figure(f"{name}.ready", "s", [running.ready_seconds], work=what),
        figure(f"{name}.private", "MB", [running.private_bytes() / 1e6], work=what, note="RSS without mapped files"),
    ]
    throughput, how = _throughput(running, requests, sizes)
    figures.append(figure(f"{name}.throughput", "1/s", [throughput], better="higher", work=what, note=how))
    return Found(figures)


SCRIPT: Final = """
local bodies, i = {}, 0
for line in io.lines("BODIES") do bodies[#bodies + 1] = line end
wrk.method, wrk.headers["Content-Type"] = "POST", "application/json"
request = function() i = i % #bodies + 1 return wrk.format(nil, nil, nil, bodies[i]) end
"""


def _throughput(running: Running, requests: list[bytes], sizes: Sizes) -> tuple[float, str]:
    """Requests per second, and how they were sent."""
    wrk = shutil.which("wrk")
    if wrk is None:
        began = time.perf_counter()
        for body in requests:
            running.post("/invocations", body)
        return len(requests) / (time.perf_counter() - began), "one after the other: wrk is not installed"
    folder = CACHE / "scratch" / f"wrk-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bodies").write_bytes(b"\n".join(requests) + b"\n")
    (folder / "load.lua").write_text(SCRIPT.replace("BODIES", str(folder / "bodies")))
    command = [wrk, "-t1", f"-c{sizes.connections}", f"-d{sizes.seconds}s", "--timeout", "30s", "-s"]
    url = f"{running.url}/invocations"
    done = subprocess.run([*command, str(folder / "load.lua"), url], capture_output=True, text=True, check=True)
    shutil.rmtree(folder)
    lines: dict[str, Any] = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    refused = next((line for line in done.stdout.splitlines() if "Non-2xx" in line), "")
    return float(lines["Requests/sec"]), f"wrk, {sizes.connections} connections{refused and '; ' + refused.strip()}"
