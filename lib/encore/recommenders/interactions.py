"""interactions: which playlist has which track at which place, in both directions, for the models that are built on it.

It is no model of its own: it is fitted and stored once, and mapped by all models that list it in `parts`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property, lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from encore.arrays.jit import compilation_cache
from encore.arrays.ragged import NamedArrays, Ragged, offsets_of
from encore.arrays.ranked import Ranked
from encore.recommenders.base import NO_PID, Model, Parts, Queries, Tools, TrainingData

if TYPE_CHECKING:
    from encore.config import RecommendConfig


class Interactions:
    """The training lists of N playlists with R rows in all, over M tracks.

    Arrays: `pids` int64 (N,), ascending; `offsets` int64 (N + 1,) and `tracks` int32 (R,): the distinct tracks of each
    playlist, in playlist order. The inverse, ascending by playlist: `track_offsets` int64 (M + 1,), and for each of its
    R entries `rows` int32, the playlist's place in `pids`, and `places` int16, the track's place in that playlist, at
    most 32,767. Memory: 10 R + 16 N + 8 M bytes, mapped.
    """

    def __init__(self, arrays: NamedArrays, config: RecommendConfig, parts: Parts) -> None:
        self.arrays = arrays

    @property
    def n_tracks(self) -> int:
        """M."""
        return len(self.arrays["track_offsets"]) - 1

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """In how many playlists each track is, int64 (M,)."""
        return np.diff(self.arrays["track_offsets"])

    @property
    def largest_count(self) -> int:
        """The count of the track that is in the most playlists."""
        return int(self.counts.max(initial=0))

    @property
    def longest(self) -> int:
        """The length of the longest playlist."""
        return int(np.diff(self.arrays["offsets"]).max(initial=0))

    @cached_property
    def lists(self) -> Ragged:
        """The tracks of each playlist."""
        return Ragged(self.arrays["offsets"], self.arrays["tracks"])

    def rows_of(self, pids: NDArray[np.int64]) -> NDArray[np.int32]:
        """The places of playlists in `pids`, int32 (n,); -1 for a playlist that was not trained on."""
        known = self.arrays["pids"]
        if not len(known):
            return np.full(len(pids), -1, np.int32)
        at = np.minimum(np.searchsorted(known, pids), len(known) - 1)
        return np.where((known[at] == pids) & (pids != NO_PID), at, -1).astype(np.int32)

    def of_queries(self, queries: Queries) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]]:
        """The first arguments of loops: the seeds, their offsets, and the rows of the queries' own playlists."""
        seeds = np.ascontiguousarray(queries.seeds.values, np.int32)
        return seeds, queries.seeds.offsets, self.rows_of(queries.pids)

    @property
    def both_ways(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
        """The arguments `offsets`, `tracks` and `track_offsets` of loops."""
        return self.arrays["offsets"], self.arrays["tracks"], self.arrays["track_offsets"]

    def run(self, loop: Callable[..., None], n: NDArray[np.int64], *arguments: object) -> Ranked:
        """The results of a compiled loop over queries: at most n[i] tracks for query i.

        `arguments` come before the workspace and the results, with which all loops end. Memory: 8 bytes per result, 12
        bytes per track in each thread that has called it, and the loop's.
        """
        room = offsets_of(np.minimum(n, self.n_tracks))
        ids, scores = np.empty(room[-1], np.int32), np.empty(room[-1], np.float32)
        lengths = np.zeros(len(n), np.int64)
        loop(*arguments, *_workspace(self.n_tracks), room, ids, scores, lengths)
        return Ranked.packed(room, lengths, ids, scores)


class _Workspaces(threading.local):
    """The workspace of this thread; `scores` is all 0 between two calls."""

    arrays: tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]] | None = None


_WORKSPACES = _Workspaces()


def _workspace(n_tracks: int) -> tuple[NDArray[Any], ...]:
    """The arguments `scores` float32 (n_tracks,), `touched` int32 (n_tracks + 1,), `weighted` float32 (n_tracks,) and
    `counts` int32 of loops: the same ones for every call by a thread, unless the number of tracks is another."""
    found = _WORKSPACES.arrays
    if found is None or len(found[0]) != n_tracks:
        scores, touched = np.zeros(n_tracks, np.float32), np.empty(n_tracks + 1, np.int32)
        found = (scores, touched, np.empty(n_tracks, np.float32), np.zeros(load_loops().BUCKETS, np.int32))
        _WORKSPACES.arrays = found
    return found


@lru_cache(maxsize=1)
def load_loops() -> ModuleType:
    """Import `encore.recommenders.loops`, which compiles it: once per machine, while other processes wait."""
    with compilation_cache():
        from encore.recommenders import loops
    return loops


def powers(largest: int, exponent: float) -> NDArray[np.float32]:
    """count ** exponent for the counts 0 to `largest`, and 0 for the count 0.

    They are computed in float64, once, and stored with the model, so all machines use the same numbers.
    """
    found = np.zeros(largest + 1, np.float32)
    found[1:] = np.arange(1, largest + 1, dtype=np.float64) ** exponent
    return found


def fit(train: TrainingData, config: RecommendConfig, parts: Parts, tools: Tools) -> NamedArrays:
    """Invert the lists, without orphaned tracks. Memory: 24 bytes per row in addition to the result."""
    lists = train.lists
    if len(train.orphaned):
        lists = lists.where(~np.isin(lists.values, train.orphaned))
    order = np.argsort(lists.values, kind="stable")
    places = np.minimum(lists.positions, np.iinfo(np.int16).max).astype(np.int16)
    return {
        "pids": train.pids,
        "offsets": lists.offsets,
        "tracks": lists.values.astype(np.int32, copy=False),
        "track_offsets": offsets_of(np.bincount(lists.values, minlength=train.n_tracks)),
        "rows": lists.rows.astype(np.int32)[order],
        "places": places[order],
    }


MODEL = Model(name="interactions", needs=("pids", "lists"), fit=fit, load=Interactions)
