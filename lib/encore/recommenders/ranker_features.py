"""What the ranker knows of a candidate: numbers that mean the same in every query.

Scores are relative to the other candidates of the query, seeds count by their share, and logarithms come from stored
tables, so that features are the same to the last bit on every machine. None is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import Ragged
from encore.arrays.ranked import Ranked
from encore.recommenders.base import FittedModel, Parts, Queries
from encore.recommenders.fusion import PARTS, buckets_of, fused_models, union_of, weighted
from encore.recommenders.union import Union, best

if TYPE_CHECKING:
    from encore.config import RecommendConfig

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

RECENT: Final = 5
"""How many of the last seeds are recent."""

_SCORES: Final = {part: (f"{part}_score", f"{part}_z", f"{part}_rank") for part in (*PARTS, "fusion")}
_OTHERS: Final = {
    "popularity": ("popularity", "popularity_z", "popularity_to_seeds"),
    "artists_and_albums": (
        "artist_share",
        "artist_recent_share",
        "artist_is_last",
        "artist_share_of_candidates",
        "album_share",
        "album_recent_share",
        "album_is_last",
        "album_share_of_candidates",
    ),
    "query": ("seeds", "artists_of_seeds"),
}
FEATURES: Final[tuple[str, ...]] = tuple(name for group in (_SCORES | _OTHERS).values() for name in group)
"""The names of the features, in the order of the columns."""
GROUPS: Final[dict[str, tuple[str, ...]]] = {
    **_SCORES,
    "all_models": tuple(name for group in _SCORES.values() for name in group),
    **_OTHERS,
}
"""The features by what they are made of, for the ablation. `all_models` are those of each model and of fusion."""


@dataclass(frozen=True, eq=False)
class Catalogue:
    """What is known of M tracks: `artist_of` and `album_of` int32 (M,), -1 if unknown, and `counts` int64 (M,), in how
    many playlists each is. `logs` float32: the natural logarithms of 0 (taken as 0), 1, 2 and so on, beyond every count
    and every rank; `last`: the rank of what a model does not recommend."""

    artist_of: I32
    album_of: I32
    counts: I64
    logs: F32
    last: int

    def log(self, numbers: NDArray[np.integer]) -> F32:
        """The natural logarithm of numbers; of those beyond the table, that of the last one in it."""
        return self.logs[np.minimum(numbers, len(self.logs) - 1)]


def log_table(largest: int) -> F32:
    """The natural logarithms of 0 (taken as 0) to `largest`: rounded once, and stored with the model."""
    found = np.zeros(largest + 1, np.float32)
    found[1:] = np.log(np.arange(1, largest + 1, dtype=np.float64))
    return found


@dataclass(frozen=True, eq=False)
class Source:
    """Where candidates come from: the models that are fused, and the `weights` of their fusion, by bucket."""

    models: Sequence[FittedModel]
    weights: F32
    depth: int
    catalogue: Catalogue

    @classmethod
    def of(cls, album_of: I32, logs: F32, config: RecommendConfig, parts: Parts) -> Source:
        """From the fitted parts of the ranker."""
        fused, depth = parts["fusion"].arrays, config.fusion.depth
        artist_of = parts["artist"].arrays["artist_of"]
        catalogue = Catalogue(artist_of, album_of, parts["interactions"].counts, logs, last=depth + 1)
        return cls(fused_models(fused, config, parts), fused["weights"], depth, catalogue)

    def union(self, queries: Queries, n: I64) -> tuple[Union, F32]:
        """What all models recommend for at most some hundred queries, at least n[i] tracks if there are as many, and
        the fused score of each, float32."""
        union = union_of(self.models, queries, np.maximum(n, self.depth + queries.seeds.distinct().lengths))
        return union, weighted(union, self.weights[buckets_of(queries)])


def candidates_of(union: Union, fused: F32, n: I64) -> Ragged:
    """The places in the union of the n[i] tracks of query i with the highest fused scores, best first."""
    places = Ragged(union.ids.offsets, np.arange(len(fused), dtype=np.int32))
    return best(places, fused, n).ids


def reranked(candidates: Ragged, scores: NDArray[np.floating]) -> Ranked:
    """Candidates, places in a union, by their scores, which become float32; equal ones by place, so by id."""
    # later rows have greater places, so this sorts each row by itself
    by_id = np.argsort(candidates.values)
    places = Ragged(candidates.offsets, candidates.values[by_id])
    return best(places, scores.astype(np.float32)[by_id], candidates.lengths)


def features_of(queries: Queries, union: Union, fused: F32, candidates: Ragged, catalogue: Catalogue) -> F32:
    """The features of candidates, float32 (C, F), in the order of the rows.

    `union`: of the models in PARTS and others; `fused`: the fused score of each of its tracks; `candidates`: n rows of
    C places in it, best first. Memory: some 40 numbers for each candidate.
    """
    at = candidates.values
    tracks = union.ids.values[at]
    of_query, of_some = _OfQuery(candidates), candidates.lengths[candidates.lengths > 0]
    seeds = queries.seeds.where((queries.seeds.values >= 0) & (queries.seeds.values < len(catalogue.counts))).distinct()
    found: dict[str, NDArray[Any]] = {}
    for p, part in enumerate(PARTS):
        score, rank = union.scores[at, p], union.ranks[at, p]
        found[f"{part}_score"] = score
        found[f"{part}_z"] = of_query.standardised(score)
        found[f"{part}_rank"] = catalogue.log(np.where((rank > 0) & (rank < catalogue.last), rank, catalogue.last))
    found["fusion_score"] = _divided(fused[at], fused[np.repeat(at[candidates.positions == 0], of_some)])
    found["fusion_z"] = of_query.standardised(fused[at])
    found["fusion_rank"] = catalogue.log(candidates.positions + 1)

    own = catalogue.log(catalogue.counts[tracks])
    of_seeds = _means(seeds, catalogue.log(catalogue.counts[seeds.values]))
    usual = np.where(seeds.lengths > 0, of_seeds, of_query.means(own))
    found["popularity"] = own
    found["popularity_z"] = of_query.standardised(own)
    found["popularity_to_seeds"] = own - np.repeat(usual, candidates.lengths)

    recent = seeds.where(seeds.positions >= np.repeat(seeds.lengths - RECENT, seeds.lengths))
    last = recent.where(recent.positions == np.repeat(recent.lengths - 1, recent.lengths))
    for name, owner_of in (("artist", catalogue.artist_of), ("album", catalogue.album_of)):
        owners = Ragged(candidates.offsets, owner_of[tracks])
        for key, among in (("share", seeds), ("recent_share", recent), ("is_last", last)):
            found[f"{name}_{key}"] = _shares(owners, Ragged(among.offsets, owner_of[among.values]))
        found[f"{name}_share_of_candidates"] = _shares(owners, owners)
    artists = Ragged(seeds.offsets, catalogue.artist_of[seeds.values])
    found["seeds"] = np.repeat(catalogue.log(seeds.lengths), candidates.lengths)
    found["artists_of_seeds"] = np.repeat(_divided(artists.distinct().lengths, seeds.lengths), candidates.lengths)
    out = np.empty((len(at), len(FEATURES)), np.float32)
    for i, feature in enumerate(FEATURES):
        out[:, i] = found[feature]
    return out


def _divided(above: NDArray[Any], below: NDArray[Any]) -> F64:
    """The quotient in float64; 0 where it has none."""
    above, below = above.astype(np.float64), below.astype(np.float64)
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _means(rows: Ragged, values: NDArray[Any]) -> F64:
    """The mean of each row, float64 (n,), 0 for an empty one; summed in order, and so always the same."""
    return _divided(np.bincount(rows.rows, values.astype(np.float64), len(rows)), rows.lengths)


def _shares(owners: Ragged, among: Ragged) -> F64:
    """Which share of the corresponding row of `among` is equal to each value, float64; 0 for -1, which is unknown."""
    known = among.where(among.values >= 0)
    width = 1 + max(int(owners.values.max(initial=0)), int(known.values.max(initial=0)))
    keys, counts = np.unique(known.rows * width + known.values, return_counts=True)
    if not len(keys):
        return np.zeros(len(owners.values))
    wanted = owners.rows * width + owners.values
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    equal = np.where((keys[at] == wanted) & (owners.values >= 0), counts[at], 0)
    return _divided(equal, np.repeat(among.lengths, owners.lengths))


@dataclass(frozen=True, eq=False)
class _OfQuery:
    """Statistics over the candidates of each query."""

    candidates: Ragged

    def means(self, values: NDArray[Any]) -> F64:
        """Of each query, float64 (n,)."""
        return _means(self.candidates, values)

    def standardised(self, values: NDArray[Any]) -> F64:
        """By how many standard deviations each value is above the mean of its query; 0 where all are equal."""
        apart = values - np.repeat(self.means(values), self.candidates.lengths)
        deviations = np.sqrt(self.means(apart * apart))
        return _divided(apart, np.repeat(deviations, self.candidates.lengths))
