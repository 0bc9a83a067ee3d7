from __future__ import annotations

import numpy as np
import pytest

from encore.arrays import hashing
from encore.arrays.kinds import NO_KIND, kind_names, kind_numbers
from encore.arrays.ragged import Ragged
from encore.splits.challenge import assign_kinds, n_evaluated, split
from encore.vocabulary import KINDS

NAMES = [kind.name for kind in KINDS]


def playlists(n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pids, lengths and whether they have a title."""
    rng = np.random.default_rng(seed)
    pids = rng.permutation(10 * n)[:n].astype(np.int64)
    return pids, rng.integers(1, 260, n), rng.random(n) < 0.8


def test_the_kinds_are_the_ten_of_the_challenge() -> None:
    assert [(kind.has_title, kind.n_seeds, kind.is_random) for kind in KINDS] == [
        (True, 0, False),
        (True, 1, False),
        (True, 5, False),
        (False, 5, False),
        (True, 10, False),
        (False, 10, False),
        (True, 25, False),
        (True, 25, True),
        (True, 100, False),
        (True, 100, True),
    ]
    # at least one track is left to be found
    assert all(kind.low > kind.n_seeds for kind in KINDS)


@pytest.mark.parametrize(("n", "wanted", "found"), [(100, 0.05, 5), (100, 7, 7), (3, 10, 2), (0, 0.5, 0), (1, 1, 0)])
def test_the_number_of_playlists_is_a_share_or_a_number(n: int, wanted: float, found: int) -> None:
    assert n_evaluated(n, wanted) == found


def test_each_kind_gets_a_tenth_of_suitable_playlists() -> None:
    pids, lengths, titled = playlists(3000)
    kinds = assign_kinds(pids, lengths, titled, 303, seed=5)
    counts = np.bincount(kinds[kinds != NO_KIND], minlength=len(KINDS))
    assert counts.tolist() == [31, 31, 31, *[30] * 7]
    for i, kind in enumerate(KINDS):
        own = kinds == i
        assert lengths[own].min() >= kind.low
        assert lengths[own].max() <= kind.high
        assert titled[own].all() or not kind.has_title
    assert not titled[np.isin(kinds, [NAMES.index("first_5"), NAMES.index("first_10")])].all()


def test_the_choice_depends_on_the_seed_and_not_on_the_order() -> None:
    pids, lengths, titled = playlists(2000)
    kinds = assign_kinds(pids, lengths, titled, 0.1, seed=5)
    order = np.random.default_rng(2).permutation(len(pids))
    again = assign_kinds(pids[order], lengths[order], titled[order], 0.1, seed=5)
    assert again.tolist() == kinds[order].tolist()
    assert assign_kinds(pids, lengths, titled, 0.1, seed=6).tolist() != kinds.tolist()


def test_a_kind_without_enough_playlists_gets_those_that_there_are() -> None:
    lengths = np.array([160, 20, 20, 20, 3])
    kinds = assign_kinds(np.arange(5), lengths, np.ones(5, np.bool_), 4, seed=1)
    # four playlists would be one for each of the first four kinds; a short one suits none
    assert kinds[0] == NO_KIND
    assert kinds[4] == NO_KIND
    assert sorted(kinds[1:4].tolist()) == [1, 2, 3]
    assert assign_kinds(np.arange(2), np.array([20, 20]), np.zeros(2, np.bool_), 1, seed=1).tolist() == [NO_KIND] * 2


def split_slow(pid: int, row: list[int], kind: int, trained: set[int], seed: int) -> tuple[list[int], list[int]]:
    tracks = list(dict.fromkeys(row))
    if kind == NO_KIND:
        return tracks, []
    n = KINDS[kind].n_seeds
    if KINDS[kind].is_random:
        hashes = {t: int(hashing.mix(seed, np.array([pid]), np.array([t]))[0]) for t in tracks}
        seeds = set(sorted(tracks, key=lambda t: hashes[t])[:n])
    else:
        seeds = set(tracks[:n])
    return [t for t in tracks if t in seeds], [t for t in tracks if t not in seeds and t in trained]


def test_split_equals_its_definition() -> None:
    rng = np.random.default_rng(3)
    kinds = np.array([*range(len(KINDS)), NO_KIND, NO_KIND] * 3, np.int8)
    pids = np.arange(100, 100 + len(kinds))
    rows = []
    for kind in kinds.tolist():
        low, high = (KINDS[kind].low, KINDS[kind].high) if kind != NO_KIND else (0, 30)
        distinct = rng.permutation(400)[: rng.integers(low, high + 1)]
        # repeats are kept in `playlists`, but count once here
        rows.append([*distinct.tolist(), *distinct[:3].tolist()])
    trained = rng.random(400) < 0.7
    known = set(np.flatnonzero(trained).tolist())
    train, test = split(pids, Ragged.from_lists(rows), kinds, trained, seed=9)
    expected = [split_slow(*given, known, 9) for given in zip(pids.tolist(), rows, kinds.tolist(), strict=True)]
    assert train.tolist() == [row for row, _ in expected]
    assert test.tolist() == [row for _, row in expected]
    assert [len(row) for row in train.tolist()[: len(KINDS)]] == [kind.n_seeds for kind in KINDS]


def test_the_seeds_of_random_kinds_leave_holes() -> None:
    kind = NAMES.index("title_random_25")
    row = list(range(150))
    train, _ = split(np.array([4]), Ragged.from_lists([row]), np.array([kind], np.int8), np.ones(150, np.bool_), seed=1)
    assert train.tolist()[0] == sorted(train.tolist()[0])
    assert train.tolist()[0] != row[:25]


def test_kinds_have_numbers_and_names() -> None:
    numbers = np.array([0, NO_KIND, 9], np.int8)
    names = kind_names(numbers)
    assert names.to_pylist() == ["title", None, "title_random_100"]
    assert kind_numbers(names).tolist() == numbers.tolist()
    assert kind_numbers(names.slice(0, 0)).tolist() == []
