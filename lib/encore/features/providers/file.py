"""Audio features from files: CSV, TSV, JSON lines (each plain or gzipped) and Parquet, on a local disk or in S3.

Local files are streamed; S3 objects are loaded into memory one at a time, still compressed.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import structlog

from encore.config import Config, S3Config
from encore.errors import ConfigError, InputError
from encore.features.validation import WHOLE_FILE, FeatureBatch, Validator, no_features, rejections
from encore.lake.filesystem import SourceFile, is_s3, list_files, read_bytes
from encore.vocabulary import FEATURES

_log = structlog.get_logger("encore.features")

FORMATS: dict[str, str] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".json": "json lines",
    ".parquet": "parquet",
}
"""Formats by file extension; all but Parquet may be followed by .gz."""

PATTERN = "|".join(f"*{end}{gz}" for end in FORMATS for gz in ("", ".gz") if end + gz != ".parquet.gz")
"""The files of a folder that are read."""

ID_SPELLINGS = (
    "trackuri",
    "spotifytrackuri",
    "spotifyuri",
    "spotifytrackid",
    "spotifyid",
    "trackid",
    "uri",
    "id",
    "trackurl",
    "spotifyurl",
    "trackhref",
    "url",
)
"""Names of the track id column, in lower case and without punctuation; the first one that exists is used."""

_FEATURE_SPELLING = re.compile(
    r"(?P<before>(?:spotify|audio|features?|af|track(?=audio|feature))*)"
    rf"(?P<name>{'|'.join(FEATURES)})"
    r"(?P<after>score|value|feature|bpm|db)?"
)

_BLOCK_BYTES = 8 << 20
_BATCH_ROWS = 65536
_NAMES_FROM = 1000


class _Unreadable(Exception):
    """A file is rejected as a whole, or from some row on; the message becomes the detail."""


@dataclass(frozen=True)
class _Rows:
    """Raw rows of a file, and the records that could not be read as rows."""

    records: pa.Array
    ids: pa.Array
    values: Mapping[str, pa.Array]
    unreadable: list[tuple[str, str, str]]
    """(record, detail, payload)"""


class FileProvider:
    """Features from the files named by `raw.features`: a file, a folder, a glob or an S3 prefix.

    `fetch` yields everything in them, in order of file name and row. A file that cannot be read as a table of track ids
    and all eleven features is rejected as a whole, and the others are still read; if all files are rejected, fetch
    raises InputError after yielding the rejections. The record of a row is "row 17": the seventeenth row after the
    header, or the seventeenth line of JSON lines.
    """

    name = "file"
    is_service = False

    def __init__(self, url: str, s3: S3Config, columns: Mapping[str, str], payload_bytes: int) -> None:
        """`columns` maps Encore's column names to the file's and overrides guesses; unknown names: ConfigError."""
        unknown = sorted(set(columns) - {"track_uri", *FEATURES})
        if unknown:
            raise ConfigError(
                f"features.columns.{unknown[0]}: unknown column", remedy=", ".join(("track_uri", *FEATURES))
            )
        self._url = url
        self._s3 = s3
        self._columns = dict(columns)
        self._payload_bytes = payload_bytes

    @classmethod
    def from_config(cls, config: Config) -> FileProvider:
        """The provider described by the settings. Raises ConfigError if `raw.features` is not set."""
        if config.raw.features is None:
            raise ConfigError(
                "raw.features is not set, which the provider `file` needs",
                remedy="set raw.features to a file or folder, or choose another features.provider",
            )
        return cls(config.raw.features, config.s3, config.features.columns, config.ingest.payload_bytes)

    def fingerprint(self) -> str:
        """Digest of the listing (names, sizes, modification times or ETags) and of the configured columns."""
        listing = [
            [file.name, file.size, file.modified_ns if file.etag is None else file.etag] for file in self._files()
        ]
        return hashlib.sha256(orjson.dumps([self.name, listing, sorted(self._columns.items())])).hexdigest()

    def fetch(self, requested: Iterator[list[str]]) -> Iterator[FeatureBatch]:
        """All features of all files, in batches of bounded size; ignores `requested`."""
        files = self._files()
        if not files:
            raise InputError(
                f"{self._url}: no file of audio features",
                remedy="name files that end in " + ", ".join(FORMATS) + ", or .gz",
            )
        names = [file.name for file in files]
        validator = Validator(self._payload_bytes)
        problems = []
        for file in files:
            # Files of the same name in several folders: the full path distinguishes their records.
            source = file.name if names.count(file.name) == 1 else file.url
            try:
                batches = self._open(file)
            except _Unreadable as error:
                problems.append(f"{source}: {error}")
                yield self._reject(source, str(error))
                continue
            taken = 0
            try:
                for rows in batches:
                    checked = validator.check(source, rows.records, rows.ids, rows.values)
                    taken += checked.features.num_rows
                    yield self._with_unreadable(checked, source, rows.unreadable)
            except _Unreadable as error:
                yield self._reject(source, f"{error}; before that, {taken} tracks were taken")
            _log.debug("features_file_read", source=source, tracks=taken)
        if len(problems) == len(files):
            raise InputError(
                f"{self._url}: none of its {len(files)} file(s) can be used: " + "; ".join(problems[:3]),
                remedy="provide track ids and all eleven features, or name the columns in features.columns",
            )

    def _files(self) -> list[SourceFile]:
        return list_files(self._url, PATTERN, self._s3)

    def _reject(self, source: str, detail: str) -> FeatureBatch:
        _log.info("features_file_rejected", source=source, detail=detail)
        row = (source, WHOLE_FILE, "features_unreadable", detail, None)
        return FeatureBatch(no_features(), rejections([row], self._payload_bytes))

    def _with_unreadable(
        self, checked: FeatureBatch, source: str, unreadable: list[tuple[str, str, str]]
    ) -> FeatureBatch:
        if not unreadable:
            return checked
        rows: list[tuple[str, str, str, str, str | None]] = [
            (source, record, "features_unreadable", detail, payload) for record, detail, payload in unreadable
        ]
        rejected = pa.concat_tables([checked.rejected, rejections(rows, self._payload_bytes)])
        return FeatureBatch(checked.features, rejected)

    def _open(self, file: SourceFile) -> Iterator[_Rows]:
        """The rows of a file once its columns are identified. Raises _Unreadable, also during iteration."""
        end = next((e for e in FORMATS if file.name.lower().removesuffix(".gz").endswith(e)), None)
        if end is None:
            raise _Unreadable(f"a name that ends in {', '.join(FORMATS)} expected")
        content = read_bytes(file.url, self._s3) if is_s3(file.url) else None
        try:
            with _raw(file.url, content) as stream:
                start = stream.read(2)
            if not start:
                raise _Unreadable("the file is empty")
            if FORMATS[end] == "parquet":
                return self._parquet(pa.BufferReader(content) if content is not None else file.url)
            text = _Text(file.url, content, zipped=start == b"\x1f\x8b")
            text.check()
            return self._json_lines(text) if FORMATS[end] == "json lines" else self._csv(text, FORMATS[end])
        except _UNREADABLE as error:
            raise _unreadable(error) from error

    def _csv(self, text: _Text, kind: str) -> Iterator[_Rows]:
        with text.open() as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as lines:
            first = lines.readline(_BLOCK_BYTES)
            candidates = ["\t"] if kind == "tsv" else [",", ";", "\t"]
            delimiter = max(candidates, key=lambda sign: len(next(csv.reader([first], delimiter=sign), [])))
            lines.seek(0)
            header = next(csv.reader(lines, delimiter=delimiter), [])
        columns = self._find(header)
        wrong: list[tuple[int, int, int, str]] = []

        def keep(row: Any) -> str:
            wrong.append((row.number - 1, row.expected_columns, row.actual_columns, row.text))
            return "skip"

        reader = pyarrow.csv.open_csv(
            text.arrow(),
            # The numbers of bad rows are known only with a single reading thread.
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=keep
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(columns.values()),
                # Strings, so that a bad value costs only its row, not the file, and can be shown as written.
                column_types=dict.fromkeys(columns.values(), pa.string()),
                strings_can_be_null=False,
            ),
        )
        return self._csv_rows(reader, columns, wrong)

    def _csv_rows(
        self, reader: Any, columns: dict[str, str], wrong: list[tuple[int, int, int, str]]
    ) -> Iterator[_Rows]:
        good = shown = 0
        for batch in _drawn(reader):
            counted = np.arange(good + 1, good + batch.num_rows + 1)
            skipped = np.array([number for number, *_ in wrong], dtype=np.int64)
            numbers = counted + np.searchsorted(skipped - np.arange(len(skipped)), counted, side="right")
            good += batch.num_rows
            unreadable = [_wrong_row(*one) for one in wrong[shown:]]
            shown += len(unreadable)
            values = {name: batch.column(theirs) for name, theirs in columns.items()}
            yield _Rows(_records(numbers), values.pop("track_uri"), values, unreadable)
        if shown < len(wrong):
            unreadable = [_wrong_row(*one) for one in wrong[shown:]]
            yield _Rows(_records(np.arange(0)), pa.array([], pa.string()), _no_values(), unreadable)

    def _parquet(self, source: Any) -> Iterator[_Rows]:
        parquet = pyarrow.parquet.ParquetFile(source)
        flat = _flattened(parquet.schema_arrow.empty_table())
        columns = self._find(flat.column_names)
        for name, theirs in columns.items():
            kind = flat.schema.field(theirs).type
            if pa.types.is_nested(kind) or (name != "track_uri" and pa.types.is_temporal(kind)):
                expected = "texts" if name == "track_uri" else "numbers"
                raise _Unreadable(f"column {theirs}: {expected} expected, {kind} found")
        return self._parquet_rows(parquet, columns)

    def _parquet_rows(self, parquet: Any, columns: dict[str, str]) -> Iterator[_Rows]:
        start = 0
        for batch in _drawn(parquet.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns.values()))):
            table = _flattened(pa.Table.from_batches([batch]))
            numbers = np.arange(start + 1, start + table.num_rows + 1)
            start += table.num_rows
            values = {name: _array(table.column(theirs)) for name, theirs in columns.items()}
            yield _Rows(_records(numbers), values.pop("track_uri"), values, [])

    def _json_lines(self, text: _Text) -> Iterator[_Rows]:
        names: dict[str, None] = {}
        with text.open() as stream:
            for number, line in enumerate(stream, start=1):
                if number > _NAMES_FROM:
                    break
                if number == 1 and line.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
                    raise _Unreadable("one JSON object a line expected, an array found")
                found = _json(line)
                if isinstance(found, dict):
                    names.update(dict.fromkeys(_paths(found)))
        columns = self._find(list(names))
        return self._json_rows(text, {name: tuple(theirs.split("\0")) for name, theirs in columns.items()})

    def _json_rows(self, text: _Text, columns: dict[str, tuple[str, ...]]) -> Iterator[_Rows]:
        with text.open() as stream:
            numbers: list[int] = []
            objects: list[dict[str, Any]] = []
            unreadable: list[tuple[str, str, str]] = []
            for number, line in enumerate(_drawn(stream), start=1):
                found = _json(line)
                if isinstance(found, dict):
                    numbers.append(number)
                    objects.append(found)
                elif line.strip():
                    shown = line.decode().rstrip("\r\n")
                    unreadable.append((f"row {number}", "a JSON object expected, something else found", shown))
                if len(objects) + len(unreadable) == _BATCH_ROWS:
                    yield _json_batch(numbers, objects, columns, unreadable)
                    numbers, objects, unreadable = [], [], []
            if objects or unreadable:
                yield _json_batch(numbers, objects, columns, unreadable)

    def _find(self, header: list[str]) -> dict[str, str]:
        """Map Encore's column names to the file's. Raises _Unreadable that lists the missing and the found columns."""
        found: dict[str, str] = {}
        missing: list[str] = []
        for name in ("track_uri", *FEATURES):
            if name in self._columns:
                candidates = [theirs for theirs in header if theirs == self._columns[name]]
            else:
                candidates = _candidates(name, header)
            if len(candidates) > 1:
                shown = ", ".join(_shown(theirs) for theirs in candidates)
                raise _Unreadable(f"one column for {name} expected, {len(candidates)} found: {shown}")
            if candidates:
                found[name] = candidates[0]
            else:
                missing.append(self._columns.get(name, name))
        if missing:
            columns = ", ".join(_shown(theirs) for theirs in header[:40]) + (", ..." if len(header) > 40 else "")
            raise _Unreadable(f"columns {', '.join(missing)} are missing; found: {columns}")
        if len(set(found.values())) < len(found):
            raise _Unreadable("features.columns names one column for several features")
        return found


class _Text:
    """A text file, plain or gzipped, that can be opened several times."""

    def __init__(self, url: str, content: bytes | None, *, zipped: bool) -> None:
        self._url = url
        self._content = content
        self._zipped = zipped

    def open(self) -> IO[bytes]:
        """The text as a binary stream."""
        raw = _raw(self._url, self._content)
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 20) if self._zipped else raw

    def arrow(self) -> Any:
        """The text as an Arrow stream, which decompresses without holding the GIL."""
        raw = pa.OSFile(self._url) if self._content is None else pa.BufferReader(self._content)
        return pa.CompressedInputStream(raw, "gzip") if self._zipped else raw

    def check(self) -> None:
        """Read the file to its end before accepting any row, so that a truncated file is rejected as a whole.

        Raises _Unreadable, or one of _UNREADABLE, if the file is truncated, not UTF-8 or blank.
        """
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        position, blank = 0, True
        with self.open() as stream:
            while True:
                block = stream.read(1 << 20)
                try:
                    text = decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    raise _Unreadable(f"UTF-8 expected, something else found near byte {position}") from error
                if not block:
                    break
                blank = blank and not text.strip()
                position += len(block)
        if blank:
            raise _Unreadable("the file is empty")


_UNREADABLE = (pa.ArrowException, OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError)


def _unreadable(error: Exception) -> _Unreadable:
    what = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    return _Unreadable(f"the file cannot be read: {what}")


def _drawn(batches: Any) -> Iterator[Any]:
    """The items of a library's iterator, with its errors converted to _Unreadable."""
    iterator = iter(batches)
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except _UNREADABLE as error:
            raise _unreadable(error) from error
        yield item


