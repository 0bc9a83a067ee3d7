"""Compiled exclusion of seeds against its definition in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encore.arrays.ragged import Ragged
from encore.arrays.ranked import Ranked
from encore.recommenders.seed_exclusion import exclude_seeds

# ids that meet in one place of a small table, the ends of int32, and others
ids = st.integers(0, 40) | st.sampled_from([-(2**31), -1, 2**31 - 1]) | st.integers(-(2**31), 2**31 - 1)
cases = st.lists(st.tuples(st.lists(ids, max_size=40), st.lists(ids, max_size=40)), max_size=6)


def ranked(rows: list[list[int]]) -> Ranked:
    lists = Ragged.from_lists(rows)
    return Ranked(lists, np.arange(len(lists.values), dtype=np.float32))


@given(cases, st.integers(1, 45))
def test_seeds_are_excluded_and_at_most_k_ids_remain(cases: list[tuple[list[int], list[int]]], k: int) -> None:
    found = ranked([row for row, _ in cases])
    left = exclude_seeds(found, Ragged.from_lists([own for _, own in cases]), k)
    scores = Ragged(left.ids.offsets, left.scores)
    for row, (candidates, own) in enumerate(cases):
        start = int(found.ids.offsets[row])
        expected = [(c, float(start + i)) for i, c in enumerate(candidates) if c not in own][:k]
        assert list(zip(left.ids[row].tolist(), scores[row].tolist(), strict=True)) == expected


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ValueError, match="2 rows of ids but 1 of seeds"):
        exclude_seeds(ranked([[1], [2]]), Ragged.from_lists([[1]]), 5)
    with pytest.raises(ValueError, match="at most 32 bits"):
        exclude_seeds(ranked([[1]]), Ragged.from_lists([[1]], np.int64), 5)
