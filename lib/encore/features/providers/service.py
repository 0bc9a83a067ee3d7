"""What providers over a network have in common: batches of ids, tracks without an answer, and addresses."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import structlog

from encore.errors import ConfigError
from encore.features.providers.backoff import Backoff
from encore.features.providers.file import column_of
from encore.features.validation import (
    URI_PREFIX,
    Fetched,
    TrackSet,
    Validator,
    no_features,
    normalise_ids,
    refusals,
)
from encore.vocabulary import FEATURES

_log = structlog.get_logger("encore.features")


def service_address(api_url: str | None, public: str) -> str:
    """The address to ask, without a slash at its end. Raises ConfigError where it is not an http(s) URL."""
    address = (public if api_url is None else api_url).rstrip("/")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"features.api_url: an http:// or https:// address expected, {address!r} found")
    return address


class ServiceProvider(ABC):
    """A provider that asks a network service for what is wanted, some ids a request.

    Its source is its name and a refused record is a track's URI. A track that the service does not know is
    refused as feature_missing.
    """

    name: str
    ids_per_request: int
    asks = True

    def __init__(self, address: str, backoff: Backoff, payload_bytes: int) -> None:
        self._address = address
        self._backoff = backoff
        self._payload_bytes = payload_bytes

    def state(self) -> str:
        """Digest of the service's name and address."""
        return hashlib.sha256(f"{self.name} {self._address}".encode()).hexdigest()

    @abstractmethod
    def _request(self, ids: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Ask once: (track id, features by name) of the tracks that the service knows.

        Raises TryAgain for what may pass, an EncoreError for what does not.
        """

    def _ask(self, ids: list[str]) -> list[tuple[str, Mapping[str, Any]]]:
        return list(self._request(ids))

    def fetch(self, wanted: Iterator[list[str]]) -> Iterator[Fetched]:
        """Answers, one Fetched a chunk of URIs, in order; see Provider."""
        validator = Validator(self._payload_bytes)
        asked = TrackSet()
        malformed: set[str] = set()
        for uris in wanted:
            yield self._chunk(uris, validator, asked, malformed)

    def _chunk(self, uris: list[str], validator: Validator, asked: TrackSet, malformed: set[str]) -> Fetched:
        given = normalise_ids(pa.array(uris, pa.string()))
        refused: list[tuple[str, str, str, str, str | None]] = []
        for uri, track_id in zip(uris, given.to_pylist(), strict=True):
            if track_id is None and uri not in malformed:
                malformed.add(uri)
                detail = f"track_uri: a Spotify track id of 22 letters and digits expected, {uri[:80]!r} found"
                refused.append((self.name, uri, "feature_id_malformed", detail, uri))
        valid = given.drop_null()
        ids: list[str] = valid.filter(pa.array(asked.add(valid))).to_pylist()
        known: dict[str, Mapping[str, Any]] = {}
        for start in range(0, len(ids), self.ids_per_request):
            batch = ids[start : start + self.ids_per_request]
            expected = set(batch)
            for track_id, features in self._backoff.call(self.name, partial(self._ask, batch)):
                if track_id in expected:
                    known.setdefault(track_id, features)
        for track_id in ids:
            if track_id not in known:
                detail = f"{self.name} has no features of this track"
                refused.append((self.name, URI_PREFIX + track_id, "feature_missing", detail, None))
        _log.debug("features_chunk_answered", service=self.name, asked=len(ids), known=len(known))
        refused_table = refusals(refused, self._payload_bytes)
        if not known:
            return Fetched(no_features(), refused_table)
        checked = validator.check(
            self.name,
            pa.array([URI_PREFIX + track_id for track_id in known], pa.string()),
            pa.array(list(known), pa.string()),
            {name: column_of([features.get(name) for features in known.values()]) for name in FEATURES},
        )
        return Fetched(checked.features, pa.concat_tables([refused_table, checked.refused]))
