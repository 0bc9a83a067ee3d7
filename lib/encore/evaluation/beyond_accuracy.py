"""What recommended lists are like apart from their hits, and hits by the popularity of the hidden tracks.

Let c_j be the number of training playlists, of which there are N, that track j is in.

    novelty          mean self-information -log2(c_j / N) of the first ten recommended tracks, in bits: the less popular
                     they are, the higher. A track in no training playlist counts as one in a single one. (T. Zhou et
                     al.: Solving the apparent diversity-accuracy dilemma of recommender systems, PNAS 107, 2010;
                     S. Vargas, P. Castells: Rank and relevance in novelty and diversity metrics for recommender
                     systems, RecSys 2011.)
    artist_diversity distinct artists of the first ten recommended tracks, divided by the number of these tracks;
                     tracks whose artist is unknown are left out.

Popularity groups: let p_j be the share of all training rows (a track in a training playlist) that belong to tracks with
a greater c than track j, plus half the share of those with the same c. The track belongs to `head` if p_j < 1/3, to
`middle` if p_j < 2/3, otherwise to `tail`; so each group has about a third of the rows. A track in no training playlist
is `unseen`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import Ragged
from encore.evaluation.metrics import F64, I32, I64, PAGE, Hits, known_artists

POPULARITY: Final = ("head", "middle", "tail", "unseen")
"""The popularity groups of tracks; each track is in one of them."""


class TrackFacts(NamedTuple):
    """Facts about each track of a catalogue of M tracks, arrays (M,).

    `artist_of` int32: its artist's number, -1 if unknown; `information` float64: its self-information in bits;
    `popularity` int8: index into POPULARITY.
    """

    artist_of: I32
    information: F64
    popularity: NDArray[np.int8]


class BeyondAccuracy(NamedTuple):
    """Metrics of each playlist, arrays of n rows, as defined in the module docstring.

    `novelty` and `artist_diversity` float64 (n,), NaN if they are undefined, as for a list without tracks.
    `popularity_test`, `popularity_hits` and `popularity_early` int32 (n, 4): for each group of POPULARITY, the number
    of test tracks, of those among the first k recommendations, and of those among the first n_test.
    """

    novelty: F64
    artist_diversity: F64
    popularity_test: I32
    popularity_hits: I32
    popularity_early: I32


PAGE_METRICS: Final = ("novelty", "artist_diversity")
"""The metrics of the first page of recommendations; means are over the playlists for which they are defined."""


def track_facts(artist_of: I32, counts: I64, n_playlists: int) -> TrackFacts:
    """Facts about tracks, from their artists and in how many of `n_playlists` training playlists each is."""
    information = np.log2(max(n_playlists, 1) / np.maximum(counts, 1).astype(np.float64))
    return TrackFacts(artist_of, information, popularity_groups(counts))


def popularity_groups(counts: I64) -> NDArray[np.int8]:
    """The index into POPULARITY of each track, int8 (M,), from its number of training playlists, (M,)."""
    different, index, times = np.unique(counts, return_inverse=True, return_counts=True)
    rows = different * times
    total = max(int(rows.sum()), 1)
    # twice the rows of more popular tracks and of half of the equally popular ones
    twice = 2 * (total - np.cumsum(rows)) + rows
    groups = np.minimum(3 * twice // (2 * total), POPULARITY.index("tail")).astype(np.int8)
    groups[different == 0] = POPULARITY.index("unseen")
    return groups[index]


def beyond_accuracy(hits: Hits, truth: Ragged, facts: TrackFacts) -> BeyondAccuracy:
    """Compute the metrics of n playlists. All ids must be tracks of the catalogue."""
    n, page = len(truth), hits.lists.head(PAGE)
    artists = known_artists(page, facts.artist_of)
    early = hits.ranks < truth.lengths[hits.rows]
    groups = facts.popularity[hits.tracks]
    return BeyondAccuracy(
        novelty=_ratio(np.bincount(page.rows, weights=facts.information[page.values], minlength=n), page.lengths),
        artist_diversity=_ratio(artists.distinct().lengths, artists.lengths),
        popularity_test=_by_group(truth.rows, facts.popularity[truth.values], n),
        popularity_hits=_by_group(hits.rows, groups, n),
        popularity_early=_by_group(hits.rows[early], groups[early], n),
    )


def _ratio(sums: NDArray[np.float64 | np.int64], lengths: I64) -> F64:
    return np.divide(sums, lengths, out=np.full(len(lengths), np.nan), where=lengths > 0)


def _by_group(rows: I64, groups: NDArray[np.int8], n: int) -> I32:
    """How many entries each row has in each group, int32 (n, groups)."""
    size = len(POPULARITY)
    return np.bincount(rows * size + groups, minlength=n * size).reshape(n, size).astype(np.int32)


def gini(exposure: I64) -> float | None:
    """The Gini index of how often each track of a catalogue is recommended, int64 (M,): 0 if all equally often, 1 if
    only one is; None if nothing is recommended or there are fewer than two tracks.

    With x_1 <= ... <= x_M, it is sum_j (2 j - M - 1) x_j / ((M - 1) sum_j x_j). (G. Shani, A. Gunawardana: Evaluating
    Recommendation Systems, in: Recommender Systems Handbook, 2011.) Both sums are exact integers.
    """
    m, total = len(exposure), int(exposure.sum())
    if m < 2 or total == 0:
        return None
    ordered = np.sort(exposure)
    weights = 2 * np.arange(1, m + 1, dtype=np.int64) - (m + 1)
    # below 2**63 for catalogues of four million tracks and 10**12 recommendations
    return int((weights * ordered).sum()) / ((m - 1) * total)
