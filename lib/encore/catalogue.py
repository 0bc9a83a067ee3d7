"""What every model and report needs of the tables as arrays on the driver, with a bounded size: one entry a track."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from encore.errors import LakeError
from encore.keys import U64, id_words
from encore.ragged import Ragged
from encore.tables import Table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def vector_matrix(track_vectors: DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Ids int32 (V,), ascending, and vectors float32 (V, d) of `track_vectors`; d is 0 where it is empty."""
    table = track_vectors.select("track_id", "vector").toArrow()
    ids = table["track_id"].to_numpy()
    rows = Ragged.from_arrow(table["vector"])
    vectors = rows.values.reshape(len(ids), -1) if len(ids) else np.empty((0, 0), np.float32)
    order = np.argsort(ids)
    return ids[order], np.ascontiguousarray(vectors[order])


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


def count_tracks(lists: DataFrame, column: str, n_tracks: int) -> np.ndarray:
    """How often each track stands in an array column: int64 (n_tracks,). Each task counts alone, without a shuffle."""

    def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        total = np.zeros(n_tracks, np.int64)
        for batch in batches:
            total += np.bincount(Ragged.from_arrow(batch.column(0)).values, minlength=n_tracks)
        found = np.flatnonzero(total)
        yield pa.RecordBatch.from_arrays([pa.array(found, pa.int32()), pa.array(total[found])], ["track_id", "n"])

    counts = np.zeros(n_tracks, np.int64)
    parts = lists.select(column).mapInArrow(count, "track_id int, n bigint").toArrow()
    np.add.at(counts, parts["track_id"].to_numpy(), parts["n"].to_numpy())
    return counts


def artist_numbers(tracks: DataFrame, n_tracks: int) -> tuple[np.ndarray, list[str]]:
    """For each track the number of its artist, int32 (n_tracks,), -1 where it has none, and the artists' URIs."""
    table = tracks.select("track_id", "artist_uri").toArrow()
    encoded = table["artist_uri"].combine_chunks().dictionary_encode()
    numbers = np.full(n_tracks, -1, np.int32)
    numbers[table["track_id"].to_numpy()] = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return numbers, encoded.dictionary.to_pylist()
