"""Ingest: the job `ingest_playlists` against plain Spark on the same slices, and its speed-up from a second core.

Each number of cores has its own process and Spark session; in it, our job and the peer are warmed up alike and then run
alternately, each into a new lake.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from encore.config import Config, load_config
from encore.lake.store import Store
from encore.lake.tables import PLAYLISTS, TRACKS
from encore.log import configure_logging
from encore.runtime.pipeline import run_pipeline
from encore.spark.session import Session
from tests.bench.data import CACHE, in_order, slices_of
from tests.bench.figures import BenchError, Check, Found, figure, found_of, ratio
from tests.bench.machine import ROOT, cores, python
from tests.bench.plain_spark import plain_ingest

WARM_UP_SLICES = 2


@dataclass(frozen=True)
class Sizes:
    """Slices of 1,000 playlists to ingest, playlists in the folder that they come from, and repeats."""

    slices: int = 20
    folder: int = 40_000
    repeats: int = 2


QUICK = Sizes(slices=4, folder=4_000, repeats=1)


def run(sizes: Sizes) -> Found:
    """Figures ingest.<who>.c<cores> in MB/s, and ratios ingest.ours_over.plain and ingest.second_core."""
    folder = slices_of(sizes.folder)
    found = Found()
    for n in (2, 1) if cores() > 1 else (1,):
        found += _session(folder, sizes, n, with_peer=n == min(2, cores()))
    best = min(2, cores())
    found += Found([ratio("ingest.ours_over.plain", found[f"ingest.ours.c{best}"], found[f"ingest.plain.c{best}"])])
    if best > 1:
        found += Found([ratio("ingest.second_core", found["ingest.ours.c2"], found["ingest.ours.c1"])])
    return found


def _session(folder: Path, sizes: Sizes, n_cores: int, *, with_peer: bool) -> Found:
    """Run `main` below in its own process."""
    with tempfile.TemporaryDirectory(dir=_scratch()) as scratch:
        out = Path(scratch) / "found.json"
        options = ["--slices", str(sizes.slices), "--repeats", str(sizes.repeats), "--cores", str(n_cores)]
        command = python("tests.bench.ingest", str(folder), str(out), *options, *(["--peer"] if with_peer else []))
        done = subprocess.run(command, cwd=ROOT, check=False)
        if done.returncode:
            raise BenchError(f"ingest with {n_cores} cores failed with exit code {done.returncode}")
        return found_of(json.loads(out.read_text(encoding="utf-8")))


def _scratch() -> Path:
    folder = CACHE / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _config(lake: Path, raw: str, n_cores: int) -> Config:
    own = {
        "lake.path": lake,
        "raw.playlists": raw,
        "tracking.uri": f"sqlite:///{lake.parent}/mlflow.db",
        "tracking.artifacts": lake.parent / "artifacts",
        "spark.master": f"local[{n_cores}]",
        "log.level": "error",
    }
    return load_config("local", [f"{name}={value}" for name, value in own.items()])


def _linked(files: list[Path], folder: Path) -> Path:
    folder.mkdir()
    for file in files:
        (folder / file.name).symlink_to(file.absolute())
    return folder


def main(
    folder: Path,
    out: Path,
    slices: Annotated[int, typer.Option()],
    repeats: Annotated[int, typer.Option()],
    n_cores: Annotated[int, typer.Option("--cores")],
    peer: Annotated[bool, typer.Option("--peer")] = False,
) -> None:
    """One session: our job, alternating with the peer if `peer` is set; the results go to `out` as JSON."""
    scratch = out.parent
    files = in_order(folder)[:slices]
    raw, few = _linked(files, scratch / "raw"), _linked(files[:WARM_UP_SLICES], scratch / "few")
    session = Session(_config(scratch / "lake", str(raw), n_cores))
    configure_logging(session._config.log)
    lake_numbers = iter(range(1000))

    def ours(source: Path) -> tuple[float, Path]:
        lake = scratch / f"lake-{next(lake_numbers)}"
        config = _config(lake, str(source), n_cores)
        began = time.perf_counter()
        run_pipeline(config, ["ingest_playlists"], session=session)
        return time.perf_counter() - began, lake

    def plain(source: Path) -> tuple[float, Path]:
        lake = scratch / f"lake-{next(lake_numbers)}"
        paths = [str(path) for path in in_order(source)]
        began = time.perf_counter()
        plain_ingest(session(), paths, str(lake))
        return time.perf_counter() - began, lake

    contenders: dict[str, Callable[[Path], tuple[float, Path]]] = {"ours": ours, **({"plain": plain} if peer else {})}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    rows: dict[str, tuple[int, int]] = {}
    try:
        for work in contenders.values():
            for _ in range(2):
                shutil.rmtree(work(few)[1])
        for _ in range(repeats):
            for name, work in contenders.items():
                took, lake = work(raw)
                seconds[name].append(took)
                rows[name] = _rows(lake, session)
                shutil.rmtree(lake)
    finally:
        session.stop()
    size = sum(file.stat().st_size for file in files) / 1e6
    text = f"{len(files)} slices, {size:,.0f} MB, {n_cores} core{'s' if n_cores > 1 else ''}"
    found = Found(
        [
            figure(f"ingest.{name}.c{n_cores}", "MB/s", [size / s for s in took], better="higher", work=text)
            for name, took in seconds.items()
        ]
    )
    if peer:
        same = rows["ours"] == rows["plain"]
        found += Found(checks=[Check("ingest.plain.agrees", same, f"playlists and tracks: {rows}")])
    out.write_text(json.dumps(asdict(found)), encoding="utf-8")


def _rows(lake: Path, session: Session) -> tuple[int, int]:
    """Numbers of rows in playlists and tracks, from the tables' logs."""
    store = Store(_config(lake, "none", 1), session)
    states = [store.state(table) for table in (PLAYLISTS, TRACKS)]
    return tuple(state.rows if state else 0 for state in states)  # type: ignore[return-value]


if __name__ == "__main__":
    app: Any = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
