"""The commands `encore deploy ...`: a stage's deployment on AWS.

Like those of `encore.cli.app`, each command imports what it needs in its body.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encore import interrupts
from encore.cli.command import Debug, Set, exit_with, guarded

if TYPE_CHECKING:
    from encore.aws.acceptance import Facts
    from encore.aws.deployment import ClientFactory
    from encore.findings import Finding

STOP_SECONDS = 30.0
"""How long stopping an execution may take after Ctrl-C; a second Ctrl-C stops waiting for it."""

deployments = typer.Typer(name="deploy", help="A deployment on AWS.", no_args_is_help=True)

StageName = Annotated[str, typer.Option("--stage", help="A stage of conf/deploy/stages.yaml, such as dev.")]
Choices = Annotated[
    list[str], typer.Option("--context", "-c", help="A choice of the deployment, name=value; may be repeated.")
]


RunName = Annotated[str | None, typer.Option("--name", help="Name of the execution and id of the run; default: new.")]


def _set_up_logging(debug: bool) -> None:
    from encore.config import load_config
    from encore.log import configure_logging

    configure_logging(load_config("local", ["log.level=debug"] if debug else []).log)


def _say(text: str) -> None:
    from encore.cli.console import err

    err.print(text, highlight=False, markup=False)


def _clients() -> ClientFactory:
    from encore.aws.account import region_of
    from encore.aws.deployment import client_factory

    return client_factory(region_of(None))


@deployments.command("doctor")
def doctor(
    stage: StageName = "dev",
    choices: Choices = [],  # noqa: B006
    package: Annotated[Path, typer.Option(help="Folder of the application archive.")] = Path("build/package"),
    debug: Debug = False,
) -> None:
    """Check the account, region, bootstrap, certificate, quota and archive before `make deploy`."""

    def work() -> None:
        from encore.cli.console import out
        from encore.cli.doctor import print_findings

        _set_up_logging(debug)
        if not print_findings(deployment_findings(stage, choices, package), out):
            exit_with(4)

    exit_with(guarded(work))


def deployment_findings(
    stage: str, choices: Sequence[str], package: Path, clients: ClientFactory | None = None
) -> Iterator[Finding]:
    """Check everything that deploying a stage needs. StageError for an unknown stage or choice."""
    from encore.aws.account import region_of
    from encore.aws.deployment import client_factory
    from encore.aws.readiness import findings
    from encore.aws.stage import StageError, load_stage

    for choice in choices:
        if "=" not in choice or choice.startswith("stage="):
            raise StageError(f"-c {choice}: a choice as name=value expected")
    context = dict(choice.partition("=")[::2] for choice in choices)
    chosen = load_stage({"stage": stage, **context})
    region = region_of(None) or chosen.region or None
    return findings(chosen, package, clients or client_factory(region), region)


@deployments.command("tunnel")
def tunnel(
    stage: StageName = "dev",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of this machine.")] = 5000,
    debug: Debug = False,
) -> None:
    """Open MLflow of a stage on http://localhost:5000 until Ctrl-C; with mlflow=sagemaker, print a signed link."""

    def work() -> None:
        _set_up_logging(debug)
        open_tunnel(stage, port, _clients())

    exit_with(guarded(work))


def open_tunnel(stage: str, port: int, clients: ClientFactory) -> None:
    """Print how to sign in to MLflow, and replace this process by the port-forward, if one is needed."""
    from encore.aws.tunnel import access, require_programs
    from encore.cli.console import out

    found = access(stage, port, clients)
    if found.command is None:
        out.print("MLflow, by a link that signs you in once, within five minutes:", highlight=False)
        out.print(found.address, highlight=False, markup=False, soft_wrap=True)
        return
    require_programs()
    out.print(f"MLflow of {stage} is at {found.address} until Ctrl-C.", highlight=False, markup=False)
    if found.password_command:
        out.print("User and password of its administrator:", highlight=False)
        out.print(shlex.join(found.password_command), highlight=False, markup=False, soft_wrap=True)
    sys.stdout.flush()
    os.execvp(found.command[0], found.command)


