"""Metrics of recommended lists, over arrays, as the RecSys Challenge 2018 defines them.

(C.-W. Chen, P. Lamere, M. Schedl, H. Zamani: RecSys Challenge 2018: Automatic Music Playlist Continuation,
RecSys 2018.) Of a playlist let G be the set of its test tracks, not empty, and R its recommended tracks, best
first, at most k.

    n_test       = |G|
    n_hits       = |G and R|
    r_precision  = |G and R[1..|G|]| / |G|
    r_precision_artist = r_precision + .25 |A| / |G|, where A are the artists that appear both in G and among
                   those tracks of R[1..|G|] that are not in G: each artist counts once
    ndcg         = DCG / IDCG, DCG = sum over the ranks i (from 1) of hits of 1 / log2(i + 1),
                   IDCG = the same sum over i = 1..min(|G|, k)
    clicks       = floor((rank of the first hit - 1) / 10), 51 without a hit within the first 500

An empty R has no hit: n_hits, both precisions and ndcg are 0, clicks 51; it counts in every mean. An empty G
has no metrics: ValueError.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import Ragged

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

PAGE: Final = 10
"""Tracks that one click shows."""
NO_HIT: Final = 51
"""Clicks where no hit is found: one more than the challenge's 500 tracks allow."""
ARTIST_CREDIT: Final = 0.25


class Metrics(NamedTuple):
    """Metrics of each playlist, arrays (n,), as the module's docstring defines them."""

    n_test: I32
    n_hits: I32
    r_precision: F64
    ndcg: F64
    clicks: I32
    r_precision_artist: F64


MEANS: Final = ("r_precision", "r_precision_artist", "ndcg", "clicks")
"""The metrics that have a mean."""


