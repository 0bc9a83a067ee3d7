"""Audio features from files: CSV, TSV, JSON lines (each plain or gzipped) and Parquet, on a local disk or in S3.

Local files are streamed; S3 objects are loaded into memory one at a time, still compressed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import structlog

from encore.config import Config, S3Config
from encore.errors import ConfigError, InputError
from encore.features.providers.columns import SAMPLE_ROWS, Columns, find_columns, shown
from encore.features.providers.sources import (
    Ignored,
    Text,
    Unreadable,
    check_content,
    format_of,
    listed,
    no_file,
    raw_stream,
)
from encore.features.validation import WHOLE_FILE, FeatureBatch, Validator, no_features, rejections
from encore.lake.filesystem import SourceFile, is_s3, read_bytes
from encore.vocabulary import FEATURES

_log = structlog.get_logger("encore.features")

_BLOCK_BYTES = 8 << 20
_BATCH_ROWS = 65536


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
        self._ignored: list[Ignored] = []
        self._id_columns: dict[str, list[str]] = {}
        self._unreadable: dict[str, list[str]] = {}

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
        files, _ = listed(self._url, self._s3)
        listing = [[file.name, file.size, file.modified_ns if file.etag is None else file.etag] for file in files]
        return hashlib.sha256(orjson.dumps([self.name, listing, sorted(self._columns.items())])).hexdigest()

    @property
    def notes(self) -> list[str]:
        """What the user should know of the files that `fetch` has read so far, one line each."""
        found = [f"files of features that are not read: {'; '.join(map(str, self._ignored))}"] if self._ignored else []
        found += [f"{_listed(files)}: {what}" for what, files in self._id_columns.items()]
        return found + [f"{_listed(files)}: refused: {what}" for what, files in list(self._unreadable.items())[:3]]

    def fetch(self, requested: Iterator[list[str]]) -> Iterator[FeatureBatch]:
        """All features of all files, in batches of bounded size; ignores `requested`."""
        files, self._ignored = listed(self._url, self._s3)
        if not files:
            raise no_file(self._url, self._ignored)
        if self._ignored:
            _log.info("features_files_ignored", ignored=[str(one) for one in self._ignored])
        names = [file.name for file in files]
        validator = Validator(self._payload_bytes)
        problems: list[tuple[str, Unreadable]] = []
        for file in files:
            # Files of the same name in several folders: the full path distinguishes their records.
            source = file.name if names.count(file.name) == 1 else file.url
            try:
                batches = self._open(file, source)
            except Unreadable as error:
                problems.append((source, error))
                yield self._reject(source, str(error))
                continue
            taken = 0
            try:
                for rows in batches:
                    checked = validator.check(source, rows.records, rows.ids, rows.values)
                    taken += checked.features.num_rows
                    yield self._with_unreadable(checked, source, rows.unreadable)
            except Unreadable as error:
                yield self._reject(source, f"{error}; before that, {taken:,} tracks were read")
            _log.debug("features_file_read", source=source, tracks=taken)
        if len(problems) == len(files):
            remedies = dict.fromkeys(error.remedy for _, error in problems if error.remedy)
            raise InputError(
                f"{self._url}: none of its {len(files):,} file(s) can be used: "
                + "; ".join(f"{source}: {error.args[0]}" for source, error in problems[:3]),
                remedy="; ".join(list(remedies)[:3]) or None,
            )

    def _reject(self, source: str, detail: str) -> FeatureBatch:
        _log.info("features_file_rejected", source=source, detail=detail)
        self._unreadable.setdefault(detail, []).append(source)
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

    def _open(self, file: SourceFile, source: str) -> Iterator[_Rows]:
        """The rows of a file once its columns are identified. Raises Unreadable, also during iteration."""
        kind = format_of(file.name)
        content = read_bytes(file.url, self._s3) if is_s3(file.url) else None
        try:
            with raw_stream(file.url, content) as stream:
                start = stream.read(4)
            if not start:
                raise Unreadable("the file is empty")
            if kind == "parquet":
                return self._parquet(pa.BufferReader(content) if content is not None else file.url, source)
            check_content(file.name, start)
            text = Text(file, content, zipped=start.startswith(b"\x1f\x8b"))
            text.check()
            if kind == "json lines":
                return self._json_lines(text, source)
            return self._csv(text, source, [",", ";", "\t"] if kind == "csv" else ["\t"])
        except _UNREADABLE as error:
            raise _unreadable(error) from error

    def _choose(
        self, source: str, header: list[str], sample: Callable[[Sequence[str]], Mapping[str, pa.Array]]
    ) -> Columns:
        """The columns to read; what is chosen for the track ids is logged, and noted if it may be unexpected."""
        columns = find_columns(header, self._columns, sample)
        theirs = shown(columns.names["track_uri"])
        _log.info("features_id_column", source=source, column=theirs, why=columns.why)
        if columns.surprising:
            what = f"track ids are read from the column {theirs}: {columns.why}"
            self._id_columns.setdefault(what, []).append(source)
        return columns

    def _csv(self, text: Text, source: str, delimiters: list[str]) -> Iterator[_Rows]:
        with text.open() as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as lines:
            first = lines.readline(_BLOCK_BYTES)
            delimiter = max(delimiters, key=lambda sign: len(next(csv.reader([first], delimiter=sign), [])))
            lines.seek(0)
            reader = csv.reader(lines, delimiter=delimiter)
            header = next(reader, [])
            first_rows: list[list[str]] = []
            is_empty = False
            # A broken row costs only itself, later on; the rows before it are enough of a sample.
            with suppress(csv.Error):
                first_rows.extend(islice(reader, SAMPLE_ROWS))
                is_empty = not first_rows
        whole = [row for row in first_rows if len(row) == len(header)]

        def sample(names: Sequence[str]) -> dict[str, pa.Array]:
            return {name: pa.array([row[header.index(name)] for row in whole], pa.string()) for name in names}

        columns = self._choose(source, header, sample).names
        if is_empty:
            # Arrow takes a header that no line end follows for an empty file.
            return iter(())
        wrong: list[tuple[int, int, int, str]] = []

        def keep(row: Any) -> str:
            wrong.append((row.number - 1, row.expected_columns, row.actual_columns, row.text))
            return "skip"

        arrow_reader = pyarrow.csv.open_csv(
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
        return self._csv_rows(arrow_reader, columns, wrong)

    def _csv_rows(
        self, reader: Any, columns: dict[str, str], wrong: list[tuple[int, int, int, str]]
    ) -> Iterator[_Rows]:
        good = seen = 0
        for batch in _drawn(reader):
            counted = np.arange(good + 1, good + batch.num_rows + 1)
            skipped = np.array([number for number, *_ in wrong], dtype=np.int64)
            numbers = counted + np.searchsorted(skipped - np.arange(len(skipped)), counted, side="right")
            good += batch.num_rows
            unreadable = [_wrong_row(*one) for one in wrong[seen:]]
            seen += len(unreadable)
            values = {name: batch.column(theirs) for name, theirs in columns.items()}
            yield _Rows(_records(numbers), values.pop("track_uri"), values, unreadable)
        if seen < len(wrong):
            unreadable = [_wrong_row(*one) for one in wrong[seen:]]
            yield _Rows(_records(np.arange(0)), pa.array([], pa.string()), _no_values(), unreadable)

    def _parquet(self, file: Any, source: str) -> Iterator[_Rows]:
        parquet = pyarrow.parquet.ParquetFile(file)
        flat = _flattened(parquet.schema_arrow.empty_table())

        def sample(names: Sequence[str]) -> dict[str, pa.Array]:
            texts = [name for name in names if _is_text(flat.schema.field(name).type)]
            # A damaged page costs the rows from there on, when they are read; here it costs the sample.
            with suppress(*_UNREADABLE):
                for batch in parquet.iter_batches(batch_size=SAMPLE_ROWS, columns=texts) if texts else ():
                    table = _flattened(pa.Table.from_batches([batch]))
                    return {name: _array(table.column(name)) for name in texts}
            return {}

        columns = self._choose(source, flat.column_names, sample).names
        for name, theirs in columns.items():
            kind = flat.schema.field(theirs).type
            if pa.types.is_nested(kind) or (name != "track_uri" and pa.types.is_temporal(kind)):
                expected = "text" if name == "track_uri" else "numbers"
                raise Unreadable(f"column {theirs}: expected {expected}, found {_in_words(kind)}")
        return self._parquet_rows(parquet, columns)

    def _parquet_rows(self, parquet: Any, columns: dict[str, str]) -> Iterator[_Rows]:
        start = 0
        for batch in _drawn(parquet.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns.values()))):
            table = _flattened(pa.Table.from_batches([batch]))
            numbers = np.arange(start + 1, start + table.num_rows + 1)
            start += table.num_rows
            values = {name: _array(table.column(theirs)) for name, theirs in columns.items()}
            yield _Rows(_records(numbers), values.pop("track_uri"), values, [])

    def _json_lines(self, text: Text, source: str) -> Iterator[_Rows]:
        with text.open() as stream:
            start = stream.read(1 << 16).decode(errors="replace").lstrip("\ufeff \t\r\n")
        if start.startswith("["):
            raise Unreadable("expected one JSON object per line, found an array", _jq(text.name, ".[]"))
        names: dict[str, None] = {}
        objects: list[dict[str, Any]] = []
        with text.open() as stream:
            for line in islice(stream, SAMPLE_ROWS):
                found = _json(line)
                if isinstance(found, dict):
                    names.update(dict.fromkeys(_paths(found)))
                    objects.append(found)
        if not objects:
            if start.startswith("{"):
                raise Unreadable(
                    "expected one JSON object per line, found an object over several lines (pretty-printed)",
                    _jq(text.name, "."),
                )
            raise Unreadable(f"expected one JSON object per line, found {start.splitlines()[0][:80]!r}")

        def sample(wanted: Sequence[str]) -> dict[str, pa.Array]:
            return {
                name: column_of([_inner(found, tuple(name.split("\0"))) for found in objects]).cast(pa.string())
                for name in wanted
            }

        try:
            columns = self._choose(source, list(names), sample).names
        except Unreadable as error:
            inner = next((name for name, value in objects[0].items() if _is_table(value)), None)
            if inner is None:
                raise
            what = f"expected one JSON object per track, found an object with all of them in an array, {inner}"
            raise Unreadable(what, _jq(text.name, f".{inner}[]")) from error
        return self._json_rows(text, {name: tuple(theirs.split("\0")) for name, theirs in columns.items()})

    def _json_rows(self, text: Text, columns: dict[str, tuple[str, ...]]) -> Iterator[_Rows]:
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
                    detail = f"expected a JSON object, found {_JSON_KINDS.get(type(found), 'text that is not JSON')}"
                    unreadable.append((f"row {number}", detail, line.decode().rstrip("\r\n")))
                if len(objects) + len(unreadable) == _BATCH_ROWS:
                    yield _json_batch(numbers, objects, columns, unreadable)
                    numbers, objects, unreadable = [], [], []
            if objects or unreadable:
                yield _json_batch(numbers, objects, columns, unreadable)


_JSON_KINDS = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "true or false"}


def _jq(name: str, expression: str) -> str:
    unzip = f"gunzip -c {name} | " if name.lower().endswith(".gz") else ""
    return f"convert it: {unzip}jq -c '{expression}' {'' if unzip else name + ' '}> features.jsonl"


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(
        check(value)
        for check in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_binary,
            pa.types.is_large_binary,
        )
    )


def _in_words(kind: pa.DataType) -> str:
    if pa.types.is_temporal(kind):
        return "dates or times"
    return "maps" if pa.types.is_map(kind) else "lists"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


_UNREADABLE = (pa.ArrowException, OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError)


def _unreadable(error: Exception) -> Unreadable:
    what = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    return Unreadable(f"the file cannot be read: {what}")


def _drawn(batches: Any) -> Iterator[Any]:
    """The items of a library's iterator, with its errors converted to Unreadable."""
    iterator = iter(batches)
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except _UNREADABLE as error:
            raise _unreadable(error) from error
        yield item


def _records(numbers: Any) -> pa.Array:
    return pc.binary_join_element_wise("row ", pa.array(numbers, pa.int64()).cast(pa.string()), "")


def _wrong_row(number: int, expected: int, found: int, text: str) -> tuple[str, str, str]:
    """(record, detail, payload) of a CSV row that has too few or too many columns."""
    detail = f"expected a row of {expected} columns, found {found}"
    lines = text.count("\n") + 1
    # An unclosed quote swallows the lines after it: say how many are lost with this row.
    more = f" in {lines} lines; is there a quote that is not closed?" if lines > 1 else ""
    return f"row {number}", detail + more, text


def _no_values() -> dict[str, pa.Array]:
    return dict.fromkeys(FEATURES, pa.array([], pa.float64()))


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
    # Arrow would make 1.0 of true.
    if bool not in set(map(type, values)):
        with suppress(pa.ArrowInvalid, pa.ArrowTypeError):
            return pa.array(values, pa.float64())
    strings = [value if isinstance(value, str) or value is None else json.dumps(value) for value in values]
    return pa.array(strings, pa.string())
