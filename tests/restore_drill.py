"""A restore drill: a lake on an S3 server is damaged in several ways and brought back with the runbooks' commands.

`python -m tests.restore_drill`, or `make restore-drill`, prints what happens and how long it takes. After each loss,
`encore doctor --lake` finds nothing, every table has the rows that it had, and `encore run` has nothing to do.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from encore.config import Config, load_config
from encore.lake.store import Store, open_store
from encore.lake.tables import ALL, PLAYLISTS, RECOMMENDATIONS, Table, arrow_schema
from encore.runtime.pipeline import plan, run_pipeline
from encore.synthetic.generate import generate
from tests.local_spark import LocalSession
from tests.s3server import S3Server, s3_server

LAKE, VAULT = "encore-lake", "encore-backup"
MODELS = "recommend.models=[cosine,popularity,random]"

ENCORE = (sys.executable, "-c", "from encore.cli.entry import main; main()")

Say = Callable[[str], None]


@dataclass
class Drill:
    """A lake in a bucket of an S3 server, and the seconds that each step took. `folder` has the input and MLflow."""

    server: S3Server
    folder: Path
    playlists: int
    say: Say
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def settings(self) -> list[str]:
        """The settings of every command."""
        return [
            f"lake.path=s3://{LAKE}/lake",
            "s3.path_style=true",
            f"raw.playlists={self.folder}/mpd",
            f"raw.features={self.folder}/mpd/features",
            f"tracking.uri=sqlite:///{self.folder}/mlflow.db",
            f"tracking.artifacts={self.folder}/artifacts",
            f"report.path={self.folder}/report",
            "recommend.k=100",
            MODELS,
            "log.level=error",
        ]

    @property
    def config(self) -> Config:
        """The configuration of every command."""
        return load_config("local", self.settings)

    def encore(self, *arguments: str, code: int = 0) -> str:
        """Run a command on the lake, and return what it prints. Raises RuntimeError for another exit code."""
        given = [word for setting in self.settings for word in ("--set", setting)]
        command = [*ENCORE, *arguments, *given]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "160"}
        )
        if done.returncode != code:
            raise RuntimeError(
                f"encore {' '.join(arguments)}: exit code {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Measure a step and print how long it took."""
        began = time.monotonic()
        yield
        self.seconds[what] = time.monotonic() - began
        self.say(f"  {self.seconds[what]:6.1f} s  {what}")

    def make(self) -> None:
        """Generate playlists, run the jobs on a local lake, in this process, and move that to the bucket."""
        lake = f"{self.folder}/lake"
        generate(self.folder / "mpd", self.playlists, seed=42, coverage=0.9)
        config = load_config("local", [*self.settings, f"lake.path={lake}"])
        run_pipeline(config, plan(last="evaluate"), session=LocalSession(config, self.folder / "sent"))
        for bucket in (LAKE, VAULT):
            self.server.client().create_bucket(Bucket=bucket)
        self.server.upload(Path(lake), LAKE, "lake/")

    def rows(self) -> dict[str, str]:
        """A digest of the rows of each table."""
        store = open_store(self.config)
        return {table.name: _digest(store, table) for table in ALL if store.exists(table)}

    def damage(self) -> list[str]:
        """What `encore doctor --lake` finds."""
        out = self.encore("doctor", "--lake")
        return [line for line in out.splitlines() if line.startswith("FAIL")]

    def check(self, rows: dict[str, str]) -> None:
        """Raise RuntimeError unless the lake is intact, has these rows, and is up to date."""
        with self.timed("encore doctor --lake finds nothing"):
            found = self.damage()
        now = self.rows()
        others = [name for name in rows if now.get(name) != rows[name]]
        if found or others:
            raise RuntimeError(f"not restored: {found}; other rows: {others}")
        with self.timed("encore run has nothing to do"):
            out = self.encore("run", "--to", "evaluate")
        if "Nothing to do" not in out:
            raise RuntimeError(f"the jobs ran again: {out}")

    def objects(self, prefix: str) -> list[dict[str, Any]]:
        """The objects of the lake under a prefix."""
        pages = self.server.client().get_paginator("list_objects_v2").paginate(Bucket=LAKE, Prefix=prefix)
        return [item for page in pages for item in page.get("Contents", ())]

    def table(self, table: Table) -> DeltaTable:
        """A table as another program opens it."""
        store = Store(self.config, lambda: None)  # type: ignore[arg-type, return-value]
        return store.there(table)


def _digest(store: Store, table: Table) -> str:
    rows = store.read_small(table).cast(arrow_schema(table))
    ordered = rows.sort_by([(name, "ascending") for name in table.key]).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, ordered.schema) as writer:
        writer.write_table(ordered)
    return hashlib.sha256(sink.getvalue()).hexdigest()


def run(playlists: int, say: Say) -> Drill:
    """Run the whole drill. Raises RuntimeError at the first step that does not do what it should."""
    with s3_server() as server, tempfile.TemporaryDirectory(prefix="encore-drill-") as name:
        before = {key: os.environ.get(key) for key in server.environment()}
        os.environ.update(server.environment())
        try:
            drill = Drill(server, Path(name), playlists, say)
            _steps(drill)
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value
    return drill


def _steps(drill: Drill) -> None:
    vault = f"s3://{VAULT}/encore"
    say = drill.say
    say(f"A lake of {drill.playlists:,} generated playlists")
    with drill.timed("generate, run all jobs, upload"):
        drill.make()
    objects = drill.objects("lake/")
    say(f"  {len(objects):,} objects, {sum(item['Size'] for item in objects) / 1e6:,.1f} MB")
    rows = drill.rows()

    say("Back it up, twice: the second backup copies what is new")
    with drill.timed("encore backup create"):
        drill.encore("backup", "create", vault)
    with drill.timed("encore backup create, again"):
        said = drill.encore("backup", "create", vault)
    if "0 new files" not in said:
        raise RuntimeError(f"the second backup copied files again: {said}")
    with drill.timed("encore backup verify"):
        drill.encore("backup", "verify", vault)

    say("Objects are deleted: a third of the data files, and the first entry of each log")
    keys = [item["Key"] for item in objects if item["Key"].endswith((".parquet", f"{0:020d}.json", ".npy"))]
    lost = sorted(random.Random(1).sample(keys, max(3, len(keys) // 3)))
    for key in lost:
        drill.server.client().delete_object(Bucket=LAKE, Key=key)
    drill.encore("doctor", "--lake", code=5)
    with drill.timed(f"encore backup restore: {len(lost)} objects"):
        drill.encore("backup", "restore", vault)
    drill.check(rows)

    say("Another program overwrites two tables")
    good = {table: drill.table(table).version() for table in (PLAYLISTS, RECOMMENDATIONS)}
    for table in good:
        drill.table(table).delete()
    for table, version in good.items():
        with drill.timed(f"encore restore {table.name} --version {version}"):
            drill.encore("restore", table.name, "--version", str(version))
    drill.check(rows)

    say("The bucket is lost")
    client = drill.server.client()
    for item in drill.objects(""):
        client.delete_object(Bucket=LAKE, Key=item["Key"])
    client.delete_bucket(Bucket=LAKE)
    client.create_bucket(Bucket=LAKE)
    with drill.timed("encore backup restore: the whole lake"):
        drill.encore("backup", "restore", vault)
    drill.check(rows)
    say("The lake has the rows that it had, and nothing is stale.")


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--playlists", type=int, default=2000)
    run(parser.parse_args().playlists, _print)


if __name__ == "__main__":
    main()
