"""The commands `encore submit` and `encore cost`."""

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

from encore import interrupts
from encore.aws import render
from encore.aws.account import region_of
from encore.aws.cost import (
    RELIABLE_SCALE,
    Estimate,
    Prices,
    Workers,
    estimate,
    load_prices,
    serving_month,
    worker_sizes,
)
from encore.aws.deployment import ClientFactory, client_factory, stage_settings
from encore.aws.serving import INSTANCE, TASK_GB, TASK_VCPU
from encore.aws.stack_cost import Item, read_templates, stack_items, summed, total
from encore.aws.submit import JobFailed, request, submit
from encore.config import Config, conf_dir, load_config
from encore.errors import ConfigError, EnvironmentMissing, LakeError
from encore.lake.store import open_store
from encore.lake.tables import ALL, JOB_COSTS, PLAYLISTS
from encore.log import configure_logging
from encore.runtime.pipeline import new_run_id
from encore.runtime.provenance import CHECKOUT
from encore.runtime.registry import EXTRA_JOBS, JOBS
from encore.spark.stage_metrics import latest

CANCEL_SECONDS = 30.0
"""How long cancelling a run on EMR may take after Ctrl-C; a second Ctrl-C stops waiting for it."""


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
    take_over: bool = False,
    clients: ClientFactory | None = None,
) -> int:
    """Start a job and wait for it. Returns the exit code of a local job; for a job on EMR, 0 or raises EncoreError."""
    if target not in render.TARGETS:
        raise ConfigError(f"--target {target}: one of {', '.join(render.TARGETS)} expected")
    if job not in (*JOBS, *EXTRA_JOBS):
        raise ConfigError(f"no job {job!r}; one of: {', '.join((*JOBS, *EXTRA_JOBS))}")
    if stage and target == "local":
        raise ConfigError("--stage: a local run has no deployment", remedy="leave it out, or choose another --target")
    region = region_of(None) if target != "local" else None
    deployed = stage_settings(stage, job, clients or client_factory(region)) if stage else []
    # EMR's nodes may not know their own region
    regional = [f"s3.region={region}"] if region else []
    config = load_config(env, [*regional, *deployed, *settings])
    configure_logging(config.log)
    run_id = run_id or new_run_id()
    if target == "local":
        submission = render.make_submission(job, config, run_id, force=force, take_over=take_over)
        return _run_local(submission, config, dry_run, out)
    if dry_run:
        out.print_json(json.dumps(request(job, config, target, run_id, force=force, take_over=take_over)))
        return 0
    try:
        with interrupts.patient(CANCEL_SECONDS):
            submit(
                job,
                config,
                target,
                run_id,
                force=force,
                take_over=take_over,
                on_state=lambda text: err.print(text, highlight=False),
            )
    except JobFailed as error:
        if error.log:
            err.print("End of the driver's log:", highlight=False)
            err.print(error.log, highlight=False, markup=False)
        raise
    out.print(f"{job}: done, in pipeline run {run_id}", highlight=False)
    return 0


def _run_local(submission: render.Submission, config: Config, dry_run: bool, out: Console) -> int:
    command = render.local_command(submission, config.spark.master, spark_submit(), str(jobs_dir(submission.job)))
    if dry_run:
        out.print(shlex.join(command), highlight=False, markup=False)
        return 0
    # a separate process group, to which signals are forwarded: JVM and driver then receive each signal exactly once,
    # whether it comes from a terminal or from `kill`
    with subprocess.Popen(command, process_group=0) as process, interrupts.forwarded_to(process.pid):
        try:
            code = process.wait()
        except KeyboardInterrupt:
            # the driver may outlive the JVM that started it
            interrupts.wait_for_group(process)
            raise
        # as a shell reports a process that was terminated by a signal
        return code if code >= 0 else 128 - code


def spark_submit() -> str:
    """Path of the installed pyspark's spark-submit. EnvironmentMissing if it is not installed."""
    beside = Path(sys.executable).with_name("spark-submit")
    found = str(beside) if beside.is_file() else shutil.which("spark-submit")
    if found is None:
        raise EnvironmentMissing("spark-submit is not installed", remedy="install pyspark: `make setup`")
    return found


def jobs_dir(job: str) -> Path:
    """The folder of the entry points: jobs/ in the working directory, else in the checkout with the package."""
    for candidate in (Path("jobs"), CHECKOUT / "jobs"):
        if (candidate / f"{job}.py").is_file():
            return candidate
    raise EnvironmentMissing(f"jobs/{job}.py not found", remedy="run this from a checkout, or use `encore run`")


