"""Backups of a lake in another folder or bucket, from which it, or single tables, can be brought back.

    <backup>/backups/<id>.json    what one backup holds: for each table its id, version and files, and the fitted models
    <backup>/files/<sha256>       the content of files, once, whichever backups and tables have it

A backup holds the newest version of each table, as of one moment, with the table's whole log, so that a lake that was
brought back is not stale. The file of a backup is written last: what was interrupted is no backup, and the next one
goes on from the files that are there. The name of each file is its digest, by which a copy is verified.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from deltalake import DeltaTable

from encore.config import S3Config
from encore.errors import InputError, LakeError, TransientError
from encore.lake.delta import Tables, data_files
from encore.lake.failures import os_error
from encore.lake.filesystem import (
    delete_files,
    delete_folder,
    download,
    file_sizes,
    is_s3,
    read_bytes,
    s3_client,
    upload,
    write_bytes,
)
from encore.lake.model_arrays import FOLDER, MANIFEST, TOKEN
from encore.lake.tables import ALL, BY_NAME, Table

FORMAT = 1
"""The number of the format; a backup with another one is refused."""

_THREADS = 8
_LOG = re.compile(r"_delta_log/(\d{20})\.(json|checkpoint[.\w-]*\.parquet|crc)")
_SNAPSHOTS = 5
"""How often the versions of all tables are read until none of them changes in between."""

Progress = Callable[[int], None]
"""Called with the number of bytes that were copied or verified."""


@dataclass(frozen=True)
class Copied:
    """A file of a backup: its path in the table's folder, or in that of fitted models, its size, and its SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class TableCopy:
    """A table in a backup: the id of the Delta table, its version, its rows, and its files."""

    id: str
    version: int
    rows: int
    files: tuple[Copied, ...]


@dataclass(frozen=True)
class Backup:
    """What a backup holds. `taken_at` is in seconds since 1970; `models`: files of fitted models."""

    id: str
    lake: str
    taken_at: float
    tables: Mapping[str, TableCopy]
    models: tuple[Copied, ...]

    @property
    def files(self) -> Iterator[Copied]:
        """All files."""
        for table in self.tables.values():
            yield from table.files
        yield from self.models

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files)

    def json(self) -> bytes:
        """The content of the file of the backup."""
        tables = {
            name: {**table.__dict__, "files": [list(file.__dict__.values()) for file in table.files]}
            for name, table in self.tables.items()
        }
        models = [list(file.__dict__.values()) for file in self.models]
        return json.dumps({**self.__dict__, "tables": tables, "models": models, "format": FORMAT}).encode()

    @staticmethod
    def parse(data: bytes, url: str) -> Backup:
        """Parse the file of a backup. Raises LakeError if it has another format."""
        try:
            found = json.loads(data)
            if found.pop("format") != FORMAT:
                raise ValueError
            tables = {
                name: TableCopy(**{**table, "files": tuple(Copied(*file) for file in table["files"])})
                for name, table in found.pop("tables").items()
            }
            models = tuple(Copied(*file) for file in found.pop("models"))
            return Backup(**found, tables=tables, models=models)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LakeError(
                f"{url}: not a backup of format {FORMAT}", remedy="use the release of Encore that made it"
            ) from error


@dataclass(frozen=True)
class Vault:
    """A folder or a prefix in S3 with backups of one lake."""

    url: str
    s3: S3Config

    @classmethod
    def at(cls, place: str, s3: S3Config) -> Vault:
        """The backups in a place."""
        path = place.removeprefix("file://").rstrip("/").replace("s3a://", "s3://", 1)
        return cls(path if is_s3(path) else os.path.abspath(path), s3)

    def ids(self) -> list[str]:
        """The ids of the backups, oldest first."""
        names = file_sizes(f"{self.url}/backups", self.s3)
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def read(self, backup_id: str) -> Backup:
        """A backup. Raises InputError if there is none with this id."""
        url = f"{self.url}/backups/{backup_id}.json"
        return Backup.parse(read_bytes(url, self.s3), url)

    def newest(self, before: float | None = None) -> Backup:
        """The newest backup, or the newest one that was taken before a time. Raises InputError if there is none."""
        for backup_id in reversed(self.ids()):
            found = self.read(backup_id)
            if before is None or found.taken_at <= before:
                return found
        when = "" if before is None else f" of {datetime.fromtimestamp(before, UTC):%Y-%m-%d %H:%M:%S} UTC or earlier"
        raise InputError(f"no backup{when} in {self.url}", remedy="`encore backup list` lists them")

    def sizes(self) -> dict[str, int]:
        """The size of each stored file by its SHA-256."""
        found = file_sizes(f"{self.url}/files", self.s3)
        return {name: size for name, size in found.items() if not name.endswith(".partial")}

    def file(self, sha256: str) -> str:
        """The URL of a stored file."""
        return f"{self.url}/files/{sha256}"

    def client(self, *others: str) -> Any:
        """A client for S3, which threads can share, if the vault or one of the `others` is there; otherwise None."""
        return s3_client(self.s3) if any(is_s3(url) for url in (self.url, *others)) else None


