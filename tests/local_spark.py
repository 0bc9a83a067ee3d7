"""A fake Spark session that runs tasks in this process, one after the other.

Encore needs little from Spark: running Python tasks, and sending files to them. With this instead of a session, a whole
pipeline run on a few playlists takes a fraction of a second. It does not pickle, does not retry, and has no SQL.
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
    """A fake `Session`; `folder` is for the files that are sent to tasks."""

    def __init__(self, config: Config, folder: Path) -> None:
        super().__init__(config)
        self._local: Any = LocalSpark(folder)

    def __call__(self) -> Any:
        """The fake Spark session."""
        return self._local

    @property
    def started(self) -> bool:
        """Always False, because there are no Spark stages to measure."""
        return False


class LocalSpark:
    """The subset of SparkSession that Encore uses."""

    def __init__(self, folder: Path) -> None:
        self.sparkContext = LocalContext(folder)


class LocalContext:
    """The subset of SparkContext that Encore uses."""

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
        """One task per part."""
        return LocalParts(parts, self._folder)

    def getConf(self) -> dict[str, str]:
        """No settings."""
        return {}

    def accumulator(self, value: Any, param: Any) -> LocalAccumulator:
        """A value that tasks add to."""
        return LocalAccumulator(value, param)

    def addJobTag(self, tag: str) -> None:
        """Tag jobs for cancellation: does nothing, because no job can be running when cancellation is requested."""

    removeJobTag = cancelJobsWithTag = addJobTag

    def statusTracker(self) -> LocalContext:
        """For progress: see getActiveStageIds."""
        return self

    def getActiveStageIds(self) -> list[int]:
        """Always empty."""
        return []


class LocalAccumulator:
    """The subset of Accumulator that Encore uses."""

    def __init__(self, value: Any, param: Any) -> None:
        self.value, self._param = value, param

    def add(self, term: Any) -> None:
        """Add to the value."""
        self.value = self._param.addInPlace(self.value, term)


class LocalParts:
    """The subset of RDD that Encore uses."""

    def __init__(self, parts: list[Any], folder: Path) -> None:
        self._parts, self._folder = parts, folder

    def mapPartitions(self, work: Callable[[Iterable[Any]], Iterator[bytes]]) -> LocalParts:
        """Run `work` as one task per part."""
        self._work = work
        return self

    def collect(self) -> list[bytes]:
        """Run the tasks, with access to the files that were sent to them."""
        from pyspark import SparkFiles

        before = SparkFiles._root_directory, SparkFiles._is_running_on_worker
        SparkFiles._root_directory, SparkFiles._is_running_on_worker = os.fspath(self._folder), True
        try:
            return [answer for part in self._parts for answer in self._work([part])]
        finally:
            SparkFiles._root_directory, SparkFiles._is_running_on_worker = before
