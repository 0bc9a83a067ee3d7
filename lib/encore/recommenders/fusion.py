"""fusion: a weighted sum of the scores of several models, with weights that depend on how many seeds there are.

    score_j = sum over models m of w_bm s_mj

with s_mj the score of model m for track j, clipped at 0 and divided by the model's greatest score in the query, and b
the bucket of the query's number of distinct seeds. The weights of each bucket are at least 0 and sum to 1; they are
those, of the ones tried, with the highest sum of mean R-precision and mean NDCG over the queries of the trial, whose
hidden tracks no model has seen. (NDCG alone gives more weight to models that are good far down the list.)
(A linear combination after dividing by the maximum: E. A. Fox, J. A. Shaw: Combination of Multiple Searches, TREC-2,
1994.)

Cost: that of its models, and the sort of some P * depth candidates per query, about 0.2 ms for 4 models. Memory: P
numbers of 8 bytes per candidate, for 128 queries at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import NamedArrays, Ragged
from encore.arrays.ranked import Ranked
from encore.recommenders.base import FittedModel, Model, Parts, Queries, Space, Tools, TrainingData
from encore.recommenders.concurrent import compute
from encore.recommenders.popularity import Popularity, ranked_by
from encore.recommenders.union import Union, best, gains

if TYPE_CHECKING:
    from encore.config import RecommendConfig

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

PARTS: Final = ("ials", "adjacency", "artist", "title")
"""The models that are combined, in the order of the weights; the last weight is that of the popularity of a track in
the lists without the trial's hidden tracks, which the model `popularity` counts."""
_LONGEST_FIRST: Final = (1, 0, 3, 2, 4)
"""The places of PARTS and of popularity by how long a query takes, descending."""
BUCKETS: Final = (0, 1, 2, 6, 11, 26, 51, 101)
"""The least number of seeds in each bucket."""
LEAST_QUERIES: Final = 50
"""A bucket with fewer queries in the trial takes the weights of the nearest bucket that has enough."""

_QUERIES: Final = 128
_K: Final = 500
_STEPS: Final = (0.3, 0.15, 0.07, 0.03)
"""How far a weight is moved; smaller steps are tried once no move of the larger one helps."""


class Fusion:
    """Arrays: `weights` float32 (len(BUCKETS), P): the weight of each part, by bucket; `order` and `scores`: those of
    Popularity."""

    def __init__(self, arrays: NamedArrays, config: RecommendConfig, parts: Parts) -> None:
        self.arrays = arrays
        self._parts = fused_models(arrays, config, parts)
        self._depth = config.fusion.depth

    def candidates(self, queries: Queries, n: I64) -> Ranked:
        """See FittedModel."""
        found = [Ranked.empty(0)]
        for start in range(0, len(queries), _QUERIES):
            own = queries.slice(start, min(start + _QUERIES, len(queries)))
            union = union_of(self._parts, own, np.maximum(n[start : start + _QUERIES], self._depth))
            scores = weighted(union, self.arrays["weights"][buckets_of(own)])
            found.append(best(union.ids, scores, n[start : start + _QUERIES]))
        return Ranked.concat(found)


def fused_models(popular: NamedArrays, config: RecommendConfig, parts: Parts) -> list[FittedModel]:
    """The models that are combined, in the order of the weights; `popular`: arrays with those of Popularity."""
    return [*(parts[name] for name in PARTS), Popularity(popular, config, parts)]


def union_of(parts: Sequence[FittedModel], queries: Queries, n: I64) -> Union:
    """The candidates of each part, at most n[i] each with the seeds, as one union without the seeds.

    Seeds are left out before scores are divided by the greatest, since that of a seed would be far above all others.
    """

    def ask(part: FittedModel) -> Ranked:
        return _without(part.candidates(queries, n).head(n), queries.seeds)

    found = compute([partial(ask, parts[i]) for i in _LONGEST_FIRST])
    return Union.of([found[_LONGEST_FIRST.index(i)] for i in range(len(parts))])


