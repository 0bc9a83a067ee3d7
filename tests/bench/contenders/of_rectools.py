"""RecTools: PureSVD (Cremonesi, Koren, Turrin, RecSys 2010) and EASE (Steck, WWW 2019).

EASE inverts a dense matrix of tracks by tracks, so it is given the most frequent tracks only.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import EASEModel, PureSVDModel

from tests.bench.contenders.harness import I32, I64, QUERY_THREADS, Fit, K, Recommend, Task, version

VERSION = partial(version, "rectools")


def start(task: Task, settings: Mapping[str, Any]) -> tuple[Fit, Recommend]:
    """`settings`: `model`, `tracks`: how many, and arguments of its class."""
    arguments = {name: value for name, value in settings.items() if name not in ("model", "tracks")}
    arguments["recommend_n_threads"] = QUERY_THREADS
    entries = task.lists.tocoo()
    counts = np.bincount(entries.col, minlength=task.lists.shape[1])
    frequent = np.zeros(len(counts), np.bool_)
    frequent[np.argsort(-counts, kind="stable")[: settings.get("tracks", len(counts))]] = True
    kept = frequent[entries.col]
    frame = pd.DataFrame({Columns.User: entries.row[kept], Columns.Item: entries.col[kept], Columns.Weight: 1.0})
    frame[Columns.Datetime] = pd.Timestamp(0)
    known = np.unique(entries.row[kept])

    def fit() -> Any:
        dataset = Dataset.construct(frame)
        model = EASEModel(**arguments) if settings["model"] == "ease" else PureSVDModel(**arguments)
        return model.fit(dataset), dataset

    def recommend(model: Any, rows: I64) -> I32:
        fitted, dataset = model
        lists = np.full((len(rows), K), -1, np.int32)
        found = fitted.recommend(rows[np.isin(rows, known)], dataset, k=K, filter_viewed=True)
        at = {row: i for i, row in enumerate(rows.tolist())}
        places = found[Columns.User].map(at).to_numpy(), found[Columns.Rank].to_numpy() - 1
        lists[places] = found[Columns.Item].to_numpy()
        return lists

    return fit, recommend