def print_cost(
    config: Config, playlists: int | None, region: str, executors: int | None, cores: int | None, out: Console
) -> None:
    """Print what a run would cost on AWS, estimated from the last run of each job. LakeError if no run is recorded."""
    store = open_store(config)
    state, rows = store.state(PLAYLISTS), latest(store.read_small(JOB_COSTS).to_pylist())
    if state is None or not state.rows or not rows:
        raise LakeError(f"{config.lake.path} holds no completed run to estimate from", remedy="run `encore run` first")
    measured, emr = state.rows, load_config("emr", ["lake.path=s3://unused", "raw.playlists=s3://unused"])
    playlists, cores = playlists or measured, cores or _cores(config)
    lake_bytes = sum(found.bytes for table in ALL if (found := store.state(table)))
    prices, workers = load_prices(region), worker_sizes(emr.spark.settings, emr.spark.driver_memory, executors)
    cost = estimate(rows, cores, playlists / measured, lake_bytes, prices, workers)
    grid = Grid("job", title=f"{playlists:,} playlists, in dollars", title_justify="left")
    for name in ("s measured", "s on AWS", "Serverless", "EC2"):
        grid.add_column(name, justify="right")
    for job in cost.jobs:
        grid.add_row(
            job.job, f"{job.measured_seconds:,.1f}", f"{job.seconds:,.0f}", f"{job.serverless:.3f}", f"{job.ec2:.3f}"
        )
    grid.add_row("cluster start and idle time", "", "", "", f"{cost.cluster_overhead:.3f}", end_section=True)
    grid.add_row("total", "", f"{cost.seconds:,.0f}", f"{cost.serverless:.2f}", f"{cost.ec2:.2f}")
    out.print(grid)
    for note in _notes(cost, prices, workers, measured, cores):
        out.print(note, highlight=False, markup=False)


def _notes(cost: Estimate, prices: Prices, workers: Workers, measured: int, cores: int) -> Iterator[str]:
    """How an estimate was made, and what it does not include."""
    overheads, nodes = prices.seconds, prices.ec2
    yield f"Prices: {prices.region}, on demand, as of {prices.date} ({conf_dir()}/prices/{prices.region}.yaml)."
    yield f"Measured: the last run of each job, {measured:,} playlists on {cores} cores; scaled by {cost.scale:.3g}."
    yield (
        f"Serverless: a {workers.driver_vcpu} vCPU, {workers.driver_gb} GB driver and {workers.executors} executors "
        f"with {workers.executor_vcpu} vCPU and {workers.executor_gb} GB; {overheads.worker_start:.0f} s to start and "
        f"{overheads.worker_idle:.0f} s idle are assumed, not measured."
    )
    compiling = [*overheads.compile.driver.values(), *overheads.compile.executor.values()]
    if compiling:
        yield (
            f"Compiling in new workers: up to {max(compiling):.0f} s a job, measured on this project's machines with "
            "empty caches."
        )
    yield f"EC2: one {nodes.driver.type}, and {nodes.worker.type} with as many cores; a cluster started for this run."
    stored = cost.lake_gb * prices.s3_gb_month
    yield f"Stored in S3: {cost.lake_gb:,.2f} GB, {stored:,.2f} a month. Not included: requests, logs, NAT, MLflow."
    standing = prices.standing
    yield (
        f"A copy of the lake in another region (replica_region): {cost.lake_gb * standing.replica_gb_month:,.2f} a "
        f"month, and {cost.lake_gb * standing.replica_transfer_gb:,.2f} each time that all of it is written. A key "
        f"(customer_key): {standing.key_month:,.2f} a month, and as much for the copy's."
    )
    month = serving_month(prices.serving)
    yield (
        f"The scorer, a month: on Fargate {month.front:.0f}, and {month.task:.0f} for each task of {TASK_VCPU} "
        f"vCPU and {TASK_GB} GB, {month.million_requests:.2f} for a million requests; on SageMaker "
        f"{month.instance:.0f} for each {INSTANCE}, of which there are at least two. Not included: logs, traffic."
    )
    yield (
        "Method: seconds on AWS = start + compile + N/n0 (driver seconds + task seconds / vCPUs of the executors); a "
        "local core counts as one vCPU, and jobs run one after the other."
    )
    if cost.scale > RELIABLE_SCALE:
        yield (
            f"Unreliable: {cost.scale:.3g} times the playlists measured, and costs that do not grow with them are "
            "scaled too, so the estimate is too high. Measure a larger run."
        )
    elif cost.scale < 1 / RELIABLE_SCALE:
        yield "Unreliable: far fewer playlists than measured; costs that do not shrink with them are estimated too low."


def print_stack_cost(folder: Path, region: str, out: Console) -> None:
    """Print what the stacks of a synthesized stage cost a month. ConfigError if there are no templates or prices."""
    prices = load_prices(region)
    grid = Grid("stack", "what", title="dollars a month while nothing runs", title_justify="left")
    for name in ("number", "a month", "an hour, if started"):
        grid.add_column(name, justify="right")
    everything: list[Item] = []
    for stack, template in read_templates(folder).items():
        items = stack_items(template, prices)
        everything += items
        rows = summed(items)
        for number, (count, item) in enumerate(rows):
            grid.add_row(
                "" if number else stack,
                item.what,
                str(count),
                f"{item.month:,.2f}" if item.month else "",
                f"{item.hour:,.2f}" if item.hour else "",
                end_section=number == len(rows) - 1,
            )
        if not rows:
            grid.add_row(stack, "nothing", "", "", "", end_section=True)
    grid.add_row("total", "", "", f"{total(everything).month:,.2f}", "")
    out.print(grid)
    out.print(
        f"Prices: {prices.region}, on demand, as of {prices.date}, without free tiers. Not included: what jobs use, "
        "storage, requests, traffic, logs, and metrics of Container Insights.",
        highlight=False,
        markup=False,
    )


def _cores(config: Config) -> int:
    """Cores of a local Spark master; all of this machine's for local[*]."""
    found = re.fullmatch(r"local\[(\d+)]", config.spark.master or "")
    return int(found.group(1)) if found else os.cpu_count() or 1
