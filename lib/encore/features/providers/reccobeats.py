"""Audio features from ReccoBeats, a free service that accepts Spotify ids and needs no credentials."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import requests
from tenacity import Retrying

from encore.config import Config
from encore.errors import ConfigError, EnvironmentMissing, InputError
from encore.features.providers.service import (
    ServiceProvider,
    TryAgain,
    retry_after_seconds,
    retrying,
    service_address,
)
from encore.features.validation import normalise_ids

PUBLIC_ADDRESS = "https://api.reccobeats.com"


class ReccoBeatsProvider(ServiceProvider):
    """Features from GET {address}/v1/audio-features?ids=a,b,c, at most 40 ids per request.

    An entry's `id` is ReccoBeats' own; the Spotify id is in its `href`. The response omits unknown ids, so entries are
    matched by href, never by position. The service offers all eleven features, including `key` and `mode`. An entry
    that lacks one is rejected as feature_missing, like a row of a file: a default value would make all such tracks
    false neighbours.
    """

    name = "reccobeats"
    ids_per_request = 40

    def __init__(self, address: str, retrying: Retrying, payload_bytes: int, timeout: float) -> None:
        """`timeout`: seconds, for connecting and for each wait for data."""
        super().__init__(address, retrying, payload_bytes)
        self._session = requests.Session()
        self._timeout = timeout

    @classmethod
    def from_config(cls, config: Config, sleep: Callable[[float], None] = time.sleep) -> ReccoBeatsProvider:
        """The provider described by the settings."""
        return cls(
            service_address(config.features.api_url, PUBLIC_ADDRESS),
            retrying(cls.name, config.features, sleep),
            config.ingest.payload_bytes,
            config.features.timeout_seconds,
        )

    def _request(self, ids: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        try:
            response = self._session.get(
                f"{self._address}/v1/audio-features",
                params={"ids": ",".join(ids)},
                headers={"Accept": "application/json"},
                timeout=self._timeout,
            )
            status = response.status_code
            body = response.json() if status == 200 else None
        except requests.exceptions.JSONDecodeError as error:
            raise TryAgain("the response is not JSON, perhaps truncated") from error
        except requests.exceptions.RequestException as error:
            raise TryAgain(f"no response ({type(error).__name__})") from error
        if status != 200:
            raise self._failure(response)
        content = body.get("content") if isinstance(body, dict) else None
        if not isinstance(content, list):
            raise TryAgain("the response has no list `content`")
        entries = [entry for entry in content if isinstance(entry, dict) and isinstance(entry.get("href"), str)]
        for track_id, entry in zip(_track_ids(entries), entries, strict=True):
            if track_id is not None:
                yield track_id, entry

    def _failure(self, response: requests.Response) -> Exception:
        status = response.status_code
        if status in (408, 425, 429) or status >= 500:
            return TryAgain(f"it responded with {status}", retry_after_seconds(response.headers.get("Retry-After")))
        if status in (401, 403):
            return EnvironmentMissing(
                f"{self.name}: {self._address} denies access ({status})",
                remedy="it may block this network; choose another features.provider or features.api_url",
            )
        if status == 404:
            return ConfigError(
                f"{self.name}: {self._address} has no /v1/audio-features", remedy="check features.api_url"
            )
        return InputError(f"{self.name}: it responded with {status}: {' '.join(response.text.split())[:200]}")


def _track_ids(entries: list[dict[str, Any]]) -> list[str | None]:
    ids: list[str | None] = normalise_ids(pa.array([entry["href"] for entry in entries], pa.string())).to_pylist()
    return ids
