"""A challenger is promoted, rolled back, refused and resumed, on a registry that may be down."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest

from encore.errors import InputError, TransientError
from encore.serving.canary import Rule, steps_of
from encore.serving.metrics import Metrics
from encore.serving.models import Resolved, Served
from encore.serving.rollout import EVENT, TAG, Rollout, time_of
from encore.serving.scorer import Playlist, Row, Scorer
from tests.unit.serving.bundles import URIS, small_bundle
from tests.unit.serving.client import JSON, ask, new_app

KEYS = [f"user-{i}".encode() for i in range(4_000)]
STEPS = "0.1:60,0.5:60"


class Registry:
    """A registry in memory, as a source. `down`: every call fails; `writes`: fail after this many."""

    def __init__(self) -> None:
        self.folder = small_bundle("popularity")
        self.aliases = {"champion": "1"}
        self.tags: dict[str, dict[str, str]] = {version: {} for version in "1234"}
        self.folders: dict[str, Path] = {}
        self.down = False
        self.writes = 10**9
        self.fetched: list[str] = []

    def resolve(self) -> Resolved:
        self.check()
        challenger = self.aliases.get("challenger")
        return Resolved(self.aliases.get("champion"), challenger, dict(self.tags[challenger]) if challenger else {})

    def check(self) -> None:
        if self.down:
            raise TransientError("the registry is down")

    def written(self) -> None:
        self.check()
        if not self.writes:
            raise TransientError("the registry went down")
        self.writes -= 1

    def fetch(self, version: str) -> Path:
        self.check()
        self.fetched.append(version)
        return self.folders.get(version, self.folder)

    def set_tag(self, version: str, name: str, value: str) -> None:
        self.written()
        self.tags[version][name] = value

    def set_alias(self, alias: str, version: str) -> None:
        self.written()
        self.aliases[alias] = version

    def delete_alias(self, alias: str) -> None:
        self.written()
        self.aliases.pop(alias, None)

    def events(self, version: str) -> list[str]:
        found = [json.loads(text) for name, text in self.tags[version].items() if name.startswith(EVENT)]
        return [f"{event['event']} {event['weight']:g}" for event in sorted(found, key=lambda event: event["at"])]

    def state(self, version: str) -> str | None:
        return self.tags[version].get(f"{TAG}state")


class Case:
    """A registry with challenger 2, and scorers that follow it."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.now = 1_700_000_000.0
        self.rollout = self.scorer()
        self.rollout.follow()

    def scorer(self, threads: int = 4) -> Rollout:
        return Rollout(
            self.registry, Metrics(), steps=steps_of(STEPS), rule=Rule(), threads=threads, clock=lambda: self.now
        )

    def challenge(self, version: str = "2") -> None:
        self.registry.aliases["challenger"] = version
        self.rollout.follow()

    def ask(self, rollout: Rollout | None = None, keys: list[bytes] = KEYS, fail: bool = False) -> dict[str, int]:
        """Answers by the version that they are from; `fail`: whether the challenger fails."""
        rollout = rollout or self.rollout
        answered: dict[str, int] = {}
        for key in keys:
            picked = rollout.pick(key)
            assert picked is not None

            def work(by: Served) -> list[Row]:
                if fail and by.role == "challenger":
                    raise ZeroDivisionError
                return [ROW]

            served, found = rollout.answer(picked, work, lambda rows: not len(rows[0].ids))
            assert found == [ROW]
            answered[served.version] = answered.get(served.version, 0) + 1
        return answered

    def verdict(self, rollout: Rollout | None = None) -> None:
        rollout = rollout or self.rollout
        self.now += 30
        rollout.judge()
        rollout.follow()


ROW = Row(np.array([1], np.int32), np.array([1], np.float32), 0)


@pytest.fixture
def case() -> Case:
    return Case()


