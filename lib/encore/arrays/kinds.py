"""Kinds of the challenge protocol as numbers: indices into KINDS, or NO_KIND for a playlist that is trained on."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encore.vocabulary import KINDS

NO_KIND: Final = -1


def kind_numbers(names: pa.Array | pa.ChunkedArray) -> NDArray[np.int8]:
    """The numbers of kinds by name, int8 (n,); null is NO_KIND."""
    found = pc.index_in(names, value_set=pa.array([kind.name for kind in KINDS]))
    return np.asarray(pc.fill_null(found, NO_KIND)).astype(np.int8)


def kind_names(numbers: NDArray[np.integer]) -> pa.Array:
    """The names of kinds by number, strings (n,); NO_KIND is null."""
    names = pa.array([*(kind.name for kind in KINDS), None], pa.string())
    return names.take(pa.array(np.where(numbers == NO_KIND, len(KINDS), numbers)))
