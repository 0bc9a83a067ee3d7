from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from encore.arrays.ragged import Ragged
from encore.recommenders.fallback import completed

ids = st.lists(st.integers(0, 12), unique=True, max_size=8)


@given(st.lists(st.tuples(ids, ids), max_size=5), ids, st.integers(1, 8))
def test_short_lists_are_completed_in_order(rows: list[tuple[list[int], list[int]]], order: list[int], k: int) -> None:
    lists = [[t for t in found if t not in seeds][:k] for found, seeds in rows]
    seeds = [given for _, given in rows]
    made = completed(Ragged.from_lists(lists), Ragged.from_lists(seeds), np.array(order, np.int32), k)
    expected = [
        [*own, *[t for t in order if t not in own and t not in known]][:k]
        for own, known in zip(lists, seeds, strict=True)
    ]
    assert made.tolist() == expected
    assert made.values.dtype == np.int32