def test_a_good_challenger_is_promoted_step_by_step(case: Case) -> None:
    assert case.ask() == {"1": len(KEYS)}
    case.challenge()
    assert case.registry.state("2") == "running"
    first = {key for key in KEYS if case.rollout.pick(key) is case.rollout.challenger}
    assert 0.09 < len(first) / len(KEYS) < 0.11
    case.ask()
    case.verdict()
    assert case.rollout.canary is not None
    assert case.rollout.canary["weight"] == 0.1
    assert case.rollout.canary["verdict"]["decision"] == "promote"
    case.verdict()
    assert case.rollout.canary["weight"] == 0.5
    assert case.registry.tags["2"][f"{TAG}weight"] == "0.5"
    # the users of the first step stay with the challenger
    assert first < {key for key in KEYS if case.rollout.pick(key) is case.rollout.challenger}
    case.verdict()
    case.verdict()
    # the step is over, but nobody has asked in it
    assert case.registry.aliases == {"champion": "1", "challenger": "2"}
    case.ask()
    case.verdict()
    assert case.registry.aliases == {"champion": "2", "previous": "1"}
    assert case.registry.state("2") == "promoted"
    assert case.registry.events("2") == ["started 0.1", "step 0.5", "promoted 0"]
    assert case.rollout.canary is None
    assert case.ask() == {"2": len(KEYS)}
    assert [served.role for served in case.rollout.loaded()] == ["champion"]
    # it was not loaded again
    assert case.registry.fetched == ["1", "2"]
    case.rollout.follow()
    assert case.registry.fetched == ["1", "2"]


def test_a_challenger_that_fails_is_rolled_back_and_nobody_notices(case: Case) -> None:
    case.challenge()
    assert case.ask(fail=True) == {"1": len(KEYS)}
    case.now += 30
    case.rollout.judge()
    # off before the registry knows
    assert case.registry.aliases["challenger"] == "2"
    assert [served.version for served in case.rollout.loaded()] == ["1"]
    assert case.ask(fail=True) == {"1": len(KEYS)}
    case.rollout.follow()
    assert case.registry.aliases == {"champion": "1"}
    assert case.registry.state("2") == "rolled_back"
    assert case.registry.tags["2"][f"{TAG}reason"].startswith("errors: ")
    assert case.registry.events("2") == ["started 0.1", "rolled_back 0"]
    case.rollout.follow()
    assert case.registry.fetched == ["1", "2"]
    # it can be tried again
    case.challenge()
    assert case.registry.state("2") == "running"
    assert case.rollout.canary is not None
    assert case.rollout.canary["weight"] == 0.1


def test_a_request_that_no_version_can_answer_is_no_fault_of_the_challenger(case: Case) -> None:
    case.challenge()

    def fail(by: Served) -> list[Row]:
        raise ZeroDivisionError

    for key in [key for key in KEYS if case.rollout.pick(key) is case.rollout.challenger][:300]:
        picked = case.rollout.pick(key)
        assert picked is not None
        with pytest.raises(ZeroDivisionError):
            case.rollout.answer(picked, fail, lambda rows: False)
    case.ask()
    case.verdict()
    assert case.rollout.canary is not None
    assert case.rollout.canary["verdict"]["numbers"]["errors"] == 0
    assert case.rollout.canary["verdict"]["decision"] == "promote"


def test_answers_without_tracks_roll_back(case: Case) -> None:
    case.challenge()
    for key in KEYS:
        picked = case.rollout.pick(key)
        assert picked is not None
        is_challenger = picked is case.rollout.challenger
        case.rollout.answer(picked, lambda by: 0, (lambda _: True) if is_challenger else (lambda _: False))
    case.verdict()
    assert case.registry.tags["2"][f"{TAG}reason"].startswith("empty answers: ")


def test_a_registry_that_is_down_keeps_what_is_served(case: Case) -> None:
    case.challenge()
    case.registry.down = True
    case.ask()
    for _ in range(3):
        case.now += 30
        case.rollout.judge()
        with pytest.raises(TransientError):
            case.rollout.follow()
    # neither promoted nor on to the next step, which another process would not know of
    assert case.rollout.canary is not None
    assert case.rollout.canary["weight"] == 0.1
    assert {served.version for served in case.rollout.loaded()} == {"1", "2"}
    case.registry.down = False
    case.rollout.follow()
    assert case.rollout.canary["weight"] == 0.5


