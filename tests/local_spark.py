"""A stand-in for the Spark session that runs tasks in this process, one after the other.

Encore asks little of Spark: places to run Python tasks at, and files sent to them. With this in place of a session a
whole pipeline run on some playlists takes a fraction of a second. It pickles nothing, retries nothing and has no SQL.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from encore.config import Config
from encore.spark.session import Session


class LocalSession(Session):
    """In place of `Session`; `folder` is for the files that are sent to tasks."""

    def __init__(self, config: Config, folder: Path) -> None:
        super().__init__(config)
        self._local: Any = LocalSpark(folder)

    def __call__(self) -> Any:
        """The stand-in for the session."""
        return self._local

    @property
    def started(self) -> bool:
        """Never: there are no stages of Spark to count."""
        return False


class LocalSpark:
    """What Encore uses of a SparkSession."""

    def __init__(self, folder: Path) -> None:
        self.sparkContext = LocalContext(folder)


class LocalContext:
    """What Encore uses of a SparkContext."""

    defaultParallelism = 2
    master = "local[2]"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.listFiles: list[str] = []

    def addFile(self, path: str) -> None:
        """Send a file to the tasks."""
        shutil.copy(path, self._folder)
        self.listFiles.append(path)

    def parallelize(self, parts: list[Any], _: int) -> LocalParts:
        """Parts of which each is a task's."""
        return LocalParts(parts, self._folder)

    def getConf(self) -> dict[str, str]:
        """No setting."""
        return {}

    def accumulator(self, value: Any, param: Any) -> LocalAccumulator:
        """A value to which tasks add."""
        return LocalAccumulator(value, param)

    def addJobTag(self, tag: str) -> None:
        """Name the jobs that follow, so that they can be cancelled: none is at work when someone asks for that."""

    removeJobTag = cancelJobsWithTag = addJobTag

    def statusTracker(self) -> LocalContext:
        """Progress: see getActiveStageIds."""
        return self

    def getActiveStageIds(self) -> list[int]:
        """No stage is ever seen at work."""
        return []


class LocalAccumulator:
    """What Encore uses of an Accumulator."""

    def __init__(self, value: Any, param: Any) -> None:
        self.value, self._param = value, param

    def add(self, term: Any) -> None:
        """Add to the value."""
        self.value = self._param.addInPlace(self.value, term)


class LocalParts:
    """What Encore uses of an RDD."""

    def __init__(self, parts: list[Any], folder: Path) -> None:
        self._parts, self._folder = parts, folder

    def mapPartitions(self, work: Callable[[Iterable[Any]], Iterator[bytes]]) -> LocalParts:
        """A task each."""
        self._work = work
        return self

    def collect(self) -> list[bytes]:
        """Run the tasks, which find here what was sent to them."""
        from pyspark import SparkFiles

        before = SparkFiles._root_directory, SparkFiles._is_running_on_worker
        SparkFiles._root_directory, SparkFiles._is_running_on_worker = os.fspath(self._folder), True
        try:
            return [answer for part in self._parts for answer in self._work([part])]
        finally:
            SparkFiles._root_directory, SparkFiles._is_running_on_worker = before
