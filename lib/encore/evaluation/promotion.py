"""The rule by which a new model version takes over from the champion.

Both must have been evaluated on the same holdout version, split with the same seed, on the same playlists, with lists
of the same length; otherwise the comparison is refused. The new version is promoted if all of these hold:

- the 95 % interval of the difference in NDCG, by a paired bootstrap over playlists, lies above 0;
- the mean R-precision is not lower;
- the share of playlists with recommendations is at least COVERAGE of the champion's;
- the 99th percentile of the CPU time to answer a playlist, measured on the registered files, is within the bound.

The first version of a model has nothing to be compared with: it is promoted if it has hits and is fast enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, Literal

from encore.evaluation.bootstrap import METRICS, GroupSums, compare

COVERAGE: Final = 0.999
"""The share of the champion's coverage of playlists that a new version must reach."""

Outcome = Literal["champion", "held", "refused"]


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A model version as it was evaluated.

    `holdout`: identifies what it was evaluated on (table id and data version, split seed, k); `sums`: its metrics;
    `coverage`: the share of playlists that it has recommendations for.
    """

    holdout: str
    sums: GroupSums
    coverage: float


@dataclass(frozen=True)
class Verdict:
    """What is to be done with a version: promote it (champion), or not (held), or it cannot be compared (refused).

    `numbers`: what the verdict is based on, by name.
    """

    outcome: Outcome
    reason: str
    numbers: dict[str, float] = field(default_factory=dict)


def judge(new: Evaluated, champion: Evaluated | None, *, p99_ms: float, bound_ms: float) -> Verdict:
    """Compare a new version with the champion; None: there is none. `p99_ms` is measured, `bound_ms` is allowed."""
    numbers = {"coverage": new.coverage, "p99_ms": p99_ms, "p99_bound_ms": bound_ms, **_means(new.sums)}
    slow = [] if p99_ms <= bound_ms else [f"p99 {p99_ms:.1f} ms exceeds {bound_ms:g} ms"]
    if champion is None:
        problems = slow + ([] if numbers["ndcg"] > 0 else [f"NDCG is {numbers['ndcg']:.4f}: it has no hit"])
        return Verdict("held", "; ".join(problems), numbers) if problems else Verdict("champion", "the first", numbers)
    if new.holdout != champion.holdout:
        return Verdict(
            "refused", f"evaluated on {new.holdout}, but the champion was evaluated on {champion.holdout}", numbers
        )
    if not new.sums.has_same_playlists(champion.sums):
        return Verdict("refused", "evaluated on other playlists than the champion", numbers)
    found = compare(new.sums, champion.sums)
    ratio = new.coverage / champion.coverage if champion.coverage else math.inf
    numbers |= {
        "ndcg_difference": found["ndcg"].difference,
        "ndcg_low": found["ndcg"].low,
        "ndcg_high": found["ndcg"].high,
        "r_precision_difference": found["r_precision"].difference,
        "coverage_ratio": ratio if math.isfinite(ratio) else 1.0,
    }
    problems = list(slow)
    if not found["ndcg"].low > 0:
        problems.append(
            f"NDCG is not significantly higher: difference {found['ndcg'].difference:+.4f}, "
            f"95 % interval {found['ndcg'].low:+.4f} to {found['ndcg'].high:+.4f}"
        )
    if found["r_precision"].difference < 0:
        problems.append(f"R-precision is lower: difference {found['r_precision'].difference:+.4f}")
    if ratio < COVERAGE:
        problems.append(f"coverage of playlists is {ratio:.4f} of the champion's, below {COVERAGE}")
    if problems:
        return Verdict("held", "; ".join(problems), numbers)
    return Verdict("champion", f"NDCG {found['ndcg'].difference:+.4f}, at least {found['ndcg'].low:+.4f}", numbers)


def _means(sums: GroupSums) -> dict[str, float]:
    n = int(sums.counts.sum())
    totals = sums.sums.sum(axis=0).tolist()
    means = {name: total / (n * 2**32) if n else 0.0 for name, total in zip(METRICS, totals, strict=True)}
    return {**means, "n_playlists": float(n)}
