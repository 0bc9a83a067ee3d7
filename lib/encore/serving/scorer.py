"""Recommendations of a bundle's models: the same rows as the job `recommend` writes for the same seeds."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import Ragged
from encore.recommenders.base import NO_PID, FittedModel, Queries, recommend
from encore.recommenders.concurrent import helped_by
from encore.recommenders.reasons import Reason, reasons
from encore.recommenders.registry import MODELS
from encore.serving.bundle import Bundle
from encore.serving.catalogue import Catalogue

EXPLAINERS: Final = ("adjacency", "item_knn")
"""The models of which the first that is part of the bundle says why, since it is asked once for each seed and fast."""
TITLE_EXPLAINERS: Final = ("title", "ials")
"""The same for titles, which those do not know."""


@dataclass(frozen=True)
class Playlist:
    """A playlist to continue: URIs or ids of tracks in its order, title, and pid if the model was trained on it."""

    tracks: Sequence[str]
    title: str | None = None
    pid: int = NO_PID


@dataclass(frozen=True, eq=False)
class Row:
    """The recommendations for a playlist: `ids` int32 (n,), best first, `scores` float32 (n,), and how many of the
    playlist's distinct tracks are `unknown`."""

    ids: NDArray[np.int32]
    scores: NDArray[np.float32]
    unknown: int


class Scorer:
    """The models of a bundle, ready to be asked from several threads at a time.

    `name`: of the model that answers if none is named; `models`: it, and the models that it is made of, by name.
    `executor`: its threads help with a request whose model is made of several, while there is no other request.
    """

    def __init__(self, bundle: Bundle, executor: Executor | None = None) -> None:
        self._executor = executor
        self._running = 0
        self._lock = threading.Lock()
        self.manifest = bundle.manifest
        self.name = bundle.manifest.model
        self.catalogue = Catalogue(bundle.catalogue())
        self.models: dict[str, FittedModel] = {name: model for name, model in bundle.models().items() if name in MODELS}

    @classmethod
    def open(cls, folder: Path, executor: Executor | None = None) -> Scorer:
        """From the folder of a bundle. Raises InputError if it is not complete."""
        return cls(Bundle(folder), executor)

    def recommend(self, playlists: Sequence[Playlist], k: int, model: str | None = None) -> list[Row]:
        """At most k tracks for each playlist, by `recommenders.base.recommend`; `model`: one of `models`.

        Raises KeyError for another model, ValueError if k is less than 1.
        """
        queries, unknown = self._queries(playlists)
        with self._helped():
            found = recommend(self.models[model or self.name], queries, k)
        scores = Ragged(found.ids.offsets, found.scores)
        return [Row(found.ids[i], scores[i], unknown[i]) for i in range(len(playlists))]

    @contextmanager
    def _helped(self) -> Iterator[None]:
        with self._lock:
            self._running += 1
            is_alone = self._running == 1
        try:
            with helped_by(self._executor if is_alone else None):
                yield
        finally:
            with self._lock:
                self._running -= 1

    def _queries(self, playlists: Sequence[Playlist]) -> tuple[Queries, list[int]]:
        rows, unknown = [], []
        for playlist in playlists:
            distinct = list(dict.fromkeys(playlist.tracks))
            ids = self.catalogue.ids_of(distinct)
            rows.append(ids[ids >= 0].tolist())
            unknown.append(int((ids < 0).sum()))
        pids = np.array([playlist.pid for playlist in playlists], np.int64)
        return Queries(pids, Ragged.from_lists(rows), [playlist.title for playlist in playlists]), unknown

    def explain(self, playlist: Playlist, tracks: NDArray[np.int32], model: str | None = None) -> list[Reason | None]:
        """Why each of some tracks is recommended; see `recommenders.reasons`. Costs a query for each known seed. The
        title is the reason of tracks that no seed alone recommends."""
        queries, _ = self._queries([playlist])
        asked = self.models[model or self.name]
        by_seeds = next((self.models[name] for name in EXPLAINERS if name in self.models), asked)
        found = reasons(by_seeds, queries.seeds[0].tolist(), None, tracks)
        if playlist.title is None or None not in found:
            return found
        by_title = next((self.models[name] for name in TITLE_EXPLAINERS if name in self.models), asked)
        return [a or b for a, b in zip(found, reasons(by_title, [], playlist.title, tracks), strict=True)]

    def warm_up(self) -> None:
        """Load and call all compiled code, so that the first request does not wait for it."""
        if len(self.catalogue):
            (popular,) = self.catalogue.popular(1)
            for name in self.models:
                self.recommend([Playlist([self.catalogue.uri(popular)], "warm up")], 1, name)


def shown(row: Row, catalogue: Catalogue) -> dict[str, Any]:
    """A row as a prediction of the protocols: `tracks`, URIs, and `scores`, numbers."""
    return {"tracks": catalogue.uris(row.ids), "scores": row.scores.tolist()}
