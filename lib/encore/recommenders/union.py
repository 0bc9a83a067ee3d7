"""The union of what several models recommend, with the score and the rank that each gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from encore.arrays.jit import compilation_cache
from encore.arrays.ragged import Ragged, offsets_of
from encore.arrays.ranked import Ranked

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Union:
    """Tracks that at least one of P models recommends for each of n queries, T in all.

    `ids`: n rows, ascending. `scores` float32 (T, P): the model's score, clipped at 0 and divided by the greatest in
    the query, so 0 to 1; 0 where the model does not recommend the track. `ranks` int32 (T, P): from 1, 0 likewise.
    """

    ids: Ragged
    scores: F32
    ranks: I32

    @classmethod
    def of(cls, found: Sequence[Ranked]) -> Union:
        """The union of P rankings of the same n queries, P at least 1."""
        n, p = len(found[0]), len(found)
        starts = np.concatenate([[0], np.cumsum([len(one.scores) for one in found])])
        offsets = np.stack([one.ids.offsets + start for one, start in zip(found, starts, strict=False)])
        ids = np.concatenate([one.ids.values for one in found])
        scores = np.concatenate([one.scores for one in found])
        lengths = np.zeros(n, np.int64)
        room = offsets_of(np.sum([one.ids.lengths for one in found], axis=0))
        out_ids = np.empty(room[-1], np.int32)
        out_scores, out_ranks = np.zeros((room[-1], p), np.float32), np.zeros((room[-1], p), np.int32)
        load_loops().union(offsets, ids, scores, room, out_ids, out_scores, out_ranks, lengths)
        kept = np.arange(room[-1]) - np.repeat(room[:-1], np.diff(room)) < np.repeat(lengths, np.diff(room))
        return cls(Ragged.from_lengths(lengths, out_ids[kept]), out_scores[kept], out_ranks[kept])


def best(ids: Ragged, scores: F32, n: I64) -> Ranked:
    """The n[i] tracks of row i with the highest scores, best first, equal scores by id; `scores` has one per track."""
    lengths = np.minimum(ids.lengths, n)
    room = offsets_of(lengths)
    out_ids, out_scores = np.empty(room[-1], np.int32), np.empty(room[-1], np.float32)
    load_loops().best(ids.offsets, ids.values, scores, room, out_ids, out_scores)
    return Ranked(Ragged(room, out_ids), out_scores)


def gains(ids: Ragged, scores: F32, is_hit: NDArray[np.bool_], n_test: I64, k: int) -> tuple[F64, I64]:
    """What the k tracks with the highest scores in each row are worth, two arrays (n,): see evaluation.metrics.

    Their DCG, float64, and the number of hits among the first n_test[i], int64. `scores` and `is_hit`: one per track;
    equal scores are ordered by id.
    """
    dcg, n_early = np.zeros(len(ids)), np.zeros(len(ids), np.int64)
    load_loops().gains(ids.offsets, scores, is_hit, n_test, 1 / np.log2(np.arange(2.0, k + 2)), dcg, n_early)
    return dcg, n_early


@lru_cache(maxsize=1)
def load_loops() -> ModuleType:
    """The compiled loops; compiles them, or waits until another process on this machine has compiled them."""
    with compilation_cache():
        from encore.recommenders import union_loops as loops

        offsets, ids, lengths = np.array([0, 1]), np.zeros(1, np.int32), np.zeros(1, np.int64)
        scores, ranks = np.ones((1, 1), np.float32), np.zeros((1, 1), np.int32)
        is_hit, n_early = np.ones(1, np.bool_), np.zeros(1, np.int64)
        loops.union(offsets[None], ids, np.ones(1, np.float32), offsets, ids, scores, ranks, lengths)
        loops.best(offsets, ids, np.ones(1, np.float32), offsets, ids, np.ones(1, np.float32))
        loops.gains(offsets, np.ones(1, np.float32), is_hit, lengths, np.ones(1), np.zeros(1), n_early)
        return loops