def test_a_roll_back_does_not_wait_for_the_registry(case: Case) -> None:
    case.challenge()
    case.ask(fail=True)
    case.registry.down = True
    case.rollout.judge()
    with pytest.raises(TransientError):
        case.rollout.follow()
    assert [served.version for served in case.rollout.loaded()] == ["1"]
    case.registry.down = False
    case.rollout.follow()
    assert case.registry.aliases == {"champion": "1"}
    assert case.registry.state("2") == "rolled_back"
    assert case.registry.fetched == ["1", "2"]


@pytest.mark.parametrize("writes", range(8))
def test_a_process_that_dies_while_it_rolls_back_leaves_it_to_the_next_one(case: Case, writes: int) -> None:
    case.challenge()
    case.ask(fail=True)
    case.rollout.judge()
    case.registry.writes = writes
    with pytest.raises(TransientError):
        case.rollout.follow()
    case.registry.writes = 10**9
    assert ("challenger" in case.registry.aliases) == (writes < 4)
    other = case.scorer()
    other.follow()
    other.follow()
    rolled_back = writes >= 3
    assert ("challenger" in case.registry.aliases) != rolled_back
    assert [served.version for served in other.loaded()] == (["1"] if rolled_back else ["1", "2"])


@pytest.mark.parametrize("writes", range(1, 10))
def test_a_process_that_dies_while_it_promotes_leaves_it_to_the_next_one(case: Case, writes: int) -> None:
    case.registry.tags["2"][f"{TAG}steps"] = "0.5:0"
    case.challenge()
    case.ask()
    case.rollout.judge()
    case.registry.writes = writes
    with pytest.raises(TransientError):
        case.rollout.follow()
    case.registry.writes = 10**9
    other = case.scorer()
    other.follow()
    other.follow()
    if writes >= 3:
        assert case.registry.aliases == {"champion": "2", "previous": "1"}
        assert [served.version for served in other.loaded()] == ["2"]
    else:
        assert case.registry.aliases == {"champion": "1", "challenger": "2"}


def test_the_process_goes_on_itself_when_the_registry_is_back(case: Case) -> None:
    for writes in range(1, 10):
        case.registry.aliases = {"champion": "1", "challenger": "2"}
        case.registry.tags["2"] = {f"{TAG}steps": "0.5:0"}
        case.rollout = case.scorer()
        case.rollout.follow()
        case.ask()
        case.rollout.judge()
        case.registry.writes = writes
        with pytest.raises(TransientError):
            case.rollout.follow()
        case.registry.writes = 10**9
        case.rollout.follow()
        assert case.registry.aliases == {"champion": "2", "previous": "1"}
        assert [(served.version, served.role) for served in case.rollout.loaded()] == [("2", "champion")]


def test_a_restarted_scorer_continues_the_canary(case: Case) -> None:
    case.challenge()
    case.ask()
    case.now += 30
    case.verdict()
    assert case.rollout.canary is not None
    case.now += 40
    other = case.scorer()
    other.follow()
    assert other.canary is not None
    for name in ("version", "champion", "weight", "step", "steps", "started_at", "step_started_at"):
        assert other.canary[name] == case.rollout.canary[name]
    # the time of the step goes on, its requests begin anew
    case.now += 20
    case.verdict(other)
    assert case.registry.aliases["champion"] == "1"
    case.ask(other)
    case.verdict(other)
    assert case.registry.aliases == {"champion": "2", "previous": "1"}
    assert case.registry.events("2") == ["started 0.1", "step 0.5", "resumed 0.5", "promoted 0"]


def test_scorers_go_through_the_steps_together(case: Case) -> None:
    case.challenge()
    other = case.scorer()
    other.follow()
    case.ask()
    case.now += 30
    case.verdict()
    other.follow()
    assert other.canary is not None
    assert other.canary["weight"] == 0.5
    assert all(
        (one is None) == (two is None) and one is not None and two is not None and one.version == two.version
        for one, two in ((case.rollout.pick(key), other.pick(key)) for key in KEYS[:200])
    )
    case.ask(other, fail=True)
    case.verdict(other)
    case.rollout.follow()
    assert [served.version for served in case.rollout.loaded()] == ["1"]
    assert case.registry.state("2") == "rolled_back"


