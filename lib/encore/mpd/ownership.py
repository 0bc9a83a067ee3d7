"""Which file a playlist is taken from if several files contain it: the first by name of those that exist.

The rule depends only on the existing files, not on the order in which files were added and deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Claims:
    """A claim for each valid playlist in each file that exists, whether the playlist is taken from that file or not.

    Arrays of the same length n: `pids` int64; `files` int32, indices into the sorted names of the files; `taken_from`
    int32, the file that the lake has the playlist from, -1 if that file is gone.
    """

    pids: I64
    files: I32
    taken_from: I32

    @classmethod
    def of(cls, names: Sequence[str], pids: I64, files: pa.Array, taken_from: pa.Array) -> Claims:
        """Create claims from file names. `names` are sorted; claims of files that are not among them are dropped."""
        known = pa.array(names, pa.string())
        own, other = (
            pc.fill_null(pc.index_in(column, value_set=known), -1).to_numpy(zero_copy_only=False).astype(np.int32)
            for column in (files, taken_from)
        )
        there = own >= 0
        return cls(pids[there], own[there], other[there])

    @staticmethod
    def joined(parts: Sequence[Claims]) -> Claims:
        """Concatenate claims."""
        return Claims(
            np.concatenate([np.empty(0, np.int64), *(part.pids for part in parts)]),
            np.concatenate([np.empty(0, np.int32), *(part.files for part in parts)]),
            np.concatenate([np.empty(0, np.int32), *(part.taken_from for part in parts)]),
        )

    def select(self, mask: NDArray[np.bool_]) -> Claims:
        """The claims selected by a mask, bool (n,)."""
        return Claims(self.pids[mask], self.files[mask], self.taken_from[mask])


def winners(pids: I64, files: I32) -> I32:
    """The file that the playlist of each claim is taken from, int32 (n,): the lowest index of those that claim it."""
    order = np.lexsort((files, pids))
    ordered = pids[order]
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = ordered[1:] != ordered[:-1]
    first = np.flatnonzero(is_first)
    found = np.empty(len(order), np.int32)
    found[order] = np.repeat(files[order][first], np.diff(np.append(first, len(order))))
    return found


def settle(names: Sequence[str], read: Claims, held: Claims) -> tuple[dict[str, dict[int, str]], set[str]]:
    """Apply the rule to the claims of files that were `read` and of files whose rows are `held` in the lake.

    `names` are sorted. Returns, for each file that was read, the pids that are taken from other files, with the names
    of those files; and the files with rows in the lake that contradict the rule, which therefore have to be read.
    """
    every = Claims.joined([read, held])
    winner = winners(every.pids, every.files)
    n_read = len(read.pids)
    left = np.flatnonzero(winner[:n_read] != read.files)
    taken: dict[str, dict[int, str]] = {}
    for pid, file, other in zip(
        read.pids[left].tolist(), read.files[left].tolist(), winner[left].tolist(), strict=True
    ):
        taken.setdefault(names[file], {})[pid] = names[other]
    others = np.unique(held.files[winner[n_read:] != held.taken_from])
    return taken, {names[file] for file in others.tolist()}
