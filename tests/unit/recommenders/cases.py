"""Training data on which all models are fitted, and helpers to ask them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from encore import temporary
from encore.arrays.ragged import Ragged
from encore.arrays.ranked import Ranked
from encore.config import RecommendConfig, S3Config, load_config
from encore.recommenders import ranker
from encore.recommenders.base import FittedModel, Queries, Tools, TrainingData
from encore.recommenders.registry import with_parts
from encore.recommenders.training import take_trial

_ALL = load_config(
    "local",
    [
        "recommend.query_block=3",
        "recommend.item_block=8",
        "recommend.index_items=1000",
        # so few that they can be fitted to the trial of so few playlists
        "recommend.ranker.least_queries=2",
        "recommend.ranker.least_in_leaf=2",
        "recommend.ranker.trees=4",
        # fewer than there are tracks, so that others follow
        "recommend.ranker.candidates=40",
    ],
)
CONFIG = _ALL.recommend
SPLIT = _ALL.split

N_TRACKS = 60
N_PLAYLISTS = 40
TITLES = ("Rock 🤘", "rock!!", "Rap", "summer", "Summer 2017", "gym", "jim", None)

Query = tuple[int, list[int], str | None]
"""pid, seeds, title."""


def training(n_playlists: int = N_PLAYLISTS, n_tracks: int = N_TRACKS, seed: int = 0) -> TrainingData:
    """Playlists that take most of their tracks from one of four topics, each an interval of tracks; the last five of
    every ten tracks from 50 on are in no playlist. Some tracks have no vector and some no artist."""
    rng = np.random.default_rng(seed)
    used = np.flatnonzero(np.arange(N_TRACKS) < N_TRACKS - 5)
    lists = []
    for i in range(n_playlists):
        topic = used[used // 15 == i % 4]
        own = rng.choice(topic, rng.integers(1, min(10, len(topic) + 1)), replace=False)
        lists.append(rng.permutation(np.union1d(own, rng.choice(used, rng.integers(1, 6)))).tolist())
    pids = np.arange(n_playlists, dtype=np.int64) * 7 + 3
    titles = [TITLES[(i % 4) * 2 + int(rng.integers(2))] for i in range(n_playlists)]
    trial, rest, left = take_trial(pids, Ragged.from_lists(lists), titles, SPLIT, 8, n_tracks=n_tracks)
    artist_of = np.where(np.arange(n_tracks) % 11 == 5, -1, np.arange(n_tracks) // 3).astype(np.int32)
    vector_ids = np.flatnonzero(np.arange(N_TRACKS) % 5 != 0).astype(np.int32)
    return TrainingData(
        n_tracks=n_tracks,
        counts=np.bincount([track for row in lists for track in row], minlength=n_tracks),
        vector_ids=vector_ids,
        vectors=rng.integers(-2, 3, (len(vector_ids), 3)).astype(np.float32),
        pids=pids,
        lists=rest,
        titles=left,
        artist_of=artist_of,
        album_of=(np.arange(n_tracks) // 2).astype(np.int32),
        trial=trial,
    )


TRAIN = training()


def new_tools() -> Tools:
    """Tools with a folder of their own, without checkpoints of another fit."""
    return Tools(temporary.new_folder("models"), S3Config(endpoint=None, region=None, path_style=False))


def fitted(name: str, train: TrainingData = TRAIN, config: RecommendConfig = CONFIG) -> FittedModel:
    """A model and its parts, fitted on data, which are compared by identity.

    The ranker keeps its trees: so few playlists do not show that they are better than fusion.
    """
    found: FittedModel = fitted_parts(name, train, config)[name]
    return found


@lru_cache(maxsize=64)
def fitted_parts(name: str, train: TrainingData = TRAIN, config: RecommendConfig = CONFIG) -> dict[str, Any]:
    """`fitted`, and all that the model is made of, by name."""
    loaded: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranker, "_is_better", lambda found, fused: True)
        for entry in with_parts([name]):
            loaded[entry.name] = entry.load(entry.fit(train, config, loaded, new_tools()), config, loaded)
    return loaded


def queries(cases: list[Query]) -> Queries:
    """Queries from Python values."""
    pids = np.array([pid for pid, _, _ in cases], dtype=np.int64)
    return Queries(pids, Ragged.from_lists([seeds for _, seeds, _ in cases]), [title for _, _, title in cases])


def rows(found: Ranked) -> list[list[tuple[int, float]]]:
    """Ids and scores of each row."""
    scores = Ragged(found.ids.offsets, found.scores)
    return [list(zip(found.ids[i].tolist(), scores[i].tolist(), strict=True)) for i in range(len(found))]
