"""LightFM (M. Kula: Metadata Embeddings for User and Item Cold-start Recommendations, 2015), by its fork lightfm-next.

Its own `predict` takes one pair at a time; here the same scores are computed as products of matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from lightfm import LightFM
from scipy import sparse

from tests.bench.contenders.harness import FIT_THREADS, I32, I64, Fit, Recommend, Task, best, version

VERSION = partial(version, "lightfm-next")


def start(task: Task, settings: Mapping[str, Any]) -> tuple[Fit, Recommend]:
    """`settings`: `d`, `epochs`, and `artists`, whether the artist is a feature of the track."""
    n_tracks = task.lists.shape[1]
    features = sparse.identity(n_tracks, np.float32, "csr")
    if settings.get("artists"):
        known = np.flatnonzero(task.artist_of >= 0)
        ones = np.ones(len(known), np.float32)
        artists = sparse.csr_matrix((ones, (known, task.artist_of[known])), (n_tracks, int(task.artist_of.max()) + 1))
        features = sparse.hstack([features, artists], "csr")

    def fit() -> Any:
        model = LightFM(no_components=settings["d"], loss="warp", random_state=42)
        model.fit(task.lists, item_features=features, epochs=settings["epochs"], num_threads=FIT_THREADS)
        biases, tracks = model.get_item_representations(features)
        _, playlists = model.get_user_representations()
        return playlists, np.ascontiguousarray(tracks.T), biases

    def recommend(model: Any, rows: I64) -> I32:
        playlists, tracks, biases = model
        return best(playlists[rows] @ tracks + biases, task.lists[rows])

    return fit, recommend
