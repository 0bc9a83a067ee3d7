"""CSV and Parquet tables: a file of Exportify is one playlist; other tables have a column of playlists.

The rows of a table may be in any order. They are distributed by pid to temporary files, each small enough to be sorted
in memory, so memory does not grow with the table.
"""

from __future__ import annotations

import csv
import itertools
import unicodedata
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from encore.importing.columns import PLAYLIST_COLUMNS, SAMPLE_ROWS, SPELLINGS, Columns, row_track
from encore.importing.files import DAMAGED, Entry, Unreadable, open_text
from encore.importing.records import Loss, Losses, Playlist, epoch_seconds, text, whole
from encore.importing.slices import collision

BATCH_ROWS = 1 << 16
BUCKET_BYTES = 32 << 20
MAX_BUCKETS = 256
_KEPT = tuple(name for name in SPELLINGS if name not in ("playlist_id", "user"))
_SCHEMA = pa.schema([("pid", pa.int64()), *((name, pa.string()) for name in ("key", "own_id", *_KEPT))])

Rows = Iterator[list[str | None]]


def is_one_playlist(entry: Entry) -> bool:
    """Whether a table is one playlist, as Exportify writes it. Raises Unreadable if it holds no playlists."""
    with _open(entry, Losses()) as (columns, _):
        return columns.is_one_playlist


def read_exportify(entry: Entry, losses: Losses) -> Playlist:
    """The playlist of a file of Exportify, named after the file."""
    tracks = []
    with _open(entry, losses) as (columns, rows):
        for row in rows:
            found = row_track({name: row[place] for name, place in columns.places.items()})
            if isinstance(found, Loss):
                losses[found] += 1
            else:
                tracks.append(found)
    return Playlist("exportify", entry.stem, None, tracks, entry.path)


