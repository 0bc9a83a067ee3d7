"""Turn audio features into comparable vectors, of the same length and scale."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from encore.arrays.ragged import Ragged
from encore.features import vectors
from encore.lake.scan import KeyRange
from encore.lake.tables import AUDIO_FEATURES, TRACK_VECTORS, TRACKS, VECTOR_PARAMETERS, arrow_schema
from encore.lake.track_arrays import features_by_track, without_orphans
from encore.runtime.context import JobContext
from encore.vocabulary import FEATURES

READS = (TRACKS, AUDIO_FEATURES)
WRITES = (VECTOR_PARAMETERS, TRACK_VECTORS)
DERIVED = WRITES
SETTINGS = ("vectors",)


def run(ctx: JobContext) -> None:
    """Write `track_vectors` for the tracks with features, and the fitted transform to `vector_parameters`."""
    settings = ctx.config.vectors
    ids, matrix = _features(ctx)
    fitted = vectors.fit(matrix, settings.transform, settings.weights)
    made = vectors.apply(fitted, matrix)
    rows = Ragged.from_lengths(np.full(len(made), made.shape[1]), made.reshape(-1))
    parameters = {
        "transform": fitted.transform,
        "columns": list(fitted.columns),
        "mean": fitted.mean.tolist(),
        "matrix": fitted.matrix.tolist(),
        "weights": fitted.weights.tolist(),
        "n_tracks": fitted.n_tracks,
    }
    ctx.write(
        VECTOR_PARAMETERS, [pa.Table.from_pylist([parameters], schema=arrow_schema(VECTOR_PARAMETERS))], KeyRange()
    )
    columns = {"track_id": pa.array(ids), "vector": rows.to_arrow()}
    ctx.write(TRACK_VECTORS, [pa.table(columns)], KeyRange())
    version = max(ctx.committed(VECTOR_PARAMETERS.name))
    ctx.tracking.log_text(json.dumps({"table_version": version, **parameters}, indent=1), "vector_parameters.json")
    ctx.facts["dimensions"] = int(made.shape[1])


def _features(ctx: JobContext) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the tracks with features, int32 (n,), ascending, and the features, float64 (n, 11)."""
    tracks = without_orphans(ctx.stream(TRACKS, ("track_id", "track_uri", "orphaned")))
    features = ctx.stream(AUDIO_FEATURES, ("track_uri", *FEATURES))
    every = features_by_track(tracks, features, ctx.n_rows(TRACKS), np.float64)
    ids = np.flatnonzero(~np.isnan(every[:, 0])).astype(np.int32)
    return ids, every if len(ids) == len(every) else every[ids]
