"""The commands `encore deploy ...`: a stage's deployment on AWS.

Like those of `encore.cli.app`, each command imports what it needs in its body.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encore.cli.command import Debug, exit_with, guarded

if TYPE_CHECKING:
    from encore.aws.deployment import ClientFactory
    from encore.findings import Finding

deployments = typer.Typer(name="deploy", help="A deployment on AWS.", no_args_is_help=True)

StageName = Annotated[str, typer.Option("--stage", help="A stage of conf/deploy/stages.yaml, such as dev.")]
Choices = Annotated[
    list[str], typer.Option("--context", "-c", help="A choice of the deployment, name=value; may be repeated.")
]


def _set_up_logging(debug: bool) -> None:
    from encore.config import load_config
    from encore.log import configure_logging

    configure_logging(load_config("local", ["log.level=debug"] if debug else []).log)


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
    region = region_of(None)
    return findings(load_stage({"stage": stage, **context}), package, clients or client_factory(region), region)
