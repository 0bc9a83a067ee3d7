"""The split is sticky and even, the statistics are those of SciPy, and the verdict neither misses a bad model nor takes
a good one for bad."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from encore.errors import ConfigError
from encore.serving.canary import (
    DEFAULT_STEPS,
    Canary,
    Counts,
    Rule,
    Sample,
    Step,
    Verdict,
    p_of_excess,
    split,
    steps_of,
    verdict,
)

RULE = Rule()
KEYS = [f"user-{i}".encode() for i in range(10_000)]


def sample(requests: int, errors: int = 0, empty: int = 0, *, milliseconds: float = 4.0, slow: int = 0) -> Sample:
    """Requests of a latency, `slow` of them of a second."""
    usual, late = Counts(), Counts()
    usual.answered(milliseconds / 1e3, empty=False)
    late.answered(1.0, empty=False)
    latencies = np.multiply(usual.sample().latencies, requests - errors - slow)
    latencies += np.multiply(late.sample().latencies, slow)
    return Sample(requests, errors, 0, empty, tuple(latencies.tolist()))


GOOD = sample(10_000)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("weight", [0.01, 0.05, 0.1])
def test_the_split_is_even_to_a_point(weight: float) -> None:
    for version in ("1", "2", "17"):
        share = sum(split(key, version) < weight for key in KEYS) / len(KEYS)
        assert abs(share - weight) < 0.01


def test_the_split_is_as_even_as_a_fair_draw() -> None:
    """Of 10,000 users at a weight of 1/4 or 1/2, a fair draw is off by a point in 2 or 5 of 100 cases."""
    for version in map(str, range(20)):
        places = np.array([split(key, version) for key in KEYS])
        assert stats.kstest(places, "uniform").pvalue > 1e-4


def test_versions_split_independently() -> None:
    both = sum(split(key, "1") < 0.5 and split(key, "2") < 0.5 for key in KEYS) / len(KEYS)
    assert abs(both - 0.25) < 0.02


@given(st.binary(max_size=40), st.text(max_size=8), st.floats(0, 1), st.floats(0, 1))
def test_a_ramp_only_adds_users(key: bytes, version: str, one: float, other: float) -> None:
    place = split(key, version)
    assert 0 <= place < 1
    assert place == split(key, version)
    low, high = sorted((one, other))
    canary = Canary(version, "0", (Step(low, 0), Step(high, 0)), RULE)
    before = canary.is_for(key)
    canary.go_to(1)
    assert canary.is_for(key) or not before
    canary.turn_off()
    assert not canary.is_for(key)


@given(st.integers(0, 3_000), st.integers(0, 3_000), st.floats(0, 1), st.floats(0, 1))
def test_the_exact_test_is_that_of_scipy(n: int, m: int, one: float, other: float) -> None:
    a, b = round(one * n), round(other * m)
    expected = 1.0 if a * m <= b * n else float(stats.hypergeom.sf(a - 1, n + m, a + b, n))
    assert p_of_excess(a, n, b, m) == pytest.approx(expected, rel=1e-6, abs=1e-300)


def test_the_exact_test_at_large_counts() -> None:
    for a, n, b, m in [(5, 200, 0, 10_000_000), (300, 100_000, 200, 100_000), (1_000, 50_000, 0, 50_000)]:
        expected = float(stats.hypergeom.sf(a - 1, n + m, a + b, n))
        assert p_of_excess(a, n, b, m) == pytest.approx(expected, rel=1e-5, abs=1e-300)


@given(st.lists(st.floats(2e-5, 100), min_size=1, max_size=300), st.sampled_from([0.5, 0.99]))
def test_quantiles_are_within_five_percent(latencies: list[float], share: float) -> None:
    counts = Counts()
    for seconds in latencies:
        counts.answered(seconds, empty=False)
    exact = float(np.quantile(latencies, share, method="inverted_cdf"))
    assert counts.sample().quantile(share) == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e-5, 1e6])
def test_extreme_latencies_are_counted(seconds: float) -> None:
    counts = Counts()
    counts.answered(seconds, empty=False)
    assert sum(counts.sample().latencies) == 1


def test_a_good_challenger_is_promoted() -> None:
    assert verdict(GOOD, sample(500), RULE).decision == "promote"
    assert verdict(GOOD, sample(200), RULE).decision == "promote"
    # faults that the champion has as well
    assert verdict(sample(10_000, errors=200), sample(500, errors=12), RULE).decision == "promote"
    assert verdict(sample(10_000, slow=300), sample(1_000, slow=30), RULE).decision == "promote"
    # slower than the champion, but within the bound
    assert verdict(sample(10_000, milliseconds=2), sample(1_000, milliseconds=30), RULE).decision == "promote"
    # above the bound, but little slower than the champion
    assert verdict(sample(10_000, milliseconds=50), sample(1_000, milliseconds=60), RULE).decision == "promote"


@given(st.integers(0, 199), st.data())
def test_few_requests_decide_nothing(requests: int, data: st.DataObject) -> None:
    errors = data.draw(st.integers(0, requests))
    found = verdict(GOOD, sample(requests, errors=errors, milliseconds=900), RULE)
    assert found.decision == "hold"
    assert f"{requests} of 200 requests" in found.reason
    assert verdict(sample(requests), sample(200), RULE).decision == "hold"


@pytest.mark.parametrize("errors", range(5))
def test_less_than_five_errors_abort_nothing(errors: int) -> None:
    assert verdict(sample(1_000_000), sample(200, errors=errors), RULE).decision == "promote"


def test_errors_roll_back() -> None:
    found = verdict(GOOD, sample(200, errors=5), RULE)
    assert found.decision == "roll_back"
    assert found.reason.startswith("errors: 5 of 200 requests, the champion's 0 of 10,000")
    assert found.numbers["p_errors"] < 0.001
    # all of them, so that there is no latency
    assert verdict(GOOD, sample(200, errors=200), RULE).decision == "roll_back"


def test_a_slow_challenger_rolls_back() -> None:
    found = verdict(GOOD, sample(500, slow=6), RULE)
    assert found.decision == "roll_back"
    assert found.reason.startswith("slow: 6 of 500 requests above 40 ms")
    assert verdict(sample(10_000, milliseconds=50), sample(500, milliseconds=80), RULE).decision == "roll_back"
    # too few for a verdict on the 99th percentile: neither rolled back nor promoted
    assert verdict(GOOD, sample(499, slow=6), RULE).decision == "hold"
    # so slow that it needs no 99th percentile
    assert verdict(GOOD, sample(200, slow=101), RULE).decision == "roll_back"
    # perhaps chance: 6 of 500 against 1 of 500
    assert verdict(sample(500, slow=1), sample(500, slow=6), RULE).decision == "hold"


def test_empty_answers_are_faults() -> None:
    found = verdict(GOOD, sample(400, empty=20), RULE)
    assert found.decision == "roll_back"
    assert found.reason.startswith("empty answers: 20 of 400")
    # significantly more than the champion's, but not many more
    assert verdict(sample(100_000, empty=20_000), sample(20_000, empty=5_000), RULE).decision == "promote"


@given(st.integers(0, 600), st.integers(0, 600), st.integers(0, 3_000), st.floats(1, 500))
def test_more_faults_never_look_better(errors: int, more: int, requests: int, milliseconds: float) -> None:
    order = {"roll_back": 0, "hold": 1, "promote": 2}
    requests = max(requests, errors + more)
    fewer = verdict(GOOD, sample(requests, errors=errors, milliseconds=milliseconds), RULE)
    worse = verdict(GOOD, sample(requests, errors=errors + more, milliseconds=milliseconds), RULE)
    if fewer.reason.startswith("errors"):
        assert order[worse.decision] <= order[fewer.decision]
    if fewer.decision == "promote" or worse.decision == "promote":
        assert order[worse.decision] <= order[fewer.decision]


def test_the_steps_of_a_ramp() -> None:
    assert steps_of("0.05:60,0.5:1.5") == (Step(0.05, 60), Step(0.5, 1.5))
    assert [step.weight for step in steps_of(DEFAULT_STEPS)] == [0.01, 0.05, 0.25, 0.5]
    for text in [
        "",
        "0.1",
        "0.1:x",
        "0:5",
        "1:5",
        "0.5:5,0.1:5",
        "0.5:5,0.5:5",
        "0.1:-1",
        "0.1:nan",
        "nan:1",
        "0.1:inf",
    ]:
        with pytest.raises(ConfigError, match="canary steps"):
            steps_of(text)


def counted(canary: Canary, *, errors: int = 0, requests: int = 300, seconds: float = 0.004) -> Verdict:
    for _ in range(1_000):
        canary.counts[0].answered(0.004, empty=False)
    for i in range(requests):
        if i < errors:
            canary.counts[1].failed()
        else:
            canary.counts[1].answered(seconds, empty=False)
    return canary.judge()


def test_a_canary_goes_step_by_step() -> None:
    clock = Clock()
    canary = Canary("2", "1", steps_of("0.1:60,0.5:90"), RULE, clock=clock)
    assert canary.weight == 0.1
    assert counted(canary).decision == "promote"
    assert not canary.is_over
    clock.now += 60
    assert canary.is_over
    assert not canary.is_last
    canary.go_to(1)
    assert canary.weight == 0.5
    assert canary.is_last
    assert not canary.is_over
    # counts begin anew with each step
    assert canary.judge().decision == "hold"
    clock.now += 90
    assert canary.is_over
    canary.turn_off()
    assert canary.weight == 0


def test_a_canary_continues_where_another_process_was() -> None:
    clock = Clock()
    canary = Canary("2", "1", steps_of("0.1:60,0.5:90"), RULE, step=1, step_started_at=clock.now - 89, clock=clock)
    assert canary.weight == 0.5
    assert not canary.is_over
    assert canary.judge().decision == "hold"
    clock.now += 1
    assert canary.is_over
    assert Canary("2", "1", steps_of("0.1:60"), RULE, step=7).is_last


def test_a_fault_that_sets_in_late_is_not_diluted() -> None:
    canary = Canary("2", "1", steps_of("0.1:60"), RULE)
    for _ in range(200):
        assert counted(canary, requests=600).decision == "promote"
    found = counted(canary, requests=600, seconds=0.5)
    assert found.decision == "roll_back"
    assert found.reason.startswith("since the last verdict, slow")


@pytest.mark.parametrize(
    ("error_rate", "empty_rate", "slow_rate"), [(0, 0, 0), (0.02, 0, 0), (0, 0.02, 0.02), (0.001, 0.2, 0.009)]
)
def test_equal_versions_are_rarely_taken_for_bad(error_rate: float, empty_rate: float, slow_rate: float) -> None:
    """Of 100 canaries with 40 verdicts each, at most 3 are rolled back by chance."""
    random = np.random.default_rng(1)
    rule = dataclasses.replace(RULE, slow_ratio=1.0)

    def drawn(requests: int) -> Sample:
        errors = int(random.binomial(requests, error_rate))
        slow = int(random.binomial(requests - errors, slow_rate))
        latencies = [0] * 340
        latencies[123], latencies[250] = requests - errors - slow, slow
        return Sample(requests, errors, 0, int(random.binomial(requests - errors, empty_rate)), tuple(latencies))

    def plus(one: Sample, other: Sample) -> Sample:
        return one - (Sample() - other)

    canaries, bad = 100, 0
    for _ in range(canaries):
        total = Sample(), Sample()
        for _ in range(40):
            new = drawn(3_000), drawn(600)
            total = plus(total[0], new[0]), plus(total[1], new[1])
            found = verdict(*total, rule), verdict(*new, rule, p=rule.p * 0.1)
            if "roll_back" in (found[0].decision, found[1].decision):
                bad += 1
                break
    assert bad <= 3
