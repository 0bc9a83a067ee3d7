"""Files of audio features: which files are read, which are ignored and why, and texts in an encoding that is not read.

Files are on a local disk or in S3. Local files are streamed; S3 objects are held in memory, still compressed.
"""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa

from encore.config import S3Config
from encore.errors import InputError
from encore.lake.filesystem import SourceFile, list_files

FORMATS: dict[str, str] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".json": "json lines",
    ".parquet": "parquet",
}
"""Formats by file extension, in upper or lower case; all but Parquet may be followed by .gz."""

_READ = ", ".join(FORMATS)

_OTHER_FORMATS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers"),
        "a spreadsheet",
        "save the sheet as CSV UTF-8",
    ),
    (
        (".rds", ".rdata", ".rda"),
        "R data",
        'load it as x in R, then readr::write_csv(x, "features.csv")',
    ),
    (
        (".parquet.gz", ".zip", ".7z", ".rar", ".tar", ".tar.gz", ".tgz", ".bz2", ".xz", ".zst"),
        "compressed or an archive",
        "decompress it (unzip, tar -xf, gunzip, bunzip2, unxz, unzstd); of compressed files only .gz is read",
    ),
    (
        (".feather", ".arrow", ".ipc", ".orc", ".avro"),
        "Feather, Arrow, ORC or Avro",
        'convert it to Parquet, for example pyarrow.parquet.write_table(pyarrow.feather.read_table("x.feather"), '
        '"features.parquet")',
    ),
    (
        (".pkl", ".pickle", ".npy", ".npz", ".h5", ".hdf5", ".hdf", ".mat", ".sav", ".dta", ".db", ".sqlite", ".sql"),
        "data of another program",
        "export the table as CSV or Parquet",
    ),
)
"""Extensions of tables that are not read: what such a file is, and how to make one that is read."""


class Unreadable(Exception):
    """A file is rejected as a whole, or from some row on. `remedy`: what to do with the file, if known."""

    def __init__(self, what: str, remedy: str | None = None) -> None:
        super().__init__(what)
        self.remedy = remedy

    def __str__(self) -> str:
        """What is wrong, and what to do."""
        what = str(self.args[0])
        return f"{what}; {self.remedy}" if self.remedy else what


@dataclass(frozen=True)
class Ignored:
    """Files that are not read, for one reason: `what` they are, and a `remedy`."""

    names: tuple[str, ...]
    what: str
    remedy: str

    def __str__(self) -> str:
        """The names of the first few files, what they are, and the remedy."""
        more = f" and {len(self.names) - 3:,} more" if len(self.names) > 3 else ""
        return f"{', '.join(self.names[:3])}{more} ({self.what}; {self.remedy})"


def format_of(name: str) -> str | None:
    """The format of a file by its name; None if files of this name are not read."""
    lower = name.lower()
    plain = lower.removesuffix(".gz")
    found = next((kind for end, kind in FORMATS.items() if plain.endswith(end)), None)
    return None if found == "parquet" and plain != lower else found


def listed(url: str, s3: S3Config) -> tuple[list[SourceFile], list[Ignored]]:
    """The files at a URL that are read, in order of name, and those that are ignored, by reason.

    Hidden files and markers such as _SUCCESS are in neither. Raises InputError if there is no such file or folder.
    """
    files = [file for file in list_files(url, "*", s3) if not file.name.startswith((".", "_"))]
    ignored: dict[tuple[str, str], list[str]] = {}
    for file in files:
        if format_of(file.name) is None:
            ignored.setdefault(_reason(file.name), []).append(file.name)
    reasons = [Ignored(tuple(names), *reason) for reason, names in ignored.items()]
    return [file for file in files if format_of(file.name) is not None], reasons


def no_file(url: str, ignored: Sequence[Ignored]) -> InputError:
    """The error for a URL with no file that is read."""
    if not ignored:
        return InputError(
            f"{url}: no file of audio features",
            remedy=f"name files that end in {_READ}, in upper or lower case, or .gz",
        )
    names = ", ".join(f"{', '.join(one.names[:3])} is {one.what}" for one in ignored)
    return InputError(
        f"{url}: no file of audio features: expected names that end in {_READ}, or .gz; {names}",
        remedy="; ".join(one.remedy for one in ignored),
    )


