"""The loaded model versions, who of them answers a request, and how one takes over from another."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from encore.errors import EncoreError, InputError
from encore.serving.bundle import Manifest
from encore.serving.metrics import Metrics, Version
from encore.serving.scorer import Playlist, Scorer

Result = TypeVar("Result")

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
GOLDEN_K: Final = 10

log = logging.getLogger("encore.serving")


@dataclass(eq=False)
class Served:
    """A loaded model version. `in_flight`: requests that it is answering; `loaded_at`: seconds since 1970."""

    scorer: Scorer
    version: str
    role: str
    loaded_at: float = field(default_factory=time.time)
    in_flight: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def name(self) -> str:
        """The model that answers if a request names none."""
        return self.scorer.name

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model."""
        return self.scorer.manifest.fingerprints.get(self.name, "")

    @contextmanager
    def used(self) -> Iterator[Scorer]:
        """Count a request within the block."""
        with self._lock:
            self.in_flight += 1
        try:
            yield self.scorer
        finally:
            with self._lock:
                self.in_flight -= 1


@dataclass(frozen=True)
class Resolved:
    """What a source says should be served: versions of the registered model, and their tags."""

    champion: str | None
    challenger: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    """Tags of the challenger's version."""


class Source(Protocol):
    """Where model versions come from."""

    def resolve(self) -> Resolved:
        """The versions that should be served now. Raises EncoreError if that cannot be found out."""

    def fetch(self, version: str) -> Path:
        """The folder of a version's bundle, complete and checked. Raises EncoreError."""

    def set_tag(self, version: str, name: str, value: str) -> None:
        """Set a tag of a version."""

    def set_alias(self, alias: str, version: str) -> None:
        """Point an alias to a version."""

    def delete_alias(self, alias: str) -> None:
        """Remove an alias."""


class Folder:
    """A source that is the folder of one bundle; its version is the beginning of the model's fingerprint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resolve(self) -> Resolved:
        """See Source."""
        manifest = Manifest.read(self.folder)
        return Resolved(manifest.fingerprints.get(manifest.model, "")[:8] or "0")

    def fetch(self, version: str) -> Path:
        """See Source."""
        return self.folder

    def set_tag(self, version: str, name: str, value: str) -> None:
        """A folder has no tags."""

    def set_alias(self, alias: str, version: str) -> None:
        """A folder has no aliases."""

    def delete_alias(self, alias: str) -> None:
        """A folder has no aliases."""


class Serving:
    """The champion, perhaps a challenger, and the thread that follows the source.

    A version is loaded beside the one that answers, warmed up and asked a golden request; then one reference is
    replaced. The old version is unmapped when the last request that uses it has ended. If the source cannot be read, or
    a version cannot be loaded, what is loaded stays. `threads`: how many compute a request whose model is made of
    several, if no other request keeps them busy.
    """

    def __init__(self, source: Source, metrics: Metrics, *, threads: int = 1, poll_seconds: float = 10.0) -> None:
        self.source = source
        self.metrics = metrics
        self.champion: Served | None = None
        self.challenger: Served | None = None
        self.draining = False
        self._poll_seconds = poll_seconds
        # beside the thread of the request itself
        self._helpers = ThreadPoolExecutor(threads - 1, "part") if threads > 1 else None
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="models", daemon=True)

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered."""
        return self.champion is not None and not self.draining

    def start(self) -> None:
        """Load in the background, and follow the source until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """Stop following the source."""
        self._stop.set()
        self.wake()

    def wake(self) -> None:
        """Ask the source now."""
        self._wake.set()

    def pick(self, key: bytes) -> Served | None:
        """The version that answers a request, the same one for the same key; None while none is loaded."""
        return self.champion

    def answer(
        self, served: Served, work: Callable[[Served], Result], is_empty: Callable[[Result], bool], playlists: int = 1
    ) -> tuple[Served, Result]:
        """The result of work with a version from `pick`, and the version that it is from.

        `is_empty`: whether nothing is recommended in a result; `playlists`: for how many there are recommendations.
        """
        with served.used():
            return served, work(served)

    @property
    def canary(self) -> dict[str, Any] | None:
        """The canary for people, as JSON; None if there is none."""
        return None

    def loaded(self) -> list[Served]:
        """All loaded versions, the champion first."""
        return [served for served in (self.champion, self.challenger) if served is not None]

    def follow(self) -> None:
        """Ask the source what should be served, and adopt it. Raises EncoreError."""
        try:
            wanted = self.source.resolve()
        except EncoreError:
            self.metrics.set_registry_up(False)
            raise
        self.metrics.set_registry_up(True)
        self.adopt(wanted)

    def adopt(self, wanted: Resolved) -> None:
        """Load what should be served, unless it is loaded. Raises EncoreError."""
        if wanted.champion is not None and (self.champion is None or self.champion.version != wanted.champion):
            self.champion = self.load(wanted.champion, CHAMPION)
            self.announce()

    def announce(self) -> None:
        """Tell the metrics what is loaded, after each change."""
        self.metrics.set_versions(
            Version(one.name, one.version, one.role, one.fingerprint, one.loaded_at) for one in self.loaded()
        )

    def load(self, version: str, role: str) -> Served:
        """A version that is ready to answer. Raises EncoreError."""
        started = time.monotonic()
        try:
            scorer = Scorer.open(self.source.fetch(version), self._helpers)
            scorer.warm_up()
            check_golden(scorer)
        except Exception:
            self.metrics.loaded(failed=True)
            raise
        self.metrics.loaded()
        log.info("loaded %s version %s as %s in %.2f s", scorer.name, version, role, time.monotonic() - started)
        return Served(scorer, version, role)

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self.follow()
            except EncoreError as error:
                log.error("%s", error)
            except Exception:
                # the thread must go on: the next version may be sound
                log.exception("following the source failed")
            self._wake.wait(self._poll_seconds)
            self._wake.clear()


def check_golden(scorer: Scorer) -> None:
    """Ask a loaded scorer for a playlist of its most popular track. Raises InputError if the answer is not sound."""
    if not len(scorer.catalogue):
        raise InputError(f"{scorer.name}: the bundle has no tracks", remedy="register a model of a lake with playlists")
    (seed,) = scorer.catalogue.popular(1)
    (row,) = scorer.recommend([Playlist([scorer.catalogue.uri(seed)], "golden")], GOLDEN_K)
    ids = row.ids
    sound = (
        row.unknown == 0
        and len(np.unique(ids)) == len(ids)
        and bool(((ids >= 0) & (ids < len(scorer.catalogue)) & (ids != seed)).all())
        and bool(np.isfinite(row.scores).all())
        and bool((np.diff(row.scores) <= 0).all())
    )
    if not sound:
        raise InputError(f"{scorer.name}: the golden request has an answer that is not sound: {len(ids)} tracks")
