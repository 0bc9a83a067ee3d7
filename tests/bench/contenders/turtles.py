"""The playlist kNN of the team Definitive Turtles, 9th in the RecSys Challenge 2018, in NumPy and SciPy.

D. M. Kelen, D. Berecz, F. Béres, A. A. Benczúr: Efficient K-NN for Playlist Continuation, RecSys Challenge 2018. For a
playlist u with seeds, a playlist v of the training data, and pop_i the number of playlists with track i,

    s_uv = sum over tracks i in both of 1 / ((pop_i - 1)^rho + 1) / (sqrt|u| sqrt|v|)
    score_j = sum over the k nearest v with track j of ((s_uv - the least of the k) / the greatest)^2

k and rho depend on the number of seeds: SETTINGS are those in the code that the authors published, for seeds in random
order (they were chosen at a million playlists). A playlist is not its own neighbour and not counted in pop_i.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import numpy as np
from scipy import sparse

from tests.bench.contenders.harness import F32, I32, I64, Fit, Recommend, Task, best, version

VERSION = partial(version, "scipy")

SETTINGS: Final = ((5, 8000, 0.352), (10, 12000, 0.38), (25, 9000, 0.4), (100, 4000, 0.39))
"""Number of seeds, k, and rho; other numbers of seeds take the nearest."""


def settings_for(n_seeds: int) -> tuple[int, float]:
    """k and rho for a number of seeds."""
    _, k, rho = min(SETTINGS, key=lambda entry: (abs(entry[0] - n_seeds), entry[0]))
    return k, rho


def scores(lists: sparse.csr_matrix, unit: sparse.csr_matrix, counts: I64, row: int, k: int, rho: float) -> F32:
    """The score of every track for the playlist in a row of `lists` (N, M), float32 (M,).

    `unit` (N, M): the lists with rows of unit length, column by column (csc). `counts` (M,): playlists with each track.
    """
    seeds = lists.indices[lists.indptr[row] : lists.indptr[row + 1]]
    others = np.maximum(counts[seeds] - 1, 1)
    weights = 1 / ((others - 1.0) ** rho + 1) / np.sqrt(max(1, len(seeds)))
    similarity = unit[:, seeds] @ weights
    similarity[row] = 0
    k = min(k, len(similarity))
    nearest = np.argpartition(-similarity, k - 1)[:k]
    found = similarity[nearest]
    greatest = found.max(initial=0)
    if greatest == 0:
        return np.zeros(lists.shape[1], np.float32)
    amplified = ((found - found.min()) / greatest) ** 2
    used = amplified > 0
    total: F32 = np.asarray(amplified[used] @ lists[nearest[used]]).ravel().astype(np.float32)
    return total


def start(task: Task, settings: Mapping[str, Any]) -> tuple[Fit, Recommend]:
    """`settings`: `neighbours`, k for any number of seeds."""

    def fit() -> Any:
        lengths = np.diff(task.lists.indptr)
        scaled = task.lists.copy()
        scaled.data = np.repeat(1 / np.sqrt(np.maximum(lengths, 1)), lengths)
        return scaled.tocsc(), np.bincount(task.lists.indices, minlength=task.lists.shape[1])

    def recommend(model: Any, rows: I64) -> I32:
        unit, counts = model
        found = []
        for row in rows.tolist():
            k, rho = settings_for(int(np.diff(task.lists.indptr[row : row + 2])[0]))
            own = scores(task.lists, unit, counts, row, settings.get("neighbours", k), rho)
            found.append(best(np.where(own > 0, own, -np.inf)[None], task.lists[row]))
        return np.concatenate(found)

    return fit, recommend