def weighted(union: Union, weights: F32) -> F32:
    """The weighted sum of the scores of each track, float32 (T,); `weights` float32 (n, P) of each query.

    Models are added in their order, in float32, so that the sum is the same on every machine.
    """
    each = np.repeat(weights, union.ids.lengths, axis=0)
    total = np.zeros(len(each), np.float32)
    for m in range(each.shape[1]):
        total += each[:, m] * union.scores[:, m]
    return total


def buckets_of(queries: Queries) -> I64:
    """The bucket of each query, by its number of distinct seeds."""
    return np.searchsorted(BUCKETS, queries.seeds.distinct().lengths, side="right") - 1


def fit(train: TrainingData, config: RecommendConfig, parts: Parts, tools: Tools) -> NamedArrays:
    """Choose the weights of each bucket by a coordinate search. Without a trial, all parts weigh the same."""
    popular = ranked_by(parts["interactions"].counts, train.listed)
    fused = fused_models(popular, config, parts)
    weights = np.full((len(BUCKETS), len(fused)), 1 / len(fused), np.float32)
    if train.trial is None or not len(train.trial.queries):
        return {"weights": weights, **popular}
    queries, truth = train.trial.queries, train.trial.truth
    buckets = buckets_of(queries)
    enough = [b for b in range(len(BUCKETS)) if (buckets == b).sum() >= LEAST_QUERIES]
    chosen: dict[int, F64] = {}
    for b in enough or [-1]:
        rows = np.flatnonzero(buckets == b) if enough else np.arange(len(queries))
        own, hidden = queries.take(rows), truth.take(rows)
        chosen[b] = _search(_Trial.of(fused, own, hidden, config.fusion.depth))
    for b in range(len(BUCKETS)):
        weights[b] = chosen[min(chosen, key=lambda other: (abs(other - b), other))]
    return {"weights": weights, **popular}


@dataclass(frozen=True, eq=False)
class _Trial:
    """The trial's queries of one bucket: their candidates, which of them are hidden tracks, and the ideal DCG."""

    union: Union
    is_hit: NDArray[np.bool_]
    n_test: I64
    ideal: F64

    @classmethod
    def of(cls, parts: Sequence[FittedModel], queries: Queries, truth: Ragged, depth: int) -> _Trial:
        """Ask all parts once: only the weights change in the search."""
        n = depth + queries.seeds.distinct().lengths
        union = union_of(parts, queries, n)
        discount = np.cumsum(1 / np.log2(np.arange(2, _K + 2)))
        ideal = discount[np.minimum(truth.lengths, _K) - 1]
        return cls(union, union.ids.isin(truth), truth.lengths, ideal)

    def value(self, weights: F64) -> float:
        """The sum of the mean R-precision and the mean NDCG of the lists that the weights give."""
        each = np.broadcast_to(weights.astype(np.float32), (len(self.ideal), len(weights)))
        dcg, n_early = gains(self.union.ids, weighted(self.union, each), self.is_hit, self.n_test, _K)
        return float(np.mean(n_early / self.n_test) + np.mean(dcg / self.ideal))


def _without(found: Ranked, seeds: Ragged) -> Ranked:
    return found.where(~found.ids.isin(seeds))


def _search(trial: _Trial) -> F64:
    """The weights at a local maximum of their value: from each part alone and from all equal, the best one is moved
    along one weight at a time, and normalised."""
    p = trial.union.scores.shape[1]
    starts = [np.full(p, 1 / p), *np.eye(p)]
    values = [trial.value(start) for start in starts]
    at = int(np.argmax(values))
    weights, value = starts[at], values[at]
    for step in _STEPS:
        moved = True
        while moved:
            moved = False
            for m in range(p):
                for change in (step, -step):
                    tried = weights.copy()
                    tried[m] = max(0.0, tried[m] + change)
                    if tried.sum() == 0 or tried[m] == weights[m]:
                        continue
                    tried /= tried.sum()
                    found = trial.value(tried)
                    if found > value:
                        weights, value, moved = tried, found, True
    return weights


MODEL = Model(
    name="fusion",
    needs=("trial",),
    fit=fit,
    load=Fusion,
    settings=("fusion",),
    parts=("interactions", *PARTS),
    tunable={"depth": Space(200, 2000, is_log=True)},
)