def test_scorers_are_promoted_together(case: Case) -> None:
    case.registry.tags["2"][f"{TAG}steps"] = "0.5:0"
    case.challenge()
    other = case.scorer()
    other.follow()
    case.ask()
    case.verdict()
    other.follow()
    assert [(served.version, served.role) for served in other.loaded()] == [("2", "champion")]
    assert case.registry.fetched == ["1", "2", "1", "2"]


def test_removing_the_alias_ends_the_canary(case: Case) -> None:
    case.challenge()
    del case.registry.aliases["challenger"]
    case.rollout.follow()
    assert case.rollout.canary is None
    assert case.ask() == {"1": len(KEYS)}


def test_another_challenger_begins_anew(case: Case) -> None:
    case.challenge()
    case.ask()
    case.challenge("3")
    assert case.rollout.canary is not None
    assert (case.rollout.canary["version"], case.rollout.canary["weight"]) == ("3", 0.1)
    case.verdict()
    assert case.rollout.canary["verdict"]["decision"] == "hold"


def test_another_champion_begins_anew(case: Case) -> None:
    case.challenge()
    case.ask()
    case.now += 60
    case.verdict()
    assert case.rollout.canary is not None
    assert case.rollout.canary["weight"] == 0.5
    case.registry.aliases["champion"] = "3"
    case.rollout.follow()
    assert (case.rollout.canary["champion"], case.rollout.canary["weight"]) == ("3", 0.1)


def test_a_requested_canary_begins_anew_with_its_own_steps(case: Case) -> None:
    case.challenge()
    requested = time_of(case.now + 5)
    case.registry.tags["2"] |= {
        f"{TAG}steps": "0.2:10,0.3:10",
        f"{TAG}state": "requested",
        f"{TAG}started_at": requested,
    }
    case.rollout.follow()
    assert case.rollout.canary is not None
    assert case.rollout.canary["weight"] == 0.2
    assert case.rollout.canary["started_at"] == requested