def _raw(url: str, content: bytes | None) -> IO[bytes]:
    return open(url, "rb") if content is None else io.BytesIO(content)


def _records(numbers: Any) -> pa.Array:
    return pc.binary_join_element_wise("row ", pa.array(numbers, pa.int64()).cast(pa.string()), "")


def _wrong_row(number: int, expected: int, found: int, text: str) -> tuple[str, str, str]:
    """(record, detail, payload) of a CSV row that has too few or too many columns."""
    detail = f"a row of {expected} columns expected, {found} found"
    lines = text.count("\n") + 1
    # An unclosed quote swallows the lines after it: say how many are lost with this row.
    more = f" in {lines} lines; is there a quote that does not close?" if lines > 1 else ""
    return f"row {number}", detail + more, text


def _no_values() -> dict[str, pa.Array]:
    return dict.fromkeys(FEATURES, pa.array([], pa.float64()))


def _plain(name: str) -> str:
    return "".join(sign for sign in name.casefold() if sign.isalnum())


def _shown(name: str) -> str:
    return name.replace("\0", ".")


def _candidates(name: str, header: list[str]) -> list[str]:
    """The columns of the file that may match one of Encore's names: those with the best spelling found."""
    if name == "track_uri":
        for spelling in ID_SPELLINGS:
            found = [theirs for theirs in header if _plain(theirs) == spelling]
            if found:
                return found
        return []
    exact = [theirs for theirs in header if _plain(theirs) == name]
    if exact:
        return exact
    matches = [(theirs, _FEATURE_SPELLING.fullmatch(_plain(theirs))) for theirs in header]
    return [theirs for theirs, match in matches if match is not None and match["name"] == name]


