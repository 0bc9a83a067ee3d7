from __future__ import annotations

import numpy as np
import pytest

from encore.evaluation import bootstrap
from encore.evaluation.bootstrap import METRICS, GroupSums, compare


def values(n: int, seed: int, shift: float = 0.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "r_precision": rng.random(n) * 0.5 + shift,
        "ndcg": rng.random(n) * 0.5 + shift,
        "clicks": rng.integers(0, 52, n).astype(np.int32),
    }


def test_the_difference_is_the_mean_over_playlists() -> None:
    pids = np.random.default_rng(0).permutation(5000).astype(np.int64)
    a, b = values(5000, 1), values(5000, 2)
    found = compare(GroupSums.of(pids, a), GroupSums.of(pids, b))
    assert tuple(found) == METRICS
    for name, interval in found.items():
        assert interval.difference == pytest.approx((a[name] - b[name]).mean(), abs=1e-8)
        assert interval.low < interval.difference < interval.high
        assert interval.n_playlists == 5000


def test_a_model_does_not_differ_from_itself_and_the_order_of_two_only_changes_the_sign() -> None:
    pids = np.arange(300)
    a, b = GroupSums.of(pids, values(300, 1)), GroupSums.of(pids, values(300, 2))
    assert set(compare(a, a).values()) == {bootstrap.Interval(0.0, 0.0, 0.0, 300)}
    for name, interval in compare(a, b).items():
        assert compare(b, a)[name].difference == -interval.difference


@pytest.mark.parametrize("n", [400, 50_000])
def test_the_interval_is_as_wide_as_the_central_limit_theorem_says(n: int) -> None:
    pids = np.arange(n) * 7
    a, b = values(n, 3), values(n, 4)
    for name, interval in compare(GroupSums.of(pids, a), GroupSums.of(pids, b)).items():
        error = (a[name] - b[name]).std() / np.sqrt(n)
        assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.12), name


def test_pairing_removes_what_is_common_to_both() -> None:
    # playlists differ by far more than the models do
    common = np.random.default_rng(5).random(2000)
    rows = {name: common for name in METRICS}
    better = {name: common + 0.001 for name in METRICS}
    pids = np.arange(2000)
    interval = compare(GroupSums.of(pids, better), GroupSums.of(pids, rows))["ndcg"]
    assert interval.low == pytest.approx(0.001, abs=1e-6)
    assert interval.high == pytest.approx(0.001, abs=1e-6)


def test_intervals_contain_the_true_difference_as_often_as_promised() -> None:
    # 95 % of 60 are 57, with a standard deviation of 1.7
    pids = np.arange(500)
    inside = 0
    for seed in range(60):
        a, b = values(500, 2 * seed, shift=0.01), values(500, 2 * seed + 1)
        interval = compare(GroupSums.of(pids, a), GroupSums.of(pids, b))["ndcg"]
        inside += interval.low <= 0.01 <= interval.high
    assert 51 <= inside <= 60


def test_results_do_not_depend_on_the_order_of_playlists() -> None:
    pids = np.random.default_rng(6).permutation(1000)
    a, b = values(1000, 7), values(1000, 8)
    expected = compare(GroupSums.of(pids, a), GroupSums.of(pids, b))
    order = np.argsort(pids)
    sorted_a = GroupSums.of(pids[order], {name: column[order] for name, column in a.items()})
    assert compare(sorted_a, GroupSums.of(pids, b)) == expected


def test_weights_are_drawn_from_a_poisson_distribution_with_mean_one() -> None:
    weights = bootstrap._weights()
    assert weights.mean() == pytest.approx(1, abs=0.002)
    assert weights.var() == pytest.approx(1, abs=0.005)
    shares = np.bincount(weights.reshape(-1), minlength=4)[:4] / weights.size
    assert shares.tolist() == pytest.approx([0.3679, 0.3679, 0.1839, 0.0613], abs=0.001)
    # replicates are independent of each other
    assert abs(np.corrcoef(weights[0], weights[1])[0, 1]) < 0.05


def test_models_must_have_been_evaluated_on_the_same_playlists() -> None:
    a = GroupSums.of(np.arange(10), values(10, 1))
    with pytest.raises(ValueError, match="the same playlists"):
        compare(a, GroupSums.of(np.arange(9), values(9, 1)))
    with pytest.raises(ValueError, match="the same playlists"):
        compare(a, GroupSums.of(np.arange(1, 11), values(10, 1)))
    nothing = GroupSums.of(np.arange(0), values(0, 1))
    with pytest.raises(ValueError, match="found none"):
        compare(nothing, nothing)


def test_a_single_playlist_is_compared() -> None:
    a, b = ({name: np.array([x]) for name in METRICS} for x in (0.5, 0.25))
    interval = compare(GroupSums.of(np.array([3]), a), GroupSums.of(np.array([3]), b))["ndcg"]
    assert interval == (0.25, 0.25, 0.25, 1)
