"""Builds what models are fitted on from the tables, reading only the columns that they need."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import pyarrow as pa

from encore.arrays.ragged import Ragged
from encore.lake.tables import CHALLENGE_PLAYLISTS, HOLDOUT, TRACK_VECTORS, TRACKS, Table
from encore.lake.track_arrays import count_tracks, listed_tracks, vector_matrix
from encore.recommenders.base import TrainingData

Stream = Callable[[Table, Sequence[str]], Iterator[pa.Table]]
"""Reads columns of a table, in parts of bounded size."""


def training_data(
    stream: Stream, n_tracks: int, needs: Collection[str], *, with_challenge: bool = False
) -> TrainingData:
    """The training data with the fields in `needs`; the others are empty.

    Models are trained on the train tracks of the playlists without a kind, and `with_challenge` also on the tracks that
    a challenge set gives. Raises LakeError if a table refers to a track that is not one of `n_tracks`.
    """
    counts = np.empty(0, np.int64)
    if "counts" in needs:
        counts = count_tracks(_trained(stream), HOLDOUT, "train", n_tracks)
        if with_challenge:
            given = stream(CHALLENGE_PLAYLISTS, ["track_ids"])
            counts += count_tracks(_distinct(given), CHALLENGE_PLAYLISTS, "track_ids", n_tracks)
    if "vectors" in needs:
        ids, vectors = vector_matrix(stream(TRACK_VECTORS, ("track_id", "vector")), n_tracks)
    else:
        ids, vectors = np.empty(0, np.int32), np.empty((0, 0), np.float32)
    listed = listed_tracks(stream(TRACKS, ("track_id", "orphaned")), n_tracks)
    orphaned = np.flatnonzero(~listed).astype(np.int32)
    return TrainingData(n_tracks=n_tracks, counts=counts, vector_ids=ids, vectors=vectors, orphaned=orphaned)


def _trained(stream: Stream) -> Iterator[pa.Table]:
    for part in stream(HOLDOUT, ("train", "kind")):
        yield part.filter(part["kind"].is_null())


def _distinct(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    for part in parts:
        yield pa.table({"track_ids": Ragged.from_arrow(part["track_ids"]).distinct().to_arrow()})