@deployments.command("rotate")
def rotate(
    secret: Annotated[str, typer.Argument(help="jobs or administrator (users of MLflow), or scorer (its token).")],
    stage: StageName = "dev",
    mlflow: Annotated[
        str | None, typer.Option(help="Where MLflow is reached from here, such as http://localhost:5000 of a tunnel.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Give a password or token of a stage a new value, in MLflow and in Secrets Manager, and say what is left to do."""

    def work() -> None:
        from encore.cli.console import out
        from encore.cli.rotation import rotate as rotate_secret

        _set_up_logging(debug)
        left = rotate_secret(stage, secret, _clients(), mlflow)
        out.print(f"{secret}: changed", highlight=False)
        for text in left:
            out.print(f"- {text}", highlight=False, markup=False, soft_wrap=True)

    exit_with(guarded(work))


@deployments.command("upload")
def upload(
    folder: Annotated[Path, typer.Argument(help="Folder with slices, and features in its folder features/.")],
    stage: StageName = "sandbox",
    debug: Debug = False,
) -> None:
    """Upload slices and features to the raw bucket of a stage that keeps no data."""

    def work() -> None:
        from encore.aws.deployment import outputs_of
        from encore.aws.upload import upload as upload_folder
        from encore.cli.console import out

        _set_up_logging(debug)
        clients = _clients()
        bucket = outputs_of(stage, "storage", clients)["RawBucket"]
        done = upload_folder(stage, folder, bucket, clients("s3"), _say)
        out.print(f"{done.files} files, {done.bytes / 1e6:,.1f} MB, to s3://{bucket}", highlight=False)

    exit_with(guarded(work))


def _run_to_the_end(stage: str, run_id: str, given: dict[str, Any]) -> float:
    """Start an execution with an input and follow it; returns its minutes. After Ctrl-C, the execution is stopped."""
    from encore.aws.executions import machine_of
    from encore.aws.executions import run as run_execution

    machine = machine_of(stage, _clients())
    with interrupts.patient(STOP_SECONDS):
        return run_execution(machine, run_id, given, _say) / 60


@deployments.command("run")
def run(
    stage: StageName = "dev",
    name: RunName = None,
    first: Annotated[str, typer.Option("--from", help="The first job; those after it run too.")] = "",
    only: Annotated[list[str], typer.Option("--only", help="A job to run; may be repeated.")] = [],  # noqa: B006
    overrides: Set = [],  # noqa: B006
    date: Annotated[str, typer.Option(help="Read only the raw data of this date, YYYY-MM-DD.")] = "",
    debug: Debug = False,
) -> None:
    """Start an execution of a stage's state machine and follow it to its end. Ctrl-C stops it."""

    def work() -> None:
        from encore.cli.console import out
        from encore.runtime.pipeline import new_run_id

        _set_up_logging(debug)
        machine_input = {"from": first, "only": list(only), "set": list(overrides), "date": date}
        given = {key: value for key, value in machine_input.items() if value}
        run_id = name or new_run_id()
        minutes = _run_to_the_end(stage, run_id, given)
        out.print(f"{run_id}: succeeded after {minutes:,.1f} minutes", highlight=False)

    exit_with(guarded(work))


@deployments.command("backfill")
def backfill(
    stage: StageName = "dev",
    first: Annotated[str, typer.Option("--from", help="The first date, YYYY-MM-DD.")] = ...,  # type: ignore[assignment]
    last: Annotated[str, typer.Option("--to", help="The last date, YYYY-MM-DD.")] = ...,  # type: ignore[assignment]
    overrides: Set = [],  # noqa: B006
    redo: Annotated[bool, typer.Option("--redo", help="Also run dates that are done.")] = False,
    debug: Debug = False,
) -> None:
    """Run one execution for each date of a range, in order; call it again to continue after a failure."""

    def work() -> None:
        from encore.aws.deployment import outputs_of
        from encore.aws.executions import backfill as backfill_days
        from encore.aws.executions import check_raw_data, dates, machine_of
        from encore.cli.console import out

        _set_up_logging(debug)
        days = dates(first, last)
        clients = _clients()
        raw = outputs_of(stage, "storage", clients)["RawBucket"]
        check_raw_data(days, f"s3://{raw}/playlists", clients("s3"))
        machine = machine_of(stage, clients)
        with interrupts.patient(STOP_SECONDS):
            needed = backfill_days(machine, days, overrides, _say, redo=redo)
        out.print(f"{len(days)} dates: {needed} run now, {len(days) - needed} done before", highlight=False)

    exit_with(guarded(work))


@deployments.command("facts")
def facts(
    stage: StageName = "dev",
    path: Annotated[Path | None, typer.Option("--out", help="Write them to this file, as JSON.")] = None,
    none: Annotated[bool, typer.Option("--none", help="Write those of a stage that is not deployed yet.")] = False,
    debug: Debug = False,
) -> None:
    """Print what a stage's lake holds: rows of each table, jobs done, and the metrics of each model."""

    def work() -> None:
        from dataclasses import asdict

        from encore.aws.acceptance import Facts
        from encore.cli.console import out

        _set_up_logging(debug)
        found = Facts(stage) if none else _facts(stage)
        if path is None:
            out.print_json(data=asdict(found))
            return
        found.write(path)
        out.print(f"{path}: {len(found.rows)} tables, metrics of {len(found.metrics)} models", highlight=False)

    exit_with(guarded(work))


def _facts(stage: str) -> Facts:
    """The facts about a deployed stage. InputError if it is not deployed."""
    from encore.aws.acceptance import facts_of
    from encore.aws.account import region_of
    from encore.aws.deployment import outputs_of
    from encore.config import load_config

    lake = outputs_of(stage, "storage", _clients())["LakePath"]
    region = region_of(None)
    return facts_of(
        stage,
        load_config(
            "emr",
            [f"lake.path={lake}", "raw.playlists=s3://unused", *([f"s3.region={region}"] if region else [])],
        ),
    )


@deployments.command("verify")
def verify(
    stage: StageName = "dev",
    playlists: Annotated[int | None, typer.Option(min=1, help="How many playlists there have to be.")] = None,
    debug: Debug = False,
) -> None:
    """Check what a complete run leaves in a stage: jobs done, tables with rows, metrics in range."""

    def work() -> None:
        from encore.aws.acceptance import accepted
        from encore.cli.console import out
        from encore.cli.doctor import print_findings

        _set_up_logging(debug)
        if not print_findings(accepted(_facts(stage), playlists), out):
            exit_with(3)

    exit_with(guarded(work))


@deployments.command("gate")
def gate(
    candidate: Annotated[Path, typer.Argument(help="Facts of the stage that ran what is to be released.")],
    production: Annotated[Path, typer.Argument(help="Facts of production.")],
    tolerance: Annotated[float, typer.Option(help="How much worse a metric may be, as a share.")] = 0.05,
    debug: Debug = False,
) -> None:
    """Decide whether a release may go to production: a complete run, and metrics not far below production's."""

    def work() -> None:
        from encore.aws.acceptance import Facts
        from encore.aws.acceptance import gate as decide
        from encore.cli.console import out
        from encore.cli.doctor import print_findings

        _set_up_logging(debug)
        if not print_findings(decide(Facts.read(candidate), Facts.read(production), tolerance), out):
            exit_with(3)

    exit_with(guarded(work))


@deployments.command("remove")
def remove(stage: StageName = "sandbox", debug: Debug = False) -> None:
    """Delete the stacks of a stage that keeps no data, also after a deployment that failed halfway."""

    def work() -> None:
        from encore.aws.removal import remove as remove_stage
        from encore.cli.console import out

        _set_up_logging(debug)
        removed = remove_stage(stage, _clients(), _say)
        out.print(f"{stage}: {len(removed)} stacks deleted, nothing is left", highlight=False)

    exit_with(guarded(work))


@deployments.command("vacant")
def vacant(stage: StageName = "sandbox", debug: Debug = False) -> None:
    """Check that nothing of a stage is deployed, so that a trial may deploy and remove it."""

    def work() -> None:
        from encore.aws.removal import vacant as check_vacant
        from encore.cli.console import out

        _set_up_logging(debug)
        check_vacant(stage, _clients())
        out.print(f"{stage}: nothing is deployed", highlight=False)

    exit_with(guarded(work))


@deployments.command("deployed")
def deployed(stage: StageName = "prod", debug: Debug = False) -> None:
    """Print yes or no: whether the stacks of a stage that run the pipeline exist."""

    def work() -> None:
        from encore.aws.removal import is_deployed
        from encore.cli.console import out

        _set_up_logging(debug)
        out.print("yes" if is_deployed(stage, _clients()) else "no", highlight=False)

    exit_with(guarded(work))


@deployments.command("stop")
def stop(
    stage: StageName = "dev",
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Stop executions and cancel job runs that are in progress.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Stop a stage's EMR Serverless application, which cannot be changed or deleted while it is started."""

    def work() -> None:
        from encore.aws.application import stop as stop_application
        from encore.cli.console import out

        _set_up_logging(debug)
        id_ = stop_application(stage, _clients(), _say, cancel=cancel)
        out.print(f"{stage}: {f'application {id_} is stopped' if id_ else 'no application'}", highlight=False)

    exit_with(guarded(work))


@deployments.command("smoke")
def smoke(stage: StageName = "dev", name: RunName = None, debug: Debug = False) -> None:
    """Run a stage's smoke job: does a job find its interpreter, packages, credentials, lake and MLflow?"""

    def work() -> None:
        from encore.cli.console import out
        from encore.runtime.pipeline import new_run_id
        from encore.runtime.registry import SMOKE

        _set_up_logging(debug)
        run_id = name or f"smoke-{new_run_id()}"
        minutes = _run_to_the_end(stage, run_id, {"only": [SMOKE]})
        out.print(f"{stage}: jobs can run; checked by {run_id} in {minutes:,.1f} minutes", highlight=False)

    exit_with(guarded(work))
