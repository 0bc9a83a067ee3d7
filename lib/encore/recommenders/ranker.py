"""ranker: orders the best candidates of `fusion` anew, by trees that have learned which of them playlists really have.

    score_j = sum over trees t  v_t(x_j),    the log odds that j is one of the playlist's hidden tracks

x_j: the features of track j among the candidates of the query (see `ranker_features`): the scores that the fused models
gave it, those of their fusion, its popularity, and what its artist and album have in common with the seeds. The trees
are fitted by gradient boosting with the logistic loss to the queries of the trial, whose hidden tracks no model has
seen and no count includes. Below the `candidates` best, the order is that of `fusion`.

Sources: G. Ke et al.: LightGBM: A Highly Efficient Gradient Boosting Decision Tree, NIPS 2017. To rank the candidates
of simpler models by boosted trees: M. Volkovs et al.: Two-stage Model for Automatic Playlist Continuation at Scale,
RecSys Challenge 2018.

At first, trees are fitted to each half of the trial and applied to the other. This decides how many trees there are and
whether they are better than `fusion` at all (if not, there are none), and it shows how much worse the order gets
without a group of features. Then trees are fitted to all queries. The weights of `fusion`, which are few, were chosen
on the same trial, so the features that it gives are a little better there than elsewhere.

Cost: in addition to that of `fusion`, T * L comparisons for T trees of L leaves, eight at a time, and F features, for
each candidate; with 1,000 candidates, 200 trees and 15 leaves, 0.6 ms a query for the trees and 1 ms for the features.
Fitting asks the models for the candidates of the Q queries of the trial, and takes O(rows * F) for each tree; the
ablation fits once more for each group. Memory: of fitting, 250 bytes for each of `rows` rows and 120 for each candidate
of at most 2,000 queries that are measured; of a fitted model, 4 M bytes for M tracks and 450 for each tree, mapped.
None of this depends on the number N of playlists, only the models that are fused do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import NamedArrays, Ragged
from encore.arrays.ranked import Ranked
from encore.evaluation.explanation import Ablation, Explanation
from encore.recommenders.base import Model, Parts, Queries, Space, Tools, TrainingData
from encore.recommenders.fusion import PARTS
from encore.recommenders.ranker_features import (
    FEATURES,
    GROUPS,
    Source,
    candidates_of,
    features_of,
    log_table,
    reranked,
)
from encore.recommenders.ranker_trees import Trees, fit_trees

if TYPE_CHECKING:
    from encore.config import RecommendConfig

__all__ = ["FEATURES", "GROUPS", "MODEL", "Ranker"]

_QUERIES: Final = 64
"""Queries at a time, which bounds the memory."""
_EVERY: Final = 10
"""The loss after every so many trees is recorded."""


class Ranker:
    """Arrays: those of Trees; `album_of` int32 (M,); `logs` float32, see Catalogue.

    How it decides: `importance` float64 (F,): the gain of each of FEATURES in all trees; and, for the trial, each half
    with trees that were fitted to the other, the mean R-precision and NDCG, NaN if not measured: `held_out` float64
    (2,) with all features, `held_out_fusion` float64 (2,) of fusion, and `ablation` float64 (G, 2) without each of
    GROUPS.
    """

    def __init__(self, arrays: NamedArrays, config: RecommendConfig, parts: Parts) -> None:
        self.arrays = arrays
        self._trees = Trees.of(arrays)
        self._fusion = parts["fusion"]
        self._source = Source.of(arrays["album_of"], arrays["logs"], config, parts)
        self._most = config.ranker.candidates

    def candidates(self, queries: Queries, n: NDArray[np.int64]) -> Ranked:
        """See FittedModel."""
        if not len(self._trees):
            found: Ranked = self._fusion.candidates(queries, n)
            return found
        blocks = [Ranked.empty(0)]
        for start in range(0, len(queries), _QUERIES):
            stop = min(start + _QUERIES, len(queries))
            blocks.append(self._block(queries.slice(start, stop), n[start:stop]))
        return Ranked.concat(blocks)

    def _block(self, queries: Queries, n: NDArray[np.int64]) -> Ranked:
        union, fused = self._source.union(queries, n)
        order = candidates_of(union, fused, np.maximum(n, self._most))
        first = order.head(self._most)
        rows = features_of(queries, union, fused, first, self._source.catalogue)
        ranked = reranked(first, self._trees.margins(rows))
        # the others follow in the order of fusion, with scores below all of these, in steps of 1
        is_first = order.positions < self._most
        places, scores = order.values.copy(), np.zeros(len(order.values), np.float32)
        places[is_first], scores[is_first] = ranked.ids.values, ranked.scores
        last = np.repeat(order.offsets[:-1] + first.lengths - 1, order.lengths)[~is_first]
        scores[~is_first] = scores[last] - (order.positions[~is_first] - self._most + 1).astype(np.float32)
        return Ranked(Ragged(order.offsets, union.ids.values[places]), scores).head(n)


def fit(train: TrainingData, config: RecommendConfig, parts: Parts, tools: Tools) -> NamedArrays:
    """Fit the trees to the trial. With fewer queries than `least_queries` there are none, and the order is fusion's."""
    # only fitting needs what this imports, which the scorer's container does not have
    from encore.recommenders.ranker_training import Examples, ablation

    settings, trial = config.ranker, train.trial
    logs = log_table(max(parts["interactions"].largest_count, config.fusion.depth, settings.candidates) + 1)
    arrays = {
        **Trees.none().arrays,
        "album_of": train.album_of,
        "logs": logs,
        "importance": np.zeros(len(FEATURES)),
        "held_out": np.full(2, np.nan),
        "held_out_fusion": np.full(2, np.nan),
        "ablation": np.full((len(GROUPS), 2), np.nan),
    }
    if trial is None or len(trial.queries) < settings.least_queries:
        return arrays
    examples = Examples.of(Source.of(train.album_of, logs, config, parts), trial, settings, config.seed)
    crossed, fused = examples.crossed(settings, config.seed, stop_early=True), examples.measure_fusion()
    for step in range(_EVERY, len(crossed.losses) + 1, _EVERY):
        tools.on_step(step, {"held_out_loss": crossed.losses[step - 1]})
    arrays |= {"held_out": crossed.measured, "held_out_fusion": fused}
    settings = settings.model_copy(update={"trees": crossed.n_trees})
    if settings.ablation:
        arrays["ablation"] = ablation(examples, settings, config.seed)
    if _is_better(crossed.measured, fused):
        rows, is_hit, weights, _ = examples.sample
        found = fit_trees(rows, is_hit, weights, settings, config.seed)
        arrays |= {**found.trees.arrays, "importance": found.gains}
    return arrays