@dataclass(frozen=True)
class Made:
    """A backup that was made, how many files and bytes were copied for it, and how many files were removed."""

    backup: Backup
    files: int
    bytes: int
    removed: int


def create(
    tables: Tables, vault: Vault, *, keep_days: int | None = None, on_progress: Progress = lambda _: None
) -> Made:
    """Copy what no earlier backup in the vault has, and write a new backup.

    `keep_days`: then remove backups that are older, but never the newest one. The caller holds the vault's lock. Runs
    may continue meanwhile. Raises LakeError, and writes no backup, if files of a table are gone or have another size.
    """
    if vault.url == tables.root or f"{vault.url}/".startswith(f"{tables.root}/"):
        raise LakeError(f"{vault.url}: a backup inside of its lake is lost with it", remedy="choose another place")
    taken_at = datetime.now(UTC)
    opened = _snapshot(tables)
    if not opened:
        raise LakeError(f"no tables in the lake {tables.path}", remedy="set lake.path")
    ids = vault.ids()
    before = vault.read(ids[-1]) if ids else None
    copying = _Copying(vault, vault.client(tables.root), on_progress)
    copies = {}
    for table, found in opened:
        old = before.tables.get(table.name) if before else None
        own = {file.path: file for file in old.files} if old and old.id == str(found.metadata().id) else {}
        files = copying.copy(tables.url(table), _files_of(tables, table, found), own)
        rows = sum(file["num_records"] or 0 for file in data_files(found))
        copies[table.name] = TableCopy(str(found.metadata().id), found.version(), rows, tuple(files))
    models = _copy_models(tables, copying, before)
    backup = Backup(f"{taken_at:%Y%m%d-%H%M%S-%f}", tables.root, taken_at.timestamp(), copies, models)
    write_bytes(f"{vault.url}/backups/{backup.id}.json", backup.json(), vault.s3)
    removed = 0 if keep_days is None else _prune(vault, taken_at.timestamp() - keep_days * 86400, backup)
    return Made(backup, copying.files, copying.bytes, removed)


def _snapshot(tables: Tables) -> list[tuple[Table, DeltaTable]]:
    """The existing tables at versions that they had at the same moment."""
    before: list[tuple[str, str, int]] = []
    for _ in range(_SNAPSHOTS + 1):
        opened = [(table, found) for table in ALL if (found := tables.open(table)) is not None]
        now = [(table.name, str(found.metadata().id), found.version()) for table, found in opened]
        if now == before:
            return opened
        before = now
    raise TransientError("the tables change too often for a backup", remedy="try again when no job commits")


def _files_of(tables: Tables, table: Table, found: DeltaTable) -> dict[str, int]:
    """The files of an open table by path, with their sizes: its log up to this version, and the data files of it.

    Raises LakeError if one is gone or has another size than the log says.
    """
    protocol = found.protocol()
    if protocol.min_reader_version > 1:
        raise LakeError(f"{table.name}: plain data files expected, reader version {protocol.min_reader_version} found")
    sizes = file_sizes(tables.url(table), tables.s3)
    wanted = {}
    for name, size in sizes.items():
        entry = _LOG.fullmatch(name)
        if entry and int(entry[1]) <= found.version():
            wanted[name] = size
    for file in data_files(found):
        path = unquote(file["path"])
        if sizes.get(path) != file["size_bytes"]:
            there = f"{sizes[path]:,} bytes" if path in sizes else "nothing"
            raise LakeError(
                f"{tables.uri(table)}/{path}: {file['size_bytes']:,} bytes expected, {there} found: no backup was made",
                remedy="`encore doctor --lake` lists the damage; call `encore backup restore` to repair it",
            )
        wanted[path] = sizes[path]
    return wanted


def _copy_models(tables: Tables, copying: _Copying, before: Backup | None) -> tuple[Copied, ...]:
    """Copy the arrays of all complete fitted models, unless the earlier backup has a model with the same manifest."""
    url = f"{tables.root}/{FOLDER}".replace("s3a://", "s3://", 1)
    sizes = file_sizes(url, tables.s3)
    folders = {name.removesuffix(f"/{MANIFEST}") for name in sizes if name.endswith(f"/{MANIFEST}")}
    folders = {name for name in folders if not any(part.startswith(".") for part in name.split("/"))}
    old = {file.path: file for file in before.models} if before else {}
    files: list[Copied] = []
    for folder in sorted(folders):
        own = {name: size for name, size in sizes.items() if name.startswith(f"{folder}/")}
        name = f"{folder}/{MANIFEST}"
        (manifest,) = copying.copy(url, {name: own.pop(name)}, {})
        is_known = old.get(name) == manifest
        files += copying.copy(url, own, old if is_known else {})
        files.append(manifest)
    if TOKEN in sizes:
        files += copying.copy(url, {TOKEN: sizes[TOKEN]}, {})
    return tuple(files)


