"""What the commands `encore submit`, `encore cost` and `encore deploy doctor` do: settings in, words out."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as Grid

from encore.aws import render
from encore.aws.account import region_of
from encore.aws.cost import FAR, Estimate, Prices, Workers, estimate, prices_of, workers_of
from encore.aws.deployment import Clients, clients_of, findings, settings_of
from encore.aws.stage import UnknownStage, stage_of
from encore.aws.submit import JobFailed, request, submit
from encore.config import Config, conf_dir, load_config
from encore.errors import ConfigError, EnvironmentMissing, LakeError
from encore.findings import Finding
from encore.lake.store import open_store
from encore.lake.tables import ALL, JOB_COSTS, PLAYLISTS
from encore.log import configure_logging
from encore.runtime.pipeline import new_run_id
from encore.runtime.provenance import CHECKOUT
from encore.runtime.registry import EXTRA_JOBS, JOBS
from encore.spark.stage_metrics import latest


def submit_job(
    job: str,
    target: str,
    *,
    stage: str | None,
    env: str,
    settings: Sequence[str],
    run_id: str | None,
    force: bool,
    dry_run: bool,
    out: Console,
    err: Console,
    clients: Clients | None = None,
) -> int:
    """Start a job and wait for it; the exit code of a local one, 0 of another. Raises an EncoreError where it fails."""
    if target not in render.TARGETS:
        raise ConfigError(f"--target {target}: one of {', '.join(render.TARGETS)} expected")
    if job not in (*JOBS, *EXTRA_JOBS):
        raise ConfigError(f"no job {job!r}; one of: {', '.join((*JOBS, *EXTRA_JOBS))}")
    if stage and target == "local":
        raise ConfigError("--stage: a local run has no deployment", remedy="leave it out, or choose another --target")
    region = region_of(None) if target != "local" else None
    made = settings_of(stage, job, clients or clients_of(region)) if stage else []
    # a node there need not know the region in which it is
    there = [f"s3.region={region}"] if region else []
    config = load_config(env, [*there, *made, *settings])
    configure_logging(config.log)
    name = run_id or new_run_id()
    if target == "local":
        return _local(job, config, name, force, dry_run, out)
    if dry_run:
        out.print_json(json.dumps(request(job, config, target, name, force=force)))
        return 0
    try:
        submit(job, config, target, name, force=force, on_state=lambda text: err.print(text, highlight=False))
    except JobFailed as error:
        if error.log:
            err.print("the end of the driver's log:", highlight=False)
            err.print(error.log, highlight=False, markup=False)
        raise
    out.print(f"{job}: done, in pipeline run {name}", highlight=False)
    return 0


def _local(job: str, config: Config, run_id: str, force: bool, dry_run: bool, out: Console) -> int:
    asked = render.submission(job, config, run_id, force=force)
    command = render.local(asked, config.spark.master, spark_submit(), str(jobs_dir(job)))
    if dry_run:
        out.print(shlex.join(command), highlight=False, markup=False)
        return 0
    # Ctrl-C reaches both: the job ends as it does by itself, and its code is ours
    with subprocess.Popen(command) as process:
        while True:
            try:
                code = process.wait()
            except KeyboardInterrupt:
                continue
            # as a shell says it of a process that a signal ended
            return code if code >= 0 else 128 - code


def spark_submit() -> str:
    """The program of the pyspark that is installed here. EnvironmentMissing where there is none."""
    beside = Path(sys.executable).with_name("spark-submit")
    found = str(beside) if beside.is_file() else shutil.which("spark-submit")
    if found is None:
        raise EnvironmentMissing("spark-submit is not here", remedy="install pyspark: `make setup`")
    return found


def jobs_dir(job: str) -> Path:
    """The folder of the entry points: jobs/ in the working folder, or beside the package in a checkout."""
    for candidate in (Path("jobs"), CHECKOUT / "jobs"):
        if (candidate / f"{job}.py").is_file():
            return candidate
    raise EnvironmentMissing(f"no jobs/{job}.py here", remedy="call from a checkout, or use `encore run`")


def print_cost(
    config: Config, playlists: int | None, region: str, executors: int, cores: int | None, out: Console
) -> None:
    """What a run costs on AWS, by the last run of each job in the lake. LakeError where none is recorded."""
    store = open_store(config)
    state, rows = store.state(PLAYLISTS), latest(store.read_small(JOB_COSTS).to_pylist())
    if state is None or not state.rows or not rows:
        raise LakeError(f"{config.lake.path} has no run to go by", remedy="call `encore run` first")
    measured, emr = state.rows, load_config("emr", ["lake.path=s3://unused", "raw.playlists=s3://unused"])
    wanted, on = playlists or measured, cores or _cores(config)
    held = sum(found.bytes for table in ALL if (found := store.state(table)))
    prices, workers = prices_of(region), workers_of(emr.spark.settings, emr.spark.driver_memory, executors)
    made = estimate(rows, on, wanted / measured, held, prices, workers)
    grid = Grid("job", title=f"{wanted:,} playlists, dollars", title_justify="left")
    for name in ("s here", "s there", "Serverless", "EC2"):
        grid.add_column(name, justify="right")
    for job in made.jobs:
        grid.add_row(job.job, f"{job.here:,.1f}", f"{job.there:,.0f}", f"{job.serverless:.3f}", f"{job.ec2:.3f}")
    grid.add_row("nodes start, wait for their end", "", "", "", f"{made.waiting_ec2:.3f}", end_section=True)
    grid.add_row("all", "", f"{made.seconds:,.0f}", f"{made.serverless:.2f}", f"{made.ec2:.2f}")
    out.print(grid)
    for note in _notes(made, prices, workers, measured, on):
        out.print(note, highlight=False, markup=False)


def _notes(made: Estimate, prices: Prices, workers: Workers, measured: int, cores: int) -> Iterator[str]:
    """How an estimate was made, and what it leaves out."""
    waits, nodes = prices.seconds, prices.ec2
    yield f"Prices: {prices.region}, on demand, of {prices.date} ({conf_dir()}/prices/{prices.region}.yaml)."
    yield f"Measured: the last run of each job, {measured:,} playlists on {cores} cores; times {made.scale:.3g}."
    yield (
        f"Serverless: a driver of {workers.driver_vcpu} vCPU and {workers.driver_gb} GB, {workers.executors} executors "
        f"of {workers.executor_vcpu} and {workers.executor_gb}; {waits.worker_start:.0f} s to start and "
        f"{waits.worker_idle:.0f} s idle, which were not measured."
    )
    yield f"EC2: {nodes.driver.type}, and {nodes.worker.type} with as many cores; a cluster for this run."
    stored = made.lake_gb * prices.s3_gb_month
    yield f"Kept in S3: {made.lake_gb:,.2f} GB, {stored:,.2f} a month. Not in it: requests, logs, NAT, MLflow."
    yield (
        "How: seconds there = start + N/n0 (the driver's own + seconds of all tasks / cores there); a core here is "
        "taken for a vCPU there, one job after the other."
    )
    if made.scale > FAR:
        yield (
            f"Doubtful: {made.scale:.3g} times the playlists that were measured, and what does not grow with them is "
            "counted as if it did: too much. Measure a larger run."
        )
    elif made.scale < 1 / FAR:
        yield "Doubtful: far fewer playlists than were measured; what does not shrink with them is counted too low."


def _cores(config: Config) -> int:
    """Cores of a local master; those of this machine for local[*]."""
    found = re.fullmatch(r"local\[(\d+)]", config.spark.master or "")
    return int(found.group(1)) if found else os.cpu_count() or 1


def deployment_findings(
    stage: str, choices: Sequence[str], package: Path, clients: Clients | None = None
) -> Iterator[Finding]:
    """Is all there that a deployment of a stage needs? UnknownStage for a stage or a choice that there is not."""
    for choice in choices:
        if "=" not in choice or choice.startswith("stage="):
            raise UnknownStage(f"-c {choice}: name=value of a choice expected")
    context = dict(choice.partition("=")[::2] for choice in choices)
    region = region_of(None)
    return findings(stage_of({"stage": stage, **context}), package, clients or clients_of(region), region)
