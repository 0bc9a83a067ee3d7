"""What the commands `encore submit` and `encore deploy doctor` do: settings in, words out."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from encore.aws import render
from encore.aws.account import region_of
from encore.aws.deployment import Clients, clients_of, findings, settings_of
from encore.aws.stage import stage_of
from encore.aws.submit import JobFailed, request, submit
from encore.config import Config, load_config
from encore.doctor import Finding
from encore.errors import ConfigError
from encore.job import EXTRA_JOBS, JOBS
from encore.log import configure_logging
from encore.pipeline import new_run_id


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
    made = settings_of(stage, job, clients or clients_of(region_of(None))) if stage else []
    config = load_config(env, [*made, *settings])
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
    command = render.local(asked, config.spark.master)
    if dry_run:
        out.print(shlex.join(command), highlight=False, markup=False)
        return 0
    # Ctrl-C reaches both: the job ends as it does by itself, and its code is ours
    with subprocess.Popen(command) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


def deployment_findings(
    stage: str, choices: Sequence[str], package: Path, clients: Clients | None = None
) -> Iterator[Finding]:
    """Is all there that a deployment of a stage needs? UnknownStage for a stage or a choice that there is not."""
    context = dict(choice.partition("=")[::2] for choice in choices)
    region = region_of(None)
    return findings(stage_of({"stage": stage, **context}), package, clients or clients_of(region), region)
