"""A drill of canaries: a good model is promoted, one that fails and one that is slow are rolled back.

`python -m tests.serving.drill`, or `make canary-drill`, prints what happens. All is as in production: MLflow's own
server, the scorer in a process of its own as its container starts it, users who ask it over HTTP, and canaries that the
command line starts. Only the steps of the ramp are shorter, and, for the good model, the interval of verdicts.

The bad models are bad by their data, not by code that only tests have. One has a catalogue with texts that are not
UTF-8: it is loaded and answers the golden request, which reads no names, and then fails whenever names are wanted. The
other was fitted with so many dimensions that it needs a fifth of a second for each playlist.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from rich.console import Console

from encore.cli import canary as command
from encore.config import Config, load_config
from encore.runtime.tracking import MLFLOW_SETTINGS
from encore.serving.bundle import MANIFEST, Manifest, described
from tests.serving.load import Load
from tests.serving.mlflow_server import mlflow_server, register
from tests.serving.process import Running, free_port, started
from tests.unit.recommenders.cases import CONFIG
from tests.unit.serving.bundles import new_bundle, small_bundle

MODEL = "ials"
NAME = f"encore-{MODEL}"
SLOW_DIMENSIONS = 1_200
OFF_SECONDS = 35.0
"""Within this time after it first could answer, a bad model must be off."""

Say = Callable[[str], None]


@lru_cache
def good_bundle() -> Path:
    """The same model with other settings."""
    return new_bundle(MODEL, CONFIG.model_copy(update={"ials": CONFIG.ials.model_copy(update={"iterations": 2})}))


@lru_cache
def failing_bundle() -> Path:
    """A bundle with the names of tracks in an encoding that is not UTF-8."""
    folder = Path(tempfile.mkdtemp()) / "failing"
    shutil.copytree(small_bundle(MODEL), folder)
    path = folder / "catalogue" / "name_bytes.npy"
    np.save(path, np.full_like(np.load(path), 0xE4))
    manifest = Manifest.read(folder)
    files = {**manifest.files, str(path.relative_to(folder)): described(path)}
    (folder / MANIFEST).write_bytes(replace(manifest, files=files).to_json())
    return folder


@lru_cache
def slow_bundle() -> Path:
    """A bundle of a model with far too many dimensions."""
    own = CONFIG.ials.model_copy(update={"dimensions": SLOW_DIMENSIONS, "iterations": 1})
    return new_bundle(MODEL, CONFIG.model_copy(update={"ials": own}))


@dataclass(frozen=True)
class Registry:
    """A registry with a champion, version 1, and further versions."""

    running: Running
    client: MlflowClient
    config: Config

    def start(self, version: str, steps: str) -> None:
        """`encore canary start`."""
        command.start(self.config, MODEL, int(version), steps, Console(file=io.StringIO()))

    def alias(self, alias: str) -> str | None:
        """The version of an alias."""
        found = self.client.get_registered_model(NAME).aliases.get(alias)
        return None if found is None else str(found)

    def tag(self, version: str, name: str) -> str:
        """A tag of a version, without its prefix."""
        return str(self.client.get_model_version(NAME, version).tags.get(f"encore.canary.{name}", ""))

    def status(self) -> str:
        """`encore canary status`."""
        out = Console(file=io.StringIO(), width=180)
        command.print_status(self.config, MODEL, as_json=False, out=out)
        return out.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@contextmanager
def registry(folder: Path, bundles: list[Path]) -> Iterator[Registry]:
    """MLflow's server with bundles as versions 1, 2, ... of a model, of which 1 is the champion."""
    with mlflow_server(folder) as running:
        client = MlflowClient(tracking_uri=running.url)
        for bundle in bundles:
            register(client, NAME, bundle, folder)
        client.set_registered_model_alias(NAME, "champion", "1")
        yield Registry(running, client, load_config("local", [f"tracking.uri={running.url}"]))


@contextmanager
def scorer(found: Registry, folder: Path, **settings: object) -> Iterator[Running]:
    """The scorer of the champion. `settings`: of encore.serving.settings."""
    port = free_port()
    given = {
        "model": f"models:/{NAME}@champion",
        "registry": found.running.url,
        "cache": folder / "cache",
        "port": port,
        **settings,
    }
    environment = {f"ENCORE_SERVE_{name.upper()}": str(value) for name, value in given.items()}
    with started([sys.executable, "-m", "encore.serving"], port, environment, log=folder / "log") as running:
        yield running


def models(running: Running) -> dict[str, Any]:
    """What the scorer says it serves."""
    connection = running.connection()
    try:
        connection.request("GET", "/api/models")
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found
    finally:
        connection.close()


@dataclass
class Outcome:
    """How a canary ended. `seconds`: from when its version first could answer until it answered no more, or was the
    champion; `steps`: the weights that it had."""

    champion: str
    seconds: float
    steps: list[float]


