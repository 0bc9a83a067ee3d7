"""Which versions take over from the champion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from encore.evaluation.bootstrap import GroupSums
from encore.evaluation.promotion import Evaluated, Verdict, judge

N = 400
PIDS = np.arange(N)
HOLDOUT = "holdout a@3, seed 42, k 500"


def evaluated(ndcg: float, r_precision: float = 0.2, *, coverage: float = 1.0, holdout: str = HOLDOUT) -> Evaluated:
    """Metrics that vary over the playlists in the same way for every model, by a mean."""
    noise = np.random.default_rng(1).normal(0, 0.05, N)
    values = {"ndcg": ndcg + noise, "r_precision": np.full(N, r_precision), "clicks": np.full(N, 2)}
    return Evaluated(holdout, GroupSums.of(PIDS, values), coverage)


def decided(new: Evaluated, champion: Evaluated | None, p99_ms: float = 5.0) -> Verdict:
    return judge(new, champion, p99_ms=p99_ms, bound_ms=40.0)


CHAMPION = evaluated(0.30)


def test_a_better_version_is_promoted_with_numbers() -> None:
    found = decided(evaluated(0.32), CHAMPION)
    assert found.outcome == "champion"
    assert found.numbers["ndcg_difference"] == pytest.approx(0.02)
    assert 0 < found.numbers["ndcg_low"] <= found.numbers["ndcg_difference"] <= found.numbers["ndcg_high"]
    assert found.numbers["coverage_ratio"] == 1
    assert found.numbers["p99_ms"] == 5
    assert found.numbers["n_playlists"] == N


@pytest.mark.parametrize(
    ("new", "p99_ms", "reason"),
    [
        (evaluated(0.28), 5.0, "NDCG is not significantly higher: difference -0.02"),
        (evaluated(0.30), 5.0, "NDCG is not significantly higher: difference +0.0000"),
        (evaluated(0.32, 0.199), 5.0, "R-precision is lower: difference -0.0010"),
        (evaluated(0.32, coverage=0.998), 5.0, "coverage of playlists is 0.9980 of the champion's, below 0.999"),
        (evaluated(0.32), 40.1, "p99 40.1 ms exceeds 40 ms"),
    ],
)
def test_what_holds_a_version_back(new: Evaluated, p99_ms: float, reason: str) -> None:
    found = decided(new, CHAMPION, p99_ms)
    assert found.outcome == "held"
    assert reason in found.reason


def test_a_difference_within_the_noise_is_not_enough() -> None:
    noise = np.random.default_rng(2).normal(0, 0.2, N)
    values = {"ndcg": 0.301 + noise, "r_precision": np.full(N, 0.2), "clicks": np.full(N, 2)}
    new = Evaluated(HOLDOUT, GroupSums.of(PIDS, values), 1.0)
    found = decided(new, CHAMPION)
    assert found.numbers["ndcg_low"] < 0 < found.numbers["ndcg_high"]
    assert found.outcome == "held"


@pytest.mark.parametrize(
    "other",
    [
        evaluated(0.5, holdout="holdout a@4, seed 42, k 500"),
        evaluated(0.5, holdout="holdout a@3, seed 43, k 500"),
        evaluated(0.5, holdout="holdout a@3, seed 42, k 100"),
        replace(
            CHAMPION, sums=GroupSums.of(PIDS[1:], {name: np.ones(N - 1) for name in ("ndcg", "r_precision", "clicks")})
        ),
    ],
)
def test_other_data_cannot_be_compared(other: Evaluated) -> None:
    found = decided(other, CHAMPION)
    assert found.outcome == "refused"
    assert "ndcg_difference" not in found.numbers


def test_the_first_version_needs_hits_and_speed() -> None:
    assert decided(evaluated(0.1), None).outcome == "champion"
    nothing = GroupSums.of(PIDS, {"ndcg": np.zeros(N), "r_precision": np.zeros(N), "clicks": np.full(N, 51)})
    found = decided(Evaluated(HOLDOUT, nothing, 0.0), None, 50.0)
    assert found == replace(found, outcome="held", reason="p99 50.0 ms exceeds 40 ms; NDCG is 0.0000: it has no hit")
    empty = GroupSums.of(PIDS[:0], {name: np.empty(0) for name in ("ndcg", "r_precision", "clicks")})
    assert decided(Evaluated(HOLDOUT, empty, 0.0), None).outcome == "held"


def test_a_champion_without_coverage_does_not_divide_by_zero() -> None:
    assert decided(evaluated(0.32), replace(CHAMPION, coverage=0.0)).outcome == "champion"
