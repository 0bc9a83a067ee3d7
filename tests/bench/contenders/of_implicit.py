"""The library implicit: ALS (Hu, Koren, Volinsky), and item-kNN with BM25 weights or cosines."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import implicit.cpu.als
import implicit.nearest_neighbours as knn
import numpy as np

from tests.bench.contenders.harness import (
    FIT_THREADS,
    I32,
    I64,
    QUERY_THREADS,
    Fit,
    K,
    Recommend,
    Task,
    padded,
    version,
)

VERSION = partial(version, "implicit")
MODELS = {
    "als": partial(implicit.cpu.als.AlternatingLeastSquares, random_state=42),
    "bm25": knn.BM25Recommender,
    "cosine": knn.CosineRecommender,
}


def start(task: Task, settings: Mapping[str, Any]) -> tuple[Fit, Recommend]:
    """`settings`: `model`, and arguments of its class."""
    arguments = {name: value for name, value in settings.items() if name != "model"}
    task.lists.sort_indices()

    def fit() -> Any:
        model = MODELS[settings["model"]](num_threads=FIT_THREADS, **arguments)
        model.fit(task.lists, show_progress=False)
        model.num_threads = QUERY_THREADS
        return model

    def recommend(model: Any, rows: I64) -> I32:
        ids, scores = model.recommend(rows, task.lists[rows], N=K, filter_already_liked_items=True)
        if settings["model"] != "als":
            # where there are fewer than K, it adds the playlist's own tracks, with score 0
            ids = np.where(scores > 0, ids, -1)
        return padded(ids)

    return fit, recommend
