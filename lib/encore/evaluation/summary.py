"""Means of metrics over many playlists, overall and by group, exact for any order and partition of the playlists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from encore.arrays.kinds import NO_KIND
from encore.evaluation.beyond_accuracy import PAGE_METRICS, POPULARITY, BeyondAccuracy, gini
from encore.evaluation.metrics import F64, MEAN_METRICS, NO_HIT, Metrics
from encore.vocabulary import KINDS

I64 = NDArray[np.int64]


class Bucket(NamedTuple):
    """Playlists with `low` to `high` training tracks, inclusive (None: no limit); `label` is valid in metric names."""

    label: str
    low: int
    high: int | None


BUCKETS: Final = (
    Bucket("train_000", 0, 0),
    Bucket("train_001", 1, 1),
    Bucket("train_002_004", 2, 4),
    Bucket("train_005_009", 5, 9),
    Bucket("train_010_024", 10, 24),
    Bucket("train_025_049", 25, 49),
    Bucket("train_050_099", 50, 99),
    Bucket("train_100_up", 100, None),
)
"""Every number of training tracks belongs to exactly one bucket."""

GROUPS: Final = (*(bucket.label for bucket in BUCKETS), *(f"kind_{kind.name}" for kind in KINDS))
"""Names of all groups of playlists that have means of their own: the buckets, then the kinds of the challenge protocol.
A playlist is in one bucket and in at most one kind."""

_ONE: Final = 2**40
"""1.0 as a fixed-point integer: values are rounded to multiples of 1 / _ONE, so that sums are exact in any order."""
_MAX_ROWS: Final = 2**16
"""Rows summed in int64 at a time: 51 * _ONE * _MAX_ROWS is less than 2**63."""


class Found(NamedTuple):
    """How many test tracks of a popularity group were found.

    `playlists`: playlists with such a test track; `test`: test tracks of the group; `hits`: those among the first k
    recommendations; `early`: those among the first n_test.
    """

    playlists: int = 0
    test: int = 0
    hits: int = 0
    early: int = 0


@dataclass(frozen=True, eq=False)
class Summary:
    """Metrics aggregated over many playlists; merging gives the same result for any order and partition.

    Sums are integers: each value is first rounded to a multiple of 2**-40, so a mean is off by less than 1e-12.
    `counts[g]`: playlists in GROUPS[g]; `sums[g][m]`: the sum of MEAN_METRICS[m] over them, in units of 2**-40;
    `clicks[c]`: playlists with c clicks, c = 0..51; `n_unserved`: playlists without any recommendation;
    `page[m]`: the number of playlists for which PAGE_METRICS[m] is defined, and its sum over them, in units of 2**-40;
    `found[p]`: hits among the test tracks of POPULARITY[p];
    `exposure` int64 (M,): how often each track of the catalogue was recommended.
    """

    counts: tuple[int, ...]
    sums: tuple[tuple[int, ...], ...]
    clicks: tuple[int, ...]
    n_unserved: int
    page: tuple[tuple[int, ...], ...]
    found: tuple[Found, ...]
    exposure: I64

    @classmethod
    def empty(cls, n_tracks: int) -> Summary:
        """The summary of no playlists over a catalogue of `n_tracks`: the identity of `merge`."""
        return cls(
            counts=(0,) * len(GROUPS),
            sums=((0,) * len(MEAN_METRICS),) * len(GROUPS),
            clicks=(0,) * (NO_HIT + 1),
            n_unserved=0,
            page=((0, 0),) * len(PAGE_METRICS),
            found=(Found(),) * len(POPULARITY),
            exposure=np.zeros(n_tracks, dtype=np.int64),
        )

    @classmethod
    def of(
        cls,
        metrics: Metrics,
        beyond: BeyondAccuracy,
        n_train: NDArray[np.integer],
        n_recommended: NDArray[np.integer],
        exposure: I64,
        kinds: NDArray[np.integer] | None = None,
    ) -> Summary:
        """Summarise n playlists by their metrics and their numbers of training and of recommended tracks, (n,).

        `exposure` as in the class docstring. `kinds` (n,): numbers as in arrays.kinds; None if no playlist has a kind.
        Raises ValueError if the lengths differ.
        """
        n = len(metrics.clicks)
        if not n == len(n_train) == len(n_recommended) == len(beyond.novelty):
            raise ValueError(
                f"{n} metrics, {len(n_train)} train sizes, {len(n_recommended)} list sizes and {len(beyond.novelty)} "
                "novelties do not fit"
            )
        bucket = np.searchsorted([b.low for b in BUCKETS], n_train, side="right") - 1
        # a playlist without a kind counts in a group of its own, which is dropped
        kind = np.full(n, NO_KIND) if kinds is None else kinds
        kind = np.where(kind == NO_KIND, len(GROUPS), len(BUCKETS) + kind)
        units = np.stack([_units(getattr(metrics, name)) for name in MEAN_METRICS], axis=1)
        sums = [[0] * len(MEAN_METRICS) for _ in GROUPS]
        for start in range(0, n, _MAX_ROWS):
            piece = np.zeros((len(GROUPS) + 1, len(MEAN_METRICS)), dtype=np.int64)
            for group in (bucket, kind):
                np.add.at(piece, group[start : start + _MAX_ROWS], units[start : start + _MAX_ROWS])
            sums = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(sums, piece[:-1].tolist(), strict=True)]
        return cls(
            counts=tuple(np.bincount(np.concatenate([bucket, kind]), minlength=len(GROUPS))[: len(GROUPS)].tolist()),
            sums=tuple(map(tuple, sums)),
            clicks=tuple(np.bincount(metrics.clicks, minlength=NO_HIT + 1).tolist()),
            n_unserved=int((n_recommended == 0).sum()),
            page=tuple(_total(getattr(beyond, name)) for name in PAGE_METRICS),
            found=tuple(
                Found(
                    int((beyond.popularity_test[:, p] > 0).sum()),
                    int(beyond.popularity_test[:, p].sum(dtype=np.int64)),
                    int(beyond.popularity_hits[:, p].sum(dtype=np.int64)),
                    int(beyond.popularity_early[:, p].sum(dtype=np.int64)),
                )
                for p in range(len(POPULARITY))
            ),
            exposure=exposure,
        )

    def merge(self, other: Summary) -> Summary:
        """The summary of the playlists of both, which must not overlap. Raises ValueError if catalogue sizes differ."""
        if len(self.exposure) != len(other.exposure):
            raise ValueError(f"cannot merge catalogues of {len(self.exposure)} and {len(other.exposure)} tracks")
        return Summary(
            counts=_added(self.counts, other.counts),
            sums=tuple(_added(a, b) for a, b in zip(self.sums, other.sums, strict=True)),
            clicks=_added(self.clicks, other.clicks),
            n_unserved=self.n_unserved + other.n_unserved,
            page=tuple(_added(a, b) for a, b in zip(self.page, other.page, strict=True)),
            found=tuple(Found(*_added(a, b)) for a, b in zip(self.found, other.found, strict=True)),
            exposure=self.exposure + other.exposure,
        )

    @property
    def n_playlists(self) -> int:
        """Number of playlists."""
        return sum(self.counts[: len(BUCKETS)])

    @property
    def share_unserved(self) -> float:
        """Share of playlists without any recommendation; 0 if there are no playlists."""
        return self.n_unserved / self.n_playlists if self.n_playlists else 0.0

    @property
    def coverage(self) -> float:
        """Share of the catalogue that was recommended for at least one playlist; 0 if the catalogue is empty."""
        return int((self.exposure > 0).sum()) / len(self.exposure) if len(self.exposure) else 0.0

    def figures(self) -> dict[str, float]:
        """All figures by name.

        n_playlists, share_unserved, coverage, gini, the means over all playlists, also of PAGE_METRICS; for each group
        <name>/n_playlists and <name>/<metric>; for each popularity group popularity_<name>/n_playlists, /recall (the
        share of its test tracks among the first k recommendations) and /r_recall (among the first n_test of each
        playlist). Figures that are undefined, such as means over no playlists, are left out.
        """
        total = self.sums[0]
        for row in self.sums[1 : len(BUCKETS)]:
            total = _added(total, row)
        found: dict[str, float] = {
            "n_playlists": float(self.n_playlists),
            "share_unserved": self.share_unserved,
            "coverage": self.coverage,
            **_means("", self.n_playlists, total),
        }
        inequality = gini(self.exposure)
        if inequality is not None:
            found["gini"] = inequality
        for name, (count, units) in zip(PAGE_METRICS, self.page, strict=True):
            if count:
                found[name] = units / (count * _ONE)
        for name, count, row in zip(GROUPS, self.counts, self.sums, strict=True):
            if count:
                found[f"{name}/n_playlists"] = float(count)
                found.update(_means(f"{name}/", count, row))
        for name, own in zip(POPULARITY, self.found, strict=True):
            if own.test:
                found[f"popularity_{name}/n_playlists"] = float(own.playlists)
                found[f"popularity_{name}/recall"] = own.hits / own.test
                found[f"popularity_{name}/r_recall"] = own.early / own.test
        return found


def _units(values: NDArray[np.floating | np.integer]) -> I64:
    """Values in units of 2**-40, rounded."""
    return np.rint(values * float(_ONE)).astype(np.int64)


def _total(values: F64) -> tuple[int, int]:
    """The number of values that are not NaN, and their sum in units of 2**-40."""
    units = _units(values[~np.isnan(values)])
    pieces = (units[start : start + _MAX_ROWS] for start in range(0, len(units), _MAX_ROWS))
    return len(units), sum(int(piece.sum()) for piece in pieces)


def _added(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))


def _means(prefix: str, count: int, sums: tuple[int, ...]) -> dict[str, float]:
    # dividing Python integers rounds only once, however large they are
    return (
        {f"{prefix}{name}": total / (count * _ONE) for name, total in zip(MEAN_METRICS, sums, strict=True)}
        if count
        else {}
    )
