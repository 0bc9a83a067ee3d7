"""Arrays on the driver that models and reports build from the tables; their size is bounded: one entry per track.

Rows that another program has added are not trusted: an id outside the range of the tracks would be a wrong index into
every array, and a duplicate key would shift the entries after it. Both raise LakeError with the table's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike

from encore.arrays.ragged import Ragged
from encore.arrays.track_keys import U64, KeyTable, id_words
from encore.errors import LakeError
from encore.lake.tables import AUDIO_FEATURES, TRACK_VECTORS, TRACKS, Table
from encore.vocabulary import FEATURES


def damaged(table: Table, rule: str, example: object) -> LakeError:
    """The error for a table with rows, such as `example`, that violate a rule."""
    return LakeError(
        f"{table.name}: {rule}: broken, such as by {example}",
        remedy="`encore doctor --lake` names all that is wrong; drop the table and call `encore run` to make it anew",
    )


def check_track_ids(table: Table, column: str, ids: np.ndarray, n_tracks: int) -> None:
    """Raise LakeError if one of the integer ids in a table's column is not a track id from 0 to n_tracks - 1."""
    # viewed as unsigned, a negative id is a large one, so one pass finds both
    if len(ids) and int(ids.view(f"u{ids.itemsize}").max()) >= n_tracks:
        wrong = ids[(ids < 0) | (ids >= n_tracks)]
        raise damaged(table, f"{column} from 0 to {n_tracks - 1}, the ids of the tracks", wrong[0])


def checked_tracks(parts: Iterable[pa.Table], n_tracks: int) -> Iterator[pa.Table]:
    """Yield parts of `tracks`, which have `track_id`, unchanged. Raises LakeError if an id is repeated or is not below
    n_tracks; so if there are n_tracks rows, no id is missing."""
    seen, n = np.zeros(n_tracks, np.bool_), 0
    for part in parts:
        ids = part["track_id"].to_numpy()
        check_track_ids(TRACKS, "track_id", ids, n_tracks)
        again = ids[seen[ids]]
        if len(again):
            raise damaged(TRACKS, "key track_id is unique", again[0])
        seen[ids] = True
        n += len(ids)
        yield part
    if int(np.count_nonzero(seen)) < n:
        raise damaged(TRACKS, "key track_id is unique", f"{n:,} rows of {np.count_nonzero(seen):,} ids")


def add_unique(keys: KeyTable, table: Table, uris: pa.ChunkedArray) -> None:
    """Add the ids in a table's unique track URIs. Raises LakeError if a URI is repeated or is not a track URI."""
    before = len(keys)
    codes = keys.add(track_words(table, uris))
    wrong = np.flatnonzero(codes != np.arange(before, before + len(codes)))
    if len(wrong):
        raise damaged(table, "track_uri is unique", uris[int(wrong[0])].as_py())


