"""ials: matrix factorisation by implicit alternating least squares, with artists and title n-grams as further items.

Playlists u and items i have factors x_u and v_i in d dimensions, which minimise

    sum over entries c_ui (1 - x_u'v_i)^2 + a0 sum over all u, i (x_u'v_i)^2
    + lambda sum over u (sum of c_u + a0 I) |x_u|^2 + lambda sum over i (sum of c_i + a0 N) |v_i|^2

(Hu, Koren, Volinsky: Collaborative Filtering for Implicit Feedback Datasets, ICDM 2008; Rendle, Krichene, Zhang, Koren:
Revisiting the Performance of iALS on Item Recommendation Benchmarks, RecSys 2022, for the weighting of lambda.)

Items are the tracks, the artists and the n-grams of titles. With len the number of tracks of a playlist, pop that of
the playlists of a track or artist, n that of the playlist's tracks by an artist, means over what occurs at all, and
e = .25 by default:

    track c = (pop / mean)^-e (len / mean)^-e;  artist c = .25 log1p(n) (pop / mean)^-e (len / mean)^-e
    n-gram c = .5 idf / (norm of the idf of the title's n-grams),  idf = log((1 + N) / (1 + df)) + 1

Each half step solves one side, warm-started, by a few steps of the conjugate gradient method (Takács, Pilászy, Tikk:
Applications of the Conjugate Gradient Method for Implicit Feedback Collaborative Filtering, RecSys 2011). A query is
folded in: its x is the exact solution for its own entries, by Cholesky decomposition in float64. So whether it was
trained on does not matter, and its own row need not be left out.

Cost with R entries, N playlists, I items, s CG steps: an iteration takes about 4 (s + 1) R d + 2 (s + 1) (N + I) d^2
operations; a query takes n d^2 / 2 + d^3 / 6 multiplications with n entries, and a search (see search.inner). Files of
training: 16 R + 8 (N + I) d bytes; memory of a task: a block, and the factors of the other side, 4 I d or 4 N d bytes,
mapped. Factors may differ in their last bits between types of CPU; they are fitted once, and stored.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from encore.arrays.jit import compilation_cache
from encore.arrays.ragged import NamedArrays
from encore.arrays.ranked import Ranked
from encore.recommenders import ials_matrix
from encore.recommenders.base import Model, Parts, Queries, Space, Tools, TrainingData
from encore.search.inner import InnerIndex

if TYPE_CHECKING:
    from encore.config import RecommendConfig


class Ials:
    """The score is the inner product of the folded-in playlist and the track, for all tracks that were trained on.

    Arrays: those of search.inner.InnerIndex, for the tracks that may be recommended; `others` float32 (n, d): the
    factors of all other items; `row_of` int32 (I,): for each item (tracks, then artists, then n-grams) its row in the
    index's `vectors`, or -1 minus its row in `others`; `gram` float64 (d, d): the Gram matrix of all items times a0;
    `ridge` float64 (2,): lambda, and a0 I; and those of ials_matrix.Encoder.
    """

    def __init__(self, arrays: NamedArrays, config: RecommendConfig, parts: Parts) -> None:
        self.arrays = arrays
        self.encoder = ials_matrix.encoder_of(arrays, config.ials)
        self.index = InnerIndex.load(arrays)

    def fold_in(self, queries: Queries) -> NDArray[np.float32]:
        """The factors of playlists, float32 (n, d); 0 for those of which nothing is known."""
        load_loops()
        from encore.recommenders import ials_loops as loops

        titles = ials_matrix.Titles.of(queries.titles)
        rows = self.encoder.encode(queries.seeds.distinct(), titles.slice(0, len(queries)))
        found = np.zeros((len(queries), self.index.d), np.float32)
        places = self.arrays["row_of"][rows.ids.values]
        regularization, unobserved = self.arrays["ridge"].tolist()
        loops.fold_in(
            rows.ids.offsets,
            places,
            rows.weights,
            self.index.vectors,
            self.arrays["others"],
            self.arrays["gram"],
            regularization,
            unobserved,
            found,
        )
        return found

    def candidates(self, queries: Queries, n: NDArray[np.int64]) -> Ranked:
        """See FittedModel."""
        rows = self.fold_in(queries)
        return self.index.search(rows, np.where(rows.any(axis=1), n, 0))


@lru_cache(maxsize=1)
def load_loops() -> None:
    """Compile the loop of folding in, or wait until another process on this machine has compiled it."""
    with compilation_cache():
        from encore.recommenders import ials_loops as loops

        offsets, places = np.array([0, 1], np.int64), np.zeros(1, np.int32)
        weights, one = np.ones(1, np.float32), np.ones((1, 1), np.float32)
        loops.fold_in(offsets, places, weights, one, one, np.ones((1, 1)), 0.1, 1.0, one.copy())


def fit(train: TrainingData, config: RecommendConfig, parts: Parts, tools: Tools) -> NamedArrays:
    """Store the matrix in Tools.folder, factorise it there, and index the factors of the tracks."""
    # only fitting needs the lake, which the scorer's container does not have
    from encore.lake.array_files import ArrayFiles
    from encore.recommenders import ials_training

    settings, files = config.ials, ArrayFiles(tools.folder, tools.s3)
    ials_training.load_loops()
    encoder, titles = ials_matrix.Encoder.of(train, settings)
    matrix = ials_matrix.store(files, encoder, train.lists, titles)
    factors, gram = ials_training.train(files, matrix, settings, config.seed, tools)
    is_listed = np.pad(encoder.weights[: train.n_tracks] > 0, (0, len(factors) - train.n_tracks))
    is_listed[train.orphaned] = False
    listed = np.flatnonzero(is_listed).astype(np.int32)
    index = InnerIndex.build(listed, factors[listed])
    row_of = -np.cumsum(~is_listed, dtype=np.int32)
    row_of[index.ids] = np.arange(len(listed), dtype=np.int32)
    unobserved = settings.unobserved_weight
    return {
        **index.arrays,
        "others": factors[~is_listed],
        "row_of": row_of,
        "gram": unobserved * gram,
        "ridge": np.array([ials_training.regularization_of(matrix, settings), unobserved * matrix.items.n_used]),
        **ials_matrix.encoder_arrays(encoder),
    }


MODEL = Model(
    name="ials",
    needs=("lists", "titles", "artist_of"),
    fit=fit,
    load=Ials,
    settings=("ials", "seed"),
    is_distributed=True,
    tunable={
        "dimensions": Space(32, 256, is_log=True),
        "iterations": Space(3, 12),
        "unobserved_weight": Space(0.002, 0.2, is_log=True),
        "regularization": Space(1.0, 100.0, is_log=True),
        "popularity_exponent": Space(0.0, 1.0),
        "length_exponent": Space(0.0, 1.0),
        "artist_weight": Space(0.0, 1.0),
        "title_weight": Space(0.0, 2.0),
    },
)
