"""Audio features to vectors that can be compared: one length, one scale."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from encore.features import vectors
from encore.job import JobContext
from encore.ragged import Ragged
from encore.tables import AUDIO_FEATURES, FEATURES, TRACK_VECTORS, TRACKS, VECTOR_PARAMETERS, arrow_schema

READS = (TRACKS, AUDIO_FEATURES)
WRITES = (VECTOR_PARAMETERS, TRACK_VECTORS)
SETTINGS = ("vectors",)


def run(ctx: JobContext) -> None:
    """`track_vectors` of the tracks with features, and the fitted map in `vector_parameters`."""
    settings = ctx.config.vectors
    features = ctx.read(AUDIO_FEATURES).select("track_uri", *FEATURES)
    joined = ctx.read(TRACKS).select("track_id", "track_uri").join(features, "track_uri")
    table = joined.select("track_id", *FEATURES).toArrow().sort_by("track_id")
    matrix = np.column_stack([table[name].to_numpy() for name in FEATURES])
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
    ctx.replace(
        VECTOR_PARAMETERS,
        ctx.spark.createDataFrame(pa.Table.from_pylist([parameters], schema=arrow_schema(VECTOR_PARAMETERS))),
    )
    columns = {"track_id": table["track_id"], "vector": rows.to_arrow()}
    ctx.replace(TRACK_VECTORS, ctx.spark.createDataFrame(pa.table(columns).cast(arrow_schema(TRACK_VECTORS))))
    version = ctx.store.data_version(VECTOR_PARAMETERS)
    ctx.tracking.log_text(json.dumps({"table_version": version, **parameters}, indent=1), "vector_parameters.json")
    ctx.facts["dimensions"] = int(made.shape[1])
