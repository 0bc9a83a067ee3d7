"""Pairs of concurrent runs on one lake: `python -m tests.races --pairs 20`.

Each pair consists of two processes started at the same time, with the same or different settings, on a local lake or
one in S3, with or without the lake's lock; without it, consistency depends only on the commits. After each pair both
exit codes must be 0 or 75, each run that was refused must end with 0 when repeated, `encore doctor --lake` must find no
problem, and the tables must have the same contents as after a single undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from encore.config import load_config
from encore.lake.delta import Tables
from encore.lake.inspection import inspect
from encore.lake.tables import ALL
from encore.synthetic.generate import generate
from tests import recompute
from tests.conftest import FAST_JVM, write_slice
from tests.s3server import S3Server, s3_server

ROOT = Path(__file__).resolve().parents[1]
PLAYLISTS, SLICE = 300, 50
LATE = 2
"""Number of slices that arrive only after the first run."""

MAIN = "from encore.cli.app import main; main()"
WITHOUT_JARS = "import encore.spark.session as session; session.jars_folder = lambda: None\n"
"""Prepended to MAIN for a lake in S3: tasks access it without Hadoop, so its jars need not be installed."""
UNLOCKED = """
from encore.lake.lock import LakeLock
LakeLock.take = lambda self: False
LakeLock.check = lambda self: None
"""
"""Prepended to MAIN: the process takes no lock, as if started by a program that does not know about it."""

TRANSIENT = 75


@dataclass(frozen=True)
class Kind:
    """A kind of race. `first`: on an empty lake, else on the lake of an earlier run, after which more slices arrived.

    `one` and `other`: arguments of `encore run`. `alone`: arguments of the run that produces the expected rows without
    any concurrent run, and that is repeated after the race.
    """

    name: str
    first: bool
    one: tuple[str, ...]
    other: tuple[str, ...]
    alone: tuple[str, ...] = ()
    s3: bool = False


def _set(*values: str) -> tuple[str, ...]:
    return tuple(part for value in values for part in ("--set", value))


SEED_1, SEED_2 = _set("split.seed=1", "recommend.k=20"), _set("split.seed=2", "recommend.k=30")
CHUNK_40, CHUNK_100 = _set("run.chunk_playlists=40"), _set("run.chunk_playlists=100")
INGEST, SPLIT = ("--only", "ingest_playlists"), ("--only", "split_holdout")

KINDS: tuple[Kind, ...] = (
    Kind("two first ingests", True, INGEST, INGEST, INGEST),
    Kind("two first runs", True, (), ()),
    Kind("two first runs, other settings", True, SEED_1, SEED_2, SEED_1),
    Kind("two later ingests", False, INGEST, INGEST, INGEST),
    Kind("two later runs, other settings", False, SEED_1, SEED_2, SEED_2),
    Kind(
        "two splits, other chunks",
        False,
        (*SPLIT, *SEED_1, *CHUNK_40),
        (*SPLIT, *SEED_1, *CHUNK_100),
        (*SPLIT, *SEED_1),
    ),
    Kind(
        "two splits, other seeds",
        False,
        (*SPLIT, *SEED_1, *CHUNK_40),
        (*SPLIT, *SEED_2, *CHUNK_100),
        (*SPLIT, *SEED_2),
    ),
    Kind(
        "an ingest and a split",
        False,
        INGEST,
        (*SPLIT, *SEED_1, *CHUNK_40),
        ("--only", "ingest_playlists", "--only", "split_holdout", *SEED_1),
    ),
    Kind("S3: two first ingests", True, INGEST, INGEST, INGEST, s3=True),
    Kind("S3: two first runs, other settings", True, SEED_1, SEED_2, SEED_2, s3=True),
    Kind(
        "S3: two splits, other chunks",
        False,
        (*SPLIT, *SEED_1, *CHUNK_40),
        (*SPLIT, *SEED_1, *CHUNK_100),
        (*SPLIT, *SEED_1),
        s3=True,
    ),
)


@dataclass
class Tally:
    """The outcomes of the pairs of one kind; `wrong` describes each fault."""

    tried: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Races:
    """The processes, raw data and lakes of one invocation. `lib`: where the processes find the package."""

    def __init__(self, folder: Path, lib: Path, server: S3Server | None) -> None:
        self.folder, self.lib, self.server = folder, lib, server
        self._alone: dict[tuple[bool, tuple[str, ...]], dict[str, list[str]]] = {}
        self._made: Path | None = None
        self._lakes = 0
        self.raw, self.late = folder / "mpd", folder / "late"
        self._generate()

    def _generate(self) -> None:
        whole = self.folder / "whole"
        generate(whole, PLAYLISTS, seed=7, coverage=0.9, processes=1)
        playlists = json.loads(next(whole.glob("*.json")).read_text())["playlists"]
        for place in (self.raw, self.late):
            place.mkdir()
        for start in range(0, PLAYLISTS, SLICE):
            name = f"mpd.slice.{start}-{start + SLICE - 1}.json"
            write_slice(self.late / name, playlists[start : start + SLICE])
            if start < PLAYLISTS - LATE * SLICE:
                shutil.copy2(self.late / name, self.raw / name)
        (whole / "features").rename(self.folder / "features")

    # processes -----------------------------------------------------------------------------------------------------

    def start(self, lake: str, raw: Path, arguments: Sequence[str], *, locked: bool = True) -> subprocess.Popen[str]:
        """Start `encore run` with these arguments in a separate process."""
        self._lakes += 1
        own = self.folder / "processes" / str(self._lakes)
        own.mkdir(parents=True)
        settings = [
            f"lake.path={lake}",
            f"raw.playlists={raw}",
            f"raw.features={self.folder / 'features'}",
            f"tracking.uri=sqlite:///{own}/mlflow.db",
            f"tracking.artifacts={own}/artifacts",
            f"report.path={own}/report",
            "recommend.k=20",
            "spark.master=local[2]",
            "spark.driver_memory=1g",
            "log.level=error",
            f"spark.settings={{spark.driver.extraJavaOptions: {FAST_JVM!r}, spark.ui.enabled: 'false', "
            "spark.driver.host: 127.0.0.1, spark.driver.bindAddress: 127.0.0.1}",
            *(["s3.path_style=true"] if self.server else []),
        ]
        code = (WITHOUT_JARS if self.server else "") + ("" if locked else UNLOCKED) + MAIN
        environment = {**os.environ, "PYTHONPATH": str(self.lib), "ENCORE_CONF_DIR": str(ROOT / "conf")}
        environment |= self.server.environment() if self.server else {}
        command = [sys.executable, "-c", code, "run", *_set(*settings), *arguments]
        return subprocess.Popen(
            command, cwd=own, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, lake: str, raw: Path, arguments: Sequence[str], *, locked: bool = True) -> tuple[int, str]:
        """As `start`, but wait until it ends; returns the exit code and the output."""
        process = self.start(lake, raw, arguments, locked=locked)
        said, _ = process.communicate(timeout=600)
        return process.returncode, said

    def must(self, lake: str, raw: Path, arguments: Sequence[str], *, locked: bool = True) -> None:
        """As `run`, but raise RuntimeError unless the exit code is 0."""
        code, said = self.run(lake, raw, arguments, locked=locked)
        if code:
            raise RuntimeError(f"a run that was alone ended with {code}: {said}")

    # lakes ---------------------------------------------------------------------------------------------------------

    def new_lake(self, kind: Kind) -> str:
        """An empty lake, or a copy of the lake of an earlier run."""
        name = f"lake-{time.monotonic_ns()}"
        local = self.folder / name
        if not kind.first:
            shutil.copytree(self.made(), local)
        if not kind.s3:
            return str(local)
        assert self.server is not None
        self.server.client().create_bucket(Bucket=name)
        if not kind.first:
            self.server.upload(local, name, "lake/")
        return f"s3://{name}/lake"

    def made(self) -> Path:
        """A lake of the slices that arrived first."""
        if self._made is None:
            self._made = self.folder / "made"
            self.must(str(self._made), self.raw, ())
        return self._made

    def local(self, lake: str) -> Path:
        """A lake as a local folder: one in S3 is copied."""
        if not lake.startswith("s3://"):
            return Path(lake)
        assert self.server is not None
        bucket = lake.split("/")[2]
        target = self.folder / "downloaded" / bucket
        shutil.rmtree(target, ignore_errors=True)
        self.server.download(bucket, "lake/", target)
        return target / "lake"

    def alone(self, kind: Kind) -> dict[str, list[str]]:
        """The rows after an undisturbed run with the kind's settings."""
        asked = (kind.first, kind.alone)
        if asked not in self._alone:
            lake = self.new_lake(Kind("alone", kind.first, (), ()))
            self.must(lake, self.late, kind.alone)
            self._alone[asked] = contents(Path(lake))
        return self._alone[asked]

    # pairs ---------------------------------------------------------------------------------------------------------

    def pair(self, kind: Kind, tally: Tally, *, locked: bool) -> None:
        """Race once, and record the outcome."""
        expected, lake = self.alone(kind), self.new_lake(kind)
        tally.tried += 1
        both = [self.start(lake, self.late, arguments, locked=locked) for arguments in (kind.one, kind.other)]
        said = [process.communicate(timeout=600)[0] for process in both]
        found = set()
        for process, text, arguments in zip(both, said, (kind.one, kind.other), strict=True):
            if process.returncode == TRANSIENT:
                tally.counts["refused"] += 1
                code, text = self.run(lake, self.late, arguments, locked=locked)
                if code:
                    found.add("failed")
                    tally.wrong.append(f"{kind.name}: a run that was refused ended with {code}: {text}")
            elif process.returncode:
                found.add("failed")
                tally.wrong.append(f"{kind.name}: exit code {process.returncode}: {text}")
        local = self.local(lake)
        if problems := damage(local):
            tally.wrong += [f"{kind.name}: {problem}" for problem in problems]
            found |= {"doubled"} if any("repeat" in problem for problem in problems) else {"mixed"}
        else:
            # however the runs were interleaved, after the next run the tables must be as if there had been no race
            code, text = self.run(lake, self.late, kind.alone, locked=locked)
            if code:
                found.add("failed")
                tally.wrong.append(f"{kind.name}: the run after the race ended with {code}: {text}")
            else:
                found |= self._differences(kind, expected, contents(self.local(lake)), tally)
        tally.counts.update(found)

    def _differences(
        self, kind: Kind, expected: dict[str, list[str]], left: dict[str, list[str]], tally: Tally
    ) -> set[str]:
        found = set()
        for name, rows in expected.items():
            ours, theirs = Counter(rows), Counter(left.get(name, []))
            if ours == theirs:
                continue
            tally.wrong.append(f"{kind.name}: {name}: {theirs.total()} rows, {len(rows)} expected")
            if any(theirs[row] > n for row, n in ours.items()):
                found.add("doubled")
            elif theirs.total() < len(rows):
                found.add("lost")
            else:
                found.add("mixed")
        return found


