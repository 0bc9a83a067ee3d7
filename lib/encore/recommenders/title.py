"""title: recommends the tracks of playlists with similar titles; the one model here that needs no seeds.

    sim_t   = cosine of the tf-idf vectors of the query's title and title t, over words and 3- and 4-grams
    score_j = pop_j^-track_damping  sum over the nearest playlists u with j
              sim_u^similarity_power / len_u^length_damping

The idf of a gram is ln((1 + N) / (1 + df)) + 1, df: how many of the N titled playlists have it. Titles are normalised
(see `titles`) and compared as distinct titles, nearest first, equally similar ones in the order of the sorted titles;
each stands for all its playlists, until there are `neighbours`. Of a title with more playlists than are left to take,
an evenly spaced sample stands for all of them. A query without a title, or with no known gram, gets an empty row.

Source: title neighbours are part of many solutions to the RecSys Challenge 2018, such as Creamy Fireflies: Antenucci et
al., Artist-driven layering and user's behaviour impact on recommendations.

Cost: fitting splits the T distinct titles into grams; a query visits the titles that share a gram with it, and the
tracks of `neighbours` playlists. Memory: 12 bytes per gram of a distinct title, mapped, the interactions, mapped, and
12 M + 12 T bytes in each thread; nothing grows with the queries.

A playlist of the training data is left out of its own query's neighbours and of pop. It still counts in df, and its
title in the order of titles: that changes an idf by at most ln((1 + df) / df), the same for all titles with the gram.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from numpy.typing import NDArray

from encore.arrays.ragged import NamedArrays, Ragged, offsets_of
from encore.arrays.ranked import Ranked
from encore.recommenders.base import Model, Parts, Queries, Space, Tools, TrainingData
from encore.recommenders.interactions import Interactions, load_loops, powers
from encore.recommenders.titles import grams, normalised

if TYPE_CHECKING:
    from encore.config import RecommendConfig


class Title:
    """Arrays: of the G distinct grams, `gram_keys` uint64 (G,), ascending hashes, `idf` float32 (G,), and the titles
    that have them, `posting_offsets` int64 (G + 1,), `posting_titles` int32 and `posting_weights` float32; of the T
    distinct titles, `title_offsets` int64 (T + 1,) and `title_rows` int32, the places of their playlists in
    Interactions. Float32 tables: `length_weight` by the length of a playlist, `track_weight` by the count of a track.
    """

    def __init__(self, arrays: NamedArrays, config: RecommendConfig, parts: Parts) -> None:
        self.arrays = arrays
        self._of: Interactions = parts["interactions"]
        self._settings = config.title

    def candidates(self, queries: Queries, n: NDArray[np.int64]) -> Ranked:
        """See FittedModel."""
        own, lists = self.arrays, self._of
        texts: dict[str, int] = {}
        asked = np.array([texts.setdefault(title or "", len(texts)) for title in queries.titles], np.int64)
        ids, weights = self._vectors(list(texts))
        ids, weights = ids.take(asked), weights.take(asked)
        return lists.run(
            load_loops().by_title,
            n,
            ids.values,
            weights.values,
            ids.offsets,
            lists.rows_of(queries.pids),
            *lists.both_ways,
            own["posting_offsets"],
            own["posting_titles"],
            own["posting_weights"],
            own["title_offsets"],
            own["title_rows"],
            own["length_weight"],
            own["track_weight"],
            self._settings.neighbours,
            self._settings.similarity_power,
        )

    def _vectors(self, titles: list[str]) -> tuple[Ragged, Ragged]:
        """The known grams of titles, ascending, and their tf-idf weights with norm 1."""
        keys, counts = _grams(titles)
        known = self.arrays["gram_keys"]
        if not len(known):
            return Ragged.empty(len(titles)), Ragged.empty(len(titles), np.float32)
        ids = np.minimum(np.searchsorted(known, keys.values), len(known) - 1)
        is_known = known[ids] == keys.values
        found = Ragged(keys.offsets, ids.astype(np.int32)).where(is_known)
        return found, _weights(found, counts[is_known], self.arrays["idf"])


def _grams(titles: list[str]) -> tuple[Ragged, NDArray[np.int64]]:
    """The hashes of the distinct grams of each title, ascending in each row, and how often each occurs in it."""
    lengths, keys, counts = [], [], []
    for title in titles:
        # two grams with the same 64-bit hash, which is unlikely among millions, would count as one
        own = sorted(Counter(xxhash.xxh3_64_intdigest(gram.encode()) for gram in grams(title)).items())
        lengths.append(len(own))
        keys += [key for key, _ in own]
        counts += [count for _, count in own]
    values = np.array(keys, np.uint64)
    return Ragged.from_lengths(np.array(lengths, np.int64), values), np.array(counts, np.int64)


def _weights(ids: Ragged, counts: NDArray[np.int64], idf: NDArray[np.float32]) -> Ragged:
    """tf * idf with norm 1 in each row, float32; sums in float64 and in the order of the row."""
    raw = counts * idf[ids.values].astype(np.float64)
    norms = np.sqrt(np.bincount(ids.rows, raw * raw, minlength=len(ids)))
    return Ragged(ids.offsets, (raw / norms[ids.rows]).astype(np.float32))


def fit(train: TrainingData, config: RecommendConfig, parts: Parts, tools: Tools) -> NamedArrays:
    """Index the distinct titles. Memory: the titles, and 60 bytes per gram of a distinct title."""
    lists, settings = parts["interactions"], config.title
    cached: dict[str, str] = {}
    texts = [cached.setdefault(title, normalised(title)) if title else "" for title in train.titles]
    rows = np.array([row for row, text in enumerate(texts) if text], np.int64)
    titles = sorted({text for text in texts if text})
    number = {title: i for i, title in enumerate(titles)}
    title_of = np.array([number[texts[row]] for row in rows.tolist()], np.int64)
    n_playlists = np.bincount(title_of, minlength=len(titles))

    keys, counts = _grams(titles)
    known, ids = np.unique(keys.values, return_inverse=True)
    df = np.bincount(ids, n_playlists[keys.rows], minlength=len(known))
    idf = (np.log((1 + len(rows)) / (1 + df)) + 1).astype(np.float32)
    weights = _weights(Ragged(keys.offsets, ids.astype(np.int32)), counts, idf)
    order = np.argsort(ids, kind="stable")
    return {
        "gram_keys": known,
        "idf": idf,
        "posting_offsets": offsets_of(np.bincount(ids, minlength=len(known))),
        "posting_titles": keys.rows[order].astype(np.int32),
        "posting_weights": weights.values[order],
        "title_offsets": offsets_of(n_playlists),
        "title_rows": rows[np.argsort(title_of, kind="stable")].astype(np.int32),
        "length_weight": powers(lists.longest, -settings.length_damping),
        "track_weight": powers(lists.largest_count, -settings.track_damping),
    }


MODEL = Model(
    name="title",
    needs=("titles",),
    fit=fit,
    load=Title,
    settings=("title",),
    parts=("interactions",),
    tunable={
        "neighbours": Space(50, 5000, is_log=True),
        "similarity_power": Space(0, 6),
        "length_damping": Space(0.0, 1.0),
        "track_damping": Space(0.0, 0.6),
    },
)