def _flattened(table: pa.Table) -> pa.Table:
    """The table with struct fields as columns whose names are dotted paths."""
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    return table


def _array(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    whole.validate(full=True)
    return whole


def _json(line: bytes) -> Any:
    """The value on a line, or None if it is not JSON. NaN and Infinity, which Python writes, are accepted."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            return None


def _paths(found: dict[str, Any]) -> Iterator[str]:
    """Names in an object and in nested objects, joined by a NUL character, which no name contains."""
    for name, value in found.items():
        if isinstance(value, dict):
            yield from (f"{name}\0{inner}" for inner in _paths(value))
        else:
            yield name


def _json_batch(
    numbers: list[int],
    objects: list[dict[str, Any]],
    columns: dict[str, tuple[str, ...]],
    unreadable: list[tuple[str, str, str]],
) -> _Rows:
    values = {name: column_of([_inner(found, path) for found in objects]) for name, path in columns.items()}
    return _Rows(_records(numbers), values.pop("track_uri"), values, unreadable)


def _inner(found: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def column_of(values: list[Any]) -> pa.Array:
    """An Arrow column of JSON values: float64 if all are numbers or null, otherwise strings."""
    try:
        return pa.array(values, pa.float64())
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass
    strings = [value if isinstance(value, str) or value is None else json.dumps(value) for value in values]
    return pa.array(strings, pa.string())
