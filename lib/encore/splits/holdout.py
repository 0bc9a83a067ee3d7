"""Which tracks of a playlist are held out: a pure function of the seed, the playlist and the track."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from encore.arrays import hashing
from encore.arrays.ragged import Mask, Ragged

I64 = NDArray[np.int64]


def n_test(n_distinct: NDArray[Any], fraction: float) -> I64:
    """How many of n distinct tracks are held out: min(ceil(fraction * n), n - 1), and 0 if n is 0 or 1.

    Takes integers of any shape, returns int64 of the same shape. 1e-9 is subtracted before rounding up: .07 times 100
    is 7.000000000000001 in floating point but means 7.
    """
    sizes = np.ceil(fraction * n_distinct.astype(np.float64) - 1e-9).astype(np.int64)
    return np.clip(sizes, 0, np.maximum(n_distinct - 1, 0))


def split(pids: NDArray[np.int64], track_ids: Ragged, *, seed: int, fraction: float) -> tuple[Ragged, Ragged]:
    """Split the distinct tracks of each playlist into training and test tracks, both in playlist order.

    `pids` (n,) identifies the playlists; `track_ids` holds their tracks in order, repeats allowed (integers, n rows).
    Both results have n rows of the same type. The `n_test` tracks with the smallest hash of (seed, pid, track) are test
    tracks; ties go to the smaller id. The result for a playlist does not depend on the other playlists. Raises
    ValueError if the lengths differ or unless 0 < fraction < 1.
    """
    if len(pids) != len(track_ids):
        raise ValueError(f"{len(pids)} pids but {len(track_ids)} playlists")
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: expected more than 0 and less than 1, found {fraction}")
    states = hashing.mix(seed, pids)
    train, test = [Ragged.empty(0, track_ids.values.dtype)], [Ragged.empty(0, track_ids.values.dtype)]
    for start, stop in track_ids.blocks():
        tracks = track_ids.slice(start, stop).distinct()
        chosen = held_out(states[start:stop], tracks, n_test(tracks.lengths, fraction))
        train.append(tracks.where(~chosen))
        test.append(tracks.where(chosen))
    return Ragged.concat(train), Ragged.concat(test)


def held_out(states: NDArray[np.uint64], tracks: Ragged, sizes: I64) -> Mask:
    """Mask of the `sizes[i]` tracks with the smallest hashes in row i; sizes[i] is 0 or less than the row's length."""
    hashes = hashing.extend(np.repeat(states, tracks.lengths), tracks.values)
    # Pack the row and the upper bits of the hash into one 64-bit key. Sorting the keys keeps each row in its own
    # range, so the smallest training key of a row is at a known position, and all keys below it are test tracks.
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
    """`held_out` for upper bits that tie at a boundary: compares all bits of the hash, then the track id."""
    order = np.lexsort((tracks.values, hashes, tracks.rows))
    chosen = np.zeros(len(hashes), dtype=np.bool_)
    chosen[order] = tracks.positions < np.repeat(sizes, tracks.lengths)
    return chosen
