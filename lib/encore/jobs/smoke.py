"""Check that a job can run here: interpreter, packages, credentials, lake and MLflow, on the driver and an executor.

Not a job of the pipeline. On AWS it is the first state of the state machine and the last step of a deployment: it fails
within minutes, and names what is missing, where a job would fail after an hour.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import time
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path
from typing import Any

import pyarrow as pa
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import encore
from encore.arrays.track_keys import load_loops
from encore.config import Config
from encore.errors import EnvironmentMissing
from encore.lake import probe
from encore.lake.credentials import aws_identity
from encore.lake.delta import Tables
from encore.lake.filesystem import is_s3
from encore.runtime.context import JobContext
from encore.spark.tasks import run_tasks

READS = ()
WRITES = ()
SETTINGS = ()

CONTENTS = "encore-packages.json"
"""File of the application archive that lists its distributions (deploy/package.py)."""

_REBUILD = "build the application archive again with `make package`, and deploy it"


def state(ctx: JobContext) -> str:
    """The run's id: every run checks again."""
    return ctx.run_id


def run(ctx: JobContext) -> None:
    """Check everything, and log what was found.

    Raises EnvironmentMissing for a missing or broken package or missing credentials, LakeError if the lake does not
    behave as expected. An MLflow that does not respond is only a warning, as for every job.
    """
    # what the application archive has in addition
    extra = "emr" if ctx.config.env == "emr" else ""
    ctx.facts["driver"] = describe(extra)
    identity = aws_identity(ctx.config.s3) if is_s3(ctx.store.root) else None
    if identity is not None:
        ctx.facts["identity"] = identity
    with probe.probe_folder(ctx.store, ctx.run_id) as folder:
        url = probe.write_object(ctx.store, folder)
        probe.read_object(ctx.store, url)
        (answer,) = run_tasks(ctx.spark, [url], partial(_on_executor, ctx.config, extra))
        ctx.facts["executor"] = json.loads(answer["facts"][0].as_py())
        probe.delete_object(ctx.store, url)
        probe.try_delta(ctx.store, folder)
    ctx.facts["mlflow"] = "responds" if ctx.tracking.parent() is not None else f"failed: {ctx.tracking.failed}"
    ctx.log.info("smoke", **ctx.facts)


def _on_executor(config: Config, extra: str, url: str) -> pa.Table:
    """The task: describe the executor's process, and read with boto3 what the driver wrote."""
    found = describe(extra)
    probe.read_object(Tables(config), url)
    return pa.table({"facts": [json.dumps(found)]})


def describe(extra: str = "") -> dict[str, Any]:
    """Describe this process's interpreter, import all packages and compile some loops.

    EnvironmentMissing if one is missing, has another version than required, or cannot be imported.
    """
    needed = archived_distributions() or _installed_distributions(extra)
    for name, modules in needed.items():
        for module in modules:
            try:
                import_module(module)
            except (ImportError, OSError) as error:
                raise EnvironmentMissing(
                    f"{name} {version(name)}: {module} cannot be imported by {sys.executable}: {error}",
                    remedy=_REBUILD,
                ) from error
    began = time.monotonic()
    load_loops()
    return {
        "host": socket.gethostname(),
        "python": sys.executable,
        "version": platform.python_version(),
        "libc": os.confstr("CS_GNU_LIBC_VERSION") if sys.platform == "linux" else platform.platform(),
        "packages": len(needed),
        "compile_seconds": round(time.monotonic() - began, 3),
    }


def archived_distributions() -> dict[str, list[str]]:
    """The modules of each distribution in the application archive, as listed when it was built; empty elsewhere.

    EnvironmentMissing if one is missing, or of another version.
    """
    listed = Path(encore.__file__).parents[1] / CONTENTS
    if not listed.is_file():
        return {}
    found = {}
    for name, one in json.loads(listed.read_text()).items():
        installed = _version(name, "the application archive")
        if installed != one["version"]:
            raise EnvironmentMissing(
                f"{name}: the application archive has {one['version']}, {installed} was found", remedy=_REBUILD
            )
        found[name] = list(one["modules"])
    return found


def _installed_distributions(extra: str) -> dict[str, list[str]]:
    """The modules of each distribution that Encore requires."""
    modules: dict[str, list[str]] = {}
    for module, owners in packages_distributions().items():
        for owner in owners:
            # private modules are imported by the public ones; some distributions declare one that they do not have
            if not module.startswith("_"):
                modules.setdefault(canonicalize_name(owner), []).append(module)
    return {name: sorted(modules.get(canonicalize_name(name), ())) for name in required_distributions(extra)}


def _version(name: str, owner: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError as error:
        raise EnvironmentMissing(f"{name}: not installed, but {owner} requires it", remedy=_REBUILD) from error


def required_distributions(extra: str = "") -> list[str]:
    """The names of all distributions that Encore requires, directly or not, with one of its extras.

    EnvironmentMissing if one is not installed, or in another version than required.
    """
    found: set[str] = set()
    todo = [("encore", frozenset([extra]))]
    seen = set(todo)
    while todo:
        owner, extras = todo.pop()
        for text in requires(owner) or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": one}) for one in {*extras, ""}):
                continue
            name = canonicalize_name(requirement.name)
            installed = _version(name, owner)
            if not requirement.specifier.contains(installed, prereleases=True):
                raise EnvironmentMissing(
                    f"{name}: {owner} requires {requirement.specifier}, {installed} is installed", remedy=_REBUILD
                )
            found.add(name)
            part = (str(name), frozenset(requirement.extras))
            if part not in seen:
                seen.add(part)
                todo.append(part)
    return sorted(found)
