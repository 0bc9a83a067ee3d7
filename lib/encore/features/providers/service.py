"""What network providers have in common: batching ids, handling unknown tracks, and checking addresses."""

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
    FeatureBatch,
    TrackSet,
    Validator,
    no_features,
    normalise_ids,
    rejections,
)
from encore.vocabulary import FEATURES

_log = structlog.get_logger("encore.features")


def service_address(api_url: str | None, public: str) -> str:
    """The base URL of the service, without a trailing slash. Raises ConfigError if it is not an http(s) URL."""
    address = (public if api_url is None else api_url).rstrip("/")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"features.api_url: expected an http:// or https:// URL, found {address!r}")
    return address


class ServiceProvider(ABC):
    """A provider that requests tracks from a network service, `ids_per_request` at a time.

    In the result, the source is the provider's name, and the record of a rejected track is its URI. Tracks that the
    service does not know are rejected as feature_missing.
    """

    name: str
    ids_per_request: int
    is_service = True

    def __init__(self, address: str, backoff: Backoff, payload_bytes: int) -> None:
        self._address = address
        self._backoff = backoff
        self._payload_bytes = payload_bytes

    def fingerprint(self) -> str:
        """Digest of the service's name and address."""
        return hashlib.sha256(f"{self.name} {self._address}".encode()).hexdigest()

    @abstractmethod
    def _request(self, ids: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Send one request; yields (track id, features by name) for the tracks that the service knows.

        Raises TryAgain for transient failures and an EncoreError for permanent ones.
        """

    def _ask(self, ids: list[str]) -> list[tuple[str, Mapping[str, Any]]]:
        return list(self._request(ids))

    def fetch(self, requested: Iterator[list[str]]) -> Iterator[FeatureBatch]:
        """One FeatureBatch per chunk of URIs, in order; see Provider."""
        validator = Validator(self._payload_bytes)
        seen = TrackSet()
        malformed: set[str] = set()
        for uris in requested:
            yield self._chunk(uris, validator, seen, malformed)

    def _chunk(self, uris: list[str], validator: Validator, seen: TrackSet, malformed: set[str]) -> FeatureBatch:
        given = normalise_ids(pa.array(uris, pa.string()))
        rejected: list[tuple[str, str, str, str, str | None]] = []
        for uri, track_id in zip(uris, given.to_pylist(), strict=True):
            if track_id is None and uri not in malformed:
                malformed.add(uri)
                detail = f"track_uri: a Spotify track id of 22 letters and digits expected, {uri[:80]!r} found"
                rejected.append((self.name, uri, "feature_id_malformed", detail, uri))
        valid = given.drop_null()
        ids: list[str] = valid.filter(pa.array(seen.add(valid))).to_pylist()
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
                rejected.append((self.name, URI_PREFIX + track_id, "feature_missing", detail, None))
        _log.debug("features_chunk_fetched", service=self.name, requested=len(ids), known=len(known))
        rejected_table = rejections(rejected, self._payload_bytes)
        if not known:
            return FeatureBatch(no_features(), rejected_table)
        checked = validator.check(
            self.name,
            pa.array([URI_PREFIX + track_id for track_id in known], pa.string()),
            pa.array(list(known), pa.string()),
            {name: column_of([features.get(name) for features in known.values()]) for name in FEATURES},
        )
        return FeatureBatch(checked.features, pa.concat_tables([rejected_table, checked.rejected]))