class FlatTables:
    """The rows of the tables of a source, which together are one table, grouped by playlist.

    Memory: one batch of rows while they are added, and one bucket when the playlists are returned. A bucket is about
    BUCKET_BYTES of the tables, more beyond MAX_BUCKETS times that, and never less than one playlist.
    """

    def __init__(self, folder: Path, tables: Iterable[Entry], pid_of: Callable[[str], int], span: tuple[int, int]):
        """`folder`: for temporary files. `pid_of`: a playlist's pid by its key; `span`: the first and the last pid."""
        self._tables = list(tables)
        self._folder, self._pid_of, self._span = folder, pid_of, span
        size = sum(_size(entry) for entry in self._tables)
        self.n_buckets = min(MAX_BUCKETS, 1 + size // BUCKET_BYTES)

    def playlists(self, losses: Losses, on_rows: Callable[[int], None]) -> Iterator[tuple[int, Playlist]]:
        """The playlists with their pids, in the order of the pids. Raises InputError if two have the same pid."""
        if not self._tables:
            return
        paths = [self._folder / f"rows-{number}.arrow" for number in range(self.n_buckets)]
        writers = [pa.ipc.new_file(str(path), _SCHEMA) for path in paths]
        try:
            for entry in self._tables:
                try:
                    self._distribute(entry, losses, writers, on_rows)
                except Unreadable as error:
                    raise Unreadable(f"{entry.path}: {error}", error.remedy) from error
        finally:
            for writer in writers:
                writer.close()
        for path in paths:
            yield from _grouped(path, losses, self._tables)
            path.unlink()

    def _distribute(
        self, entry: Entry, losses: Losses, writers: list[pa.ipc.RecordBatchFileWriter], on_rows: Callable[[int], None]
    ) -> None:
        low, high = self._span
        with _open(entry, losses) as (columns, rows):
            while part := list(itertools.islice(rows, BATCH_ROWS)):
                table = self._keyed(columns, part, losses)
                buckets = (table["pid"].to_numpy() - low) // -(-(high + 1 - low) // len(writers))
                for bucket in np.unique(buckets).tolist():
                    writers[bucket].write_table(table.filter(pa.array(buckets == bucket)))
                on_rows(len(part))

    def _keyed(self, columns: Columns, rows: list[list[str | None]], losses: Losses) -> pa.Table:
        """Rows that name a playlist, with its key and pid."""
        named = list(zip(*rows, strict=True))
        cells: dict[str, pa.Array] = {
            name: pa.array(named[place], pa.string()) for name, place in columns.places.items()
        }
        nulls = pa.nulls(len(rows), pa.string())
        own_id = nulls
        if "playlist_id" in cells:
            # pandas writes whole numbers of a column with gaps as 7.0
            own_id = pc.replace_substring_regex(pc.utf8_trim_whitespace(cells["playlist_id"]), r"^(\d+)\.0+$", r"\1")
            keys = pc.binary_join_element_wise("id", own_id, "\0")
        elif "user" in cells:
            user = pc.fill_null(cells["user"], "")
            keys = pc.binary_join_element_wise("user", user, pc.utf8_trim_whitespace(cells["playlist_name"]), "\0")
        else:
            keys = pc.binary_join_element_wise("title", pc.utf8_trim_whitespace(cells["playlist_name"]), "\0")
        source = own_id if "playlist_id" in cells else pc.utf8_trim_whitespace(cells["playlist_name"])
        has_key = pc.fill_null(pc.greater(pc.utf8_length(source), 0), False)
        losses[Loss.NO_PLAYLIST] += len(rows) - (pc.sum(has_key).as_py() or 0)

        encoded = pc.dictionary_encode(keys)
        distinct = [unicodedata.normalize("NFC", key or "") for key in encoded.dictionary.to_pylist()]
        pids = pa.array([self._pid_of(key) for key in distinct], pa.int64())
        table = pa.table(
            {
                "pid": pids.take(encoded.indices),
                "key": pa.array(distinct, pa.string()).take(encoded.indices),
                "own_id": own_id,
                **{name: cells.get(name, nulls) for name in _KEPT},
            },
            schema=_SCHEMA,
        )
        return table.filter(has_key)


def _grouped(path: Path, losses: Losses, tables: list[Entry]) -> Iterator[tuple[int, Playlist]]:
    with pa.memory_map(str(path)) as source:
        rows = pa.ipc.open_file(source).read_all()
        pids = rows["pid"].to_numpy()
        order = np.argsort(pids, kind="stable")
        rows, pids = rows.take(pa.array(order)), pids[order]
        bounds = [0, *(np.flatnonzero(np.diff(pids)) + 1).tolist(), len(pids)] if len(pids) else [0]
        for low, high in itertools.pairwise(bounds):
            yield int(pids[low]), _playlist(rows.slice(low, high - low).to_pylist(), losses, tables)


def _playlist(rows: list[dict[str, Any]], losses: Losses, tables: list[Entry]) -> Playlist:
    """The playlist in rows of the same pid, which are in the order of the table."""
    place = tables[0].path if len(tables) == 1 else f"{len(tables)} tables"
    keys = sorted({row["key"] for row in rows})
    if len(keys) > 1:
        one, other = (repr(" ".join(key.split("\0")[1:])) for key in keys[:2])
        raise collision(f"{one} in {place}", f"{other} in {place}")
    # a missing position leaves the order of the table
    positions = [whole(row["pos"], 2**53) for row in rows]
    if None not in positions:
        rows = [row for _, row in sorted(zip(positions, rows, strict=True), key=lambda pair: pair[0] or 0)]
    tracks = []
    for row in rows:
        found = row_track(row)
        if isinstance(found, Loss):
            losses[found] += 1
        else:
            tracks.append(found)
    values = {
        name: next((row[name] for row in rows if row[name]), None) for name in ("playlist_name", *PLAYLIST_COLUMNS)
    }
    fields = {
        "description": text(values["description"]),
        "collaborative": {"true": "true", "false": "false"}.get(str(values["collaborative"]).lower()),
        "modified_at": epoch_seconds(values["modified_at"]),
        "num_followers": whole(values["num_followers"]),
    }
    return Playlist("table", text(values["playlist_name"]), rows[0]["own_id"], tracks, place, fields)


# reading ------------------------------------------------------------------------------------------------------------


@contextmanager
def _open(entry: Entry, losses: Losses) -> Iterator[tuple[Columns, Rows]]:
    """The columns and the rows of a table, one list of texts a row; empty and malformed rows are counted and skipped.

    Raises Unreadable, also while the rows are read.
    """
    rows = _parquet(entry) if entry.ending == ".parquet" else _csv(entry, losses)
    with closing(rows):
        header = [name or "" for name in next(rows, [])]
        sample = list(itertools.islice(rows, SAMPLE_ROWS))
        yield Columns.find(header, sample), (row for row in itertools.chain(sample, rows) if not _is_empty(row, losses))


def _is_empty(row: list[str | None], losses: Losses) -> bool:
    if any(cell and not cell.isspace() for cell in row):
        return False
    losses[Loss.EMPTY] += 1
    return True


def _csv(entry: Entry, losses: Losses) -> Generator[list[str | None], None, None]:
    with open_text(entry) as stream:
        first = stream.readline(1 << 20)
        signs = ["\t"] if entry.ending == ".tsv" else [",", ";", "\t"]
        sign = max(signs, key=lambda sign: len(next(csv.reader([first], delimiter=sign, skipinitialspace=True), [])))
        rows = csv.reader(itertools.chain([first], stream), delimiter=sign, skipinitialspace=True)
        try:
            header = next(rows, [])
            yield [*header]
            for row in rows:
                if len(row) == len(header) or not any(cell.strip() for cell in row):
                    yield [*row] if row else [None] * len(header)
                else:
                    losses[Loss.BAD_ROW] += 1
        except csv.Error as error:
            raise Unreadable(f"row {rows.line_num}: {error}", "look for an unclosed quotation mark") from error


def _parquet(entry: Entry) -> Generator[list[str | None], None, None]:
    try:
        with entry.open() as raw, pq.ParquetFile(pa.PythonFile(raw, mode="r")) as file:
            schema = file.schema_arrow
            nested = [field.name for field in schema if pa.types.is_nested(field.type)]
            names = [field.name for field in schema if field.name not in nested]
            yield [*names]
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=names):
                columns = [_texts(column) for column in batch.columns]
                yield from (list(row) for row in zip(*columns, strict=True))
    except (pa.ArrowInvalid, OSError, *DAMAGED) as error:
        raise Unreadable(f"not Parquet, or damaged: {error}") from error


def _texts(column: pa.Array) -> list[str | None]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type):
        found: list[str | None] = column.to_pylist()
        return found
    return [None if value is None else _plain(value) for value in column.to_pylist()]


def _plain(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _size(entry: Entry) -> int:
    """The size of a table when it is decompressed, as far as that is known without reading it."""
    if entry.ending != ".parquet":
        return entry.size * (6 if entry.path.lower().endswith(".gz") else 1)
    with entry.open() as raw, pq.ParquetFile(pa.PythonFile(raw, mode="r")) as file:
        groups = range(file.metadata.num_row_groups)
        return sum(file.metadata.row_group(group).total_byte_size for group in groups)
