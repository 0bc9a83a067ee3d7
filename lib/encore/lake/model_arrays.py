"""Arrays of fitted models in the lake: <lake>/_models/<model>/<fingerprint>/<array>.npy and a manifest.

A folder is complete if it has its manifest, which is written last; a folder without one does not exist for readers.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from encore.arrays.jit import file_lock
from encore.arrays.mapped import open_mapped
from encore.config import Config, S3Config
from encore.errors import LakeError
from encore.lake.array_files import machine_cache
from encore.lake.failures import os_error
from encore.lake.filesystem import delete_folder, file_sizes, is_s3, read_bytes, write_bytes

FOLDER = "_models"
MANIFEST = "manifest.json"
TOKEN = "stored-by"
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Stored:
    """What is stored of a fitted model: the `digest` of all its arrays, their total `size` in bytes, and by name the
    type and shape of each, such as "float32 (1000, 64)"."""

    digest: str
    size: int
    arrays: dict[str, str]


@dataclass(frozen=True)
class ModelArrays:
    """The arrays of all fitted models of a lake, by model and fingerprint. Picklable: executors open them too."""

    lake: str
    s3: S3Config

    @classmethod
    def of(cls, config: Config) -> ModelArrays:
        """The arrays in the lake of a configuration."""
        path = config.lake.path
        return cls(path if is_s3(path) else os.path.abspath(path.removeprefix("file://")), config.s3)

    def url(self, model: str, fingerprint: str) -> str:
        """The folder of a fitted model."""
        return f"{self.lake.rstrip('/')}/{FOLDER}/{model}/{fingerprint}"

    def checkpoints(self, model: str, fingerprint: str) -> str:
        """The folder for the checkpoints of a fit that is under way."""
        return f"{self.url(model, fingerprint)}.checkpoints"

    def write(self, model: str, fingerprint: str, arrays: Mapping[str, NDArray[Any]]) -> Stored:
        """Store arrays, completely or not at all; arrays that are already there under the fingerprint are replaced."""
        url = self.url(model, fingerprint)
        stored = _describe(arrays)
        manifest = json.dumps({"digest": stored.digest, "size": stored.size, "arrays": stored.arrays}).encode()
        if is_s3(url):
            delete_folder(url, self.s3)
            for name, array in arrays.items():
                packed = io.BytesIO()
                np.save(packed, np.asarray(array, order="C"), allow_pickle=False)
                write_bytes(f"{url}/{name}.npy", packed.getbuffer(), self.s3)
            write_bytes(f"{url}/{MANIFEST}", manifest, self.s3)
            return stored
        path = Path(url.removeprefix("file://"))
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            partial.mkdir(parents=True)
            for name, array in arrays.items():
                np.save(partial / f"{name}.npy", np.asarray(array, order="C"), allow_pickle=False)
            (partial / MANIFEST).write_bytes(manifest)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(partial, path)
        except OSError as error:
            raise os_error(str(path), error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return stored

    def has(self, model: str, fingerprint: str) -> bool:
        """Whether the arrays of a fitted model are there, completely."""
        return self._names(self.url(model, fingerprint)) is not None

    def _names(self, url: str) -> list[str] | None:
        """The names of the arrays in a folder; None if they are not all there."""
        sizes = file_sizes(url, self.s3)
        if MANIFEST not in sizes:
            return None
        names = list(json.loads(read_bytes(f"{url}/{MANIFEST}", self.s3))["arrays"])
        return names if {f"{name}.npy" for name in names} <= set(sizes) else None

    def open(self, model: str, fingerprint: str) -> dict[str, NDArray[Any]]:
        """The arrays of a fitted model, read-only and memory-mapped; from S3 they are downloaded once per machine.

        Raises LakeError if they are not there.
        """
        return {name: open_mapped(path) for name, path in self.files(model, fingerprint).items()}

    def files(self, model: str, fingerprint: str) -> dict[str, Path]:
        """The .npy file of each array of a fitted model, on this machine; see `open`."""
        url = self.url(model, fingerprint)
        names = self._names(url)
        if names is None:
            raise LakeError(f"{url}: no arrays of a fitted model", remedy="run fit_models first")
        folder = self._downloaded(url, names) if is_s3(url) else Path(url.removeprefix("file://"))
        return {name: folder / f"{name}.npy" for name in names}

    def _downloaded(self, url: str, names: Sequence[str]) -> Path:
        """A local copy of a folder in S3, which all processes of this machine share."""
        cache = machine_cache()
        folder = cache / xxhash.xxh3_128_hexdigest(url.encode())
        with file_lock(cache / f"{folder.name}.lock"):
            if not folder.is_dir():
                partial = cache / f"{folder.name}.{uuid.uuid4().hex[:8]}"
                partial.mkdir()
                for name in names:
                    (partial / f"{name}.npy").write_bytes(read_bytes(f"{url}/{name}.npy", self.s3))
                os.replace(partial, folder)
        return folder

    def token(self, run_id: str, complete: bool) -> str:
        """A text that changes only if arrays have to be stored again: the run that last stored all that was missing.

        If the arrays are not `complete`, the present run will be that one.
        """
        url = f"{self.lake.rstrip('/')}/{FOLDER}"
        if complete and TOKEN in file_sizes(url, self.s3):
            return read_bytes(f"{url}/{TOKEN}", self.s3).decode()
        return run_id

    def write_token(self, run_id: str) -> None:
        """Record that the present run has stored all that was missing."""
        write_bytes(f"{self.lake.rstrip('/')}/{FOLDER}/{TOKEN}", run_id.encode(), self.s3)

    def delete(self, model: str, fingerprint: str) -> None:
        """Delete the arrays of a fitted model, if they are there."""
        delete_folder(self.url(model, fingerprint), self.s3)

    def fitted(self) -> set[tuple[str, str]]:
        """Model and fingerprint of everything that is stored, complete or not."""
        paths = (name.split("/") for name in file_sizes(f"{self.lake.rstrip('/')}/{FOLDER}", self.s3))
        return {(parts[0], parts[1]) for parts in paths if len(parts) == 3}


def _describe(arrays: Mapping[str, NDArray[Any]]) -> Stored:
    digest, size, shapes = xxhash.xxh3_128(), 0, {}
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        shapes[name] = f"{array.dtype} {array.shape}"
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, len(flat), _BLOCK):
            digest.update(flat[start : start + _BLOCK].data)
        size += array.nbytes
    return Stored(f"xxh3:{digest.hexdigest()}", size, shapes)