@dataclass
class _Copying:
    """The work of copying files into a vault: how much was copied, and what is stored there."""

    vault: Vault
    client: Any
    on_progress: Progress
    files: int = 0
    bytes: int = 0
    stored: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.stored = self.vault.sizes()

    def copy(self, folder: str, sizes: Mapping[str, int], known: Mapping[str, Copied]) -> list[Copied]:
        """Copy files of a folder, except for those whose content is `known` and stored; returns all of them."""
        found, todo = [], []
        for path, size in sizes.items():
            old = known.get(path)
            if old is not None and old.size == size and self.stored.get(old.sha256) == size:
                found.append(old)
            else:
                todo.append((path, size))
        with ThreadPoolExecutor(_THREADS) as pool:
            found += pool.map(lambda one: self._copy(f"{folder}/{one[0]}", *one), todo)
        return sorted(found, key=lambda file: file.path)

    def _copy(self, url: str, path: str, size: int) -> Copied:
        with _aside(self.vault.url) as aside:
            digest = download(url, aside, self.client)
            copied = aside.stat().st_size
            if copied != size:
                raise TransientError(f"{url}: {size:,} bytes expected, {copied:,} read", remedy="try again")
            if self.stored.get(digest) != size:
                _put(aside, self.vault.file(digest), self.client)
                self.stored[digest] = size
                self.files, self.bytes = self.files + 1, self.bytes + size
        self.on_progress(size)
        return Copied(path, size, digest)


@contextmanager
def _aside(target: str) -> Iterator[Path]:
    """A temporary file, on the same file system as a local target."""
    folder = None if is_s3(target) else target
    if folder is not None:
        os.makedirs(folder, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".encore-", suffix=".partial", dir=folder)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _put(path: Path, url: str, client: Any) -> None:
    """Move a local file to a URL, where it appears complete or not at all."""
    if is_s3(url):
        upload(path, url, client)
        return
    try:
        os.makedirs(os.path.dirname(url), exist_ok=True)
        path.chmod(0o644)
        os.replace(path, url)
    except OSError as error:
        raise os_error(url, error) from error


def _prune(vault: Vault, oldest: float, newest: Backup) -> int:
    """Remove backups that were taken before a time, and the files that only they have; returns the number of files."""
    backups = [vault.read(backup_id) for backup_id in vault.ids()]
    old = [backup for backup in backups if backup.taken_at < oldest and backup.id != newest.id]
    if not old:
        return 0
    # first the backups: one whose files are gone must not look like one that can be brought back
    delete_files([f"{vault.url}/backups/{backup.id}.json" for backup in old], vault.s3)
    kept = {file.sha256 for backup in backups if backup not in old for file in backup.files}
    unused = sorted(set(vault.sizes()) - kept)
    delete_files([vault.file(sha256) for sha256 in unused], vault.s3)
    return len(unused)


def verify(vault: Vault, backup: Backup, on_progress: Progress = lambda _: None) -> list[str]:
    """Read all files of a backup; returns a sentence on each that is gone or has another content."""

    client = vault.client()

    def look(file: Copied) -> str | None:
        with tempfile.TemporaryDirectory(prefix="encore-") as folder:
            try:
                digest = download(vault.file(file.sha256), Path(folder) / "file", client)
            except InputError as error:
                return f"{file.path}: {error}"
        on_progress(file.size)
        return None if digest == file.sha256 else f"{file.path}: SHA-256 {file.sha256} expected, {digest} found"

    distinct = {file.sha256: file for file in backup.files}
    with ThreadPoolExecutor(_THREADS) as pool:
        return [text for text in pool.map(look, distinct.values()) if text is not None]


@dataclass(frozen=True)
class Restored:
    """What was brought back: by table, the number of files that were missing or damaged; for fitted models likewise.

    `newer`: tables of which the lake has a newer version than the backup, with both versions; they keep it.
    """

    tables: Mapping[str, int]
    models: int
    bytes: int
    newer: Mapping[str, tuple[int, int]]


