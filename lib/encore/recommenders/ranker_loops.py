"""The compiled loop of encore.recommenders.ranker_trees. Import only through `load_loops`: numba is slow to import.

Instead of walking down each tree, a block of rows passes all of its nodes (C. Lucchese et al.: QuickScorer: a Fast
Algorithm to Rank Documents with Additive Ensembles of Regression Trees, SIGIR 2015). A row that does not meet a node's
condition cannot end in the leaves to its left, and loses their bits; its leaf is the lowest bit that is left. No branch
depends on the data, and the processor compares several rows at a time.
"""

# numba infers the types of these functions
# mypy: ignore-errors
from __future__ import annotations

import numpy as np
from numba import njit, types


def _array(element, dimensions=1, *, is_result=False):
    return types.Array(element, dimensions, "C", readonly=not is_result)


_ROWS = 256
"""Rows of a block: few enough for its features to stay in the L1 and L2 caches."""
# one signature for arrays in memory and for mapped ones, which are read-only
_NODES = (_array(types.int64), _array(types.int32), _array(types.float32), _array(types.uint32))


@njit(
    types.void(_array(types.float32, 2), *_NODES, _array(types.float64, 2), _array(types.float64, is_result=True)),
    cache=True,
    nogil=True,
)
def margins(columns, offsets, features, thresholds, masks, values, out):
    """See Trees.margins; `columns` has the features as rows."""
    left = np.empty(_ROWS, np.uint32)
    everything, multiplier, shift = np.uint32(0xFFFFFFFF), np.uint32(0x077CB531), np.uint32(27)
    for start in range(0, len(out), _ROWS):
        n = min(_ROWS, len(out) - start)
        out[start : start + n] = 0
        for tree in range(len(offsets) - 1):
            left[:n] = everything
            for node in range(offsets[tree], offsets[tree + 1]):
                column = columns[features[node], start : start + n]
                threshold, mask = thresholds[node], masks[node]
                for i in range(n):
                    left[i] &= everything if column[i] <= threshold else mask
            own = values[tree]
            for i in range(n):
                # the place of the lowest bit, by multiplication (Leiserson, Prokop, Randall: Using de Bruijn Sequences
                # to Index a 1 in a Computer Word, 1998)
                lowest = np.uint32(left[i] & (np.uint32(0) - left[i]))
                out[start + i] += own[np.uint32(lowest * multiplier) >> shift]
