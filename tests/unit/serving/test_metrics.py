"""The scorer's metrics: bounded series, labels from closed sets, and versions that come and go."""

from __future__ import annotations

import re
import threading
from itertools import product

import pytest
from prometheus_client.parser import text_string_to_metric_families

from encore.serving.metrics import (
    MAX_SERIES,
    OTHER_ROUTES,
    REASONS,
    REQUEST_BUCKETS,
    SCORED_ROUTES,
    STALE_SECONDS,
    Metrics,
    Version,
)

CHAMPION = ("ranker", "3", "champion")
CHALLENGER = ("ranker", "4", "challenger")


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def version(model: str, number: str, role: str) -> Version:
    return Version(model, number, role, f"digest-{number}", 1.0)


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The value of each series, by name and labels."""
    _, text = metrics.render()
    families = text_string_to_metric_families(text.decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """The sum of the series of a name that have these labels."""
    return sum(
        found
        for (series, has), found in samples(metrics).items()
        if series == name and labels.items() <= dict(has).items()
    )


def both() -> Metrics:
    metrics = Metrics()
    metrics.set_versions([version(*CHAMPION), version(*CHALLENGER)])
    return metrics


def test_a_request_is_counted_by_route_version_and_code() -> None:
    metrics = both()
    metrics.request("/api/recommend", 200, 0.0042, CHAMPION)
    metrics.request("/api/recommend", 500, 0.2, CHALLENGER)
    metrics.request("/ping", 200, 0.0001)
    labels = {"route": "/api/recommend", "model": "ranker", "version": "3", "role": "champion", "code": "200"}
    assert value(metrics, "encore_requests_total", **labels) == 1
    assert value(metrics, "encore_requests_total", role="challenger", code="500") == 1
    assert value(metrics, "encore_requests_total", route="/ping", role="") == 1
    assert value(metrics, "encore_request_seconds_count", route="/api/recommend") == 2
    assert value(metrics, "encore_request_seconds_bucket", route="/api/recommend", le="0.005") == 1
    assert value(metrics, "encore_request_seconds_bucket", route="/api/recommend", le="0.004") == 0
    assert value(metrics, "encore_request_seconds_count", route="other") == 1


def test_errors_are_counted_from_zero_and_probes_do_not_count() -> None:
    """Prometheus sees no increase where a counter appears with its first error."""
    metrics = both()
    expected = {"": 0.0, "champion": 0.0, "challenger": 0.0}
    assert {role: value(metrics, "encore_request_errors_total", role=role) for role in expected} == expected
    metrics.request("/api/recommend", 500, 0.002, CHALLENGER)
    metrics.request("/api/recommend", 503, 0.002)
    metrics.request("/api/recommend", 422, 0.002, CHAMPION)
    metrics.request("/health", 503, 0.002)
    expected = {"": 1.0, "champion": 0.0, "challenger": 1.0}
    assert {role: value(metrics, "encore_request_errors_total", role=role) for role in expected} == expected


def test_series_are_bounded_whatever_clients_send() -> None:
    metrics = both()
    routes = (*SCORED_ROUTES, *OTHER_ROUTES, *(f"/no/such/{i}" for i in range(50)))
    codes = (200, 204, 304, 400, 401, 404, 405, 408, 413, 415, 422, 429, 500, 503, 504)
    served = (CHAMPION, CHALLENGER, ("", "", ""), ("ranker", "99", "champion"))
    for route, code, who in product(routes, codes, served):
        metrics.request(route, code, 0.003, who)
    for role in ("champion", "challenger"):
        metrics.scored("ranker", role, 0.002)
        metrics.scored("another", role, 0.002)
    for text in (*REASONS, *(f"reason {i}" for i in range(50))):
        metrics.rejected(text)
        metrics.verdict(text)
    metrics.set_registry_up(False)
    found = samples(metrics)
    assert len(found) <= MAX_SERIES
    assert not any("/no/such" in dict(labels).get("route", "") for _, labels in found)
    # none is lost, and sums by role and by class of status are right
    n = len(routes) * len(codes)
    assert value(metrics, "encore_requests_total") == n * len(served)
    assert value(metrics, "encore_request_seconds_count") == n * len(served)
    assert value(metrics, "encore_requests_total", role="challenger") == n
    failed = sum(
        amount
        for (name, labels), amount in found.items()
        if name == "encore_requests_total" and re.fullmatch("5..", dict(labels)["code"])
    )
    assert failed == 3 * len(routes) * len(served)


def test_an_unloaded_version_is_forgotten_after_a_while() -> None:
    clock = Clock()
    metrics = Metrics(clock)
    metrics.set_versions([version(*CHAMPION), version(*CHALLENGER)])
    metrics.request("/api/recommend", 200, 0.002, CHAMPION)
    metrics.request("/api/recommend", 200, 0.002, CHALLENGER)
    metrics.scored("ranker", "challenger", 0.002)
    metrics.set_versions([version(*CHAMPION)])
    # a request that was in flight
    metrics.request("/api/recommend", 200, 0.002, CHALLENGER)
    clock.now = STALE_SECONDS - 1
    assert value(metrics, "encore_requests_total", version="4") == 2
    assert value(metrics, "encore_model_info", version="4") == 0
    clock.now = STALE_SECONDS
    found = samples(metrics)
    assert not any(dict(labels).get("version") == "4" for _, labels in found)
    assert value(metrics, "encore_score_seconds_count", role="challenger") == 0
    assert not any(name.startswith("encore_score") and ("role", "challenger") in labels for name, labels in found)
    assert value(metrics, "encore_requests_total", version="3") == 1
    # too late for a series of its own, but counted
    metrics.request("/api/recommend", 200, 0.002, CHALLENGER)
    assert value(metrics, "encore_requests_total", role="challenger", route="other", version="") == 1


def test_a_version_that_comes_back_keeps_its_series() -> None:
    clock = Clock()
    metrics = Metrics(clock)
    metrics.set_versions([version(*CHAMPION)])
    metrics.request("/ping", 200, 0.002, CHAMPION)
    metrics.set_versions([version("ranker", "5", "champion")])
    metrics.set_versions([version(*CHAMPION)])
    clock.now = 10 * STALE_SECONDS
    assert value(metrics, "encore_requests_total", version="3") == 1


def test_series_stay_bounded_over_many_swaps() -> None:
    clock = Clock()
    metrics = Metrics(clock)
    for i in range(100):
        clock.now += 7
        metrics.set_versions([version("ranker", str(i), "champion"), version("ranker", str(i + 1), "challenger")])
        for role, number in (("champion", i), ("challenger", i + 1)):
            for code in (200, 400, 500):
                metrics.request("/api/recommend", code, 0.002, ("ranker", str(number), role))
        assert len(samples(metrics)) <= MAX_SERIES
    assert value(metrics, "encore_requests_total") <= 600
    assert value(metrics, "encore_requests_total", version="99", code="200") == 1


def test_another_model_in_a_role_replaces_its_histogram() -> None:
    metrics = Metrics()
    metrics.set_versions([version(*CHAMPION)])
    metrics.scored("ranker", "champion", 0.002)
    metrics.set_versions([version("fusion", "1", "champion")])
    metrics.scored("fusion", "champion", 0.002)
    metrics.scored("ranker", "champion", 0.002)
    assert value(metrics, "encore_score_seconds_count", model="ranker") == 0
    assert value(metrics, "encore_score_seconds_count", model="fusion") == 1


def test_the_state_of_the_scorer_is_shown() -> None:
    metrics = both()
    metrics.in_flight(1)
    metrics.in_flight(1)
    metrics.in_flight(-1)
    metrics.waiting(1)
    metrics.rejected("busy")
    metrics.loaded()
    metrics.loaded(failed=True)
    metrics.set_weight(0.05)
    metrics.verdict("hold")
    metrics.canary_fault()
    metrics.canary_fault(busy=True)
    metrics.playlists(50, 3, 1)
    assert not any(name == "encore_registry_up" for name, _ in samples(metrics)), "an alert would say that it is down"
    metrics.set_registry_up(True)
    expected = {
        ("encore_in_flight", ()): 1,
        ("encore_waiting", ()): 1,
        ("encore_rejected_total", (("reason", "busy"),)): 1,
        ("encore_rejected_total", (("reason", "timeout"),)): 0,
        ("encore_model_loads_total", (("result", "loaded"),)): 1,
        ("encore_model_loads_total", (("result", "failed"),)): 1,
        ("encore_canary_weight", ()): 0.05,
        ("encore_canary_verdicts_total", (("verdict", "hold"),)): 1,
        ("encore_canary_verdicts_total", (("verdict", "roll_back"),)): 0,
        ("encore_canary_faults_total", (("reason", "error"),)): 1,
        ("encore_canary_faults_total", (("reason", "busy"),)): 1,
        ("encore_seed_tracks_total", ()): 50,
        ("encore_unknown_tracks_total", ()): 3,
        ("encore_empty_answers_total", ()): 1,
        ("encore_registry_up", ()): 1,
        ("encore_model_loaded_timestamp_seconds", (("role", "champion"),)): 1,
    }
    assert expected.items() <= samples(metrics).items()
    assert value(metrics, "encore_model_info", version="4", fingerprint="digest-4") == 1
    assert value(metrics, "process_resident_memory_bytes") > 1e6
    assert value(metrics, "encore_build_info") == 1
    assert not any(name.endswith("_created") for name, _ in samples(metrics))


def test_buckets_are_dense_where_answers_are() -> None:
    dense = [bound for bound in REQUEST_BUCKETS if 0.001 <= bound <= 0.0075]
    assert len(dense) >= 10
    assert {0.005, 0.015, 0.040} <= set(REQUEST_BUCKETS)
    assert list(REQUEST_BUCKETS) == sorted(REQUEST_BUCKETS)


@pytest.mark.parametrize("scrape", [True, False])
def test_threads_lose_no_request(scrape: bool) -> None:
    metrics = both()

    def ask() -> None:
        for i in range(500):
            metrics.request("/invocations", 200, 0.002, CHAMPION if i % 2 else CHALLENGER)
            metrics.set_versions([version(*CHAMPION), version(*CHALLENGER)])
            if scrape and i % 100 == 0:
                metrics.render()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(metrics, "encore_requests_total", role="champion") == 1000
    assert value(metrics, "encore_requests_total", role="challenger") == 1000
