"""Ranked ids with their scores, one row per query: what searches and models return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import I64, Ragged, offsets_of


@dataclass(frozen=True, eq=False)
class Ranked:
    """Scored ids, one row per query, best first: by score descending, then by id ascending.

    `ids` has int32 values; `scores` is float32, one per element of ids.values.
    """

    ids: Ragged
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.scores.shape != self.ids.values.shape:
            raise ValueError(f"scores: expected shape {self.ids.values.shape}, found {self.scores.shape}")

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def empty(cls, n: int) -> Ranked:
        """n empty rows."""
        return cls(Ragged.empty(n), np.zeros(0, dtype=np.float32))

    @classmethod
    def concat(cls, parts: Sequence[Ranked]) -> Ranked:
        """The rows of all parts, in order. Raises ValueError if there are no parts."""
        return cls(Ragged.concat([part.ids for part in parts]), np.concatenate([part.scores for part in parts]))

    @classmethod
    def packed(cls, room: I64, lengths: I64, ids: NDArray[np.int32], scores: NDArray[np.float32]) -> Ranked:
        """Rows that were written with gaps: row i from position room[i] on, of which the first lengths[i] count.

        `room` int64 (n + 1,); `lengths` int64 (n,), at most np.diff(room); `ids` and `scores` (room[-1],).
        """
        offsets = offsets_of(lengths)
        if offsets[-1] < room[-1]:
            kept = np.arange(room[-1]) - np.repeat(room[:-1], np.diff(room)) < np.repeat(lengths, np.diff(room))
            ids, scores = ids[kept], scores[kept]
        return cls(Ragged(offsets, ids), scores)

    def where(self, mask: NDArray[np.bool_]) -> Ranked:
        """Only the ids for which `mask` (as long as `scores`) is true; the number of rows stays the same."""
        return Ranked(self.ids.where(mask), self.scores[mask])

    def head(self, n: int | NDArray[Any]) -> Ranked:
        """The n best of each row (n[i] of row i if `n` is an array)."""
        limit = n if isinstance(n, int) else np.repeat(n, self.ids.lengths)
        return self.where(self.ids.positions < limit)
