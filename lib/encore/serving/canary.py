"""The canary: which users the challenger answers, what is counted, and when it is promoted or taken off.

Nothing here knows HTTP, the registry or threads other than those that count: `models` drives it.

Users are split by a hash of their key and of the challenger's version, so that a user stays with one version and a
larger weight only adds users. A step of the ramp lasts a given time at a given weight; a verdict is due at an interval.
It compares what was counted of both versions *since the step began*, while the weight was constant: over several
weights the two versions would have answered at different times, and whatever changed meanwhile would look like a
difference between them. It also compares what was counted since the last verdict, so that a fault that sets in late is
not diluted by all that went well before.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

import xxhash

from encore.errors import ConfigError

Decision = Literal["promote", "hold", "roll_back"]

DEFAULT_STEPS: Final = "0.01:300,0.05:600,0.25:900,0.5:900"

_GROWTH: Final = 1.05
_LOWEST: Final = 1e-5
_BUCKETS: Final = 340
"""Buckets of latencies: each reaches 5 % further than the one before, from 10 microseconds to 159 seconds."""

RECENT_FACTOR: Final = 0.1
"""What was counted since the last verdict must be this much less probable: there are as many such tests as verdicts."""


def split(key: bytes, version: str) -> float:
    """Where a user is between 0 and 1 (excluded): below the weight of a challenger of this version, it answers.

    Independent between versions, so that the same users are not always the first ones.
    """
    return (xxhash.xxh3_64_intdigest(version.encode() + b"\0" + key) >> 11) / 2**53


@dataclass(frozen=True)
class Step:
    """A step of the ramp: the challenger's share of the users, and for how many seconds at least."""

    weight: float
    seconds: float


def steps_of(text: str) -> tuple[Step, ...]:
    """Steps from a text such as 0.01:300,0.05:600: weight and seconds, with growing weights below 1.

    Raises ConfigError for another form. The weight stays below 1 because the verdict compares with the champion.
    """
    remedy = f"write weight:seconds, separated by commas, with growing weights, such as {DEFAULT_STEPS}"
    try:
        steps = tuple(Step(*map(float, part.split(":", 1))) for part in text.split(","))
    except (TypeError, ValueError):
        raise ConfigError(f"canary steps: expected weight:seconds, found {text!r}", remedy=remedy) from None
    weights = [step.weight for step in steps]
    if not all(0 < weight < 1 for weight in weights):
        raise ConfigError(f"canary steps: expected weights above 0 and below 1, found {text!r}", remedy=remedy)
    if any(low >= high for low, high in itertools.pairwise(weights)):
        raise ConfigError(f"canary steps: expected growing weights, found {text!r}", remedy=remedy)
    if not all(0 <= step.seconds < math.inf for step in steps):
        raise ConfigError(f"canary steps: expected seconds of at least 0, found {text!r}", remedy=remedy)
    return steps


@dataclass(frozen=True)
class Rule:
    """When a challenger is good, bad, or neither yet."""

    min_requests: int = 200
    """Hold while either version has answered fewer: one error of few requests says nothing."""
    min_faults: int = 5
    """Fewer errors, or empty answers, of the challenger never count."""
    p: float = 0.001
    """Faults count if a difference as large has at most this probability between equal versions (Fisher, one-sided)."""
    slow_requests: int = 500
    """The 99th percentile is compared from this many requests of the challenger on; a median above the limit counts at
    once."""
    bound_ms: float = 40.0
    """A 99th percentile up to here is never too slow."""
    slow_ratio: float = 1.5
    """Nor is one up to this multiple of the champion's."""
    empty_ratio: float = 2.0
    """Empty answers count if the challenger's share is at least this multiple of the champion's."""
    seconds: float = 30.0
    """Interval of verdicts."""


@dataclass(frozen=True)
class Sample:
    """What was counted of a version: its `requests`, those that ended in an `error`, those that were `diverted` to the
    other version because this one was busy, answers that were `empty`, and the latencies of requests without an error
    by bucket."""

    requests: int = 0
    errors: int = 0
    diverted: int = 0
    empty: int = 0
    latencies: tuple[int, ...] = (0,) * _BUCKETS

    def __sub__(self, earlier: Sample) -> Sample:
        return Sample(
            self.requests - earlier.requests,
            self.errors - earlier.errors,
            self.diverted - earlier.diverted,
            self.empty - earlier.empty,
            tuple(now - then for now, then in zip(self.latencies, earlier.latencies, strict=True)),
        )

    @property
    def timed(self) -> int:
        """Requests with a latency."""
        return self.requests - self.errors

    @property
    def answered(self) -> int:
        """Requests with an answer of this version."""
        return self.requests - self.errors - self.diverted

    def quantile(self, share: float) -> float:
        """A quantile of the latencies in seconds, within 2.5 %; NaN if there are none."""
        rank, seen = math.ceil(share * sum(self.latencies)), 0
        for bucket, count in enumerate(self.latencies):
            seen += count
            if count and seen >= rank:
                return _LOWEST * _GROWTH ** (bucket - 0.5)
        return math.nan

    def slower(self, seconds: float) -> int:
        """How many latencies are above some seconds, within a bucket."""
        return sum(self.latencies[_bucket(seconds) + 1 :])


