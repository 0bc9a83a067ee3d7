"""Which file a playlist is taken from where several have it: the first by name of the files that are there.

The rule looks at nothing but the files, so that the tables do not depend on the order in which files came and went.
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
    """Good records of playlists in files that are there: a claim each, whether the playlist is taken from it or not.

    Arrays of one length n: `pids` int64; `files` int32, places in the sorted names of the files; `taken_from` int32,
    which file the lake has the playlist from, -1 where that one is gone.
    """

    pids: I64
    files: I32
    taken_from: I32

    @classmethod
    def of(cls, names: Sequence[str], pids: I64, files: pa.Array, taken_from: pa.Array) -> Claims:
        """From names of files; claims of files that are not among `names`, which are sorted, are left out."""
        known = pa.array(names, pa.string())
        own, other = (
            pc.fill_null(pc.index_in(column, value_set=known), -1).to_numpy(zero_copy_only=False).astype(np.int32)
            for column in (files, taken_from)
        )
        there = own >= 0
        return cls(pids[there], own[there], other[there])

    @staticmethod
    def joined(parts: Sequence[Claims]) -> Claims:
        """All claims of several."""
        return Claims(
            np.concatenate([np.empty(0, np.int64), *(part.pids for part in parts)]),
            np.concatenate([np.empty(0, np.int32), *(part.files for part in parts)]),
            np.concatenate([np.empty(0, np.int32), *(part.taken_from for part in parts)]),
        )

    def select(self, mask: NDArray[np.bool_]) -> Claims:
        """Those of a mask, bool (n,)."""
        return Claims(self.pids[mask], self.files[mask], self.taken_from[mask])


def winners(pids: I64, files: I32) -> I32:
    """Of claims, arrays of one length, the file that each playlist is taken from: the least number, int32 (n,)."""
    order = np.lexsort((files, pids))
    ordered = pids[order]
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = ordered[1:] != ordered[:-1]
    first = np.flatnonzero(is_first)
    found = np.empty(len(order), np.int32)
    found[order] = np.repeat(files[order][first], np.diff(np.append(first, len(order))))
    return found


def settle(names: Sequence[str], read: Claims, held: Claims) -> tuple[dict[str, dict[int, str]], set[str]]:
    """What the rule says of the claims of files that were read, and of others; `names` are sorted.

    Returns the pids that each file that was read leaves to another one, with the name of that one; and which of the
    other files have to be read, since the lake has their playlists, or says who has them, by other claims than these.
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
