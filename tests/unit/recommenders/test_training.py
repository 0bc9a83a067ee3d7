"""The trial: hidden tracks are in no list, and the protocol is that of the split."""

from __future__ import annotations

import numpy as np
import pytest

from encore.arrays.ragged import Ragged
from encore.config import SplitConfig
from encore.recommenders.training import take_trial

N, N_TRACKS = 400, 900
SETTINGS = SplitConfig(protocol="random", seed=3, fraction=0.25, challenge_playlists=0.1)
CHALLENGE = SETTINGS.model_copy(update={"protocol": "challenge"})


@pytest.fixture(scope="module")
def lists() -> Ragged:
    rng = np.random.default_rng(1)
    return Ragged.from_lists([rng.permutation(N_TRACKS)[: rng.integers(10, 250)].tolist() for _ in range(N)])


PIDS = np.arange(100, 100 + N)
TITLES: list[str | None] = [f"title {i}" for i in range(N)]


def test_with_the_random_protocol_playlists_lose_some_tracks(lists: Ragged) -> None:
    trial, rest, titles = take_trial(PIDS, lists, TITLES, SETTINGS, 10, n_tracks=N_TRACKS)
    assert len(trial.queries) == 10
    assert titles == TITLES
    for i, pid in enumerate(PIDS.tolist()):
        own = lists[i].tolist()
        if pid not in trial.queries.pids:
            assert rest[i].tolist() == own
            continue
        at = trial.queries.pids.tolist().index(pid)
        hidden = trial.truth[at].tolist()
        assert len(hidden) == -(-len(own) // 4)
        assert rest[i].tolist() == trial.queries.seeds[at].tolist() == [t for t in own if t not in hidden]
        assert trial.queries.titles[at] == TITLES[i]


def test_with_the_challenge_protocol_playlists_are_taken_out(lists: Ragged) -> None:
    trial, rest, titles = take_trial(PIDS, lists, TITLES, CHALLENGE, 20, n_tracks=N_TRACKS)
    assert len(trial.queries) == 20
    trained = set(rest.values.tolist())
    for i, pid in enumerate(PIDS.tolist()):
        if pid in trial.queries.pids:
            assert rest[i].tolist() == []
            assert titles[i] is None
            at = trial.queries.pids.tolist().index(pid)
            assert set(trial.truth[at].tolist()) <= trained & set(lists[i].tolist())
            assert not set(trial.truth[at].tolist()) & set(trial.queries.seeds[at].tolist())
        else:
            assert rest[i].tolist() == lists[i].tolist()
            assert titles[i] == TITLES[i]
    assert sorted(len(row) for row in trial.queries.seeds.tolist()) == sorted(
        [0, 0, 1, 1, 5, 5, 5, 5, 10, 10, 10, 10, 25, 25, 25, 25, 100, 100, 100, 100]
    )


def test_a_small_lake_hides_at_most_a_tenth(lists: Ragged) -> None:
    trial, _, _ = take_trial(PIDS, lists, TITLES, SETTINGS, 5000, n_tracks=N_TRACKS)
    assert len(trial.queries) == N // 10


def test_the_trial_does_not_depend_on_the_split(lists: Ragged) -> None:
    """The tracks that the split has hidden are not there any more; the trial hides others, by another hash."""
    one, _, _ = take_trial(PIDS, lists, TITLES, SETTINGS, 10, n_tracks=N_TRACKS)
    other, _, _ = take_trial(PIDS, lists, TITLES, SETTINGS.model_copy(update={"seed": 4}), 10, n_tracks=N_TRACKS)
    assert one.queries.pids.tolist() != other.queries.pids.tolist()
