"""What the ranker is fitted to and measured on: the candidates of the queries of the trial.

Queries are in one of two folds. What is measured of a fold is measured with trees that were fitted to the other one, so
every query counts and none with trees that know it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from encore.arrays import hashing
from encore.arrays.ragged import Ragged
from encore.config import RankerConfig
from encore.evaluation.metrics import evaluate
from encore.progress import meter
from encore.recommenders.base import Trial
from encore.recommenders.ranker_features import FEATURES, GROUPS, Source, candidates_of, features_of, reranked
from encore.recommenders.ranker_trees import Fit, fit_trees

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

K: Final = 500
"""The length of the lists that are measured."""
MOST_MEASURED: Final = 2000
"""So many queries are enough to measure on; 80 kB each."""
_FOLDS: Final = 2
_QUERIES: Final = 64


class Rows(NamedTuple):
    """Candidates to learn from: features `rows` float32 (n, F), `is_hit` bool (n,), `weights` float32 (n,), and the
    fold of their query, `folds` int64 (n,)."""

    rows: F32
    is_hit: Mask
    weights: F32
    folds: I64

    def where(self, mask: Mask) -> Rows:
        """Some of them."""
        return Rows(self.rows[mask], self.is_hit[mask], self.weights[mask], self.folds[mask])


@dataclass(frozen=True, eq=False)
class Examples:
    """The candidates of the queries of the trial.

    `sample`: some of all of them, to learn from. Of the queries that are measured, `measured` has all candidates, in
    the order of fusion, `tracks` which tracks these are, query by query, and `truth` all hidden tracks of each query.
    """

    sample: Rows
    measured: Rows
    tracks: Ragged
    truth: Ragged

    @classmethod
    def of(cls, source: Source, trial: Trial, settings: RankerConfig, seed: int) -> Examples:
        """Ask the models for the candidates of all queries, in as many threads as there are processors.

        Candidates that are not hits are sampled by a hash of (seed, query, track), such that there are about
        `settings.rows`, and each that is taken stands for all that are not.
        """
        n = len(trial.queries)
        rate = min(1.0, settings.rows / (n * settings.candidates))

        def block(start: int) -> Examples:
            return cls._of_block(source, trial, start, min(start + _QUERIES, n), settings.candidates, rate, seed)

        blocks = []
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool, meter("ranker", "queries", n) as shown:
            for done in pool.map(block, range(0, n, _QUERIES)):
                blocks.append(done)
                shown.update(min(len(blocks) * _QUERIES, n))
        return cls(
            _joined([one.sample for one in blocks]),
            _joined([one.measured for one in blocks]),
            Ragged.concat([one.tracks for one in blocks]),
            Ragged.concat([one.truth for one in blocks]),
        )

    @classmethod
    def _of_block(
        cls, source: Source, trial: Trial, start: int, stop: int, most: int, rate: float, seed: int
    ) -> Examples:
        queries, truth = trial.queries.slice(start, stop), trial.truth.slice(start, stop)
        union, fused = source.union(queries, np.zeros(len(queries), np.int64))
        candidates = candidates_of(union, fused, np.full(len(queries), most))
        rows = features_of(queries, union, fused, candidates, source.catalogue)
        tracks = Ragged(candidates.offsets, union.ids.values[candidates.values])
        query, is_hit = start + candidates.rows, tracks.isin(truth)
        is_taken = is_hit | (hashing.mix(seed, query, tracks.values) / np.float64(2**64) < rate)
        weights = np.where(is_hit, 1, 1 / rate).astype(np.float32)
        found = Rows(rows, is_hit, weights, query % _FOLDS)
        # the same number of queries of each fold
        every = -(-len(trial.queries) // MOST_MEASURED)
        measured = np.flatnonzero(np.arange(start, stop) // _FOLDS % every == 0)
        is_measured = query // _FOLDS % every == 0
        return cls(found.where(is_taken), found.where(is_measured), tracks.take(measured), truth.take(measured))

    def crossed(self, settings: RankerConfig, seed: int, without: Sequence[str] = (), *, stop_early: bool) -> Crossed:
        """Fit to each fold, and rate what is measured of the other; `without`: features that are left out."""
        kept = np.array([feature not in without for feature in FEATURES])

        def fold(number: int) -> tuple[Fit, Mask, F64]:
            learned, other = self.sample.where(self.sample.folds != number), self.measured.folds == number
            rows, is_hit = self.measured.rows[other][:, kept], self.measured.is_hit[other]
            until = (rows, is_hit) if stop_early else None
            found = fit_trees(learned.rows[:, kept], learned.is_hit, learned.weights, settings, seed, until)
            return found, other, found.trees.margins(rows)

        scores, fits = np.empty(len(self.measured.is_hit)), []
        with ThreadPoolExecutor(min(_FOLDS, os.cpu_count() or 1)) as pool:
            for found, rows, margins in pool.map(fold, range(_FOLDS)):
                fits.append(found)
                scores[rows] = margins
        return Crossed(fits, self.measure(scores))

    def measure(self, scores: NDArray[np.floating]) -> F64:
        """The mean R-precision and NDCG, float64 (2,), of what is measured in the order of the scores."""
        places = Ragged(self.tracks.offsets, np.arange(len(scores), dtype=np.int32))
        found = Ragged(places.offsets, self.tracks.values[reranked(places, scores).ids.values])
        metrics = evaluate(found, self.truth, k=K, artist_of=None)
        return np.array([metrics.r_precision.mean(), metrics.ndcg.mean()])

    def measure_fusion(self) -> F64:
        """The same for the order of fusion."""
        return self.measure(-self.tracks.positions.astype(np.float32))


class Crossed(NamedTuple):
    """The fits to the folds, and mean R-precision and NDCG, float64 (2,), of each fold with the trees of the other."""

    fits: list[Fit]
    measured: F64

    @property
    def n_trees(self) -> int:
        """How many trees are best, on average."""
        return round(sum(len(one.trees) for one in self.fits) / len(self.fits))

    @property
    def losses(self) -> list[float]:
        """The mean loss by number of trees, from 1, as far as all fits went."""
        return [sum(losses) / len(losses) for losses in zip(*(one.losses for one in self.fits), strict=False)]


def _joined(parts: Sequence[Rows]) -> Rows:
    rows, is_hit, weights, folds = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Rows(rows, is_hit, weights, folds)


def ablation(examples: Examples, settings: RankerConfig, seed: int) -> F64:
    """Mean R-precision and NDCG without each of GROUPS, float64 (G, 2), with exactly `settings.trees` trees."""
    found = np.empty((len(GROUPS), 2))
    with meter("ranker, ablation", "groups", len(GROUPS)) as shown:
        for i, names in enumerate(GROUPS.values()):
            found[i] = examples.crossed(settings, seed, names, stop_early=False).measured
            shown.update(i + 1)
    return found
