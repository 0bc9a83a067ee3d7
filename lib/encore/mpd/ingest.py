"""Converts slices to rows of `playlists`, `challenge_playlists`, `tracks` and `quarantine` on Spark, in two passes and
without a shuffle.

First pass: each Python task parses some files and stages four tables in a scratch location: playlists with tracks
encoded as task-local codes, the ids of its distinct tracks, the metadata of these tracks, and the rejected records. To
Spark it returns one row per file. The driver then gets each distinct track of each task once, as an id and three
numbers, and assigns track_ids. Second pass: a lookup turns codes into track_ids, the best record of each track becomes
its row, and the tasks write the data files of the tables.

Staged tables are Arrow IPC streams compressed with LZ4: each is written and read once, at a gigabyte per second.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from encore.arrays.ragged import Ragged
from encore.arrays.track_keys import U64, BestRecords
from encore.config import S3Config
from encore.errors import InputError
from encore.lake.filesystem import SourceFile, read_bytes, write_bytes
from encore.lake.parquet import TableLocation, Writer
from encore.lake.tables import CHALLENGE_PLAYLISTS, PLAYLISTS, QUARANTINE, TRACKS, arrow_schema
from encore.lake.track_arrays import damaged, track_words
from encore.mpd.parse import CHALLENGE_FIELDS, Limits, Refused, Slice, parse_slice, refused_file
from encore.mpd.tracks import DistinctTracks
from encore.spark.tasks import pack, run_tasks, unpack

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

I32 = NDArray[np.int32]

FILES = pa.schema(
    [
        ("task", pa.int32()),
        ("scratch", pa.string()),
        ("slice", pa.string()),
        ("size_bytes", pa.int64()),
        ("digest", pa.string()),
        ("modified_ns", pa.int64()),
        ("n_playlists", pa.int64()),
        ("n_quarantined", pa.int64()),
        ("n_dropped", pa.int64()),
        ("longest", pa.int32()),
        ("status", pa.string()),
        ("pids", pa.list_(pa.int64())),
    ]
)
"""Result of the first pass, one row per file. `scratch`: name of the tables that its task staged; `status`: ingested,
refused (as a whole), or same (as when it was last read); `n_playlists`, `pids`: of the accepted playlists, those of
challenge sets included; `n_quarantined`: rejected records, among them `n_dropped` items of accepted playlists."""

PLAYLISTS_ASIDE = pa.schema(
    [
        *(arrow_schema(PLAYLISTS).field(name) for name in PLAYLISTS.names if name != "track_ids"),
        *(arrow_schema(CHALLENGE_PLAYLISTS).field(name) for name in (*CHALLENGE_FIELDS, "positions")),
        ("codes", pa.list_(pa.int32())),
    ]
)
"""Staged playlists of both tables: `num_holdouts` is null unless the playlist belongs to `challenge_playlists`."""
REFUSED_ASIDE = pa.schema([field for field in arrow_schema(QUARANTINE) if field.name != "stage"])


def by_number(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Files sorted by the numbers in their names, so that adjacent files contain adjacent pids."""

    def key(file: SourceFile) -> tuple[tuple[int, int, str], ...]:
        parts = re.split(r"(\d+)", file.name)
        return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts)

    return sorted(files, key=key)