def vector_matrix(parts: Iterable[pa.Table], n_tracks: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids int32 (V,), ascending, and vectors float32 (V, d), from parts with `track_id` and `vector`; d is 0 if empty.

    Raises LakeError if an id is repeated or is not below n_tracks, or if vectors differ in length.
    """
    ids: list[np.ndarray] = [np.empty(0, np.int32)]
    vectors: list[np.ndarray] = []
    for part in parts:
        rows = Ragged.from_arrow(part["vector"])
        ids.append(part["track_id"].to_numpy())
        if len(rows):
            if (rows.lengths != rows.lengths[0]).any() or (vectors and vectors[0].shape[1] != rows.lengths[0]):
                raise damaged(TRACK_VECTORS, "vector is of one length", f"lengths {sorted(set(rows.lengths.tolist()))}")
            vectors.append(rows.values.reshape(len(rows), -1))
    every = np.concatenate(ids)
    matrix = np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32)
    check_track_ids(TRACK_VECTORS, "track_id", every, n_tracks)
    if (np.diff(every) > 0).all():
        return every, matrix
    order = np.argsort(every)
    ordered = every[order]
    again = ordered[1:][np.diff(ordered) == 0]
    if len(again):
        raise damaged(TRACK_VECTORS, "key track_id is unique", again[0])
    return ordered, np.ascontiguousarray(matrix[order])


def track_words(table: Table, uris: pa.ChunkedArray) -> U64:
    """The ids in track URIs of a table: uint64 (n, 3). Raises LakeError if one is not a track URI."""
    words = id_words(uris)
    if words is None:
        raise LakeError(
            f"{table.name}: track_uri: spotify:track: and 22 letters or digits expected, another text found"
        )
    return words


def row_numbers(ids: np.ndarray, n_tracks: int) -> np.ndarray:
    """The row of each track in a matrix whose rows belong to `ids`, -1 if it has none: int32 (n_tracks,)."""
    rows = np.full(n_tracks, -1, np.int32)
    rows[ids] = np.arange(len(ids), dtype=np.int32)
    return rows


def count_tracks(parts: Iterable[pa.Table], table: Table, column: str, n_tracks: int) -> np.ndarray:
    """How often each track occurs in an array column of a table: int64 (n_tracks,).

    Raises LakeError if an id is not that of a track.
    """
    counts = np.zeros(n_tracks, np.int64)
    for part in parts:
        ids = Ragged.from_arrow(part[column]).values
        check_track_ids(table, column, ids, n_tracks)
        counts += np.bincount(ids, minlength=n_tracks)
    return counts


def listed_tracks(parts: Iterable[pa.Table], n_tracks: int) -> np.ndarray:
    """Which tracks occur in at least one playlist: bool (n_tracks,), from parts with `track_id` and `orphaned`.

    The others keep their ids but are left out of all counts, models and metrics.
    """
    listed = np.zeros(n_tracks, np.bool_)
    for part in parts:
        check_track_ids(TRACKS, "track_id", part["track_id"].to_numpy(), n_tracks)
        listed[part["track_id"].to_numpy()] = pc.invert(pc.fill_null(part["orphaned"], False)).to_numpy()
    return listed


def without_orphans(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Parts of `tracks` without the rows marked as `orphaned`, and without that column."""
    for part in parts:
        orphaned, rows = pc.fill_null(part["orphaned"], False), part.drop_columns(["orphaned"])
        yield rows.filter(pc.invert(orphaned)) if pc.any(orphaned).as_py() else rows


def artist_numbers(parts: Iterable[pa.Table], n_tracks: int) -> tuple[np.ndarray, pa.Array]:
    """The number of each track's artist, and the artists' URIs: see `numbered`."""
    return numbered(parts, "artist_uri", n_tracks)


def numbered(parts: Iterable[pa.Table], column: str, n_tracks: int) -> tuple[np.ndarray, pa.Array]:
    """Numbers for the texts of a column: that of each track, int32 (n_tracks,), -1 if it has none, and the texts.

    `parts` have `track_id` and the column. Texts are numbered in the order of their first tracks. Raises LakeError if
    an id is repeated or is not below n_tracks.
    """
    schema = pa.schema([("track_id", pa.int32()), (column, pa.string())])
    rows = pa.concat_tables([schema.empty_table(), *checked_tracks(parts, n_tracks)])
    ids = rows["track_id"].to_numpy()
    if (np.diff(ids) < 0).any():
        rows = rows.take(np.argsort(ids))
    encoded = rows[column].combine_chunks().dictionary_encode()
    numbers = np.full(n_tracks, -1, np.int32)
    numbers[rows["track_id"].to_numpy()] = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return numbers, encoded.dictionary


def text_rows(parts: Iterable[pa.Table], column: str, n_tracks: int) -> Ragged:
    """The texts of a column by track: n_tracks rows of UTF-8, uint8, empty where a text is null.

    `parts` have `track_id` and the column. Raises LakeError if an id is repeated or is not below n_tracks, or if a
    track is missing.
    """
    schema = pa.schema([("track_id", pa.int32()), (column, pa.large_string())])
    rows = pa.concat_tables([schema.empty_table(), *(part.cast(schema) for part in checked_tracks(parts, n_tracks))])
    ids = rows["track_id"].to_numpy()
    if len(ids) < n_tracks:
        raise damaged(TRACKS, f"{n_tracks:,} tracks", f"{len(ids):,} rows")
    texts = pc.fill_null(rows[column], "")
    # a chunk that begins within its buffers, or an array of no chunks, becomes one that owns them
    array = pa.concat_arrays([pa.array([], pa.large_string()), *texts.chunks])
    _, offsets, values = array.buffers()
    found = Ragged(
        np.frombuffer(offsets, np.int64, n_tracks + 1) if offsets and n_tracks else np.zeros(1, np.int64),
        np.frombuffer(values, np.uint8) if values else np.zeros(0, np.uint8),
    )
    return found if (np.diff(ids) > 0).all() else found.take(np.argsort(ids))


def features_by_track(
    tracks: Iterable[pa.Table], features: Iterable[pa.Table], n_tracks: int, dtype: DTypeLike
) -> np.ndarray:
    """The features of each track: (n_tracks, 11) of float type `dtype`, NaN if a track has none.

    Parts of `tracks` have `track_id` and `track_uri`, parts of `features` have `track_uri` and FEATURES. Each is read
    once into arrays of its size, and a track's features are looked up in a hash table of ids. Spark would shuffle both
    by URI, which takes ten times as long. Raises LakeError if a track's id or URI is repeated, or an id is not below
    n_tracks.
    """
    keys, found = KeyTable(), [np.empty((0, len(FEATURES)), dtype)]
    for part in features:
        add_unique(keys, AUDIO_FEATURES, part["track_uri"])
        found.append(np.column_stack([part[name].to_numpy().astype(dtype) for name in FEATURES]))
    rows = np.full(n_tracks, -1, np.int32)
    for part in checked_tracks(tracks, n_tracks):
        rows[part["track_id"].to_numpy()] = keys.find(track_words(TRACKS, part["track_uri"]))
    of_row = np.bincount(rows[rows >= 0], minlength=1)
    if of_row.max() > 1:
        same = np.flatnonzero(rows == np.argmax(of_row))
        raise damaged(TRACKS, "track_uri is unique", f"track_id {' and '.join(map(str, same))}")
    every = np.concatenate([*found, np.full((1, len(FEATURES)), np.nan, dtype)])
    return every[rows]
