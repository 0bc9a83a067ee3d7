"""Metrics of the scorer in Prometheus' text format, at most MAX_SERIES time series whatever clients send.

Labels have values from closed sets only: a route is a template such as `/api/playlists/{pid}`, never the path of a
request, and an unknown one counts as `other`. Series of a model version go when the version has been unloaded for
STALE_SECONDS, so that scrapes until then see its final values. If there are too many combinations of labels, further
ones are counted under route `other` and the class of their status, so that sums by role and by class stay right.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from encore import __version__

ROLES: Final = ("champion", "challenger")
"""Of the version that answered a request; an empty role stands for a request that needed none."""

SCORED_ROUTES: Final = (
    "/api/recommend",
    "/invocations",
    "/v1/models/{model}:predict",
    "/v2/models/{model}/infer",
)
"""Routes that ask a model; each has its own latency histogram, all others share `other`."""

OTHER_ROUTES: Final = (
    "/",
    "/page/{file}",
    "/metrics",
    "/ping",
    "/health",
    "/version",
    "/api/tracks",
    "/api/playlists/{pid}",
    "/api/models",
    "/api/settings",
    "/api/openapi.json",
    "/v1/models",
    "/v1/models/{model}",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{model}",
    "/v2/models/{model}/ready",
)
OTHER: Final = "other"

PROBES: Final = (
    "/ping",
    "/health",
    "/metrics",
    "/v1/models/{model}",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{model}/ready",
)
"""Routes whose answer 503 is an answer: it says that the scorer is not ready."""

REASONS: Final = ("busy", "disconnected", "draining", "not_ready", "timeout", "too_large", "unauthorized")
"""Why a request was not computed; another reason counts as `other`."""

REQUEST_BUCKETS: Final = (
    *(0.001, 0.0015, 0.002, 0.0025, 0.003, 0.0035, 0.004, 0.005, 0.006, 0.0075),
    *(0.010, 0.015, 0.040, 0.200, 1.0, 10.0),
)
"""Upper bounds in seconds. Dense where the answers of fast models are, with bounds at the objectives 5, 15 and 40 ms,
so that the share of requests within an objective is exact."""

SCORE_BUCKETS: Final = (0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.010, 0.015, 0.025, 0.040, 0.100, 1.0)

MAX_SERIES: Final = 200
STALE_SECONDS: Final = 60.0
"""How long the series of an unloaded version are kept: several scrape intervals."""

# combinations of labels of encore_requests_total, before those with route `other`: 3 roles x 3 classes of status
_MAX_COMBINATIONS: Final = 26

_M = TypeVar("_M", bound=Counter | Gauge | Histogram)


@dataclass(frozen=True)
class Version:
    """A loaded model version: name, version in the registry, role, fingerprint of its arrays, and when it was loaded,
    seconds since 1970."""

    model: str
    version: str
    role: str
    fingerprint: str
    loaded_at: float


class Metrics:
    """The metrics of one scorer process, with a registry of its own. All methods can be called from any thread.

    `clock`: seconds that never go back, for forgetting unloaded versions.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # a creation time for each counter and histogram would nearly double the series
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self._clock = clock
        self._lock = threading.Lock()
        self._versions: dict[tuple[str, str, str], Version] = {}
        self._unloaded: dict[tuple[str, str, str], float] = {}
        self._requests_of: dict[tuple[str, int, str, str, str], Any] = {}

        self._requests = self._made(
            Counter, "encore_requests", "Answered requests.", "route", "model", "version", "role", "code"
        )
        # there from the start, because the first sample of a counter that appears is no increase
        errors = self._made(
            Counter, "encore_request_errors", "Answers with a status of 500 or more, except those of probes.", "role"
        )
        self._errors = {role: errors.labels(role) for role in ("", *ROLES)}
        seconds = self._made(
            Histogram,
            "encore_request_seconds",
            "Seconds from the first byte of a request to the last byte of its answer.",
            "route",
            buckets=REQUEST_BUCKETS,
        )
        self._seconds = {route: seconds.labels(route) for route in (*SCORED_ROUTES, OTHER)}
        self._score_seconds = self._made(
            Histogram,
            "encore_score_seconds",
            "Seconds that the model needed for all playlists of a request, without waiting.",
            "model",
            "role",
            buckets=SCORE_BUCKETS,
        )
        self._scored: dict[tuple[str, str], Any] = {}
        self._in_flight = self._made(Gauge, "encore_in_flight", "Requests that are being answered.")
        self._waiting = self._made(Gauge, "encore_waiting", "Requests that wait for a thread.")
        rejected = self._made(
            Counter, "encore_rejected", "Requests that were refused before they were computed.", "reason"
        )
        self._rejected = {reason: rejected.labels(reason) for reason in (*REASONS, OTHER)}
        self._info = self._made(
            Gauge, "encore_model_info", "A loaded model version; always 1.", "model", "version", "role", "fingerprint"
        )
        loads = self._made(Counter, "encore_model_loads", "Attempts to load a model version.", "result")
        self._loads = {result: loads.labels(result) for result in ("loaded", "failed")}
        self._loaded_at = self._made(
            Gauge, "encore_model_loaded_timestamp_seconds", "When the version in a role was loaded.", "role"
        )
        self._weight = self._made(Gauge, "encore_canary_weight", "Share of users that the challenger answers, 0 to 1.")
        verdicts = self._made(Counter, "encore_canary_verdicts", "Verdicts on challengers.", "verdict")
        self._verdicts = {verdict: verdicts.labels(verdict) for verdict in ("promote", "hold", "roll_back", OTHER)}
        faults = self._made(
            Counter, "encore_canary_faults", "Requests that the champion answered in the challenger's place.", "reason"
        )
        self._faults = {reason: faults.labels(reason) for reason in ("error", "busy")}
        self._seeds = self._made(Counter, "encore_seed_tracks", "Distinct tracks of the playlists of requests.")
        self._unknown = self._made(Counter, "encore_unknown_tracks", "Those of them that the catalogue lacks.")
        self._empty = self._made(Counter, "encore_empty_answers", "Playlists for which nothing was recommended.")
        self._registry_up: Gauge | None = None
        self._made(Gauge, "encore_build_info", "Version of Encore; always 1.", "version").labels(__version__).set(1)
        ProcessCollector(registry=self.registry)

    def _made(self, kind: type[_M], name: str, text: str, *labels: str, **options: Any) -> _M:
        return kind(name, text, labels, registry=self.registry, **options)

    def request(self, route: str, code: int, seconds: float, served: tuple[str, str, str] = ("", "", "")) -> None:
        """Count an answered request.

        `route`: its template, one of SCORED_ROUTES and OTHER_ROUTES; `code`: status of the answer; `served`: model,
        version and role of what answered, as in `set_versions`.
        """
        self._seconds.get(route, self._seconds[OTHER]).observe(seconds)
        if code >= 500 and route not in PROBES:
            self._errors.get(served[2], self._errors[""]).inc()
        counter = self._requests_of.get((route, code, *served))
        if counter is None:
            counter = self._counter(route, code, *served)
        counter.inc()

    def _counter(self, route: str, code: int, model: str, version: str, role: str) -> Any:
        key = (route, code, model, version, role)
        with self._lock:
            known = (
                (route in SCORED_ROUTES or route in OTHER_ROUTES)
                and (not role or (model, version, role) in self._versions)
                and len(self._requests_of) < _MAX_COMBINATIONS
            )
            if not known:
                role = role if role in ROLES else ""
                status = f"{code // 100}xx" if code // 100 in (4, 5) else "2xx"
                return self._requests.labels(OTHER, "", "", role, status)
            counter = self._requests.labels(route, model, version, role, str(code))
            self._requests_of[key] = counter
            return counter

    def scored(self, model: str, role: str, seconds: float) -> None:
        """Observe how long a model needed for a request; `model`: the one in this role, as in `set_versions`."""
        histogram = self._scored.get((model, role))
        if histogram is not None:
            histogram.observe(seconds)

    def playlists(self, seeds: int, unknown: int, empty: int) -> None:
        """Count the playlists of a request: their distinct tracks, unknown ones among these, and empty answers."""
        self._seeds.inc(seeds)
        self._unknown.inc(unknown)
        self._empty.inc(empty)

    def in_flight(self, change: int) -> None:
        """Change the number of requests that are being answered, by 1 or -1."""
        self._in_flight.inc(change)

    def waiting(self, change: int) -> None:
        """Change the number of requests that wait for a thread, by 1 or -1."""
        self._waiting.inc(change)

    def rejected(self, reason: str) -> None:
        """Count a request that is not computed; `reason`: one of REASONS. Its answer is a `request` as well."""
        self._rejected.get(reason, self._rejected[OTHER]).inc()

    def loaded(self, *, failed: bool = False) -> None:
        """Count an attempt to load a version."""
        self._loads["failed" if failed else "loaded"].inc()

    def set_versions(self, versions: Iterable[Version]) -> None:
        """Say which versions are loaded now, at most one in each role: after start, and after each change."""
        now = {(one.model, one.version, one.role): one for one in versions}
        with self._lock:
            for key in self._versions.keys() - now.keys():
                self._unloaded.setdefault(key, self._clock())
            for key in now:
                self._unloaded.pop(key, None)
            self._versions = {**{key: self._versions[key] for key in self._unloaded if key in self._versions}, **now}
            self._info.clear()
            self._loaded_at.clear()
            for one in now.values():
                self._info.labels(one.model, one.version, one.role, one.fingerprint).set(1)
                self._loaded_at.labels(one.role).set(one.loaded_at)
                for model, role in [key for key in self._scored if key[1] == one.role and key[0] != one.model]:
                    self._score_seconds.remove(model, role)
                    del self._scored[model, role]
                self._scored[one.model, one.role] = self._score_seconds.labels(one.model, one.role)

    def set_weight(self, weight: float) -> None:
        """Set the share of users that the challenger answers, 0 to 1; 0 if there is none."""
        self._weight.set(weight)

    def verdict(self, verdict: str) -> None:
        """Count a verdict on the challenger: promote, hold or roll_back."""
        self._verdicts.get(verdict, self._verdicts[OTHER]).inc()

    def canary_fault(self, *, busy: bool = False) -> None:
        """Count a request of the challenger that the champion answers, because of an error or of too few threads."""
        self._faults["busy" if busy else "error"].inc()

    def set_registry_up(self, up: bool) -> None:
        """Say whether the registry answered. A scorer without a registry never calls this, and has no such metric."""
        with self._lock:
            if self._registry_up is None:
                text = "1 if the last question to the model registry was answered, else 0."
                self._registry_up = self._made(Gauge, "encore_registry_up", text)
        self._registry_up.set(up)

    def render(self) -> tuple[str, bytes]:
        """Content type and content of an answer to a scrape."""
        with self._lock:
            self._forget()
        return CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self.registry)

    def _forget(self) -> None:
        """Remove the series of versions that were unloaded long enough ago."""
        before = self._clock() - STALE_SECONDS
        for gone in [key for key, at in self._unloaded.items() if at <= before]:
            del self._unloaded[gone]
            self._versions.pop(gone, None)
            for key in [key for key in self._requests_of if key[2:] == gone]:
                route, code, model, version, role = key
                del self._requests_of[key]
                self._requests.remove(route, model, version, role, str(code))
            model, _, role = gone
            if (model, role) in self._scored and not any(key[::2] == (model, role) for key in self._versions):
                del self._scored[model, role]
                self._score_seconds.remove(model, role)