def tasks_of(files: Sequence[SourceFile], each: int, parallelism: int) -> list[list[SourceFile]]:
    """Split the files, in their order, into runs of at most `each` files and of sizes in bytes as equal as that allows,
    with enough runs to keep all cores busy. No run is empty."""
    n = max(-(-len(files) // each), min(len(files), parallelism))
    n = min(len(files), -(-n // parallelism) * parallelism)
    runs: list[list[SourceFile]] = []
    total, before = sum(file.size for file in files) or 1, 0
    for i, file in enumerate(files):
        left = len(files) - i
        # the run given by its position in bytes, unless the remaining files would not fit into the remaining runs
        place = min(before * n // total, n - -(-left // each))
        if not runs or len(runs[-1]) == each or place >= len(runs) or n - len(runs) >= left:
            runs.append([])
        runs[-1].append(file)
        before += file.size
    return runs


@dataclass(frozen=True)
class Staging:
    """The scratch location: Arrow tables by name. Every task writes its own tables and reads them back."""

    uri: str
    s3: S3Config

    def write(self, name: str, table: pa.Table) -> None:
        """Stage a table, replacing any table of the same name."""
        write_bytes(f"{self.uri}/{name}.arrows", pack(table, "lz4"), self.s3)

    def read(self, name: str) -> pa.Table:
        """Read a staged table."""
        return unpack(read_bytes(f"{self.uri}/{name}.arrows", self.s3))


@dataclass(frozen=True)
class Parsing:
    """Parameters of every task of the first pass. `digests`: by file name, of files ingested before; a file with the
    same digest is not parsed again. `taken`: by file name, pids that are taken from another file, and its name."""

    limits: Limits
    aside: Staging
    digests: Mapping[str, str]
    taken: Mapping[str, Mapping[int, str]]


def parse_files(spark: SparkSession, runs: Mapping[int, Sequence[SourceFile]], parsing: Parsing) -> pa.Table:
    """The first pass, one task per run of files, which are given by task number. Returns one row of FILES per file."""
    parts = [(task, list(run)) for task, run in runs.items()]
    about = run_tasks(spark, parts, lambda part: parse_run(part[0], part[1], parsing))
    return pa.concat_tables([FILES.empty_table(), *about])


def parse_run(task: int, files: Sequence[SourceFile], parsing: Parsing) -> pa.Table:
    """Parse some files and stage their contents. Returns rows of FILES, in the order of the files."""
    # a failed attempt may have left files of the same task behind
    scratch = f"{task}-{uuid.uuid4().hex[:8]}"
    tracks, about = DistinctTracks(), []
    playlists, refused = [PLAYLISTS_ASIDE.empty_table()], [REFUSED_ASIDE.empty_table()]
    for file, content in _read_ahead(files, parsing.aside.s3):
        row, parsed = _parse_file(file, content, parsing)
        if parsed is not None:
            rows, codes = parsed.playlists, tracks.add(parsed)
            rows = rows.append_column("slice", pa.repeat(file.name, rows.num_rows))
            rows = rows.append_column("positions", parsed.positions.to_arrow())
            rows = rows.append_column("codes", codes.to_arrow())
            playlists.append(rows.select(PLAYLISTS_ASIDE.names).cast(PLAYLISTS_ASIDE))
            refused.append(_refused_rows(file.name, parsed.refused))
        pids = parsed.playlists["pid"].to_pylist() if parsed is not None else []
        about.append({**row, "task": task, "scratch": scratch, "pids": pids})
    parsing.aside.write(f"{scratch}/playlists", pa.concat_tables(playlists))
    parsing.aside.write(f"{scratch}/refused", pa.concat_tables(refused))
    parsing.aside.write(f"{scratch}/names", tracks.table())
    parsing.aside.write(f"{scratch}/tracks", _tracks_aside(tracks.best))
    return pa.Table.from_pylist(about, schema=FILES)


def _read_ahead(files: Sequence[SourceFile], s3: S3Config) -> Iterator[tuple[SourceFile, bytes | InputError]]:
    """Files with their contents, or the error that prevented reading; the next file is read while one is parsed."""

    def read(file: SourceFile) -> bytes | InputError:
        try:
            return read_bytes(file.url, s3)
        except InputError as error:
            return error

    with ThreadPoolExecutor(1) as reader:
        waiting = [reader.submit(read, file) for file in files[:1]]
        for i, file in enumerate(files):
            content = waiting.pop().result()
            waiting += [reader.submit(read, following) for following in files[i + 1 : i + 2]]
            yield file, content


def _parse_file(file: SourceFile, content: bytes | InputError, parsing: Parsing) -> tuple[dict[str, Any], Slice | None]:
    """A file's row of FILES without its task's columns and pids, and its parsed content; None if it has not changed."""
    row: dict[str, Any] = {"slice": file.name, "size_bytes": file.size, "modified_ns": file.modified_ns}
    if isinstance(content, InputError):
        parsed, digest = refused_file(Refused("file", None, "unreadable", str(content), None)), "unreadable"
    else:
        digest = f"etag:{file.etag}" if file.etag else f"xxh3:{xxhash.xxh3_128_hexdigest(content)}"
        if parsing.digests.get(file.name) == digest:
            same = {"n_playlists": 0, "n_quarantined": 0, "n_dropped": 0, "longest": 0, "status": "same"}
            return {**row, "digest": digest, **same}, None
        parsed = parse_slice(content, parsing.limits, parsing.taken.get(file.name, {}))
    return {
        **row,
        "digest": digest,
        "n_playlists": parsed.playlists.num_rows,
        "n_quarantined": len(parsed.refused),
        "n_dropped": parsed.n_dropped,
        "longest": parsed.longest,
        "status": "refused" if parsed.is_refused else "ingested",
    }, parsed


def _refused_rows(source: str, refused: Sequence[Refused]) -> pa.Table:
    rows = [{**record.__dict__, "source": source} for record in refused]
    return pa.Table.from_pylist(rows, schema=REFUSED_ASIDE)


def _tracks_aside(best: BestRecords) -> pa.Table:
    ids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(24), len(best), [None, pa.py_buffer(best.keys.words)])
    numbers = {"pid": pa.int64(), "missing": pa.int8(), "n_rows": pa.int32()}
    return pa.table({"id": ids, **{name: pa.array(best.column(name), kind) for name, kind in numbers.items()}})


@dataclass(frozen=True, eq=False)
class TaskTracks:
    """The distinct tracks of a task by code, as arrays of the same length n: `words` of the ids, uint64 (n, 3); `pids`
    int64 and `missing` int8 of the best record of each track; `n_rows` int32, how often each track occurs."""

    words: U64
    pids: NDArray[np.int64]
    missing: NDArray[np.int8]
    n_rows: I32

    @classmethod
    def read(cls, aside: Staging, scratch: str) -> TaskTracks:
        """Read the tracks that a task has staged."""
        table = aside.read(f"{scratch}/tracks").combine_chunks()
        ids = table["id"].combine_chunks() if table.num_rows else None
        words = np.empty((0, 3), np.uint64)
        if ids is not None:
            words = np.frombuffer(ids.buffers()[1], np.uint64, 3 * len(ids), ids.offset * 24).reshape(-1, 3)
        return cls(words, table["pid"].to_numpy(), table["missing"].to_numpy(), table["n_rows"].to_numpy())


@dataclass(frozen=True, eq=False)
class Ids:
    """Ids of the tracks of the first pass. `of_task[t][c]`: id of code c of task t. `writes[t][c]`: the same if that
    record becomes the track's row, else -1. `n_new`: number of new tracks; `changed`: ids, int32, of existing tracks
    whose row is replaced by a better record."""

    of_task: list[I32]
    writes: list[I32]
    n_new: int
    changed: I32


def assign_ids(tasks: Iterable[TaskTracks], existing: pa.Table) -> Ids:
    """Assign ids to the distinct tracks of all tasks: known tracks keep theirs, new ones continue after the highest.

    `existing`: track_id, track_uri, first_pid, n_missing of the table. New tracks are sorted by their number of
    occurrences in the new files, most frequent first, then by URI. The ids therefore do not depend on the tasks, and
    frequent tracks get small ids, which take little space. Raises LakeError if a track_uri of the table is malformed or
    repeats.
    """
    known = track_words(TRACKS, existing["track_uri"])
    best, n_known = BestRecords(), len(known)
    pids, missing = existing["first_pid"].to_numpy(), existing["n_missing"].to_numpy().astype(np.int8)
    best.add(known, missing, pids, np.zeros(n_known, np.int32))
    if len(best) < n_known:
        again = int(np.flatnonzero(best.keys.find(known) != np.arange(n_known))[0])
        raise damaged(TRACKS, "track_uri is unique", existing["track_uri"][again].as_py())
    starts, codes = [], []
    for task in tasks:
        starts.append(best.n_records)
        codes.append(best.add(task.words, task.missing, task.pids, task.n_rows))

    ids = np.empty(len(best), np.int32)
    ids[:n_known] = existing["track_id"].to_numpy()
    first, second, third = best.keys.words[n_known:].T
    order = np.lexsort((third, second, first, -best.column("n_rows")[n_known:]))
    next_id = int(ids[:n_known].max()) + 1 if n_known else 0
    ids[n_known + order] = np.arange(next_id, next_id + len(order), dtype=np.int32)

    row = best.column("row")
    writes = [
        np.where(row[own] == np.arange(start, start + len(own)), ids[own], np.int32(-1))
        for start, own in zip(starts, codes, strict=True)
    ]
    changed = ids[:n_known][row[:n_known] >= n_known]
    return Ids([ids[own] for own in codes], writes, len(order), changed)


@dataclass(frozen=True)
class Writing:
    """Parameters of every task of the second pass: the names of the tables staged by the first pass (`scratch`, by
    task), the `stage` of the quarantined rows, and the location for the files of each table, by its name (`places`)."""

    aside: Staging
    scratch: Sequence[str]
    stage: str
    places: Mapping[str, TableLocation]


def write_files(spark: SparkSession, ids: Ids, writing: Writing) -> dict[str, pa.Table]:
    """The second pass, one task for each of the first. Returns the reports of the written files by table name."""
    for scratch, own, rows in zip(writing.scratch, ids.of_task, ids.writes, strict=True):
        writing.aside.write(f"{scratch}/ids", pa.table({"track_id": own, "writes": rows}))

    def work(task: int) -> pa.Table:
        parts = [
            pa.Table.from_batches([reports]).append_column("table", pa.repeat(name, reports.num_rows))
            for name, reports in write_run(task, writing)
        ]
        return pa.concat_tables(parts)

    written = pa.concat_tables(run_tasks(spark, range(len(writing.scratch)), work))
    return {name: written.filter(pc.equal(written["table"], name)).drop_columns(["table"]) for name in writing.places}


def write_run(task: int, writing: Writing) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Write the rows that a task of the first pass staged; yields each table's name and the reports of its files."""
    aside, scratch = writing.aside, writing.scratch[task]
    ids = aside.read(f"{scratch}/ids")
    playlists, challenge = playlist_rows(aside.read(f"{scratch}/playlists"), ids["track_id"].to_numpy())
    made = (
        (TRACKS, track_rows(aside.read(f"{scratch}/names"), ids["writes"].to_numpy())),
        (PLAYLISTS, playlists),
        (CHALLENGE_PLAYLISTS, challenge),
        (QUARANTINE, quarantine_rows(aside.read(f"{scratch}/refused"), writing.stage)),
    )
    for table, rows in made:
        writer = Writer(table, writing.places[table.name])
        if rows.num_rows:
            writer.write(rows)
        yield table.name, writer.close()


def track_rows(names: pa.Table, writes: I32) -> pa.Table:
    """Rows of `tracks`, sorted by id. `writes`: by code, the id of the track that takes its row from `names`, or -1."""
    codes = np.flatnonzero(writes >= 0)
    codes = codes[np.argsort(writes[codes])]
    chosen = names.take(pa.array(codes)).append_column("track_id", pa.array(writes[codes], pa.int32()))
    # a track that some playlist contains is not orphaned
    chosen = chosen.append_column("orphaned", pa.nulls(len(codes), pa.bool_()))
    return chosen.select(TRACKS.names).cast(arrow_schema(TRACKS))


def playlist_rows(aside: pa.Table, ids: I32) -> tuple[pa.Table, pa.Table]:
    """Rows of `playlists` and of `challenge_playlists`; `ids`: track ids by code."""
    codes = Ragged.from_arrow(aside["codes"])
    rows = aside.append_column("track_ids", Ragged(codes.offsets, ids[codes.values]).to_arrow())
    is_challenge = rows["num_holdouts"].is_valid()
    if not pc.any(is_challenge, min_count=0).as_py():
        ordinary, challenge = rows, rows.slice(0, 0)
    else:
        ordinary, challenge = rows.filter(pc.invert(is_challenge)), rows.filter(is_challenge)
    return (
        ordinary.select(PLAYLISTS.names).cast(arrow_schema(PLAYLISTS)),
        challenge.select(CHALLENGE_PLAYLISTS.names).cast(arrow_schema(CHALLENGE_PLAYLISTS)),
    )


def quarantine_rows(aside: pa.Table, stage: str) -> pa.Table:
    """Rows of `quarantine`."""
    rows = aside.append_column("stage", pa.repeat(stage, aside.num_rows))
    return rows.select(QUARANTINE.names).cast(arrow_schema(QUARANTINE))
