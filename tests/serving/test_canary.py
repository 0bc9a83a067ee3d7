"""Canaries and swaps with real processes: MLflow's server, the scorer as its container starts it, users over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from encore.serving.canary import split
from tests.serving import drill
from tests.serving.drill import MODEL, NAME, Drill, Registry, good_bundle, models, registry, scorer, wait
from tests.serving.load import Load
from tests.unit.serving.bundles import small_bundle

pytestmark = pytest.mark.timeout(300)

REQUESTS = 10_000
SWAPS = 20
GROWTH_BYTES = 10 * 2**20


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with the models of the drill."""
    folder = tmp_path_factory.mktemp("registry")
    bundles = [small_bundle(MODEL), good_bundle(), drill.failing_bundle(), drill.slow_bundle()]
    with registry(folder, bundles) as one:
        yield one


@pytest.fixture(autouse=True)
def reset(found: Registry) -> None:
    """Version 1 is the champion, and there is no challenger."""
    found.client.set_registered_model_alias(NAME, "champion", "1")
    if found.alias("challenger") is not None:
        found.client.delete_registered_model_alias(NAME, "challenger")


def test_requests_are_split_by_weight(found: Registry, tmp_path: Path) -> None:
    """Of 10,000 requests of as many users, the weight's share within a point, and those that the hash says."""
    with scorer(found, tmp_path, poll_seconds=0.2) as running:
        found.start("2", "0.1:600")
        wait(lambda: models(running)["canary"] is not None, "the canary begins")
        connection, answered = running.connection(), []
        for i in range(REQUESTS):
            headers = {"Content-Type": "application/json", "X-Encore-User": f"user-{i}"}
            connection.request("POST", "/api/recommend", b'{"tracks": [], "title": "Rock", "k": 1}', headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            answered.append(answer.headers["X-Encore-Version"])
    assert answered == ["2" if split(f"user-{i}".encode(), "2") < 0.1 else "1" for i in range(REQUESTS)]
    assert abs(answered.count("2") / REQUESTS - 0.1) < 0.01


def test_a_good_model_is_promoted(found: Registry, tmp_path: Path) -> None:
    assert Drill(found, tmp_path, print).good() == []


@pytest.mark.parametrize(("version", "reason", "seconds"), [("3", "errors", 10), ("4", "slow", 30)])
def test_a_bad_model_is_off_5_seconds_after_the_interval(
    found: Registry, tmp_path: Path, version: str, reason: str, seconds: float
) -> None:
    """At most 35 s with the default interval. `make canary-drill` has that for both models."""
    assert Drill(found, tmp_path, print).bad(version, reason, reason, seconds) == []


def test_a_scorer_that_is_restarted_continues(found: Registry, tmp_path: Path) -> None:
    """From the step where the one before was, and the time of the step goes on."""
    settings = {"poll_seconds": 0.2, "canary_seconds": 1, "canary_min_requests": 50}
    with scorer(found, tmp_path, **settings) as running:
        found.start("2", "0.2:1,0.5:600")
        with Load(running):
            wait(lambda: (models(running)["canary"] or {}).get("weight") == 0.5, "the second step")
        before = models(running)["canary"]
    with scorer(found, tmp_path, **settings) as running:
        wait(lambda: models(running)["canary"] is not None, "the canary goes on")
        after = models(running)["canary"]
    names = ("version", "champion", "weight", "step", "steps", "started_at", "step_started_at")
    assert {name: after[name] for name in names} == {name: before[name] for name in names}


def test_swaps_under_load_fail_no_request_and_leave_no_memory(found: Registry, tmp_path: Path) -> None:
    with scorer(found, tmp_path, poll_seconds=0.2) as running, Load(running) as load:

        def swap(number: int) -> None:
            version = str(1 + number % 2)
            found.client.set_registered_model_alias(NAME, "champion", version)
            wait(lambda: [one["version"] for one in models(running)["models"]] == [version], f"version {version}")

        for number in range(1, 5):
            swap(number)
        time.sleep(1)
        before = running.private_bytes()
        for number in range(SWAPS):
            swap(number + 1)
        time.sleep(1)
        growth = running.private_bytes() - before
    assert load.told.failed == []
    assert min(load.told.versions[version] for version in "12") > 100
    assert growth <= GROWTH_BYTES
