"""Summarises rows of the table `playlist_metrics`."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from encore.arrays.kinds import kind_names, kind_numbers
from encore.arrays.ragged import Ragged
from encore.evaluation.beyond_accuracy import PAGE_METRICS, POPULARITY, BeyondAccuracy
from encore.evaluation.metrics import I32, I64, Metrics
from encore.evaluation.summary import Summary

COLUMNS: Final = (*Metrics._fields, *BeyondAccuracy._fields, "n_train", "n_recommended", "kind")
"""The columns that `summary` reads."""


def summary(rows: pa.Table, exposure: I64) -> Summary:
    """Summarise all playlists of one model from its rows, which have COLUMNS; `exposure` as in Summary."""
    found = Metrics(**{name: rows[name].to_numpy() for name in Metrics._fields})
    n_train, n_recommended = (rows[name].to_numpy() for name in ("n_train", "n_recommended"))
    beyond = BeyondAccuracy(
        novelty=rows["novelty"].to_numpy(),
        artist_diversity=rows["artist_diversity"].to_numpy(),
        popularity_test=_matrix(rows["popularity_test"]),
        popularity_hits=_matrix(rows["popularity_hits"]),
        popularity_early=_matrix(rows["popularity_early"]),
    )
    return Summary.of(found, beyond, n_train, n_recommended, exposure, kind_numbers(rows["kind"]))


def columns(
    metrics: Metrics, beyond: BeyondAccuracy, n_train: np.ndarray, n_recommended: np.ndarray, kinds: np.ndarray
) -> dict[str, Any]:
    """COLUMNS of n playlists; undefined values are null."""
    return {
        **{name: getattr(metrics, name) for name in Metrics._fields},
        # NaN becomes null
        **{name: pa.array(getattr(beyond, name), from_pandas=True) for name in PAGE_METRICS},
        **{name: _lists(getattr(beyond, name)) for name in BeyondAccuracy._fields if name not in PAGE_METRICS},
        "n_train": n_train,
        "n_recommended": n_recommended.astype(np.int32),
        "kind": kind_names(kinds),
    }


def _lists(matrix: I32) -> pa.ListArray:
    n, size = matrix.shape
    return Ragged.from_lengths(np.full(n, size), matrix.reshape(-1)).to_arrow()


def _matrix(column: pa.ChunkedArray) -> I32:
    """A column with one list for POPULARITY per row as int32 (n, 4); zeros in rows without one, which are older."""
    found = np.zeros((len(column), len(POPULARITY)), np.int32)
    found[column.is_valid().to_numpy()] = Ragged.from_arrow(column.drop_null()).values.reshape(-1, len(POPULARITY))
    return found
