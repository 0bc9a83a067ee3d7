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

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import Mask, Ragged

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


class Hits(NamedTuple):
    """The hits of n recommended lists, `found` of them.

    `lists`: the recommended tracks, truncated to k, n rows. `is_hit` bool: which of their values are test tracks.
    `rows` and `ranks` int64 (found,): the playlist and the rank, from 0, of each hit, in the order of `lists`.
    """

    lists: Ragged
    is_hit: Mask
    rows: I64
    ranks: I64

    @property
    def tracks(self) -> I32:
        """The track of each hit, (found,)."""
        return self.lists.values[self.is_hit]


def evaluate(recommended: Ragged, truth: Ragged, *, k: int, artist_of: I32 | None) -> Metrics:
    """Compute the metrics of n playlists: `find_hits`, then `score`."""
    return score(find_hits(recommended, truth, k=k), truth, k=k, artist_of=artist_of)


def find_hits(recommended: Ragged, truth: Ragged, *, k: int) -> Hits:
    """Find the test tracks among the first k recommended tracks of n playlists.

    `recommended`: n rows of track ids, best first, no repeats. `truth`: n non-empty rows of test tracks, no repeats.
    Both hold integers of at most 32 bits. Raises ValueError if the numbers of rows differ, if a row of `truth` is empty
    or repeats a track, if a hit is repeated, or if k is less than 1.
    """
    if len(recommended) != len(truth):
        raise ValueError(f"{len(recommended)} lists but {len(truth)} playlists")
    if k < 1:
        raise ValueError(f"k: expected at least 1, found {k}")
    n_test = truth.lengths
    if (n_test == 0).any():
        raise ValueError(f"{(n_test == 0).sum()} playlists have no test tracks, so no metrics: leave them out")
    if not truth.is_first().all():
        raise ValueError("a playlist repeats a test track")
    if (recommended.lengths > k).any():
        recommended = recommended.head(k)
    is_hit = recommended.isin(truth)
    at = np.flatnonzero(is_hit)
    rows = np.searchsorted(recommended.offsets, at, side="right") - 1
    if not Ragged.from_lengths(np.bincount(rows, minlength=len(truth)), recommended.values[at]).is_first().all():
        raise ValueError("a track is recommended twice for one playlist")
    return Hits(recommended, is_hit, rows, at - recommended.offsets[rows])


def score(hits: Hits, truth: Ragged, *, k: int, artist_of: I32 | None) -> Metrics:
    """Compute the metrics of n playlists from their hits.

    `truth` and k as in `find_hits`. `artist_of` int32 (M,): the artist number of each track id, -1 if unknown; ids
    outside 0..M-1 count as unknown. If it is None, all artists are unknown, so there is no artist credit.
    """
    n, n_test, rows = len(truth), truth.lengths, hits.rows
    early = hits.ranks < n_test[rows]
    r_precision = np.bincount(rows[early], minlength=n) / n_test
    discount = 1 / np.log2(np.arange(2, k + 2, dtype=np.float64))
    ideal = np.cumsum(discount)
    # both sums add in rank order, so the ideal list scores exactly 1 and no list scores more
    ndcg = np.bincount(rows, weights=discount[hits.ranks], minlength=n) / ideal[np.minimum(n_test, k) - 1]
    clicks = np.full(n, NO_HIT, dtype=np.int32)
    np.minimum.at(clicks, rows, np.minimum(hits.ranks // PAGE, NO_HIT).astype(np.int32))
    clicks[clicks >= NO_HIT - 1] = NO_HIT
    credited = _credited_artists(hits.lists, hits.is_hit, truth, artist_of)
    return Metrics(
        n_test=n_test.astype(np.int32),
        n_hits=np.bincount(rows, minlength=n).astype(np.int32),
        r_precision=r_precision,
        ndcg=ndcg,
        clicks=clicks,
        r_precision_artist=r_precision + ARTIST_CREDIT * credited / n_test,
    )


def _credited_artists(recommended: Ragged, hit: NDArray[np.bool_], truth: Ragged, artist_of: I32 | None) -> I64:
    """|A| of each playlist: the number of distinct artists of G that also have a track in R[1..|G|] outside G."""
    if artist_of is None:
        return np.zeros(len(truth), dtype=np.int64)
    missed = recommended.where(~hit & (recommended.positions < np.repeat(truth.lengths, recommended.lengths)))
    artists = known_artists(missed, artist_of).distinct()
    return artists.where(artists.isin(known_artists(truth, artist_of))).lengths


def known_artists(tracks: Ragged, artist_of: I32) -> Ragged:
    """The artist number of each track in rows of tracks, without the tracks whose artist is unknown (see `score`)."""
    ids = tracks.values.astype(np.int64)
    inside = (ids >= 0) & (ids < len(artist_of))
    artists = np.full(len(ids), -1, dtype=np.int32)
    artists[inside] = artist_of[ids[inside]]
    return Ragged(tracks.offsets, artists).where(artists >= 0)