def damaged(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    shutil.copytree(small_bundle("popularity"), folder)
    for path in (folder / "models").rglob("*.npy"):
        path.write_bytes(b"\0" * path.stat().st_size)
    return folder


def test_a_challenger_that_cannot_be_loaded_is_refused(case: Case, tmp_path: Path) -> None:
    case.registry.folders["2"] = damaged(tmp_path)
    case.challenge()
    assert case.registry.aliases == {"champion": "1"}
    assert case.registry.state("2") == "refused"
    assert case.registry.tags["2"][f"{TAG}reason"].startswith("it cannot be loaded: ")
    assert case.registry.events("2") == ["refused 0"]
    assert case.ask() == {"1": len(KEYS)}


def test_steps_that_make_no_sense_refuse_the_challenger(case: Case) -> None:
    case.registry.tags["2"][f"{TAG}steps"] = "2:2"
    case.challenge()
    assert case.registry.state("2") == "refused"
    assert "canary steps" in case.registry.tags["2"][f"{TAG}reason"]


def test_a_golden_request_with_an_unsound_answer_refuses_the_challenger(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(scorer: Scorer) -> None:
        raise InputError("the golden request has no sound answer")

    monkeypatch.setattr("encore.serving.models.check_golden", refuse)
    case.challenge()
    assert case.registry.state("2") == "refused"


def test_the_challenger_cannot_take_all_threads(case: Case) -> None:
    rollout = case.rollout = case.scorer(threads=2)
    rollout.follow()
    case.challenge()
    challenger = rollout.challenger
    assert challenger is not None

    def nested(by: Served) -> str:
        """While the challenger answers, further requests of its users are the champion's."""
        assert by is challenger
        versions = {rollout.answer(challenger, lambda _: 1, lambda _: False)[0].version for _ in range(300)}
        assert versions == {"1"}
        return "done"

    assert rollout.answer(challenger, nested, lambda _: False) == (challenger, "done")
    sample = rollout._canary.counts[1].sample() if rollout._canary else None
    assert sample is not None
    assert (sample.requests, sample.diverted, sample.answered) == (301, 300, 1)


def test_a_large_request_of_a_busy_challenger_does_not_make_it_slow(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others would have waited is counted for each playlist that it is busy with."""
    rollout = case.rollout = case.scorer(threads=2)
    rollout.follow()
    case.challenge()
    challenger, seconds = rollout.challenger, iter([0.0, *[2.0] * 300, 4.0])
    assert challenger is not None
    monkeypatch.setattr("encore.serving.rollout.time.monotonic", lambda: next(seconds))

    def nested(by: Served) -> int:
        return sum(rollout.answer(challenger, lambda _: 1, lambda _: False)[1] for _ in range(300))

    rollout.answer(challenger, nested, lambda _: False, 200)
    assert rollout._canary is not None
    assert rollout._canary.counts[1].sample().slower(0.021) == 0


def test_a_request_that_was_waiting_when_the_challenger_went_is_answered(case: Case) -> None:
    case.challenge()
    challenger = case.rollout.challenger
    assert challenger is not None
    case.ask(fail=True)
    case.verdict()
    assert case.rollout.answer(challenger, lambda _: 1, lambda _: False)[0].version == "1"


def test_verdicts_come_at_their_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread gives the first verdict an interval after the challenger began, and the bad one is off after it."""
    registry = Registry()
    rollout = Rollout(
        registry,
        Metrics(),
        steps=steps_of(STEPS),
        rule=Rule(seconds=0.3),
        poll_seconds=0.05,
    )
    registry.aliases["challenger"] = "2"
    rollout.start()
    try:
        wait(lambda: rollout.canary is not None)
        case = Case.__new__(Case)
        case.registry, case.rollout = registry, rollout
        case.ask(fail=True)
        wait(lambda: registry.state("2") == "rolled_back")
        assert rollout.canary is None
    finally:
        rollout.stop()


def wait(holds: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if holds():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen within 20 seconds")


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Expected failures are logged with their stack traces."""
    caplog.set_level("CRITICAL", "encore.serving")


def test_the_same_rows_from_both(case: Case) -> None:
    """A real request to each version."""
    case.challenge()
    asked = [Playlist([URIS[3]], "Rock")]
    for served in case.rollout.loaded():
        found, rows = case.rollout.answer(served, lambda by: by.scorer.recommend(asked, 5), lambda rows: False)
        assert found is served
        assert len(rows[0].ids) == 5


def test_over_http_a_failing_challenger_is_not_noticed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.registry.tags["2"][f"{TAG}steps"] = "0.5:0"
    case.challenge()
    assert case.rollout.challenger is not None

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    app = new_app(own=case.rollout)
    body = orjson.dumps({"tracks": [URIS[3]], "k": 5})
    user = next(key for key in KEYS if case.rollout.pick(key) is case.rollout.challenger)
    headers = {**JSON, "x-encore-user": user.decode()}
    before = ask(app, "POST", "/api/recommend", body, headers)
    assert (before.headers["x-encore-version"], before.json()["role"]) == ("2", "challenger")
    monkeypatch.setattr(case.rollout.challenger.scorer, "recommend", fail)
    for path in ("/api/recommend", "/invocations"):
        asked = body if path == "/api/recommend" else orjson.dumps({"instances": [{"tracks": [URIS[3]]}]})
        found = ask(app, "POST", path, asked, headers)
        assert (found.status, found.headers["x-encore-version"]) == (200, "1")
    canary = ask(app, "GET", "/api/models").json()["canary"]
    assert (canary["version"], canary["champion"], canary["weight"]) == ("2", "1", 0.5)
    # a request for this version has no substitute
    path = "/v2/models/popularity/versions/2/infer"
    tensor = {"name": "tracks", "datatype": "BYTES", "shape": [1], "data": [orjson.dumps([URIS[3]]).decode()]}
    assert ask(app, "POST", path, orjson.dumps({"inputs": [tensor]}), JSON).status == 500