def _bucket(seconds: float) -> int:
    """The number of the bucket of a latency: the first one holds everything up to _LOWEST."""
    if seconds <= _LOWEST:
        return 0
    return min(math.ceil(math.log(seconds / _LOWEST) / math.log(_GROWTH)), _BUCKETS - 1)


class Counts:
    """Counts the requests of a version, from several threads at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = self._errors = self._diverted = self._empty = 0
        self._latencies = [0] * _BUCKETS

    def answered(self, seconds: float, *, empty: bool) -> None:
        """Count an answer: how long the model took, and whether it had nothing to recommend."""
        bucket = _bucket(seconds)
        with self._lock:
            self._requests += 1
            self._empty += empty
            self._latencies[bucket] += 1

    def diverted(self, seconds: float) -> None:
        """Count a request that the version was too busy to answer; `seconds`: for how long it had been busy, which is
        less than the request would have waited."""
        bucket = _bucket(seconds)
        with self._lock:
            self._requests += 1
            self._diverted += 1
            self._latencies[bucket] += 1

    def failed(self) -> None:
        """Count a request that ended in an error."""
        with self._lock:
            self._requests += 1
            self._errors += 1

    def sample(self) -> Sample:
        """What has been counted so far."""
        with self._lock:
            return Sample(self._requests, self._errors, self._diverted, self._empty, tuple(self._latencies))


def p_of_excess(faults: int, trials: int, others: int, other_trials: int) -> float:
    """The probability that equal versions differ at least as much: Fisher's exact test, one-sided.

    Of `trials` of the one version `faults` failed, of `other_trials` of the other `others`; given their sum, at least
    `faults` of them fall on the first with the returned probability. 1 if its share of faults is not the larger one.
    """
    if faults * other_trials <= others * trials:
        return 1.0
    total = faults + others
    # the hypergeometric probability of exactly `faults`, and from it those of more
    term = math.exp(
        _log_choose(trials, faults) + _log_choose(other_trials, others) - _log_choose(trials + other_trials, total)
    )
    sum_ = 0.0
    for found in range(faults, min(total, trials) + 1):
        sum_ += term
        if term < sum_ * 1e-16:
            break
        term *= (trials - found) * (total - found) / ((found + 1) * (other_trials - total + found + 1))
    return min(sum_, 1.0)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


@dataclass(frozen=True)
class Verdict:
    """A decision, the reason in words, and the numbers that it rests on."""

    decision: Decision
    reason: str
    numbers: dict[str, float] = field(default_factory=dict)


def verdict(champion: Sample, challenger: Sample, rule: Rule, *, p: float | None = None) -> Verdict:
    """Whether a challenger is good (promote), bad (roll_back), or neither yet (hold), from two samples of a period in
    which its weight did not change. `p` replaces the rule's.

    Hold below the least number of requests of either version. Roll back if the challenger has significantly more
    errors, or significantly more and much more empty answers, or a 99th percentile of its latency above the limit with
    significantly more slow answers. Hold if the 99th percentile is above the limit and that may be chance.
    """
    p = rule.p if p is None else p
    limit = rule.bound_ms / 1e3
    usual = champion.quantile(0.99)
    if not math.isnan(usual):
        limit = max(limit, rule.slow_ratio * usual)
    slow, slow_before = challenger.slower(limit), champion.slower(limit)
    p_errors = p_of_excess(challenger.errors, challenger.requests, champion.errors, champion.requests)
    p_empty = p_of_excess(challenger.empty, challenger.answered, champion.empty, champion.answered)
    p_slow = p_of_excess(slow, challenger.timed, slow_before, champion.timed)
    p99 = challenger.quantile(0.99)
    numbers = {
        "requests": float(challenger.requests),
        "errors": float(challenger.errors),
        "empty": float(challenger.empty),
        "champion_requests": float(champion.requests),
        "champion_errors": float(champion.errors),
        "champion_empty": float(champion.empty),
        "p_errors": p_errors,
        "p_empty": p_empty,
        "p_slow": p_slow,
        "limit_ms": limit * 1e3,
        **({} if math.isnan(p99) else {"p99_ms": p99 * 1e3}),
        **({} if math.isnan(usual) else {"champion_p99_ms": usual * 1e3}),
    }

    def decided(decision: Decision, reason: str) -> Verdict:
        return Verdict(decision, reason, numbers)

    if challenger.requests < rule.min_requests:
        return decided("hold", f"{challenger.requests:,} of {rule.min_requests:,} requests for a verdict")
    if challenger.errors >= rule.min_faults and p_errors < p:
        return decided(
            "roll_back",
            f"errors: {challenger.errors:,} of {challenger.requests:,} requests, the champion's "
            f"{champion.errors:,} of {champion.requests:,} ({_p(p_errors)})",
        )
    # shares compared as products, since the champion may have answered nothing
    more_empty = challenger.empty * champion.answered >= rule.empty_ratio * champion.empty * challenger.answered
    if challenger.empty >= rule.min_faults and more_empty and p_empty < p:
        return decided(
            "roll_back",
            f"empty answers: {challenger.empty:,} of {challenger.answered:,}, the champion's {champion.empty:,} of "
            f"{champion.answered:,} ({_p(p_empty)})",
        )
    if p99 > limit:
        text = (
            f"slow: {slow:,} of {challenger.timed:,} requests above {limit * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms, "
            f"the champion's {usual * 1e3:.0f} ms ({_p(p_slow)})"
        )
        enough = challenger.requests >= rule.slow_requests or 2 * slow > challenger.timed
        if enough and slow >= rule.min_faults and p_slow < p:
            return decided("roll_back", text)
        return decided("hold", f"perhaps {text}")
    if champion.requests < rule.min_requests:
        return decided("hold", f"{champion.requests:,} of {rule.min_requests:,} requests of the champion for a verdict")
    return decided("promote", f"{challenger.requests:,} requests without a fault that the champion has not")


def _p(value: float) -> str:
    return f"p = {value:.1e}" if value > 1e-99 else "p < 1e-99"


class Canary:
    """A challenger on its way to be champion: where on the ramp it is, what was counted, and what to do next.

    `version` is compared with the version `champion`. `step` and `step_started_at` continue a canary that another
    process began at `started_at` (seconds since 1970); what that process counted is lost, so that the step needs its
    requests anew.
    """

    def __init__(
        self,
        version: str,
        champion: str,
        steps: tuple[Step, ...],
        rule: Rule,
        *,
        started_at: float | None = None,
        step: int = 0,
        step_started_at: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.version = version
        self.champion = champion
        self.steps = steps
        self.rule = rule
        self.started_at = clock() if started_at is None else started_at
        self.is_off = False
        self.last: Verdict | None = None
        """The last verdict."""
        self._clock = clock
        self.go_to(step, step_started_at)

    def go_to(self, step: int, started_at: float | None = None) -> None:
        """Go to a step of the ramp, and count anew. A step beyond the last one is the last one."""
        self.step = min(max(step, 0), len(self.steps) - 1)
        self.step_started_at = self._clock() if started_at is None else started_at
        self.counts = Counts(), Counts()
        """Of the champion and of the challenger."""
        self._before = Sample(), Sample()

    def turn_off(self) -> None:
        """Set the weight to 0, for good."""
        self.is_off = True

    @property
    def weight(self) -> float:
        """The share of users that the challenger answers."""
        return 0.0 if self.is_off else self.steps[self.step].weight

    def is_for(self, key: bytes) -> bool:
        """Whether the challenger answers this user."""
        return split(key, self.version) < self.weight

    def judge(self) -> Verdict:
        """The verdict on all that was counted in this step, or since the last call if that alone is bad enough."""
        now = self.counts[0].sample(), self.counts[1].sample()
        before, self._before = self._before, now
        found = verdict(*now, self.rule)
        if found.decision != "roll_back":
            recent = now[0] - before[0], now[1] - before[1]
            late = verdict(*recent, self.rule, p=self.rule.p * RECENT_FACTOR)
            if late.decision == "roll_back":
                found = Verdict("roll_back", f"since the last verdict, {late.reason}", late.numbers)
        self.last = found
        return found

    @property
    def is_over(self) -> bool:
        """Whether the time of this step is up, so that a good verdict leads to the next one."""
        return self._clock() - self.step_started_at >= self.steps[self.step].seconds

    @property
    def is_last(self) -> bool:
        """Whether a good verdict after this step promotes the challenger."""
        return self.step == len(self.steps) - 1
