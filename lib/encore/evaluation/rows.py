"""Summarises rows of the table `playlist_metrics`."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encore.arrays.kinds import kind_numbers
from encore.evaluation.metrics import Metrics, Summary

COLUMNS: Final = (*Metrics._fields, "n_train", "n_recommended", "kind")
"""The columns that `summary` reads."""


def summary(rows: pa.Table, covered: NDArray[np.bool_]) -> Summary:
    """Summarise all playlists of one model from its rows, which have COLUMNS; `covered` as in Summary."""
    found = Metrics(**{name: rows[name].to_numpy() for name in Metrics._fields})
    n_train, n_recommended = (rows[name].to_numpy() for name in ("n_train", "n_recommended"))
    return Summary.from_counts(found, n_train, n_recommended, covered, kind_numbers(rows["kind"]))
