"""What every model and report needs of the tables as arrays on the driver, with a bounded size: one entry a track."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike

from encore.arrays.ragged import Ragged
from encore.arrays.track_keys import U64, KeyTable, id_words
from encore.errors import LakeError
from encore.lake.tables import AUDIO_FEATURES, TRACKS, Table
from encore.vocabulary import FEATURES


def vector_matrix(parts: Iterable[pa.Table]) -> tuple[np.ndarray, np.ndarray]:
    """Ids int32 (V,), ascending, and vectors float32 (V, d), of parts of `track_id` and `vector`; d is 0 if empty."""
    ids, vectors = [np.empty(0, np.int32)], []
    for part in parts:
        rows = Ragged.from_arrow(part["vector"])
        ids.append(part["track_id"].to_numpy())
        if len(rows):
            vectors.append(rows.values.reshape(len(rows), -1))
    every = np.concatenate(ids)
    matrix = np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32)
    if (np.diff(every) > 0).all():
        return every, matrix
    order = np.argsort(every)
    return every[order], np.ascontiguousarray(matrix[order])


def track_words(table: Table, uris: pa.ChunkedArray) -> U64:
    """The ids in URIs of tracks that stand in a table, uint64 (n, 3). LakeError where one is no URI of a track."""
    words = id_words(uris)
    if words is None:
        raise LakeError(
            f"{table.name}: track_uri: spotify:track: and 22 letters or digits expected, another text found"
        )
    return words


def row_numbers(ids: np.ndarray, n_tracks: int) -> np.ndarray:
    """The row of each track in a matrix whose rows are of `ids`, -1 where it has none: int32 (n_tracks,)."""
    rows = np.full(n_tracks, -1, np.int32)
    rows[ids] = np.arange(len(ids), dtype=np.int32)
    return rows


def count_tracks(parts: Iterable[pa.Table], column: str, n_tracks: int) -> np.ndarray:
    """How often each track stands in an array column: int64 (n_tracks,)."""
    counts = np.zeros(n_tracks, np.int64)
    for part in parts:
        counts += np.bincount(Ragged.from_arrow(part[column]).values, minlength=n_tracks)
    return counts


def listed_tracks(parts: Iterable[pa.Table], n_tracks: int) -> np.ndarray:
    """Which tracks at least one playlist holds: bool (n_tracks,), from parts of `track_id` and `orphaned`.

    The others keep their ids and are left out of every count, model and metric.
    """
    listed = np.zeros(n_tracks, np.bool_)
    for part in parts:
        listed[part["track_id"].to_numpy()] = pc.invert(pc.fill_null(part["orphaned"], False)).to_numpy()
    return listed


def without_orphans(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Parts of `tracks` without the rows that are marked in their column `orphaned`, and without that column."""
    for part in parts:
        orphaned, rows = pc.fill_null(part["orphaned"], False), part.drop_columns(["orphaned"])
        yield rows.filter(pc.invert(orphaned)) if pc.any(orphaned).as_py() else rows


def artist_numbers(parts: Iterable[pa.Table], n_tracks: int) -> tuple[np.ndarray, pa.Array]:
    """For each track the number of its artist, int32 (n_tracks,), -1 where it has none, and the artists' URIs.

    `parts` are of `track_id` and `artist_uri`. Artists are numbered in the order of their first tracks.
    """
    schema = pa.schema([("track_id", pa.int32()), ("artist_uri", pa.string())])
    rows = pa.concat_tables([schema.empty_table(), *parts])
    ids = rows["track_id"].to_numpy()
    if (np.diff(ids) < 0).any():
        rows = rows.take(np.argsort(ids))
    encoded = rows["artist_uri"].combine_chunks().dictionary_encode()
    numbers = np.full(n_tracks, -1, np.int32)
    numbers[rows["track_id"].to_numpy()] = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return numbers, encoded.dictionary


def features_by_track(
    tracks: Iterable[pa.Table], features: Iterable[pa.Table], n_tracks: int, dtype: DTypeLike
) -> np.ndarray:
    """(n_tracks, 11) of a type of floats: the features of each track, NaN where it has none.

    `tracks` are parts of `track_id` and `track_uri`, `features` of `track_uri` and FEATURES. Each is read once into
    arrays of its size, and a track's features are found in a table of ids. Spark would shuffle both by URI, which takes
    ten times as long.
    """
    keys, found = KeyTable(), [np.empty((0, len(FEATURES)), dtype)]
    for part in features:
        keys.add(track_words(AUDIO_FEATURES, part["track_uri"]))
        found.append(np.column_stack([part[name].to_numpy().astype(dtype) for name in FEATURES]))
    rows = np.full(n_tracks, -1, np.int32)
    for part in tracks:
        rows[part["track_id"].to_numpy()] = keys.find(track_words(TRACKS, part["track_uri"]))
    every = np.concatenate([*found, np.full((1, len(FEATURES)), np.nan, dtype)])
    return every[rows]
