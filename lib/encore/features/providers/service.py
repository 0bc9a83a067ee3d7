"""What network providers have in common: addresses, batches of ids, retries, and tracks without an answer."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pyarrow as pa
import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from encore.config import FeaturesConfig
from encore.errors import ConfigError, TransientError
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


class TryAgain(Exception):
    """A request failed in a way that may pass. `retry_after`: seconds that the service asks to wait."""

    def __init__(self, what: str, retry_after: float | None = None) -> None:
        super().__init__(what)
        self.retry_after = retry_after


def retry_after_seconds(header: str | None) -> float | None:
    """Seconds, not negative, of a Retry-After header (RFC 9110, 10.2.3): a number of them or an HTTP date.

    None where there is no header, or one that is neither.
    """
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.replace(".", "", 1).isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def retrying(service: str, features: FeaturesConfig, sleep: Callable[[float], None]) -> Retrying:
    """Calls a request again while it raises TryAgain, `features.max_attempts` times in all.

    Before each retry it waits as long as the service asks for, else `features.backoff_seconds`, doubled each time, at
    most `features.max_wait_seconds`. Waits have no jitter: one job asks in sequence, so no clients retry in step.
    Raises TransientError after the last attempt, and at once where the service asks for a longer wait than the longest.
    """
    longest = features.max_wait_seconds
    backoff = wait_exponential(multiplier=features.backoff_seconds, max=longest)

    def asks_too_long(state: RetryCallState) -> bool:
        return (_problem(state).retry_after or 0.0) > longest

    def wait(state: RetryCallState) -> float:
        asked = _problem(state).retry_after
        return backoff(state) if asked is None else asked

    def log_wait(state: RetryCallState) -> None:
        _log.info(
            "features_request_again",
            service=service,
            problem=str(_problem(state)),
            attempt=state.attempt_number,
            wait=state.upcoming_sleep,
        )

    def give_up(state: RetryCallState) -> NoReturn:
        problem = _problem(state)
        if asks_too_long(state):
            seconds = problem.retry_after or 0.0
            until = datetime.now(UTC) + timedelta(seconds=seconds)
            raise TransientError(
                f"{service}: {problem}; it asks to wait {seconds:.0f} s, and features.max_wait_seconds is {longest:g}",
                remedy=f"run the job again after {until:%Y-%m-%d %H:%M:%S} UTC; what has been fetched is kept",
            ) from problem
        raise TransientError(
            f"{service}: {problem}, {state.attempt_number} times in a row",
            remedy="run the job again later; what has been fetched is kept",
        ) from problem

    return Retrying(
        retry=retry_if_exception_type(TryAgain),
        stop=lambda state: asks_too_long(state) or stop_after_attempt(features.max_attempts)(state),
        wait=wait,
        sleep=sleep,
        before_sleep=log_wait,
        retry_error_callback=give_up,
    )


def _problem(state: RetryCallState) -> TryAgain:
    """What the last attempt raised; tenacity asks only after a TryAgain."""
    problem = state.outcome.exception() if state.outcome else None
    if not isinstance(problem, TryAgain):
        raise TypeError(f"expected TryAgain, found {problem!r}")
    return problem


class ServiceProvider(ABC):
    """A provider that requests tracks from a network service, `ids_per_request` at a time.

    In the result, the source is the provider's name, and the record of a rejected track is its URI. Tracks that the
    service does not know are rejected as feature_missing.
    """

    name: str
    ids_per_request: int
    is_service = True

    def __init__(self, address: str, retrying: Retrying, payload_bytes: int) -> None:
        self._address = address
        self._retrying = retrying
        self._payload_bytes = payload_bytes

    def fingerprint(self) -> str:
        """Digest of the service's name and address."""
        return hashlib.sha256(f"{self.name} {self._address}".encode()).hexdigest()

    @property
    def notes(self) -> list[str]:
        """Nothing: what a service does not know is in quarantine."""
        return []

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
                detail = f"track_uri: expected a Spotify track id of 22 letters and digits, found {uri[:80]!r}"
                rejected.append((self.name, uri, "feature_id_malformed", detail, uri))
        valid = given.drop_null()
        ids: list[str] = valid.filter(pa.array(seen.add(valid))).to_pylist()
        known: dict[str, Mapping[str, Any]] = {}
        for start in range(0, len(ids), self.ids_per_request):
            batch = ids[start : start + self.ids_per_request]
            expected = set(batch)
            for track_id, features in self._retrying(self._ask, batch):
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