def _is_better(found: NDArray[np.float64], fused: NDArray[np.float64]) -> bool:
    """Whether a mean R-precision and NDCG are better than those of fusion, by NDCG, which depends on more ranks."""
    return bool(found[1] > fused[1])


def explain(arrays: NamedArrays) -> Explanation:
    """The importance of the features, and the ablation if it was measured."""
    importances = dict(zip(FEATURES, arrays["importance"].tolist(), strict=True))
    r_precision, ndcg = arrays["held_out"].tolist()
    ablations = tuple(
        Ablation(group, features, *measured)
        for (group, features), measured in zip(GROUPS.items(), arrays["ablation"].tolist(), strict=True)
        if not np.isnan(measured).any()
    )
    return Explanation(importances, (r_precision, ndcg), ablations)


MODEL = Model(
    name="ranker",
    needs=("trial", "album_of"),
    fit=fit,
    load=Ranker,
    settings=("fusion", "ranker", "seed"),
    parts=("interactions", *PARTS, "fusion"),
    tunable={
        "candidates": Space(300, 2000, is_log=True),
        "learning_rate": Space(0.02, 0.2, is_log=True),
        "leaves": Space(4, 31),
        "least_in_leaf": Space(20, 1000, is_log=True),
    },
    explain=explain,
)