def evaluate(recommended: Ragged, truth: Ragged, *, k: int, artist_of: NDArray[np.int32] | None) -> Metrics:
    """Metrics of n playlists.

    `recommended` (n rows of track ids, best first, no repeats; cut to k), `truth` (n rows of test tracks,
    none empty, no repeats), both integers of at most 32 bits. `artist_of` int32 (M,): a number of the artist
    of each track id, -1 where unknown; ids outside 0..M-1 count as unknown, and without it so do all: no
    artist credit. Raises ValueError where the numbers of rows differ, a row of `truth` is empty or repeats a
    track, a hit is repeated or k is less than 1.
    """
    if len(recommended) != len(truth):
        raise ValueError(f"{len(recommended)} lists but {len(truth)} playlists")
    if k < 1:
        raise ValueError(f"k: at least 1 expected, {k} found")
    n = len(truth)
    n_test = truth.lengths
    if (n_test == 0).any():
        raise ValueError(f"{(n_test == 0).sum()} playlists have no test tracks: they have no metrics, leave them out")
    if not truth.is_first().all():
        raise ValueError("a test track is repeated within its playlist")
    if (recommended.lengths > k).any():
        recommended = recommended.head(k)
    hit = recommended.isin(truth)
    at = np.flatnonzero(hit)
    rows = np.searchsorted(recommended.offsets, at, side="right") - 1
    places = at - recommended.offsets[rows]
    n_hits = np.bincount(rows, minlength=n)
    if not Ragged.from_lengths(n_hits, recommended.values[at]).is_first().all():
        raise ValueError("a track is recommended twice for one playlist")

    early = places < n_test[rows]
    r_precision = np.bincount(rows[early], minlength=n) / n_test
    discount = 1 / np.log2(np.arange(2, k + 2, dtype=np.float64))
    ideal = np.cumsum(discount)
    # both add in the order of the ranks, so that the ideal list gives exactly 1 and no list gives more
    ndcg = np.bincount(rows, weights=discount[places], minlength=n) / ideal[np.minimum(n_test, k) - 1]
    clicks = np.full(n, NO_HIT, dtype=np.int32)
    np.minimum.at(clicks, rows, np.minimum(places // PAGE, NO_HIT).astype(np.int32))
    clicks[clicks >= NO_HIT - 1] = NO_HIT
    return Metrics(
        n_test=n_test.astype(np.int32),
        n_hits=n_hits.astype(np.int32),
        r_precision=r_precision,
        ndcg=ndcg,
        clicks=clicks,
        r_precision_artist=r_precision + ARTIST_CREDIT * _artists_met(recommended, hit, truth, artist_of) / n_test,
    )


def _artists_met(recommended: Ragged, hit: NDArray[np.bool_], truth: Ragged, artist_of: I32 | None) -> I64:
    """|A| of each playlist: distinct artists of G that also made a track of R[1..|G|] that is not in G."""
    if artist_of is None:
        return np.zeros(len(truth), dtype=np.int64)
    missed = recommended.where(~hit & (recommended.places < np.repeat(truth.lengths, recommended.lengths)))
    met = _known_artists(missed, artist_of).distinct()
    return met.where(met.isin(_known_artists(truth, artist_of))).lengths


def _known_artists(tracks: Ragged, artist_of: I32) -> Ragged:
    ids = tracks.values.astype(np.int64)
    inside = (ids >= 0) & (ids < len(artist_of))
    artists = np.full(len(ids), -1, dtype=np.int32)
    artists[inside] = artist_of[ids[inside]]
    return Ragged(tracks.offsets, artists).where(artists >= 0)


class Bucket(NamedTuple):
    """Playlists of least..most train tracks; `label` is fit for the name of a metric."""

    label: str
    least: int
    most: int | None


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
"""Every number of train tracks is in exactly one."""

_ONE: Final = 2**40
"""What 1.0 is in sums: values are rounded to integers of this unit, so that sums are exact in any order."""
_MOST_ROWS: Final = 2**16
"""Rows that are summed in int64 at a time: 51 * _ONE * _MOST_ROWS is less than 2**63."""


@dataclass(frozen=True, eq=False)
class Summary:
    """Metrics of many playlists together; parts merge into the same whole in whatever order and pieces.

    Sums are integers: each value is rounded to a multiple of 2**-40 first, so a mean is off by less than
    1e-12. `counts[b]` playlists and `sums[b][m]` of metric MEANS[m], in 2**-40, of bucket BUCKETS[b];
    `clicks[c]` playlists with c clicks, c = 0..51; `n_unserved` playlists without any recommendation;
    `covered` bool (M,): which tracks of the catalogue were recommended to anyone.
    """

    counts: tuple[int, ...]
    sums: tuple[tuple[int, ...], ...]
    clicks: tuple[int, ...]
    n_unserved: int
    covered: NDArray[np.bool_]

    @classmethod
    def empty(cls, n_tracks: int) -> Summary:
        """Of no playlist, over a catalogue of so many tracks: what merging begins with."""
        return cls(
            counts=(0,) * len(BUCKETS),
            sums=((0,) * len(MEANS),) * len(BUCKETS),
            clicks=(0,) * (NO_HIT + 1),
            n_unserved=0,
            covered=np.zeros(n_tracks, dtype=np.bool_),
        )

    @classmethod
    def of_counts(
        cls,
        metrics: Metrics,
        n_train: NDArray[np.integer],
        n_recommended: NDArray[np.integer],
        covered: NDArray[np.bool_],
    ) -> Summary:
        """As `of`, of playlists whose lists are elsewhere: numbers of recommended tracks (n,), and what all of them
        cover (M,)."""
        # whether there is a list is all that matters here
        served = np.minimum(n_recommended, 1)
        lists = Ragged.from_lengths(served, np.zeros(int(served.sum()), np.int32))
        return replace(cls.of(metrics, n_train, lists, n_tracks=1), covered=covered)

    @classmethod
    def of(cls, metrics: Metrics, n_train: NDArray[np.integer], recommended: Ragged, *, n_tracks: int) -> Summary:
        """Of playlists with these metrics, numbers of train tracks (n,) and recommended tracks (n rows, ids <
        M).

        Raises ValueError where lengths differ or a recommended id is outside the catalogue of `n_tracks`.
        """
        n = len(metrics.clicks)
        if len(n_train) != n or len(recommended) != n:
            raise ValueError(f"{n} metrics, {len(n_train)} train sizes and {len(recommended)} lists do not fit")
        ids = recommended.values
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < n_tracks:
            raise ValueError(f"recommended tracks: 0 to {n_tracks - 1} expected, {ids.min()} to {ids.max()} found")
        covered = np.zeros(n_tracks, dtype=np.bool_)
        covered[ids] = True
        bucket = np.searchsorted([b.least for b in BUCKETS], n_train, side="right") - 1
        units = np.stack([np.rint(getattr(metrics, name) * float(_ONE)).astype(np.int64) for name in MEANS], axis=1)
        sums = [[0] * len(MEANS) for _ in BUCKETS]
        for start in range(0, n, _MOST_ROWS):
            piece = np.zeros((len(BUCKETS), len(MEANS)), dtype=np.int64)
            np.add.at(piece, bucket[start : start + _MOST_ROWS], units[start : start + _MOST_ROWS])
            sums = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(sums, piece.tolist(), strict=True)]
        return cls(
            counts=tuple(np.bincount(bucket, minlength=len(BUCKETS)).tolist()),
            sums=tuple(map(tuple, sums)),
            clicks=tuple(np.bincount(metrics.clicks, minlength=NO_HIT + 1).tolist()),
            n_unserved=int((recommended.lengths == 0).sum()),
            covered=covered,
        )

    def merge(self, other: Summary) -> Summary:
        """Of the playlists of both, which must not overlap. ValueError where the catalogues differ in
        size."""
        if len(self.covered) != len(other.covered):
            raise ValueError(f"catalogues of {len(self.covered)} and {len(other.covered)} tracks do not merge")
        return Summary(
            counts=_added(self.counts, other.counts),
            sums=tuple(_added(a, b) for a, b in zip(self.sums, other.sums, strict=True)),
            clicks=_added(self.clicks, other.clicks),
            n_unserved=self.n_unserved + other.n_unserved,
            covered=self.covered | other.covered,
        )

    @property
    def n_playlists(self) -> int:
        """How many playlists."""
        return sum(self.counts)

    @property
    def share_unserved(self) -> float:
        """Share of playlists without any recommendation; 0 of none."""
        return self.n_unserved / self.n_playlists if self.n_playlists else 0.0

    @property
    def coverage(self) -> float:
        """Share of the catalogue that was recommended to anyone; 0 of an empty one."""
        return int(self.covered.sum()) / len(self.covered) if len(self.covered) else 0.0

    def figures(self) -> dict[str, float]:
        """All by name: the means over all playlists, n_playlists, share_unserved, coverage, and by bucket
        <label>/n_playlists and <label>/<metric>. Without playlists, overall or in a bucket, its means are
        left out.
        """
        total = self.sums[0]
        for row in self.sums[1:]:
            total = _added(total, row)
        found: dict[str, float] = {
            "n_playlists": float(self.n_playlists),
            "share_unserved": self.share_unserved,
            "coverage": self.coverage,
            **_means("", self.n_playlists, total),
        }
        for bucket, count, row in zip(BUCKETS, self.counts, self.sums, strict=True):
            if count:
                found[f"{bucket.label}/n_playlists"] = float(count)
                found.update(_means(f"{bucket.label}/", count, row))
        return found


def _added(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))


def _means(prefix: str, count: int, sums: tuple[int, ...]) -> dict[str, float]:
    # a quotient of Python integers is rounded once, however large they are
    return {f"{prefix}{name}": total / (count * _ONE) for name, total in zip(MEANS, sums, strict=True)} if count else {}
