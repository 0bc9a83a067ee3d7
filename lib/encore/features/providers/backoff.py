"""Asking a network service again: capped exponential waits, and what the service itself asks for."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TypeVar

import structlog

from encore.config import FeaturesConfig
from encore.errors import TransientError

_log = structlog.get_logger("encore.features")

Answer = TypeVar("Answer")


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


class Backoff:
    """Tries requests `max_attempts` times each, one request at a time.

    The wait before try i + 1 is min(first * 2^(i - 1), longest) seconds, or what the service asks for, where
    that is not above `longest`. Waits are not spread at random: one job asks in sequence, there is no herd to
    break up.
    """

    def __init__(
        self, *, max_attempts: int, first: float, longest: float, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._max_attempts = max_attempts
        self._first = first
        self._longest = longest
        self._sleep = sleep

    @classmethod
    def of(cls, features: FeaturesConfig, sleep: Callable[[float], None] = time.sleep) -> Backoff:
        """The back-off that the settings describe."""
        return cls(
            max_attempts=features.max_attempts,
            first=features.backoff_seconds,
            longest=features.max_wait_seconds,
            sleep=sleep,
        )

    def call(self, service: str, request: Callable[[], Answer]) -> Answer:
        """The answer of `request`, which is called again while it raises TryAgain.

        Raises TransientError after the last try, and at once where the service asks for a longer wait than
        `longest`.
        """
        for attempt in range(1, self._max_attempts + 1):
            try:
                return request()
            except TryAgain as error:
                if error.retry_after is not None and error.retry_after > self._longest:
                    until = datetime.now(UTC) + timedelta(seconds=error.retry_after)
                    raise TransientError(
                        f"{service}: {error}; it asks to wait {error.retry_after:.0f} s, "
                        f"and features.max_wait_seconds is {self._longest:g}",
                        remedy=f"run the job again after {until:%Y-%m-%d %H:%M:%S} UTC; what it has stays",
                    ) from error
                if attempt == self._max_attempts:
                    raise TransientError(
                        f"{service}: {error}, {attempt} times in a row",
                        remedy="run the job again later; what it has stays",
                    ) from error
                if error.retry_after is not None:
                    wait = error.retry_after
                else:
                    # The exponent is bounded so that a great many attempts do not overflow a float.
                    wait = min(self._first * 2.0 ** min(attempt - 1, 60), self._longest)
                _log.info("features_request_again", service=service, problem=str(error), attempt=attempt, wait=wait)
                self._sleep(wait)
        raise ValueError(f"max_attempts of at least 1 expected, {self._max_attempts} found")