def watch(running: Running, version: str, say: Say, *, seconds: float = 120.0) -> Outcome:
    """Wait until the canary of a version has ended, and say what happens. Raises TimeoutError if it does not end."""
    began, first, weights, told = time.monotonic(), 0.0, [], ""
    while time.monotonic() - began < seconds:
        found = models(running)
        canary = found["canary"]
        roles = {one["version"]: one["role"] for one in found["models"]}
        if canary is not None and canary["version"] == version:
            if not first:
                first = time.monotonic()
            if canary["weight"] and canary["weight"] not in weights:
                weights.append(canary["weight"])
                say(f"version {version} answers {canary['weight']:.0%} of the users")
            verdict = canary["verdict"]
            if verdict is not None and verdict["reason"] != told:
                told = verdict["reason"]
                say(f"verdict: {verdict['decision'].replace('_', ' ')}: {told}")
        if first and roles.get(version) != "challenger":
            champion = next(name for name, role in roles.items() if role == "champion")
            seconds = time.monotonic() - first
            say(f"version {version} is " + ("the champion" if champion == version else "off"))
            return Outcome(champion, seconds, weights)
        time.sleep(0.05)
    raise TimeoutError(f"the canary of version {version} has not ended within {seconds:g} s: {found}")


def wait(holds: Callable[[], bool], what: str, *, seconds: float = 30.0) -> None:
    """Wait until something holds. Raises TimeoutError."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)


class Drill:
    """The three cases, on one registry."""

    def __init__(self, found: Registry, folder: Path, say: Say) -> None:
        self._registry, self._folder, self._say = found, folder, say

    def good(self) -> list[str]:
        """Version 2 is promoted. Returns what was not as it should be."""
        self._say("--- a good model, version 2, with a verdict every 3 s")
        quick = {"poll_seconds": 0.5, "canary_seconds": 3, "threads": 2}
        with scorer(self._registry, self._folder, **quick) as running, Load(running) as load:
            self._registry.start("2", "0.2:3,0.5:3")
            found = watch(running, "2", self._say)
            wait(lambda: self._registry.alias("challenger") is None, "the alias challenger is removed")
            time.sleep(1)
        self._say(f"{load.told.requests:,} requests, {len(load.told.failed)} failed")
        return _wrong(
            {
                "version 2 is the champion": (found.champion, self._registry.alias("champion")) == ("2", "2"),
                "version 1 is `previous`": self._registry.alias("previous") == "1",
                "the ramp was followed": found.steps == [0.2, 0.5],
                "no request failed": not load.told.failed,
            }
        )

    def bad(self, version: str, what: str, reason: str, seconds: float = 30.0) -> list[str]:
        """A version is rolled back in time, with verdicts at an interval. Returns what was not as it should be."""
        self._say(f"--- {what}, version {version}, with a verdict every {seconds:g} s")
        champion, limit = self._registry.alias("champion"), seconds + OFF_SECONDS - 30
        settings = {"poll_seconds": 2, "canary_seconds": seconds}
        with scorer(self._registry, self._folder, **settings) as running, Load(running) as load:
            self._registry.start(version, "0.2:300,0.5:300")
            found = watch(running, version, self._say)
            off_at = time.monotonic()
            wait(lambda: self._registry.tag(version, "state") == "rolled_back", "the registry says so")
            time.sleep(2)
        self._say(f"off after {found.seconds:.1f} s; {load.told.requests:,} requests, {len(load.told.failed)} failed")
        return _wrong(
            {
                f"it was off within {limit:g} s": found.seconds <= limit,
                "it answers nobody any more": load.told.last.get(version, 0.0) <= off_at,
                "the champion is the same": found.champion == champion == self._registry.alias("champion"),
                "the alias challenger is removed": self._registry.alias("challenger") is None,
                f"the reason is {reason!r}": self._registry.tag(version, "reason").startswith(reason),
                "no request failed": not load.told.failed,
            }
        )


def _wrong(expected: dict[str, bool]) -> list[str]:
    return [what for what, holds in expected.items() if not holds]


def main() -> int:
    """Run the drill; returns the exit code: 1 if something was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    os.environ.update(MLFLOW_SETTINGS)
    began = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(f"{time.monotonic() - began:6.1f} s  {text}\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say("fitting four models, starting MLflow's server")
        bundles = [small_bundle(MODEL), good_bundle(), failing_bundle(), slow_bundle()]
        with registry(folder / "mlflow", bundles) as found:
            drill = Drill(found, folder, say)
            wrong = drill.good()
            wrong += drill.bad("3", "a model that fails", "errors")
            wrong += drill.bad("4", "a slow model", "slow")
            sys.stdout.write(f"\n{found.status()}\n")
    for text in wrong:
        sys.stdout.write(f"not as it should be: {text}\n")
    say("all as it should be" if not wrong else f"{len(wrong)} things were not as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
