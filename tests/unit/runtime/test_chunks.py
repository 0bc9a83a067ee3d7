"""The ranges of pids in which a table is written."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from encore.runtime.context import chunks_of

ENDS = st.none() | st.integers(0, 60)


def test_sparse_pids_fill_their_chunks() -> None:
    """Pids of imported playlists are hashes: cutting at multiples of the size would give each a chunk of its own."""
    pids = np.sort(np.random.default_rng(1).integers(2**32, 2**53, 10))
    assert [len(inside) for _, inside in chunks_of((None, None), pids, 4)] == [4, 4, 2]


def test_dense_pids_are_cut_at_multiples() -> None:
    found = chunks_of((None, None), np.arange(10), 4)
    assert [ends for ends, _ in found] == [(None, 4), (4, 8), (8, None)]


@given(st.sets(st.integers(0, 60)), ENDS, ENDS, st.integers(1, 20))
def test_chunks_cover_the_interval_once(given: set[int], low: int | None, high: int | None, step: int) -> None:
    if low is not None and high is not None and low > high:
        low, high = high, low
    found = chunks_of((low, high), np.array(sorted(given), np.int64), step)
    ends = [interval for interval, _ in found]
    assert (ends[0][0], ends[-1][1]) == (low, high)
    assert all(one[1] == other[0] for one, other in pairwise(ends))
    wanted = [pid for pid in sorted(given) if (low is None or pid >= low) and (high is None or pid < high)]
    assert [pid for _, inside in found for pid in inside.tolist()] == wanted
    for (start, stop), inside in found:
        assert 0 < len(inside) <= step or (len(found) == 1 and not wanted)
        assert all((start is None or pid >= start) and (stop is None or pid < stop) for pid in inside.tolist())
