"""Why a track is recommended: which seed, or the title, recommends it most when the model knows nothing else."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import Ragged
from encore.recommenders.base import FittedModel, Queries

_DEPTH: Final = 2000
"""Candidates of each seed that are looked at."""
TITLE: Final = -1


class Reason(NamedTuple):
    """What recommends a track most: a seed's id, or TITLE; and the track's rank among its recommendations, from 1."""

    seed: int
    rank: int


def reasons(fitted: FittedModel, seeds: list[int], title: str | None, tracks: NDArray[np.int32]) -> list[Reason | None]:
    """The reason for each recommended track, or None if no seed alone, nor the title, recommends it.

    The model is asked once for each distinct seed alone, and for the title alone; the one whose recommendations have
    the track first is the reason, ties in the order of the seeds, the title last. Cost: that many queries.
    """
    distinct = list(dict.fromkeys(seeds))
    rows = [[seed] for seed in distinct]
    titles: list[str | None] = [None] * len(rows)
    if title is not None:
        rows, titles = [*rows, []], [*titles, title]
    if not rows:
        return [None] * len(tracks)
    asked = Queries.of(Ragged.from_lists(rows), titles=titles)
    found = fitted.candidates(asked, np.full(len(rows), _DEPTH)).head(_DEPTH)
    best: list[Reason | None] = [None] * len(tracks)
    place = {int(track): i for i, track in enumerate(tracks)}
    for row, seed in enumerate([*distinct, *([TITLE] if title is not None else [])]):
        own = found.ids[row]
        for rank in np.flatnonzero(np.isin(own, tracks)).tolist():
            i = place[int(own[rank])]
            known = best[i]
            if known is None or rank + 1 < known.rank:
                best[i] = Reason(seed, rank + 1)
    return best
