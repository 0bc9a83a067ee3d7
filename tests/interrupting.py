"""Send signals to running commands at random times and check how they end: `python -m tests.interrupting --help`."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
MARK = "ENCORE_TEST_TRY"
HANGS_AFTER = 30.0
"""Seconds after which a process is considered to ignore the signal that it received."""


@dataclass(frozen=True)
class Ending:
    """How one try ended. `code`: None if the process had to be killed; `left`: processes that it left behind;
    `parents`: statuses of the pipeline's runs in MLflow."""

    command: str
    moment: float
    code: int | None
    seconds: float
    left: tuple[str, ...]
    parents: tuple[str, ...]
    stderr: str

    @property
    def traceback(self) -> bool:
        """Whether the user was shown a stack trace."""
        return "Traceback (most recent call last)" in self.stderr or "\tat org.apache" in self.stderr

    def fault(self, wanted: int, within: float) -> str:
        """What is wrong with it; empty if nothing is."""
        if self.code is None:
            return "ignored"
        # a signal before Python has started terminates the process directly: a shell reports the same code for it
        if self.code not in (wanted, 128 - wanted):
            return f"code {self.code}"
        if self.traceback:
            return "traceback"
        if self.left:
            return "left " + ", ".join(self.left)
        if "RUNNING" in self.parents:
            return "MLflow RUNNING"
        return "slow" if self.seconds > within else ""


def commands(data: Path, folder: Path) -> dict[str, list[str]]:
    """The commands to run, by name, with a lake and a store in `folder`."""
    settings = [f"lake.path={folder}/lake", f"tracking.uri=sqlite:///{folder}/mlflow.db", "spark.master=local[2]"]
    settings += [f"tracking.artifacts={folder}/artifacts", f"report.path={folder}/report", "spark.driver_memory=1g"]
    settings += [f"raw.playlists={data}", f"raw.features={data}/features"]
    options = [part for setting in settings for part in ("--set", setting)]
    python = sys.executable
    encore = [python, "-c", "import sys; from encore.cli.entry import main; sys.argv[0] = 'encore'; main()"]
    return {
        "run": [*encore, "run", *options],
        "submit": [*encore, "submit", "ingest_playlists", *options],
        "spark-submit": [
            str(Path(python).with_name("spark-submit")),
            "--driver-memory",
            "1g",
            "jobs/ingest_playlists.py",
            *options,
        ],
        "generate": [*encore, "generate", "--out", f"{folder}/mpd", "--playlists", "200000"],
        "sql": [*encore, "sql", "SELECT count(*) FROM range(0, 3000000000, 1, 4) a WHERE hash(a.id) % 7 = 3", *options],
    }


def attempt(
    data: Path,
    name: str,
    number: int,
    moment: float,
    *,
    root: Path = ROOT,
    group: bool = True,
    lake: Path | None = None,
    store: Path | None = None,
) -> Ending:
    """Start a command and after `moment` seconds send a signal to its group, as a terminal does, or only to itself."""
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="interrupting-") as text:
        folder = Path(text)
        if store is not None:
            shutil.copy(store, folder / "mlflow.db")
        if lake is not None:
            (folder / "lake").symlink_to(lake)
        (folder / "tmp").mkdir()
        paths = {"PYTHONPATH": str(root / "lib"), "TMPDIR": str(folder / "tmp"), MARK: mark}
        environment = {**os.environ, "PYTHONHASHSEED": "0", **paths}
        with (folder / "err").open("wb") as err:
            process = subprocess.Popen(
                commands(data, folder)[name],
                cwd=root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=err,
                stderr=err,
                start_new_session=True,
            )
            with suppress(subprocess.TimeoutExpired):
                process.wait(moment)
            if process.returncode is not None:
                return Ending(name, moment, process.returncode, -1.0, (), (), (folder / "err").read_text())
            began = time.monotonic()
            (os.killpg if group else os.kill)(process.pid, number)
            code: int | None = None
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(HANGS_AFTER)
            seconds = time.monotonic() - began
            left = _left(mark, 5.0 if code is not None else 0.0)
            for other in left:
                with suppress(psutil.Error):
                    other.kill()
            process.wait()
        names = tuple(sorted(_name(other) for other in left))
        said = (folder / "err").read_text(errors="replace")
        return Ending(name, moment, code, seconds, names, _parents(folder / "mlflow.db"), said)


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return str(process.name())
    return "gone"


def _left(mark: str, grace: float) -> list[psutil.Process]:
    """Processes of a try that are still running after `grace` seconds."""
    until = time.monotonic() + grace
    while True:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        if not found or time.monotonic() >= until:
            return found
        time.sleep(0.25)


def _parents(store: Path) -> tuple[str, ...]:
    if not store.exists():
        return ()
    with suppress(sqlite3.Error), sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=5) as connection:
        return tuple(row[0] for row in connection.execute("SELECT status FROM runs"))
    return ()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the requested number of tries, and print a line for each and a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of generated slices")
    parser.add_argument("--command", default="run")
    parser.add_argument("--signal", default="SIGINT")
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--between", type=float, nargs=2, default=(1.0, 25.0), metavar="SECONDS")
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout whose code is run")
    parser.add_argument("--alone", action="store_true", help="send it to the process alone, not to its group")
    parser.add_argument("--lake", type=Path, help="a lake for `sql`")
    parser.add_argument("--store", type=Path, help="a SQLite store of MLflow to start with: making one takes seconds")
    parser.add_argument("--log", type=Path, help="where to put what wrong endings said")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(arguments)
    number, draw, faults = signal.Signals[asked.signal], random.Random(asked.seed), Counter[str]()
    for i in range(asked.tries):
        low, high = asked.between
        # stratified: divide the time into as many equal parts as there are tries, with one random moment in each
        moment = low + (high - low) * (i + draw.random()) / asked.tries
        ended = attempt(
            asked.data,
            asked.command,
            number,
            moment,
            root=asked.root,
            group=not asked.alone,
            lake=asked.lake,
            store=asked.store,
        )
        fault = "ended before" if ended.seconds < 0 else ended.fault(128 + number, 5.0)
        faults[fault or "right"] += 1
        if asked.log and fault not in ("", "ended before"):
            with asked.log.open("a") as log:
                log.write(f"--- {moment:.1f} s, {fault}\n{ended.stderr}\n")
        last = next(iter(ended.stderr.strip().splitlines()[-1:]), "")
        sys.stdout.write(
            f"{moment:6.1f} s: code {ended.code} after {ended.seconds:.1f} s, {fault or 'right'}, "
            f"MLflow {','.join(ended.parents) or '-'} | {last[:110]}\n"
        )
        sys.stdout.flush()
    sys.stdout.write(f"{asked.command} {asked.signal}: {dict(faults)}\n")
    return 0 if set(faults) <= {"right", "ended before"} else 1


if __name__ == "__main__":
    sys.exit(main())
