"""Arrays in files that a driver and its executors share: .npy files in a local folder or under an s3:// prefix."""

from __future__ import annotations

import io
import os
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from encore.arrays.jit import file_lock
from encore.arrays.mapped import open_mapped
from encore.config import S3Config
from encore.errors import LakeError
from encore.lake.failures import os_error
from encore.lake.filesystem import delete_files, file_sizes, is_s3, read_bytes, write_bytes


@dataclass(frozen=True)
class ArrayFiles:
    """The files of a folder. Picklable. A file is there completely or not at all, even if its writer is killed."""

    folder: str
    s3: S3Config

    def names(self) -> set[str]:
        """The names of all files."""
        return set(file_sizes(self.folder, self.s3))

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Write an array to <name>.npy."""
        packed = io.BytesIO()
        np.save(packed, array, allow_pickle=False)
        self.write_bytes(f"{name}.npy", packed.getbuffer())

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Write a file. Errors name its URL."""
        url = f"{self.folder}/{name}"
        if is_s3(url):
            write_bytes(url, data, self.s3)
            return
        partial = f"{url}.{uuid.uuid4().hex[:8]}.partial"
        write_bytes(partial, data, self.s3)
        os.replace(partial, url)

    def read_bytes(self, name: str) -> bytes:
        """The content of a file."""
        return read_bytes(f"{self.folder}/{name}", self.s3)

    def read(self, name: str) -> NDArray[Any]:
        """The array in <name>.npy, read-only; memory-mapped in a local folder."""
        if is_s3(self.folder):
            return np.load(io.BytesIO(self.read_bytes(f"{name}.npy")), allow_pickle=False)  # type: ignore[no-any-return]
        return _mapped(Path(self.folder) / f"{name}.npy")

    def concatenated(self, name: str, parts: Sequence[str], shape: tuple[int, int]) -> NDArray[np.float32]:
        """The rows of the float32 arrays `parts`, `shape` in all, memory-mapped from one local file.

        All processes of a machine share the file, which the first of them makes: in the folder itself if that is local,
        otherwise in the system's temporary directory. Raises LakeError if the parts have another number of rows.
        """
        path = self._local() / f"{name}.npy"
        with file_lock(path.with_suffix(".lock")):
            if not path.is_file():
                partial = path.with_suffix(f".{uuid.uuid4().hex[:8]}.partial")
                try:
                    self._concatenate(partial, name, parts, shape)
                    os.replace(partial, path)
                finally:
                    partial.unlink(missing_ok=True)
        return _mapped(path)

    def _concatenate(self, path: Path, name: str, parts: Sequence[str], shape: tuple[int, int]) -> None:
        if not shape[0] * shape[1]:
            with open(path, "wb") as handle:
                np.save(handle, np.empty(shape, np.float32))
            return
        try:
            whole = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        except OSError as error:
            raise os_error(str(path), error) from error
        at = 0
        for part in parts:
            rows = self.read(part)
            whole[at : at + len(rows)] = rows
            at += len(rows)
        if at != shape[0]:
            raise LakeError(f"{self.folder}/{name}: expected {shape[0]} rows, found {at}", remedy="delete the folder")
        whole.flush()

    def delete(self, prefix: str) -> None:
        """Delete all files whose names start with a prefix, and their concatenations on this machine."""
        delete_files([f"{self.folder}/{name}" for name in self.names() if name.startswith(prefix)], self.s3)
        for path in self._local().glob(f"{prefix}*"):
            if path.is_file():
                path.unlink(missing_ok=True)

    def _local(self) -> Path:
        if not is_s3(self.folder):
            return Path(self.folder)
        folder = machine_cache() / f"{xxhash.xxh3_128_hexdigest(self.folder.encode())}-checkpoints"
        folder.mkdir(exist_ok=True)
        return folder


def machine_cache() -> Path:
    """The folder in which all processes of this user on this machine share copies of arrays in S3.

    Raises LakeError if it belongs to another user, who could have put anything there.
    """
    cache = Path(tempfile.gettempdir()) / f"encore-models-{os.getuid()}"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    if cache.stat().st_uid != os.getuid():
        raise LakeError(f"{cache} belongs to another user", remedy="set TMPDIR to a folder of your own")
    return cache


def _mapped(path: Path) -> NDArray[Any]:
    try:
        return open_mapped(path)
    except OSError as error:
        raise os_error(str(path), error) from error
