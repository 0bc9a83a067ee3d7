"""The whole pipeline, from JSON to MLflow, with the command that users run: time, memory, disk, and how they grow.

No peer does the same work, so the pipeline is compared with itself: with twice the playlists, and with earlier runs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from encore.config import Config, load_config
from encore.lake.store import Store
from encore.lake.tables import JOB_COSTS
from encore.log import configure_logging
from encore.runtime.pipeline import plan, run_pipeline
from encore.spark.session import Session
from encore.spark.stage_metrics import latest
from tests.bench.data import CACHE, encore, in_order, slices_of
from tests.bench.figures import BenchError, Check, Found, figure, write_json
from tests.bench.limits import in_cgroup
from tests.bench.machine import ROOT
from tests.bench.memory import Peaks, Sampler


@dataclass(frozen=True)
class Sizes:
    """Numbers of playlists, each twice the previous one."""

    playlists: tuple[int, ...] = (20_000, 40_000)


QUICK = Sizes((1_000, 2_000))


@dataclass
class Ran:
    """A pipeline run: the time of all calls that it took, peak memory and disk, and a row of `job_costs` for each
    job."""

    seconds: float = 0.0
    memory: dict[str, int] = field(default_factory=dict)
    measure: str = "pss"
    disk: int = 0
    input: int = 0
    calls: int = 0
    done: bool = False
    jobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """Peak memory of all processes together, in bytes."""
        return self.memory.get("all", 0)


def run(sizes: Sizes) -> Found:
    """Figures line.n<playlists>.seconds, .memory and .disk, line.growth, and the seconds of each job."""
    found, before = Found(), None
    for n in sizes.playlists:
        folder = slices_of(n)
        home = CACHE / "scratch" / f"line-{n}"
        shutil.rmtree(home, ignore_errors=True)
        ran = run_line(folder, folder / "features", home)
        found += figures_of(n, ran) + nothing_to_do(n, options(folder, folder / "features", home, {}))
        if before is not None:
            found += growth(*before, n, ran)
        before = n, ran
        shutil.rmtree(home)
    return found


def run_line(
    raw: Path, features: Path, home: Path, *, settings: Mapping[str, str] | None = None, limit: int | None = None
) -> Ran:
    """Run `encore run` with its output in `home`, or resume an interrupted run there. BenchError if it fails.

    `limit`: memory limit for all its processes together, in bytes.
    """
    notes = home / "ran.json"
    ran = Ran(**json.loads(notes.read_text(encoding="utf-8"))) if notes.is_file() else Ran()
    if ran.done:
        return ran
    home.mkdir(parents=True, exist_ok=True)
    ran.input = sum(path.stat().st_size for path in in_order(raw)) + sum(p.stat().st_size for p in features.glob("*"))
    ran.calls += 1
    own = options(raw, features, home, settings or {})
    command = [str(encore()), "run", *(word for name, value in own.items() for word in ("--set", f"{name}={value}"))]
    began, earlier, peak_before = time.monotonic(), ran.seconds, dict(ran.memory)

    def note(peaks: Peaks) -> None:
        ran.seconds = earlier + time.monotonic() - began
        current = {"all": peaks.total, **peaks.by_kind}
        ran.memory = {kind: max(peak_before.get(kind, 0), size) for kind, size in {**peak_before, **current}.items()}
        ran.disk, ran.measure = max(ran.disk, peaks.disk), peaks.measure
        write_json(notes, asdict(ran))

    with in_cgroup(limit) as prefix:
        process = subprocess.Popen([*prefix, *command], cwd=ROOT)
        with Sampler(process.pid, folders=[home], on_sample=note) as peaks:
            code = process.wait()
    note(peaks)
    if code:
        raise BenchError(f"encore run failed with exit code {code}; run the same command again to resume")
    ran.done, ran.jobs = True, costs_of(own)
    write_json(notes, asdict(ran))
    return ran


def nothing_to_do(n: int, own: Mapping[str, str]) -> Found:
    """Times of the slowest job and of all jobs on an up-to-date lake, for which no Spark session is started."""
    config = _config(own)
    configure_logging(config.log)
    unused = Session(config)
    results = run_pipeline(config, plan(), session=unused)
    idle = not unused.started and {result.status for result in results} == {"up_to_date"}
    each = [result.seconds for result in results]
    work = f"{n:,} playlists, {len(results)} jobs"
    return Found(
        [
            figure(f"line.n{n}.idle_job", "s", [max(each)], work=work, note="the slowest job with nothing to do"),
            figure(f"line.n{n}.idle", "s", [sum(each)], work=work, note="all jobs with nothing to do"),
        ],
        [Check(f"line.n{n}.idle", idle, str({result.name: result.status for result in results}))],
    )


def options(raw: Path, features: Path, home: Path, more: Mapping[str, str]) -> dict[str, str]:
    """Settings that keep everything a run writes in `home`."""
    return {
        "raw.playlists": str(raw),
        "raw.features": str(features),
        "lake.path": str(home / "lake"),
        "tracking.uri": f"sqlite:///{home}/mlflow.db",
        "tracking.artifacts": str(home / "artifacts"),
        "report.path": str(home / "report"),
        # the models whose cost grows with the catalogue alone, so that runs of all sizes can be compared
        "recommend.models": "[cosine,popularity,random]",
        **more,
    }


def _config(own: Mapping[str, str]) -> Config:
    return load_config("local", [f"{name}={value}" for name, value in own.items()])


def costs_of(own: Mapping[str, str]) -> list[dict[str, Any]]:
    """The latest row of `job_costs` for each job in a lake, in the order in which they ran."""
    config = _config(own)
    rows = latest(Store(config, Session(config)).read_small(JOB_COSTS).to_pylist())
    return [{**row, "started_at": row["started_at"].isoformat()} for row in rows]


def figures_of(n: int, ran: Ran, prefix: str = "line") -> Found:
    """The figures of a run on n playlists."""
    work = f"{n:,} playlists, {ran.input / 1e9:.2f} GB"
    name = f"{prefix}.n{n}"
    made = [
        figure(f"{name}.seconds", "s", [ran.seconds], work=work),
        figure(f"{name}.memory", "GB", [ran.peak / 1e9], work=work, note=ran.measure),
        figure(f"{name}.disk", "x", [ran.disk / ran.input], work=work, note="peak disk usage / input size"),
    ]
    made += [figure(f"{name}.{job['job']}", "s", [job["seconds"]], work=work) for job in ran.jobs]
    shuffled = {job["job"]: job["shuffled_rows"] for job in ran.jobs if job["job"] != "ingest_playlists"}
    check = Check(f"{name}.no_shuffle", not any(shuffled.values()), f"rows shuffled after ingest: {shuffled}")
    return Found(made, [check], {f"{name}.jobs": ran.jobs})


def growth(m: int, less: Ran, n: int, more: Ran, prefix: str = "line") -> Found:
    """How the time grows from m to n playlists."""
    work = f"{m:,} to {n:,} playlists"
    return Found([figure(f"{prefix}.growth.{m}_{n}", "x", [more.seconds / less.seconds], work=work)])
