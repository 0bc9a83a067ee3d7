"""Compute the centroid of each playlist: the mean of its train tracks' vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from encore.arrays.ragged import Ragged
from encore.lake.tables import HOLDOUT, PLAYLIST_CENTROIDS, TRACK_VECTORS, TRACKS
from encore.lake.track_arrays import check_track_ids, row_numbers, vector_matrix
from encore.runtime.context import JobContext
from encore.search.kernel import centroids
from encore.spark.row_map import Kernel, RowMap

READS = (TRACKS, HOLDOUT, TRACK_VECTORS)
WRITES = (PLAYLIST_CENTROIDS,)
DERIVED = WRITES
SETTINGS = ()


def run(ctx: JobContext) -> None:
    """Write `playlist_centroids` from `holdout.train` and the broadcast `track_vectors`."""
    n_tracks = ctx.n_rows(TRACKS)
    ids, vectors = vector_matrix(ctx.stream(TRACK_VECTORS, ("track_id", "vector")), n_tracks)
    shipped = ctx.ship(row_of=row_numbers(ids, n_tracks), vectors=vectors)

    def start() -> Kernel:
        arrays = shipped.open()

        def kernel(holdout: pa.Table) -> tuple[np.ndarray, dict[str, Any]]:
            train = Ragged.from_arrow(holdout["train"])
            check_track_ids(HOLDOUT, "train", train.values, n_tracks)
            means, counts = centroids(train, arrays["row_of"], arrays["vectors"])
            known = np.flatnonzero(counts > 0)
            vectors = Ragged.from_lengths(np.full(len(known), means.shape[1]), means[known].reshape(-1))
            return known, {"vector": vectors.to_arrow(), "n_tracks": counts[known]}

        return kernel

    ctx.chunked(
        HOLDOUT,
        PLAYLIST_CENTROIDS,
        ("pid", "train"),
        lambda holdout, *_: RowMap(holdout, start, block=20_000),
    )
