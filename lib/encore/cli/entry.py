"""Entry points of `encore` and of the scripts in jobs/: install signal handlers, then do the slow imports."""

from __future__ import annotations

from typing import NoReturn

from encore import interrupts


def main() -> NoReturn:
    """The command `encore`."""

    def command() -> None:
        from encore.cli.app import main

        main()

    interrupts.run(command)


def job_main(name: str) -> NoReturn:
    """Entry point of `spark-submit jobs/NAME.py`."""

    def command() -> None:
        from encore.cli.app import job_main

        job_main(name)

    interrupts.run(command)
