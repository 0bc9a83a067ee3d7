from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from encore.arrays import hashing
from encore.arrays.ragged import Ragged
from encore.splits.holdout import n_test, split
from tests.reference import mix_slow, split_slow

playlists = st.dictionaries(
    st.integers(0, 2**63 - 1),
    st.lists(st.integers(0, 15) | st.integers(0, 2**31 - 1), max_size=30),
    max_size=12,
)


def as_arrays(lists: dict[int, list[int]]) -> tuple[np.ndarray, Ragged]:
    return np.array(list(lists), dtype=np.int64), Ragged.from_lists(list(lists.values()))


@given(st.integers(0, 2**70), st.lists(st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 2), max_size=5))
def test_mix_matches_its_documented_formula(seed: int, keys: list[tuple[int, int]]) -> None:
    columns = [np.array(column, dtype=np.int64) for column in zip(*keys, strict=True)]
    if columns:
        assert hashing.mix(seed, *columns).tolist() == [mix_slow(seed, *key) for key in keys]
    assert hashing.mix(seed).tolist() == [mix_slow(seed)]


def test_mix_does_not_modify_its_input_and_rejects_floats() -> None:
    column = np.arange(5, dtype=np.uint64)
    state = hashing.mix(1, column)
    before = state.copy()
    hashing.extend(state, column)
    assert column.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(state, before)
    with pytest.raises(ValueError, match="expected integers"):
        hashing.mix(1, np.zeros(2))


def test_splitmix_test_vectors() -> None:
    # first outputs of the public reference generator for the state 1234567
    assert hashing.mix(1234567).tolist() == [6457827717110365317]
    assert hashing.mix(1234567 + 0x9E3779B97F4A7C15).tolist() == [3203168211198807973]


@given(playlists, st.integers(0, 99), st.sampled_from([0.01, 0.1, 0.25, 1 / 3, 0.5, 0.99]))
def test_split_equals_its_definition(lists: dict[int, list[int]], seed: int, fraction: float) -> None:
    pids, tracks = as_arrays(lists)
    train, test = split(pids, tracks, seed=seed, fraction=fraction)
    expected = [split_slow(pid, row, seed, fraction) for pid, row in lists.items()]
    assert train.tolist() == [row for row, _ in expected]
    assert test.tolist() == [row for _, row in expected]
    assert train.values.dtype == test.values.dtype == np.int32


@given(playlists, st.data())
def test_a_split_does_not_depend_on_other_playlists(lists: dict[int, list[int]], data: st.DataObject) -> None:
    pids, tracks = as_arrays(lists)
    train, test = split(pids, tracks, seed=7, fraction=0.25)
    order = np.array(data.draw(st.permutations(range(len(lists)))), dtype=np.int64)
    cut = data.draw(st.integers(0, len(lists)))
    for part in (order[:cut], order[cut:]):
        own_train, own_test = split(pids[part], tracks.take(part), seed=7, fraction=0.25)
        assert own_train.tolist() == train.take(part).tolist()
        assert own_test.tolist() == test.take(part).tolist()


@given(playlists.filter(bool), st.sampled_from([0, 40, 60, 62, 63]), st.integers(1, 40))
@example({5: list(range(30)), 6: list(range(40, 10, -1))}, 62, 100)
def test_equal_hashes_are_ordered_by_track_id(lists: dict[int, list[int]], shift: int, block: int) -> None:
    def coarse(state: np.ndarray, column: np.ndarray) -> np.ndarray:
        return (hashing.extend(state, column) >> np.uint64(shift)) << np.uint64(shift)

    pids, tracks = as_arrays(lists)
    states = {pid: hashing.mix(3, np.array([pid])) for pid in lists}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ragged.blocks, "__defaults__", (block,))
        patch.setattr("encore.splits.holdout.hashing", type("Coarse", (), {"mix": hashing.mix, "extend": coarse}))
        _, test = split(pids, tracks, seed=3, fraction=0.4)
    for (pid, row), found in zip(lists.items(), test.tolist(), strict=True):
        distinct = sorted(set(row))
        state = states[pid]
        by_hash = [t for _, t in sorted((int(coarse(state, np.array([t]))[0]), t) for t in distinct)]
        assert set(found) == set(by_hash[: n_test(np.array([len(distinct)]), 0.4)[0]])


def test_sizes() -> None:
    sizes = n_test(np.array([0, 1, 2, 3, 4, 5, 8, 9, 100]), 0.25)
    assert sizes.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 25]
    # in floating point this is 7.000000000000001
    assert 0.07 * 100 > 7
    assert n_test(np.array([100, 2]), 0.07).tolist() == [7, 1]
    assert n_test(np.array([2, 3]), 0.99).tolist() == [1, 2]


def test_held_out_tracks_are_spread_evenly_and_seeds_differ() -> None:
    n, length = 4000, 40
    tracks = Ragged.from_lengths(np.full(n, length), np.tile(np.arange(length, dtype=np.int32), n))
    pids = np.arange(n, dtype=np.int64)
    _, test = split(pids, tracks, seed=42, fraction=0.25)
    counts = np.bincount(test.values, minlength=length)
    # each track is held out in a quarter of the playlists: 1000, deviation 27
    assert np.abs(counts - 1000).max() < 5 * 27
    _, other = split(pids, tracks, seed=43, fraction=0.25)
    overlap = test.isin(other).mean()
    assert abs(overlap - 0.25) < 0.02


def test_many_blocks_equal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    lengths = rng.geometric(0.02, 3000) - 1
    tracks = Ragged.from_lengths(lengths, rng.integers(0, 300, lengths.sum()).astype(np.int32))
    pids = rng.permutation(10**6)[:3000]
    expected = [part.tolist() for part in split(pids, tracks, seed=1, fraction=0.3)]
    for block in (1, 1000, 10**7):
        monkeypatch.setattr(Ragged.blocks, "__defaults__", (block,))
        assert [part.tolist() for part in split(pids, tracks, seed=1, fraction=0.3)] == expected


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ValueError, match="1 pids but 2 playlists"):
        split(np.array([1]), Ragged.empty(2), seed=1, fraction=0.25)
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="fraction"):
            split(np.array([1]), Ragged.empty(1), seed=1, fraction=fraction)
    assert [len(part) for part in split(np.zeros(0, dtype=np.int64), Ragged.empty(0), seed=1, fraction=0.5)] == [0, 0]
