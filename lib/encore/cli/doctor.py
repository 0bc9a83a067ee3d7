"""Checks whether everything that Encore needs is available. Each finding is a fact, with a remedy for a problem."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import boto3
import psutil
from botocore.exceptions import BotoCoreError
from rich.console import Console
from rich.markup import escape

from encore.cli.show import size
from encore.config import Config
from encore.errors import EncoreError
from encore.findings import Finding
from encore.lake.delta import Tables
from encore.lake.filesystem import SourceFile, is_s3, list_files, split_s3
from encore.lake.inspection import inspect
from encore.lake.store import Store
from encore.lake.tables import ALL
from encore.mpd.listed import listed_files
from encore.mpd.sources import find_slices
from encore.runtime.tracking import Tracking
from encore.spark.session import find_java, jars_folder

LEAST_MEMORY = 4e9
LEAST_DISK = 5e9


def findings(config: Config) -> Iterator[Finding]:
    """Check everything, in the order in which a run would need it."""
    yield _python()
    yield _java()
    yield from _jars(config)
    memory = psutil.virtual_memory()
    yield Finding(
        "memory",
        f"{size(memory.available)} of {size(memory.total)} free",
        None
        if memory.available >= LEAST_MEMORY
        else "free some, or lower spark.driver_memory and recommend.query_block",
        warning=True,
    )
    yield from _disk(config)
    yield from _credentials(config)
    yield _input("slices", "raw.playlists", config.raw.playlists, lambda place: _slices(place, config))
    if config.features.provider == "file":
        yield _input("features", "raw.features", config.raw.features, lambda place: list_files(place, "*", config.s3))
    if config.raw.tracks is not None:
        yield _input("tracks", "raw.tracks", config.raw.tracks, lambda place: listed_files(place, config.s3))
    yield _lake(config)
    tracking = Tracking(config, "doctor")
    failed = tracking.check()
    yield Finding(
        "MLflow",
        f"{tracking.place} answers" if failed is None else f"{tracking.place}: {failed}",
        None
        if failed is None
        else "check tracking.uri (MLFLOW_TRACKING_URI) or tracking.login, and that the server runs",
        warning=True,
    )


def lake_findings(config: Config) -> Iterator[Finding]:
    """Check every table of the lake. LakeError if it has no tables."""
    return inspect(Tables(config))


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    right = sys.version_info[:2] == (3, 11)
    return Finding("Python", f"{version}, {sys.executable}", None if right else "use Python 3.11, as the cluster does")


def _java() -> Finding:
    java = find_java()
    remedy = "install Java 17 and put it on the PATH or in JAVA_HOME"
    if java is None:
        home = os.environ.get("JAVA_HOME")
        return Finding("Java", "none found" + (f"; JAVA_HOME is {home}" if home else ""), remedy)
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("Java", f"{java} does not run: {error}", remedy)
    found = re.search(r'version "(\d+)[^"]*"', done.stderr)
    right = found is not None and found.group(1) in ("17", "21")
    return Finding("Java", f"{found.group(0) if found else 'unknown version'}, {java}", None if right else remedy)


def _jars(config: Config) -> Iterator[Finding]:
    folder = jars_folder()
    if find_spec("pyspark") is None or folder is None:
        yield Finding("Spark", "pyspark is not installed", "call `make setup`, or install encore[spark]")
        return
    delta = sorted(path.name for path in folder.glob("delta-spark*.jar"))
    yield Finding("Delta jars", ", ".join(delta) or f"none in {folder}", None if delta else "call `make setup`")
    if is_s3(config.lake.path):
        found = sorted(path.name for path in folder.glob("hadoop-aws*.jar"))
        yield Finding("S3 jars", ", ".join(found) or f"none in {folder}", None if found else "call `make s3`")


def _disk(config: Config) -> Iterator[Finding]:
    places = {"scratch": os.environ.get("SPARK_LOCAL_DIRS", "/tmp").split(",")[0]}
    if not is_s3(config.lake.path):
        places["lake"] = config.lake.path
    for what, place in places.items():
        path = Path(place).absolute()
        while not path.exists():
            path = path.parent
        free = shutil.disk_usage(path).free
        yield Finding(
            f"disk ({what})",
            f"{size(free)} free at {path}",
            None if free >= LEAST_DISK else "free some: a run needs up to three times the size of its slices",
            warning=True,
        )


def _credentials(config: Config) -> Iterator[Finding]:
    if any(is_s3(place) for place in (config.lake.path, config.raw.playlists, config.raw.features or "")):
        try:
            found = boto3.Session().get_credentials()
        except BotoCoreError as error:
            yield Finding("AWS credentials", str(error), "fix the profile in AWS_PROFILE")
            return
        yield Finding(
            "AWS credentials",
            f"found by {found.method}" if found else "none found",
            None if found else "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        )
    if config.features.provider == "spotify":
        missing = [n for n in ("SPOTIPY_CLIENT_ID", "SPOTIPY_CLIENT_SECRET") if not os.environ.get(n)]
        yield Finding(
            "Spotify credentials",
            "set" if not missing else f"{' and '.join(missing)} not set",
            None if not missing else "set them, or choose features.provider=reccobeats or file",
        )


def _slices(place: str, config: Config) -> list[SourceFile]:
    return find_slices(place, config.raw.features, config.s3, config.raw.tracks).slices


def _input(what: str, name: str, place: str | None, listed: Callable[[str], list[SourceFile]]) -> Finding:
    if place is None:
        return Finding(what, f"{name} is not set", f"set {name}", warning=True)
    try:
        found = listed(place)
    except EncoreError as error:
        return Finding(what, str(error), error.remedy or f"set {name}, or call `encore generate`", warning=True)
    total = size(sum(file.size for file in found))
    return Finding(what, f"{len(found):,} files, {total}, at {place}", None if found else f"set {name}", warning=True)


def _lake(config: Config) -> Finding:
    store = Store(config, _unused)
    try:
        store.check_writable()
        there = [table.name for table in ALL if store.exists(table)]
    except EncoreError as error:
        remedy = error.remedy or (
            "check the bucket: " + split_s3(config.lake.path)[0] if is_s3(config.lake.path) else ""
        )
        return Finding("lake", str(error), remedy or "choose another lake.path")
    return Finding("lake", f"{config.lake.path}: {len(there)} tables" if there else f"{config.lake.path}: empty")


def _unused() -> None:
    raise AssertionError("the doctor starts no Spark session")


def print_findings(found: Iterable[Finding], out: Console) -> bool:
    """Print each finding as soon as it is made. Returns False if any of them is more than a warning."""
    well = True
    for finding in found:
        sign = "[green]ok  [/]" if finding.remedy is None else "[yellow]warn[/]" if finding.warning else "[red]FAIL[/]"
        out.print(f"{sign}  {finding.what:20} {escape(finding.fact)}", highlight=False)
        if finding.remedy is not None:
            out.print(f"      {'':20} {escape(finding.remedy)}", highlight=False)
            well = well and finding.warning
    return well
