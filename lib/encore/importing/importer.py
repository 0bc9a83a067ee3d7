"""Imports the playlists of a file or folder: from any known shape to slices."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from encore.errors import InputError
from encore.importing import slices
from encore.importing.files import DAMAGED, Entry, Unreadable, entries
from encore.importing.json_files import read_json
from encore.importing.m3u import read_m3u
from encore.importing.records import Loss, Losses, Playlist
from encore.importing.slices import Pids, SliceWriter, stable_pid
from encore.importing.tables import FlatTables, is_one_playlist, read_exportify
from encore.lake.failures import os_error

TABLES = (".csv", ".tsv", ".parquet")
SHEETS = (".xlsx", ".xls", ".ods", ".numbers")
UNREADABLE = (Unreadable, OSError, *DAMAGED)
KINDS = (".json", *TABLES, ".m3u", ".m3u8", ".zip")


@dataclass(frozen=True)
class Refusal:
    """A file that was not imported, why, and what helps, if known."""

    path: str
    reason: str
    remedy: str | None


@dataclass(frozen=True)
class Imported:
    """What an import wrote: the slices, how much is in them, and what is not."""

    name: str
    slices: list[Path]
    n_playlists: int
    n_tracks: int
    losses: dict[str, int]
    refused: list[Refusal]


def source_name(source: Path, name: str | None = None) -> str:
    """The name of a source: `name`, or that of its file or folder without extensions.

    Raises InputError if it cannot be part of a file name.
    """
    resolved = source.resolve()
    found = name if name is not None else re.sub(r"(\.\w{1,8})?(\.gz)?$", "", resolved.name, flags=re.IGNORECASE)
    if source.is_dir() and name is None:
        found = resolved.name
    if not found or found.startswith(".") or re.search(r"[/\\\0\n]", found) or len(found.encode()) > 150:
        raise InputError(f"{found!r} cannot be part of a file name", remedy="name the source with --as NAME")
    return found


def import_playlists(
    source: Path, out: Path, name: str | None = None, *, on_progress: Callable[[int], None] = lambda items: None
) -> Imported:
    """Write the playlists of `source` to `out` as slices, in place of those of an earlier import of the same name.

    `on_progress` is called with the number of items read so far. Raises InputError, and leaves the earlier slices as
    they are, if nothing usable is found, if a file breaks off midway, or if two playlists get the same pid.
    """
    named = source_name(source, name)
    try:
        files = entries(source, out)
        with SliceWriter(out, named) as writer:
            run = _Import(files, writer, Pids(named), named, on_progress)
            run.read()
            return run.finish(source)
    except OSError as error:
        raise os_error(str(error.filename or out), error, InputError) from error


def read_playlists(source: Path) -> Iterator[Playlist]:
    """The playlists of a file or folder as found, with what cannot be imported left out; tables of several playlists
    are not read. Raises InputError if a file cannot be read."""
    for entry in entries(source, source):
        try:
            if entry.ending not in TABLES or is_one_playlist(entry):
                yield from _playlists(entry, Losses())
        except UNREADABLE as error:
            remedy = error.remedy if isinstance(error, Unreadable) else None
            raise InputError(f"{entry.path}: {error}", remedy=remedy) from error


class _Import:
    """An import in progress."""

    def __init__(
        self, files: list[Entry], writer: SliceWriter, pids: Pids, name: str, on_progress: Callable[[int], None]
    ) -> None:
        self._writer = writer
        self._files, self._pids, self._name, self._on_progress = files, pids, name, on_progress
        self._losses, self._refused = Losses(), list[Refusal]()
        self._n_items = 0

    def read(self) -> None:
        """Read all files and write their playlists; the tables of several playlists together, at the end."""
        tables: list[Entry] = []
        for entry in self._files:
            losses = Losses()
            if entry.ending in TABLES and self._is_table(entry):
                tables.append(entry)
                continue
            for playlist in self._playlists(entry, losses):
                self._progress(len(playlist.tracks))
                self._write(self._pids.pid(playlist), playlist, losses)
            self._losses.update(losses)
        flat = FlatTables(self._writer.folder, tables, self._table_pid, (slices.FIRST_PID, slices.LAST_PID))
        try:
            for pid, playlist in flat.playlists(self._losses, self._progress):
                self._pids.check(pid, playlist)
                self._write(pid, playlist, self._losses)
        except Unreadable as error:
            raise InputError(str(error), remedy=error.remedy) from error

    def _is_table(self, entry: Entry) -> bool:
        """Whether a file is a table of several playlists. What cannot be read is refused later, as any other file."""
        try:
            return not is_one_playlist(entry)
        except UNREADABLE:
            return False

    def _playlists(self, entry: Entry, losses: Losses) -> Iterator[Playlist]:
        """The playlists of a file; none if it is refused."""
        taken = 0
        try:
            for playlist in _playlists(entry, losses):
                yield playlist
                taken += 1
        except UNREADABLE as error:
            if taken:
                raise _broken_off(entry.path, error) from error
            remedy = error.remedy if isinstance(error, Unreadable) else None
            self._refused.append(Refusal(entry.path, str(error), remedy))
            losses.clear()
            losses[Loss.FILE] += 1

    def _table_pid(self, key: str) -> int:
        return stable_pid("table", self._name, key)

    def _progress(self, items: int) -> None:
        self._n_items += items
        self._on_progress(self._n_items)

    def _write(self, pid: int | None, playlist: Playlist, losses: Losses) -> None:
        if pid is None:
            losses[Loss.REPEATED] += 1
        elif not playlist.tracks:
            losses[Loss.NO_TRACK] += 1
        else:
            self._writer.add(pid, playlist)

    def finish(self, source: Path) -> Imported:
        losses = {loss.value: self._losses[loss] for loss in Loss if self._losses[loss]}
        if not self._writer.n_playlists:
            raise _nothing(source, losses, self._refused)
        info = {
            "source": self._name,
            "playlists": self._writer.n_playlists,
            "lost": losses,
        }
        written = self._writer.finish(info)
        return Imported(self._name, written, self._writer.n_playlists, self._writer.n_tracks, losses, self._refused)


def _playlists(entry: Entry, losses: Losses) -> Iterator[Playlist]:
    """The playlists of a file that is not a table of several. Raises Unreadable if its shape is unknown."""
    if entry.ending == ".json":
        yield from read_json(entry, losses)
    elif entry.ending in TABLES:
        yield read_exportify(entry, losses)
    elif entry.ending in (".m3u", ".m3u8"):
        yield read_m3u(entry, losses)
    elif entry.ending in SHEETS:
        raise Unreadable(f"a spreadsheet ({entry.ending})", "save each sheet as CSV in UTF-8")
    else:
        raise Unreadable(f"unknown kind of file {entry.ending or 'without an extension'}", f"known: {', '.join(KINDS)}")


def _broken_off(path: str, error: Exception) -> InputError:
    return InputError(
        f"{path} breaks off after some playlists were read: {error}",
        remedy=(error.remedy if isinstance(error, Unreadable) else None) or "get the file again, or leave it out",
    )


def _nothing(source: Path, losses: dict[str, int], refused: list[Refusal]) -> InputError:
    lost = ", ".join(f"{reason}: {count:,}" for reason, count in losses.items())
    first = f"; {refused[0].path}: {refused[0].reason}" if refused else ""
    return InputError(
        f"{source}: no playlist with a usable track found ({lost or 'no files'}){first}",
        remedy=(refused[0].remedy if refused else None) or "the docs list the sources that `encore import` reads",
    )