def restore(
    tables: Tables,
    vault: Vault,
    backup: Backup,
    *,
    only: Sequence[str] = (),
    replace: bool = False,
    on_progress: Progress = lambda _: None,
) -> Restored:
    """Bring back files that a lake lacks, or of which it has other content than the backup.

    A table that is not there is brought back as a whole. Of one that is, missing and damaged files are; the lake keeps
    versions that are newer than the backup. `only`: names of tables; empty: all, and the fitted models. `replace`:
    tables that were made anew since the backup are removed first. The caller holds the lake's lock.

    Raises LakeError if a table was made anew and is not to be replaced, or still lacks files afterwards, and InputError
    for a table that the backup does not have.
    """
    unknown = [name for name in only if name not in backup.tables]
    if unknown:
        raise InputError(f"backup {backup.id} has no table {unknown[0]}", remedy=f"it has {', '.join(backup.tables)}")
    names = [name for name in backup.tables if not only or name in only]
    _check_ids(tables, backup, names, replace=replace)
    placing = _Placing(vault, vault.client(tables.root), on_progress)
    done: dict[str, int] = {}
    newer: dict[str, tuple[int, int]] = {}
    for name in names:
        table, copy = BY_NAME[name], backup.tables[name]
        url = tables.url(table)
        if _id_of(tables, table) not in (None, copy.id):
            delete_folder(url, tables.s3)
        # a table can be read only when the first entry of its log, or a checkpoint, is there: these come last
        data = [file for file in copy.files if not _LOG.fullmatch(file.path)]
        log = [file for file in copy.files if _LOG.fullmatch(file.path)]
        last = [file for file in log if _is_start(file.path)]
        done[name] = sum(placing.place(url, part) for part in (data, [f for f in log if f not in last], last))
        version = _check(tables, table, copy)
        if version > copy.version:
            newer[name] = (version, copy.version)
    models = 0
    if not only:
        url = f"{tables.root}/{FOLDER}".replace("s3a://", "s3://", 1)
        manifests = [file for file in backup.models if file.path.endswith(MANIFEST) or file.path == TOKEN]
        arrays = [file for file in backup.models if file not in manifests]
        models = placing.place(url, arrays) + placing.place(url, manifests)
    return Restored(done, models, placing.bytes, newer)


def _is_start(path: str) -> bool:
    return "checkpoint" in path or path.endswith(f"/{0:020d}.json")


def _id_of(tables: Tables, table: Table) -> str | None:
    """The id of a table in the lake; None if there is none, or if its log cannot be read."""
    try:
        found = tables.open(table)
    except LakeError:
        return None
    return None if found is None else str(found.metadata().id)


def _check_ids(tables: Tables, backup: Backup, names: Iterable[str], *, replace: bool) -> None:
    """Raise LakeError if a table is another one than in the backup, unless it is to be replaced."""
    others = [name for name in names if _id_of(tables, BY_NAME[name]) not in (None, backup.tables[name].id)]
    if others and not replace:
        raise LakeError(
            f"{tables.root}: {', '.join(others)}: dropped and made again since backup {backup.id}; nothing was changed",
            remedy="add --replace to remove them and bring back those of the backup, or name other tables by --table",
        )


def _check(tables: Tables, table: Table, copy: TableCopy) -> int:
    """The version of a table that was brought back. Raises LakeError if it cannot be read, or still lacks files."""
    found = tables.there(table)
    sizes = file_sizes(tables.url(table), tables.s3)
    files = data_files(found)
    lacking = [path for file in files if sizes.get(path := unquote(file["path"])) != file["size_bytes"]]
    if lacking:
        raise LakeError(
            f"{tables.uri(table)}: {len(lacking):,} of the {len(files):,} files of version {found.version()} are gone, "
            f"and not in the backup, which is of version {copy.version}",
            remedy=f"`encore restore {table.name} --version {copy.version}` goes back to that, then `encore run`",
        )
    return int(found.version())


@dataclass
class _Placing:
    """The work of bringing files of a vault back, and how many bytes that were."""

    vault: Vault
    client: Any
    on_progress: Progress
    bytes: int = 0

    def place(self, folder: str, files: Sequence[Copied]) -> int:
        """Bring files back into a folder unless they have the same content there; returns the number of others."""
        sizes = file_sizes(folder, self.vault.s3) if files else {}
        with ThreadPoolExecutor(_THREADS) as pool:
            return sum(pool.map(lambda file: self._place(folder, file, sizes), files))

    def _place(self, folder: str, file: Copied, sizes: Mapping[str, int]) -> bool:
        url = f"{folder}/{file.path}"
        with _aside(folder) as aside:
            is_same = sizes.get(file.path) == file.size and download(url, aside, self.client) == file.sha256
            if not is_same:
                digest = download(self.vault.file(file.sha256), aside, self.client)
                if digest != file.sha256:
                    raise LakeError(
                        f"{self.vault.file(file.sha256)}: damaged: SHA-256 {digest} found",
                        remedy="`encore backup verify` lists the damage; use another backup: --id",
                    )
                _put(aside, url, self.client)
                self.bytes += file.size
        self.on_progress(file.size)
        return not is_same
