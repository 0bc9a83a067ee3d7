"""Where the program `encore` and the entry points in jobs/ begin: signals first, then the imports that take a while."""

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
    """What `spark-submit jobs/NAME.py` runs."""

    def command() -> None:
        from encore.cli.app import job_main

        job_main(name)

    interrupts.run(command)
