"""The challenge protocol: whole playlists are taken out of training and evaluated as the kinds of the RecSys Challenge.

(C.-W. Chen, P. Lamere, M. Schedl, H. Zamani: RecSys Challenge 2018: Automatic Music Playlist Continuation, RecSys
2018.) The choice of playlists, their kinds and their random seed tracks are hashes of the seed and the playlist.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from encore.arrays import hashing
from encore.arrays.kinds import NO_KIND
from encore.arrays.ragged import Ragged
from encore.splits.holdout import I64, held_out
from encore.vocabulary import KINDS

I8 = NDArray[np.int8]


def n_evaluated(n: int, wanted: float) -> int:
    """How many of n playlists to evaluate: `wanted`, or below 1 that share of n, rounded; at most n - 1."""
    return max(0, min(round(wanted * n) if wanted < 1 else int(wanted), n - 1))


def assign_kinds(pids: I64, lengths: I64, is_titled: NDArray[np.bool_], wanted: float, *, seed: int) -> I8:
    """The kind of each playlist, an index into KINDS, or NO_KIND: int8 (n,).

    `pids` (n,); `lengths`: their numbers of distinct tracks; `is_titled`: whether they have a title. Each kind gets a
    tenth of n_evaluated(n, wanted), of playlists of its lengths, and with a title if it has one; the first kinds get
    one more where the tenth is not whole. A kind with fewer suitable playlists gets them all. Playlists are taken in
    the order of a hash of (seed, pid), for the kinds with the longest playlists first, of which there are fewest.
    """
    kinds = np.full(len(pids), NO_KIND, np.int8)
    total = n_evaluated(len(pids), wanted)
    order = hashing.order(seed, pids)
    for i in reversed(range(len(KINDS))):
        kind = KINDS[i]
        quota = total // len(KINDS) + (i < total % len(KINDS))
        suits = (kinds == NO_KIND) & (lengths >= kind.low) & (lengths <= kind.high) & (is_titled | (not kind.has_title))
        kinds[order[suits[order]][:quota]] = i
    return kinds


def split(
    pids: I64, track_ids: Ragged, kinds: I8, is_trained: NDArray[np.bool_], *, seed: int
) -> tuple[Ragged, Ragged]:
    """The seed tracks and the test tracks of each playlist, distinct and in playlist order.

    `track_ids`: n rows, repeats allowed; `kinds` int8 (n,) as from `assign_kinds`; `is_trained` bool (n_tracks,): which
    tracks occur in a playlist that is trained on. The first seeds of a kind come first in the playlist; random ones
    have the smallest hashes of (seed, pid, track). Test tracks are the others that are trained on. A playlist that is
    trained on has all its tracks as seeds, and no test tracks.
    """
    tracks = track_ids.distinct()
    n_seeds = np.array([*(kind.n_seeds for kind in KINDS), 0], np.int64)[kinds]
    is_random = np.array([*(kind.is_random for kind in KINDS), False])[kinds]
    chosen = held_out(hashing.mix(seed, pids), tracks, np.where(is_random, n_seeds, 0))
    per_track = tracks.lengths
    first = tracks.positions < np.repeat(np.where(is_random, 0, n_seeds), per_track)
    in_training = np.repeat(kinds == NO_KIND, per_track)
    is_seed = in_training | chosen | first
    return tracks.where(is_seed), tracks.where(~is_seed & is_trained[tracks.values])