def contents(lake: Path) -> dict[str, list[str]]:
    """The rows of every existing table, as in `recompute.contents`."""
    there = [table for table in ALL if table not in recompute.EVENTS and (lake / table.name / "_delta_log").is_dir()]
    return {table.name: recompute.rows_of(lake, table) for table in there}


def damage(lake: Path) -> list[str]:
    """The problems that `encore doctor --lake` finds in a folder."""
    tables = Tables(load_config("local", [f"lake.path={lake}"]))
    return [f"{found.what}: {found.fact}" for found in inspect(tables) if found.remedy is not None]


@contextmanager
def races(folder: Path | None = None, lib: Path = ROOT / "lib", *, s3: bool = True) -> Iterator[Races]:
    """Races in the given folder, or in a temporary one that is removed at the end."""
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="encore-races-")))
        place.mkdir(parents=True, exist_ok=True)
        yield Races(place, lib, stack.enter_context(s3_server()) if s3 else None)


def table(tallies: dict[tuple[str, bool], Tally]) -> str:
    """The tallies as a Markdown table."""
    columns = ("lost", "doubled", "mixed", "failed", "refused")
    lines = ["| kind | lock | tried | lost | doubled | mixed | failed | refused (75) |", "|---|---|" + "---:|" * 6]
    for (name, locked), tally in tallies.items():
        cells = [name, "yes" if locked else "no", str(tally.tried), *(str(tally.counts[c]) for c in columns)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Race as specified on the command line; 1 if any rows were doubled, lost or mixed, or a run failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20, help="pairs of all kinds together, with and without the lock")
    parser.add_argument("--kind", action="append", default=[], help="only kinds whose name begins so; may be repeated")
    parser.add_argument("--lock", choices=("with", "without", "both"), default="both")
    parser.add_argument("--folder", type=Path, help="where lakes and data go; default: a folder that is removed")
    parser.add_argument("--lib", type=Path, default=ROOT / "lib", help="the package that the racing processes use")
    asked = parser.parse_args()
    kinds = [kind for kind in KINDS if not asked.kind or any(kind.name.startswith(name) for name in asked.kind)]
    locks = {"with": [True], "without": [False], "both": [True, False]}[asked.lock]
    turns = [(kind, locked) for locked in locks for kind in kinds]
    tallies: dict[tuple[str, bool], Tally] = {}
    with races(asked.folder, asked.lib, s3=any(kind.s3 for kind in kinds)) as made:
        for i in range(asked.pairs):
            kind, locked = turns[i % len(turns)]
            tally = tallies.setdefault((kind.name, locked), Tally())
            before = len(tally.wrong)
            made.pair(kind, tally, locked=locked)
            said = "; ".join(tally.wrong[before:]) or "well"
            sys.stderr.write(f"{i + 1}/{asked.pairs} {kind.name}{'' if locked else ', no lock'}: {said}\n")
    sys.stdout.write(table(tallies) + "\n")
    return int(any(tally.wrong for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
