"""The bundle of a model version: a folder with everything that the scorer needs of it.

    manifest.json                 what it is, the settings, and the size and digest of every other file
    models/<model>/<array>.npy    the arrays of the model, and of the models that it is made of
    catalogue/<array>.npy         what people want to know of the tracks: see `catalogue`

Nothing in it is code, and nothing is unpickled. Arrays are mapped, so that opening a bundle takes no longer for a large
catalogue, and processes share its memory. The manifest is written last: a folder without one is no bundle.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from encore.arrays.mapped import open_mapped
from encore.arrays.ragged import NamedArrays
from encore.errors import InputError
from encore.recommenders.registry import with_parts

FORMAT: Final = 1
"""Of the folder; a reader refuses bundles of another one."""
MANIFEST: Final = "manifest.json"
CATALOGUE: Final = "catalogue"
_MODELS: Final = "models"


@dataclass(frozen=True)
class File:
    """The size of a file in bytes, and the SHA-256 of its content in hex digits."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds.

    `model`: the model that answers; `fingerprints`: of the model and all that it is made of, by name, as in the table
    `models`; `settings`: the section `recommend` of the configuration; `versions`: the Delta version of each table that
    the model was fitted on, by name; `table_ids`: their Delta ids; `n_tracks`: M; `created`: when, UTC, ISO 8601;
    `files`: by path in the folder.
    """

    model: str
    fingerprints: dict[str, str]
    settings: dict[str, Any]
    versions: dict[str, int]
    table_ids: dict[str, str]
    n_tracks: int
    created: str
    files: dict[str, File]
    format: int = FORMAT

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    def to_json(self) -> bytes:
        """The content of manifest.json."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a bundle. Raises InputError if the folder has none, or one of another format."""
        path = folder / MANIFEST
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise InputError(f"{folder}: no bundle: {MANIFEST} is missing", remedy="register the model again") from None
        except ValueError as error:
            raise InputError(f"{path}: expected JSON: {error}", remedy="register the model again") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            form = found.get("format") if isinstance(found, dict) else None
            raise InputError(
                f"{path}: expected a bundle of format {FORMAT}, found {form}",
                remedy="register the model again with this version of Encore",
            )
        try:
            files = {name: File(**file) for name, file in found["files"].items()}
            return cls(**{**found, "files": files})
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not the fields of a manifest: {error}") from error


def write(
    folder: Path,
    *,
    model: str,
    arrays: Mapping[str, Mapping[str, Path]],
    catalogue: Mapping[str, NDArray[Any] | Path],
    fingerprints: dict[str, str],
    settings: dict[str, Any],
    versions: dict[str, int],
    table_ids: dict[str, str],
    n_tracks: int,
    created: str,
) -> Manifest:
    """Write a bundle to a folder, which must not exist.

    `arrays`: the .npy file of each array of each model, by name; `catalogue`: its arrays, or their files. Files are
    linked to, not copied, so the folder is for being uploaded or copied from (following links) as long as they exist.
    For the other arguments see Manifest.
    """
    folder.mkdir(parents=True)
    for name, own in arrays.items():
        (folder / _MODELS / name).mkdir(parents=True)
        for array, path in own.items():
            (folder / _MODELS / name / f"{array}.npy").symlink_to(path.resolve())
    (folder / CATALOGUE).mkdir()
    for array, values in catalogue.items():
        path = folder / CATALOGUE / f"{array}.npy"
        if isinstance(values, Path):
            path.symlink_to(values.resolve())
        else:
            np.save(path, values, allow_pickle=False)
    files = {str(path.relative_to(folder)): described(path) for path in _files(folder)}
    manifest = Manifest(model, fingerprints, settings, versions, table_ids, n_tracks, created, files)
    (folder / MANIFEST).write_bytes(manifest.to_json())
    return manifest


def described(path: Path) -> File:
    """Size and digest of a file."""
    with path.open("rb") as file:
        return File(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def verify(folder: Path) -> Manifest:
    """Read every file of a bundle, and compare size and digest with the manifest, once after a download.

    Raises InputError if a file is missing or differs.
    """
    manifest = Manifest.read(folder)
    for name, expected in manifest.files.items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise InputError(f"{folder}: the manifest names a file outside of the bundle: {name}")
        found = described(path) if path.is_file() else None
        if found != expected:
            raise InputError(
                f"{path}: expected {expected.size:,} bytes with SHA-256 {expected.sha256}, found "
                + (f"{found.size:,} bytes with {found.sha256}" if found else "no file"),
                remedy="download the bundle again",
            )
    return manifest


class Bundle:
    """An open bundle. Only sizes are checked: see `verify`.

    Raises InputError if the folder is no bundle, or if a file is missing or of another size.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = Manifest.read(folder)
        for name, file in self.manifest.files.items():
            path = folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != file.size:
                raise InputError(
                    f"{path}: expected {file.size:,} bytes, found {'no file' if size is None else f'{size:,}'}",
                    remedy="download the bundle again",
                )

    def catalogue(self) -> NamedArrays:
        """The arrays of the catalogue, mapped."""
        return self._arrays(CATALOGUE)

    def models(self) -> dict[str, Any]:
        """The fitted model and all that it is made of, by name, with mapped arrays."""
        settings = namespace(self.manifest.settings)
        loaded: dict[str, Any] = {}
        for entry in with_parts([self.manifest.model]):
            loaded[entry.name] = entry.load(self._arrays(f"{_MODELS}/{entry.name}"), settings, loaded)
        return loaded

    def _arrays(self, folder: str) -> dict[str, NDArray[Any]]:
        prefix = f"{folder}/"
        names = [name for name in self.manifest.files if name.startswith(prefix) and name.endswith(".npy")]
        return {name.removeprefix(prefix).removesuffix(".npy"): open_mapped(self.folder / name) for name in names}


def namespace(settings: Any) -> Any:
    """Settings with attributes, like those of the configuration, without the library that checks them there."""
    if isinstance(settings, dict):
        return SimpleNamespace(**{name: namespace(value) for name, value in settings.items()})
    return settings