def _reason(name: str) -> tuple[str, str]:
    lower = name.lower()
    for ends, what, remedy in _OTHER_FORMATS:
        if lower.endswith(ends):
            return what, remedy
    return "not a table by its name", f"if it is one, give it a name that ends in {_READ}"


class Text:
    """A text file, plain or gzipped, that can be opened several times."""

    def __init__(self, file: SourceFile, content: bytes | None, *, zipped: bool) -> None:
        """`content`: that of an object in S3; None for a local file."""
        self.name = file.name
        self._url = file.url
        self._content = content
        self._zipped = zipped

    def open(self) -> IO[bytes]:
        """The text as a binary stream."""
        raw = raw_stream(self._url, self._content)
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 20) if self._zipped else raw

    def arrow(self) -> Any:
        """The text as an Arrow stream, which decompresses without holding the GIL."""
        raw = pa.OSFile(self._url) if self._content is None else pa.BufferReader(self._content)
        return pa.CompressedInputStream(raw, "gzip") if self._zipped else raw

    def check(self) -> None:
        """Read the file to its end before accepting any row, so that a truncated file is rejected as a whole.

        Raises Unreadable, or an error of the decompression, if the file is truncated, not UTF-8 or blank.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        position, lines, blank = 0, 1, True
        with self.open() as stream:
            while True:
                block = stream.read(1 << 20)
                if position == 0:
                    self._check_utf16(block[:200])
                pending = decoder.getstate()[0]
                try:
                    text = decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    raise self._not_utf8(pending + block, error, position - len(pending), lines) from error
                if not block:
                    break
                blank = blank and not text.strip().strip("\ufeff")
                position += len(block)
                lines += block.count(b"\n")
        if blank:
            raise Unreadable("the file is empty")

    def _check_utf16(self, start: bytes) -> None:
        found = None
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            found = "UTF-16 (byte order mark)"
        elif len(start) >= 4 and start.count(0) * 3 > len(start):
            found = "UTF-16 without a byte order mark"
        if found:
            kind = "UTF-16" if "without" not in found else "UTF-16LE" if start[1] == 0 else "UTF-16BE"
            raise Unreadable(f"expected UTF-8, found {found}", self._iconv(kind))

    def _not_utf8(self, data: bytes, error: UnicodeDecodeError, start: int, line: int) -> Unreadable:
        if error.reason == "unexpected end of data":
            return Unreadable("expected UTF-8, found a file that ends in the middle of a character: is it complete?")
        place = f"at position {start + error.start:,} (line {line + data[: error.start].count(10):,})"
        return Unreadable(
            f"expected UTF-8, found the byte 0x{data[error.start]:02X} {place}",
            f"if it is from Windows: {self._iconv('WINDOWS-1252')}",
        )

    def _iconv(self, encoding: str) -> str:
        if self._zipped:
            return f"gunzip -c {self.name} | iconv -f {encoding} -t UTF-8 > utf8-{self.name[:-3]}"
        return f"iconv -f {encoding} -t UTF-8 {self.name} > utf8-{self.name}"


def check_content(name: str, start: bytes) -> None:
    """Raise Unreadable if a text file, by its name, begins like a file of another format."""
    if start.startswith(b"PK\x03\x04") or start.startswith(b"\xd0\xcf\x11\xe0"):
        what = "an Excel workbook or a zip archive"
        raise Unreadable(f"expected text, found {what}", "save the sheet as CSV UTF-8, or unzip the file")
    if start.startswith(b"PAR1"):
        raise Unreadable("expected text, found Parquet", f"rename {name} so that it ends in .parquet")


def raw_stream(url: str, content: bytes | None) -> IO[bytes]:
    """A local file, or the content of an object in S3, as a binary stream."""
    return open(url, "rb") if content is None else io.BytesIO(content)
