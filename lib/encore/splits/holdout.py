"""Which tracks of a playlist are held out: a pure function of seed, playlist and track."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from encore.arrays import hashing
from encore.arrays.ragged import Mask, Ragged

I64 = NDArray[np.int64]


def n_test(n_distinct: NDArray[Any], fraction: float) -> I64:
    """How many of n distinct tracks are held out: min(ceil(fraction n), n - 1), and 0 of 0 or 1.

    Integers (n,) to int64 (n,). 1e-9 is taken off before rounding up: .07 times 100 is 7.000000000000001 in
    floating point, and means 7.
    """
    wanted = np.ceil(fraction * n_distinct.astype(np.float64) - 1e-9).astype(np.int64)
    return np.clip(wanted, 0, np.maximum(n_distinct - 1, 0))


def split(pids: NDArray[np.int64], track_ids: Ragged, *, seed: int, fraction: float) -> tuple[Ragged, Ragged]:
    """Train and test tracks of each playlist: distinct, disjoint, together all, both in playlist order.

    `pids` (n,) names the playlists, `track_ids` has their tracks in order, repeats allowed (integers, n
    rows). Both results have n rows of the same type. `n_test` tracks are test: those of the smallest hash of
    (seed, pid, track), of equal hashes those of the smallest id. Other playlists, their order and their
    number change nothing. Raises ValueError where lengths differ or `fraction` is not within 0 < fraction <
    1.
    """
    if len(pids) != len(track_ids):
        raise ValueError(f"{len(pids)} pids but {len(track_ids)} playlists")
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: more than 0 and less than 1 expected, {fraction} found")
    states = hashing.mix(seed, pids)
    train, test = [Ragged.empty(0, track_ids.values.dtype)], [Ragged.empty(0, track_ids.values.dtype)]
    for start, stop in track_ids.blocks():
        tracks = track_ids.slice(start, stop).distinct()
        held_out = _held_out(states[start:stop], tracks, n_test(tracks.lengths, fraction))
        train.append(tracks.where(~held_out))
        test.append(tracks.where(held_out))
    return Ragged.concat(train), Ragged.concat(test)


def _held_out(states: NDArray[np.uint64], tracks: Ragged, sizes: I64) -> Mask:
    """Marks the `sizes[i]` tracks of smallest hash of each row; sizes[i] is less than the row's length, or
    0."""
    hashes = hashing.extend(np.repeat(states, tracks.lengths), tracks.values)
    # Row and upper bits of the hash in one 64-bit key: rows keep their ranges when the keys are sorted, so
    # the smallest train key of each row is at a known place, and all keys below it are test.
    row_bits = np.uint64(max(1, (len(tracks) - 1).bit_length()))
    keys = hashes >> row_bits
    keys |= np.repeat(np.arange(len(tracks), dtype=np.uint64) << (np.uint64(64) - row_bits), tracks.lengths)
    ordered = np.sort(keys)
    some = sizes > 0
    bounds = np.zeros(len(tracks), dtype=np.uint64)
    at = tracks.offsets[:-1][some] + sizes[some]
    bounds[some] = ordered[at]
    if (ordered[at - 1] == ordered[at]).any():
        return _held_out_exactly(hashes, tracks, sizes)
    return (keys < np.repeat(bounds, tracks.lengths)) & np.repeat(some, tracks.lengths)


def _held_out_exactly(hashes: NDArray[np.uint64], tracks: Ragged, sizes: I64) -> Mask:
    """`_held_out` where upper bits of hashes are equal at a boundary: all bits, then the track id."""
    order = np.lexsort((tracks.values, hashes, tracks.rows))
    held_out = np.zeros(len(hashes), dtype=np.bool_)
    held_out[order] = tracks.places < np.repeat(sizes, tracks.lengths)
    return held_out
