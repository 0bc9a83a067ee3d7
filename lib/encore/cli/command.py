"""What all commands share: their common options, loading of settings, and how they end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from encore import interrupts
from encore.errors import EncoreError

if TYPE_CHECKING:
    from encore.config import Config

Env = Annotated[str, typer.Option("--env", "-e", help="Environment: conf/<env>.yaml over conf/base.yaml.")]
Set = Annotated[list[str], typer.Option("--set", "-s", help="A setting, a.b=value; may be repeated.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show stack traces and debug logs.")]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Take the lake's lock from a run that holds it; that run stops.")
]


def settings(env: str, overrides: list[str], debug: bool = False) -> Config:
    """Load the configuration and set up logging accordingly."""
    from encore.config import load_config
    from encore.log import configure_logging

    config = load_config(env, [*overrides, *(["log.level=debug"] if debug else [])])
    configure_logging(config.log)
    return config


def guarded(work: Callable[[], Any]) -> int:
    """Run a command and return its exit code; an expected failure is reported as one sentence and its remedy."""
    try:
        work()
    except KeyboardInterrupt as error:
        return _interrupted(error)
    except BrokenPipeError:
        return 0
    except Exception as error:
        # a failure after a signal is caused by the signal, because it also shuts down Spark's JVM
        found = interrupts.received()
        if found is not None:
            return _interrupted(found)
        expected = _expected(error)
        if expected is None:
            raise
        return _failed(expected)
    return 0


def _expected(error: Exception) -> EncoreError | None:
    """The failure as one of Encore's errors; None if it can only be a defect."""
    if isinstance(error, EncoreError):
        return error
    # imported here because it imports botocore, which few commands need
    from encore.lake.failures import known

    return known(error)


def _failed(error: EncoreError) -> int:
    from encore.cli.console import err

    if "--debug" in sys.argv:
        err.print_exception()
    err.print(f"[bold red]encore:[/] {escape(str(error))}", highlight=False)
    if error.remedy:
        err.print(f"        {escape(error.remedy)}", highlight=False)
    return error.exit_code


def _interrupted(error: KeyboardInterrupt) -> int:
    from encore.cli.console import err

    found = error if isinstance(error, interrupts.Interrupted) else interrupts.Interrupted(signal.SIGINT)
    err.print(f"encore: {found}")
    return found.exit_code


def escape(text: str) -> str:
    """Text that Rich prints as it is."""
    return text.replace("[", r"\[")


def exit_with(code: int) -> NoReturn:
    """End the command with this exit code."""
    raise typer.Exit(code)
