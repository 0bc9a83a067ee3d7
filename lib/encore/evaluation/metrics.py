"""Metrics of recommended lists, computed on arrays, as defined by the RecSys Challenge 2018.

(C.-W. Chen, P. Lamere, M. Schedl, H. Zamani: RecSys Challenge 2018: Automatic Music Playlist Continuation,
RecSys 2018.) For a playlist, let G be the non-empty set of its test tracks, and R its recommended tracks, best
first, at most k.

    n_test       = |G|
    n_hits       = |G and R|
    r_precision  = |G and R[1..|G|]| / |G|
    r_precision_artist = r_precision + .25 |A| / |G|, where A is the set of artists that appear both in G and among
                   the tracks of R[1..|G|] that are not in G: each artist counts once
    ndcg         = DCG / IDCG; DCG = sum of 1 / log2(i + 1) over the ranks i (from 1) of the hits,
                   IDCG = the same sum over i = 1..min(|G|, k)
    clicks       = floor((rank of the first hit - 1) / 10), 51 without a hit within the first 500

An empty R has no hits: n_hits, both precisions and ndcg are 0, clicks is 51, and the playlist counts in every mean.
An empty G raises ValueError, since its metrics are undefined.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from encore.arrays.kinds import NO_KIND
from encore.arrays.ragged import Ragged
from encore.vocabulary import KINDS

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

PAGE: Final = 10
"""Tracks shown per click."""
NO_HIT: Final = 51
"""Clicks if there is no hit: one more than is possible with the challenge's 500 tracks."""
ARTIST_CREDIT: Final = 0.25


class Metrics(NamedTuple):
    """Metrics of each playlist, arrays (n,), as defined in the module docstring."""

    n_test: I32
    n_hits: I32
    r_precision: F64
    ndcg: F64
    clicks: I32
    r_precision_artist: F64


MEAN_METRICS: Final = ("r_precision", "r_precision_artist", "ndcg", "clicks")
"""The metrics that are averaged over playlists."""


