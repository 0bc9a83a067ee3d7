"""Tracks that files list although no playlist has them: raw.tracks."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.json as pj
import pyarrow.parquet as pq

from encore.arrays.track_keys import ID_LENGTH, URI_PREFIX, KeyTable
from encore.config import S3Config
from encore.errors import InputError
from encore.lake.filesystem import SourceFile, list_tree, open_file
from encore.lake.tables import TRACKS, arrow_schema
from encore.lake.track_arrays import track_words
from encore.mpd.parse import TRACK_FIELDS

BY_FILE = -1
"""`tracks.first_pid` of a track whose names come from raw.tracks."""

COLUMNS = ("track_uri", *TRACK_FIELDS)
_ID = rf"^[0-9A-Za-z]{{{ID_LENGTH}}}$"
_FORMAT = re.compile(r"\.(csv|tsv|jsonl|ndjson|parquet)(\.gz)?$", re.IGNORECASE)
_EXPECTED = "expected .csv, .tsv, .jsonl or .ndjson, each perhaps with .gz, or .parquet"


@dataclass(frozen=True, eq=False)
class ListedTracks:
    """The rows of raw.tracks: `table` has COLUMNS, a row for each track_uri, sorted by it; `n_refused` rows have no
    valid track_uri, the first of them at `first_refused`."""

    table: pa.Table
    n_refused: int = 0
    first_refused: str | None = None

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def keys(self) -> KeyTable:
        """The row of each track, by its id."""
        keys = KeyTable()
        keys.add(track_words(TRACKS, self.table["track_uri"]))
        return keys

    def note(self) -> str | None:
        """One line about the refused rows for the terminal; None if there are none."""
        if not self.n_refused:
            return None
        rows = "1 row of raw.tracks has" if self.n_refused == 1 else f"{self.n_refused:,} rows of raw.tracks have"
        return f"{rows} no valid track_uri and were left out, the first: {self.first_refused}"


def listed_files(url: str | None, s3: S3Config) -> list[SourceFile]:
    """The files of raw.tracks, sorted by name; none if it is null. InputError for one of another format."""
    files = [] if url is None else list_tree(url, s3)
    for file in files:
        _reader(file)
    return files


def read_listed(files: list[SourceFile], s3: S3Config) -> ListedTracks:
    """The tracks of some files. Of several rows with a track_uri, the first one is used.

    Raises InputError for a file that cannot be read as its extension says, or has no column track_uri.
    """
    parts, n_refused, first = [_schema().empty_table()], 0, None
    for file in files:
        rows, refused = _read(file, s3)
        parts.append(rows)
        n_refused += len(refused)
        if len(refused) and first is None:
            first = f"{file.name}: row {refused[0] + 1}"
    rows = pa.concat_tables(parts).combine_chunks()
    _, chosen = np.unique(rows["track_uri"].to_numpy(), return_index=True)
    return ListedTracks(rows.take(pa.array(chosen)), n_refused, first)


def listed_rows(listed: pa.Table, ids: np.ndarray) -> pa.Table:
    """Rows of `tracks` for rows of ListedTracks.table; `ids` int32: the id of each."""
    n = listed.num_rows
    rows = listed.append_column("track_id", pa.array(ids, pa.int32()))
    rows = rows.append_column("first_pid", pa.array(np.full(n, BY_FILE, np.int64)))
    rows = rows.append_column("orphaned", pa.nulls(n, pa.bool_()))
    return rows.select(TRACKS.names).cast(arrow_schema(TRACKS))


def _schema() -> pa.Schema:
    return pa.schema([(name, pa.int64() if name == "duration_ms" else pa.string()) for name in COLUMNS])


def _read(file: SourceFile, s3: S3Config) -> tuple[pa.Table, np.ndarray]:
    """The valid rows of a file with COLUMNS, and the numbers of the others."""
    read = _reader(file)
    try:
        with open_file(file.url, s3) as raw:
            table = read(raw)
    except (pa.ArrowException, EOFError, gzip.BadGzipFile) as error:
        text = str(error).splitlines()[0]
        raise InputError(f"{file.url}: not as its extension says: {text}", remedy=_EXPECTED) from error
    if "track_uri" not in table.column_names:
        found = ", ".join(table.column_names[:20]) or "none"
        raise InputError(
            f"{file.url}: no column track_uri; columns found: {found}",
            remedy=f"rename the column with the tracks' URIs or ids; others that are used: {', '.join(TRACK_FIELDS)}",
        )
    columns = [_column(file, table, name) for name in COLUMNS]
    rows = pa.Table.from_arrays(columns, schema=_schema())
    trimmed = pc.utf8_trim_whitespace(rows["track_uri"])
    uris = pc.if_else(
        pc.match_substring_regex(trimmed, _ID), pc.binary_join_element_wise(URI_PREFIX, trimmed, ""), trimmed
    )
    is_valid = pc.fill_null(pc.match_substring_regex(uris, f"^{URI_PREFIX}{_ID[1:]}"), False)
    refused = np.flatnonzero(~np.asarray(is_valid.to_numpy(), np.bool_))
    return rows.set_column(0, "track_uri", uris).filter(is_valid), refused


def _column(file: SourceFile, table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column as text, or as milliseconds; without a value where it is missing, empty, or 0 or less."""
    kind = _schema().field(name).type
    if name not in table.column_names:
        return pa.chunked_array([pa.nulls(table.num_rows, kind)])
    values = table[name]
    try:
        if pa.types.is_floating(values.type):
            values = values.cast(pa.int64())
        values = values.cast(kind)
    except pa.ArrowInvalid as error:
        expected = "whole numbers" if name == "duration_ms" else "text"
        raise InputError(f"{file.url}: {name}: {expected} expected: {str(error).splitlines()[0]}") from error
    is_missing = pc.less_equal(values, 0) if name == "duration_ms" else pc.equal(values, "")
    return pc.if_else(is_missing, pa.scalar(None, kind), values)


def _reader(file: SourceFile) -> Callable[[Any], pa.Table]:
    found = _FORMAT.search(file.name)
    if found is None or (found[1].lower() == "parquet" and found[2]):
        raise InputError(f"raw.tracks: {file.url}: this format is not read", remedy=_EXPECTED)
    read = {"csv": _csv(","), "tsv": _csv("\t"), "parquet": pq.read_table}.get(found[1].lower(), _json_lines)
    return (lambda raw: read(_unzipped(raw))) if found[2] else read


def _unzipped(raw: Any) -> IO[bytes]:
    return io.BytesIO(gzip.decompress(raw.read()))


def _csv(delimiter: str) -> Callable[[Any], pa.Table]:
    # as text: a track named 1999 is not a number, nor one named NA missing
    text = {name: pa.string() for name in COLUMNS}
    convert = pv.ConvertOptions(column_types=text, null_values=[""], strings_can_be_null=True)
    parse = pv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    return lambda raw: pv.read_csv(raw, parse_options=parse, convert_options=convert)


def _json_lines(raw: Any) -> pa.Table:
    options = pj.ParseOptions(explicit_schema=_schema(), unexpected_field_behavior="ignore")
    table = pj.read_json(raw, parse_options=options)
    # a column of the schema that no line has is there all the same
    return table.drop_columns(["track_uri"]) if table["track_uri"].null_count == table.num_rows else table
