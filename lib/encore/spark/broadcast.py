"""Arrays for all workers: sent to each executor once as files, and memory-mapped there instead of copied per worker."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from encore import temporary
from encore.arrays.mapped import open_mapped

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True)
class BroadcastArrays:
    """A picklable handle to arrays that were sent to the executors: name and file of each."""

    files: tuple[tuple[str, str], ...]

    def open(self) -> dict[str, NDArray[Any]]:
        """The arrays, read-only and memory-mapped. Call this on a worker."""
        return dict(_mapped(self.files))


@lru_cache(maxsize=8)
def _mapped(files: tuple[tuple[str, str], ...]) -> dict[str, NDArray[Any]]:
    from pyspark import SparkFiles

    return {name: open_mapped(SparkFiles.get(file)) for name, file in files}


def ship(spark: SparkSession, arrays: dict[str, NDArray[Any]]) -> BroadcastArrays:
    """Send arrays to every executor. Files are named by content, so sending the same array again is free."""
    files = []
    for name, array in arrays.items():
        packed = np.ascontiguousarray(array)
        digest = xxhash.xxh3_128(packed.reshape(-1).view(np.uint8).data if packed.size else b"")
        digest.update(f"{packed.dtype.str}{packed.shape}".encode())
        file = f"encore-{digest.hexdigest()}.npy"
        if file not in _sent(spark):
            path = os.path.join(_outbox(), file)
            np.save(path, packed, allow_pickle=False)
            spark.sparkContext.addFile(path)
        files.append((name, file))
    return BroadcastArrays(tuple(files))


@lru_cache(maxsize=1)
def _outbox() -> str:
    """A folder that lives as long as this process, because executors may fetch a file from the driver at any time."""
    return temporary.new_folder("arrays")


def _sent(spark: SparkSession) -> set[str]:
    return {str(path).rsplit("/", 1)[-1] for path in spark.sparkContext.listFiles}