def evaluate(recommended: Ragged, truth: Ragged, *, k: int, artist_of: NDArray[np.int32] | None) -> Metrics:
    """Compute the metrics of n playlists.

    `recommended`: n rows of track ids, best first, no repeats, truncated to k. `truth`: n non-empty rows of test
    tracks, no repeats. Both hold integers of at most 32 bits. `artist_of` int32 (M,): the artist number of each track
    id, -1 if unknown; ids outside 0..M-1 count as unknown. If it is None, all artists are unknown, so there is no
    artist credit. Raises ValueError if the numbers of rows differ, if a row of `truth` is empty or repeats a track, if
    a hit is repeated, or if k is less than 1.
    """
    if len(recommended) != len(truth):
        raise ValueError(f"{len(recommended)} lists but {len(truth)} playlists")
    if k < 1:
        raise ValueError(f"k: expected at least 1, found {k}")
    n = len(truth)
    n_test = truth.lengths
    if (n_test == 0).any():
        raise ValueError(f"{(n_test == 0).sum()} playlists have no test tracks, so no metrics: leave them out")
    if not truth.is_first().all():
        raise ValueError("a playlist repeats a test track")
    if (recommended.lengths > k).any():
        recommended = recommended.head(k)
    hit = recommended.isin(truth)
    at = np.flatnonzero(hit)
    rows = np.searchsorted(recommended.offsets, at, side="right") - 1
    positions = at - recommended.offsets[rows]
    n_hits = np.bincount(rows, minlength=n)
    if not Ragged.from_lengths(n_hits, recommended.values[at]).is_first().all():
        raise ValueError("a track is recommended twice for one playlist")

    early = positions < n_test[rows]
    r_precision = np.bincount(rows[early], minlength=n) / n_test
    discount = 1 / np.log2(np.arange(2, k + 2, dtype=np.float64))
    ideal = np.cumsum(discount)
    # both sums add in rank order, so the ideal list scores exactly 1 and no list scores more
    ndcg = np.bincount(rows, weights=discount[positions], minlength=n) / ideal[np.minimum(n_test, k) - 1]
    clicks = np.full(n, NO_HIT, dtype=np.int32)
    np.minimum.at(clicks, rows, np.minimum(positions // PAGE, NO_HIT).astype(np.int32))
    clicks[clicks >= NO_HIT - 1] = NO_HIT
    return Metrics(
        n_test=n_test.astype(np.int32),
        n_hits=n_hits.astype(np.int32),
        r_precision=r_precision,
        ndcg=ndcg,
        clicks=clicks,
        r_precision_artist=r_precision + ARTIST_CREDIT * _credited_artists(recommended, hit, truth, artist_of) / n_test,
    )


def _credited_artists(recommended: Ragged, hit: NDArray[np.bool_], truth: Ragged, artist_of: I32 | None) -> I64:
    """|A| of each playlist: the number of distinct artists of G that also have a track in R[1..|G|] outside G."""
    if artist_of is None:
        return np.zeros(len(truth), dtype=np.int64)
    missed = recommended.where(~hit & (recommended.positions < np.repeat(truth.lengths, recommended.lengths)))
    artists = _known_artists(missed, artist_of).distinct()
    return artists.where(artists.isin(_known_artists(truth, artist_of))).lengths


def _known_artists(tracks: Ragged, artist_of: I32) -> Ragged:
    ids = tracks.values.astype(np.int64)
    inside = (ids >= 0) & (ids < len(artist_of))
    artists = np.full(len(ids), -1, dtype=np.int32)
    artists[inside] = artist_of[ids[inside]]
    return Ragged(tracks.offsets, artists).where(artists >= 0)


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


@dataclass(frozen=True, eq=False)
class Summary:
    """Metrics aggregated over many playlists; merging gives the same result for any order and partition.

    Sums are integers: each value is first rounded to a multiple of 2**-40, so a mean is off by less than 1e-12.
    `counts[g]`: playlists in GROUPS[g]; `sums[g][m]`: the sum of MEAN_METRICS[m] over them, in units of 2**-40;
    `clicks[c]`: playlists with c clicks, c = 0..51; `n_unserved`: playlists without any recommendation;
    `covered` bool (M,): which tracks of the catalogue were recommended for at least one playlist.
    """

    counts: tuple[int, ...]
    sums: tuple[tuple[int, ...], ...]
    clicks: tuple[int, ...]
    n_unserved: int
    covered: NDArray[np.bool_]

    @classmethod
    def empty(cls, n_tracks: int) -> Summary:
        """The summary of no playlists over a catalogue of `n_tracks`: the identity of `merge`."""
        return cls(
            counts=(0,) * len(GROUPS),
            sums=((0,) * len(MEAN_METRICS),) * len(GROUPS),
            clicks=(0,) * (NO_HIT + 1),
            n_unserved=0,
            covered=np.zeros(n_tracks, dtype=np.bool_),
        )

    @classmethod
    def from_counts(
        cls,
        metrics: Metrics,
        n_train: NDArray[np.integer],
        n_recommended: NDArray[np.integer],
        covered: NDArray[np.bool_],
        kinds: NDArray[np.integer] | None = None,
    ) -> Summary:
        """Like `from_metrics`, but from counts of recommended tracks (n,) and their coverage (M,) instead of lists."""
        # `from_metrics` only looks at whether a list is empty
        served = np.minimum(n_recommended, 1)
        lists = Ragged.from_lengths(served, np.zeros(int(served.sum()), np.int32))
        return replace(cls.from_metrics(metrics, n_train, lists, n_tracks=1, kinds=kinds), covered=covered)

    @classmethod
    def from_metrics(
        cls,
        metrics: Metrics,
        n_train: NDArray[np.integer],
        recommended: Ragged,
        *,
        n_tracks: int,
        kinds: NDArray[np.integer] | None = None,
    ) -> Summary:
        """Summarise playlists by their metrics, numbers of training tracks (n,) and recommended tracks (n rows).

        `kinds` (n,): numbers as in arrays.kinds; None if no playlist has a kind. Raises ValueError if the lengths
        differ or a recommended id is outside the catalogue of `n_tracks`.
        """
        n = len(metrics.clicks)
        if len(n_train) != n or len(recommended) != n:
            raise ValueError(f"{n} metrics, {len(n_train)} train sizes and {len(recommended)} lists do not fit")
        ids = recommended.values
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < n_tracks:
            raise ValueError(f"recommended tracks: expected 0 to {n_tracks - 1}, found {ids.min()} to {ids.max()}")
        covered = np.zeros(n_tracks, dtype=np.bool_)
        covered[ids] = True
        bucket = np.searchsorted([b.low for b in BUCKETS], n_train, side="right") - 1
        # a playlist without a kind counts in a group of its own, which is dropped
        kind = np.full(n, NO_KIND) if kinds is None else kinds
        kind = np.where(kind == NO_KIND, len(GROUPS), len(BUCKETS) + kind)
        units = np.stack(
            [np.rint(getattr(metrics, name) * float(_ONE)).astype(np.int64) for name in MEAN_METRICS], axis=1
        )
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
            n_unserved=int((recommended.lengths == 0).sum()),
            covered=covered,
        )

    def merge(self, other: Summary) -> Summary:
        """The summary of the playlists of both, which must not overlap. Raises ValueError if catalogue sizes differ."""
        if len(self.covered) != len(other.covered):
            raise ValueError(f"cannot merge catalogues of {len(self.covered)} and {len(other.covered)} tracks")
        return Summary(
            counts=_added(self.counts, other.counts),
            sums=tuple(_added(a, b) for a, b in zip(self.sums, other.sums, strict=True)),
            clicks=_added(self.clicks, other.clicks),
            n_unserved=self.n_unserved + other.n_unserved,
            covered=self.covered | other.covered,
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
        return int(self.covered.sum()) / len(self.covered) if len(self.covered) else 0.0

    def figures(self) -> dict[str, float]:
        """All figures by name.

        n_playlists, share_unserved, coverage and the means over all playlists; for each group <name>/n_playlists and
        <name>/<metric>. Means over no playlists are left out.
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
        for name, count, row in zip(GROUPS, self.counts, self.sums, strict=True):
            if count:
                found[f"{name}/n_playlists"] = float(count)
                found.update(_means(f"{name}/", count, row))
        return found


def _added(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))


def _means(prefix: str, count: int, sums: tuple[int, ...]) -> dict[str, float]:
    # dividing Python integers rounds only once, however large they are
    return (
        {f"{prefix}{name}": total / (count * _ONE) for name, total in zip(MEAN_METRICS, sums, strict=True)}
        if count
        else {}
    )
