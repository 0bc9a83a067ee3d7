"""Tracks that are in no playlist: only a model of how tracks sound can recommend them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from encore.recommenders.base import TrainingData, recommend
from encore.recommenders.registry import MODELS
from tests.unit.recommenders.cases import N_TRACKS, TITLES, TRAIN, Query, fitted, queries

NEW = N_TRACKS
"""The id of a track that is in no playlist."""
SEEDS = TRAIN.vector_ids[:3]
K = 20

CASES: list[Query] = [
    (-1, SEEDS.tolist(), "Rock"),
    (-1, SEEDS[:1].tolist(), None),
    (-1, [], "Summer"),
    (-1, [], None),
    *((int(pid), TRAIN.lists[i].tolist(), TITLES[i % len(TITLES)]) for i, pid in enumerate(TRAIN.pids)),
]


def with_new_track(*, has_features: bool) -> TrainingData:
    """The training data with one more track, by an artist and on an album of tracks that are in playlists.

    If it has features, it sounds as the first seeds do on average.
    """
    sound = TRAIN.vectors[:3].mean(axis=0, keepdims=True)
    return replace(
        TRAIN,
        n_tracks=N_TRACKS + 1,
        counts=np.append(TRAIN.counts, 0),
        vector_ids=np.append(TRAIN.vector_ids, np.int32(NEW)) if has_features else TRAIN.vector_ids,
        vectors=np.concatenate([TRAIN.vectors, sound]) if has_features else TRAIN.vectors,
        artist_of=np.append(TRAIN.artist_of, TRAIN.artist_of[SEEDS[0]]),
        album_of=np.append(TRAIN.album_of, TRAIN.album_of[SEEDS[0]]),
    )


WITH, WITHOUT = with_new_track(has_features=True), with_new_track(has_features=False)


def lists(name: str, train: TrainingData) -> list[list[int]]:
    return recommend(fitted(name, train), queries(CASES), K).ids.tolist()


def test_the_model_that_uses_features_recommends_a_new_track() -> None:
    found = lists("cosine", WITH)
    # nothing sounds more like these seeds
    assert found[0][0] == NEW
    assert sum(NEW in row for row in found) > 5
    assert not any(NEW in row for row in lists("cosine", WITHOUT))


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"cosine", "random"}))
def test_other_models_do_not_recommend_a_new_track(name: str) -> None:
    # random is left out because it draws from the whole catalogue; popularity puts such tracks after all others
    assert sum(map(len, found := lists(name, WITH))) > 0
    assert not any(NEW in row for row in found)
