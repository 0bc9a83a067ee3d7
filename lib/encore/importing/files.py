"""The files of a source: in a folder, in a ZIP archive, or a single file, each plain or gzipped."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TextIO

from encore.errors import InputError

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_BLOCK = 1 << 20
_SLICE = re.compile(r".+\.slice\.\d+-\d+\.json")
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile)


class Unreadable(Exception):
    """A file cannot be imported; the message says why, and `remedy` what helps, if known."""

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.remedy = remedy


@dataclass(frozen=True)
class Entry:
    """A file of the source. `path`: relative to the source, for messages; `size` in bytes, as stored."""

    path: str
    size: int
    _open: Callable[[], IO[bytes]]

    @property
    def name(self) -> str:
        """The file name without folders and without .gz."""
        return re.sub(r"\.gz$", "", self.path.rpartition("/")[2], flags=re.IGNORECASE)

    @property
    def ending(self) -> str:
        """The extension in lower case, with its dot, without .gz."""
        return os.path.splitext(self.name)[1].lower()

    @property
    def stem(self) -> str:
        """The file name without extensions."""
        return os.path.splitext(self.name)[0]

    def open(self) -> IO[bytes]:
        """Open the file for reading, decompressed."""
        raw = self._open()
        if not self.path.lower().endswith(".gz"):
            return raw
        unzipped = gzip.GzipFile(fileobj=raw, mode="rb")
        # closed together with it
        unzipped.myfileobj = raw  # type: ignore[assignment]
        return unzipped  # type: ignore[return-value]


def entries(source: Path, out: Path) -> list[Entry]:
    """The files of a source, in natural order of their paths, without hidden files and without slices in `out`.

    Raises InputError if the source does not exist or is a damaged ZIP archive.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file or folder", remedy="name a file or a folder of playlists")
    paths = [source] if source.is_file() else [Path(at, name) for at, _, names in os.walk(source) for name in names]
    found: list[Entry] = []
    slices = out.resolve()
    for path in paths:
        shown = path.name if path == source else path.relative_to(source).as_posix()
        if path != source and (_is_hidden(shown) or (path.parent.resolve() == slices and _SLICE.fullmatch(path.name))):
            continue
        if path.suffix.lower() == ".zip":
            found += _members(path, "" if path == source else f"{shown}/")
        else:
            found.append(Entry(shown, path.stat().st_size, partial(_binary, path)))
    return sorted(found, key=lambda entry: _natural(entry.path))


def _members(path: Path, prefix: str) -> list[Entry]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir() and not _is_hidden(info.filename)]
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: not a ZIP archive, or a damaged one: {error}", remedy="download it again") from error
    if locked := next((info for info in infos if info.flag_bits & 1), None):
        raise InputError(f"{path}: {locked.filename} is encrypted", remedy="unpack the archive and import the folder")
    return [Entry(prefix + info.filename, info.file_size, partial(_member, path, info.filename)) for info in infos]


def _binary(path: Path) -> IO[bytes]:
    return path.open("rb")


def _member(path: Path, name: str) -> IO[bytes]:
    # the member keeps the archive's file open until it is closed itself
    with zipfile.ZipFile(path) as archive:
        return archive.open(name)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def _natural(path: str) -> list[tuple[int, str]]:
    """A sort key by which Playlist2 comes before Playlist10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)] + [(-1, path)]


@contextmanager
def open_text(entry: Entry) -> Iterator[TextIO]:
    """Open a file as text: UTF-8, or UTF-16 with a byte order mark. Line ends are kept.

    Raises Unreadable, also while the block reads, for any other encoding, with the first bad byte and its position.
    """
    encoding = "utf-8"
    try:
        with entry.open() as raw:
            encoding, skipped = _encoding(raw.read(4))
        with entry.open() as raw:
            raw.read(skipped)
            with io.TextIOWrapper(raw, encoding=encoding, newline="") as stream:
                yield stream
    except UnicodeDecodeError as error:
        raise _bad_encoding(entry, encoding) from error
    except DAMAGED as error:
        raise Unreadable(f"the compressed data is damaged: {error}", "download or compress it again") from error


def _encoding(start: bytes) -> tuple[str, int]:
    """The encoding of a text by its first bytes, and the length of its byte order mark."""
    for mark, encoding in _BOMS:
        if start.startswith(mark) and start != codecs.BOM_UTF32_LE:
            return encoding, len(mark)
    if b"\0" in start:
        place = start.index(b"\0")
        raise Unreadable(
            f"UTF-8 expected, byte 0x00 at position {place} found: UTF-16 without a byte order mark, or not a text",
            "if it is UTF-16, convert it: iconv -f UTF-16LE -t UTF-8 FILE > NEW",
        )
    return "utf-8", 0


def _bad_encoding(entry: Entry, encoding: str) -> Unreadable:
    """Find the first byte of a file that its encoding does not allow."""
    place, value, rest = 0, 0, b""
    with entry.open() as raw:
        while True:
            block = raw.read(_BLOCK)
            data = rest + block
            try:
                data.decode(encoding)
                place, rest = place + len(data), b""
            except UnicodeDecodeError as error:
                place, rest = place + error.start, data[error.start :]
                # a character that continues in the next block
                if not block or len(rest) > 3:
                    value = rest[0]
                    break
    if encoding != "utf-8":
        return Unreadable(f"UTF-16 expected, byte 0x{value:02x} at position {place} found", "export it as UTF-8")
    return Unreadable(
        f"UTF-8 expected, byte 0x{value:02x} at position {place} found",
        "convert it from the encoding it has, for example: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW",
    )
