"""Executions that are started, followed and repeated for a range of dates, against Step Functions as moto has it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from typer.testing import CliRunner

from encore import interrupts
from encore.aws import executions
from encore.aws.executions import (
    MAX_FAILED_POLLS,
    OVERLAP,
    ExecutionFailed,
    Machine,
    backfill,
    check_raw_data,
    dates,
    machine_of,
    run,
)
from encore.cli.app import app
from encore.cli.deploy import STOP_SECONDS
from encore.errors import ConfigError, EnvironmentMissing, InputError, TransientError

REGION = "us-east-1"
ARN = f"arn:aws:states:{REGION}:{'1' * 12}:stateMachine:encore-dev"
START = datetime(2026, 1, 1, tzinfo=UTC)


def error(code: str, status: int = 400) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "x")  # type: ignore[typeddict-item]


class StepFunctions:
    """Step Functions with executions that end after two polls, as `ends` says by name: their status, and more."""

    def __init__(self, **ends: dict[str, Any]) -> None:
        self.ends = {name.replace("_", "-"): end for name, end in ends.items()}
        self.inputs: dict[str, str] = {}
        self.polls: dict[str, int] = {}
        self.stopped: list[str] = []
        self.others: list[list[str]] = []
        self.fails: list[Exception] = []

    def start_execution(self, stateMachineArn: str, name: str, input: str) -> None:
        assert stateMachineArn == ARN
        assert name not in self.inputs, "Step Functions refuses a name for 90 days"
        self.inputs[name] = input
        self.polls[name] = 0

    def describe_execution(self, executionArn: str) -> dict[str, Any]:
        if self.fails:
            raise self.fails.pop(0)
        name = executionArn.rsplit(":", 1)[1]
        assert executionArn == f"{ARN.replace('stateMachine', 'execution')}:{name}"
        if name not in self.polls:
            raise error("ExecutionDoesNotExist")
        self.polls[name] += 1
        if self.polls[name] < 2:
            return {"status": "RUNNING", "startDate": START}
        return {
            "status": "SUCCEEDED",
            "startDate": START,
            "stopDate": START + timedelta(minutes=7),
            **{key: value for key, value in self.ends.get(name, {}).items() if key != "states"},
        }

    def get_execution_history(self, executionArn: str, **request: Any) -> dict[str, Any]:
        name = executionArn.rsplit(":", 1)[1]
        states = self.ends.get(name, {}).get("states", [("ingest_playlists", ""), ("report", "")])
        events = [{"stateEnteredEventDetails": {"name": state, "input": text}} for state, text in states]
        if request["reverseOrder"]:
            events.reverse()
        # two pages
        if "nextToken" in request:
            return {"events": [{"type": "other"}, *events[1:]]}
        return {"events": events[:1], **({"nextToken": "2"} if len(events) > 1 else {})}

    def list_executions(self, **_: Any) -> dict[str, Any]:
        return {"executions": [{"name": name} for name in (self.others.pop(0) if self.others else [])]}

    def stop_execution(self, executionArn: str, **_: Any) -> None:
        self.stopped.append(executionArn.rsplit(":", 1)[1])


def machine(states: StepFunctions) -> Machine:
    return Machine("dev", ARN, states)


def nap(_: float) -> None:
    """Wait no time."""


class TestRun:
    def test_a_run_that_succeeds(self) -> None:
        states, said = StepFunctions(), list[str]()
        assert run(machine(states), "mine", {"set": ["recommend.k=9"]}, said.append, sleep=nap) == 420
        assert states.inputs == {"mine": '{"set": ["recommend.k=9"]}'}
        assert said == ["mine: started in dev", "ingest_playlists: started", "report: started"], "each job once"

    def test_the_job_that_failed_gives_the_reason_and_the_exit_code(self) -> None:
        outcome = '{"outcome": {"code": 3, "reason": "no slices", "remedy": "upload some"}, "run_id": "mine"}'
        notified = [("ingest_playlists", ""), ("ingest_playlists: notify", outcome), ("Release lock after failure", "")]
        states = StepFunctions(mine={"status": "FAILED", "error": "Encore.LineFailed", "states": notified})
        with pytest.raises(ExecutionFailed, match="ingest_playlists failed: no slices") as caught:
            run(machine(states), "mine", {}, nap_say, sleep=nap)
        assert (caught.value.exit_code, caught.value.remedy) == (3, "upload some")

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"outcome": {"code": 1}}'])
    def test_without_a_legible_outcome_the_machine_gives_the_reason(self, text: str) -> None:
        end = {"status": "FAILED", "error": "E", "cause": "because", "states": [("report: notify", text)]}
        with pytest.raises(ExecutionFailed, match="mine in dev failed: E: because") as caught:
            run(machine(StepFunctions(mine=end)), "mine", {}, nap_say, sleep=nap)
        assert caught.value.exit_code == 1

    def test_an_outcome_of_a_job_that_was_killed_is_a_failure_too(self) -> None:
        """Its code is -1, which a shell would take for 255."""
        text = '{"outcome": {"code": -1, "reason": "killed", "remedy": ""}}'
        states = StepFunctions(mine={"status": "FAILED", "states": [("report: notify", text)]})
        with pytest.raises(ExecutionFailed) as caught:
            run(machine(states), "mine", {}, nap_say, sleep=nap)
        assert (caught.value.exit_code, caught.value.remedy) == (1, None)

    def test_an_overlap_may_be_tried_again(self) -> None:
        end = {"status": "FAILED", "error": OVERLAP, "cause": "another run is in progress", "states": []}
        with pytest.raises(ExecutionFailed, match="another run is in progress") as caught:
            run(machine(StepFunctions(mine=end)), "mine", {}, nap_say, sleep=nap)
        assert caught.value.exit_code == TransientError.exit_code

    @pytest.mark.parametrize(
        ("status", "expected"), [("ABORTED", "was stopped: enough"), ("TIMED_OUT", "took longer than")]
    )
    def test_other_ends(self, status: str, expected: str) -> None:
        states = StepFunctions(mine={"status": status, "cause": "enough"})
        with pytest.raises(ExecutionFailed, match=expected):
            run(machine(states), "mine", {}, nap_say, sleep=nap)

    def test_polls_may_fail_for_a_while(self) -> None:
        states = StepFunctions()

        def throttle(_: float) -> None:
            if len(slept) < MAX_FAILED_POLLS:
                states.fails.append(error("ThrottlingException"))
            slept.append(1)

        slept: list[int] = []
        run(machine(states), "mine", {}, nap_say, sleep=throttle)
        assert len(slept) > MAX_FAILED_POLLS

    def test_polls_that_keep_failing_are_given_up(self) -> None:
        states = StepFunctions()
        states.start_execution(ARN, "mine", "{}")
        states.fails = [error("ServiceUnavailable", 503)] * (MAX_FAILED_POLLS + 2)
        with pytest.raises(TransientError):
            machine(states).follow("mine", nap_say, sleep=nap)
        assert states.stopped == [], "it may well succeed"

    def test_an_expired_login_is_reported_at_once(self) -> None:
        states = StepFunctions()
        states.start_execution(ARN, "mine", "{}")
        states.fails = [error("ExpiredTokenException")]
        with pytest.raises(EnvironmentMissing, match="expired"):
            machine(states).follow("mine", nap_say, sleep=nap)

    def test_an_interrupt_stops_the_execution(self) -> None:
        states = StepFunctions()

        def interrupt(_: float) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(machine(states), "mine", {}, nap_say, sleep=interrupt)
        assert states.stopped == ["mine"]

    def test_a_name_that_was_used_before(self) -> None:
        states = StepFunctions()
        states.start_execution(ARN, "mine", "{}")
        with pytest.raises(ConfigError, match="an execution named mine exists already"):
            run(machine(states), "mine", {}, nap_say, sleep=nap)

    @pytest.mark.parametrize("name", ["", "a b", "a/b", "a" * 81])
    def test_a_name_that_is_none(self, name: str) -> None:
        with pytest.raises(ConfigError, match="at most 80"):
            run(machine(StepFunctions()), name, {}, nap_say, sleep=nap)


def nap_say(_: str) -> None:
    """Print nothing."""


DAYS = dates("2026-01-30", "2026-02-01")


class TestBackfill:
    def test_one_execution_a_date_in_order(self) -> None:
        states, said = StepFunctions(), list[str]()
        assert backfill(machine(states), DAYS, ["recommend.k=9"], said.append, sleep=nap) == 3
        assert list(states.inputs) == [f"backfill-{day}" for day in ("2026-01-30", "2026-01-31", "2026-02-01")]
        assert states.inputs["backfill-2026-01-31"] == '{"date": "2026-01-31", "set": ["recommend.k=9"]}'
        assert said[-1] == "2026-02-01: done, by backfill-2026-02-01"

    def test_it_stops_at_the_first_failure_and_the_same_call_continues(self) -> None:
        states = StepFunctions(backfill_2026_01_31={"status": "FAILED", "error": "E", "cause": "c", "states": []})
        with pytest.raises(ExecutionFailed, match="backfill-2026-01-31"):
            backfill(machine(states), DAYS, [], nap_say, sleep=nap)
        assert list(states.inputs) == ["backfill-2026-01-30", "backfill-2026-01-31"]
        said: list[str] = []
        assert backfill(machine(states), DAYS, [], said.append, sleep=nap) == 2
        assert list(states.inputs)[2:] == ["backfill-2026-01-31-2", "backfill-2026-02-01"]
        assert said[0] == "2026-01-30: done before, by backfill-2026-01-30"
        assert backfill(machine(states), DAYS, [], nap_say, sleep=nap) == 0

    def test_dates_can_be_done_again(self) -> None:
        states = StepFunctions()
        for _ in range(2):
            assert backfill(machine(states), DAYS[:1], [], nap_say, redo=True, sleep=nap) == 1
        assert list(states.inputs) == ["backfill-2026-01-30", "backfill-2026-01-30-2"]

    def test_an_execution_that_is_running_is_followed(self) -> None:
        """As after an expired login, which ends the command but not the execution."""
        states, said = StepFunctions(), list[str]()
        states.start_execution(ARN, "backfill-2026-01-30", "{}")
        states.polls["backfill-2026-01-30"] = -2
        assert backfill(machine(states), DAYS[:1], [], said.append, sleep=nap) == 1
        assert list(states.inputs) == ["backfill-2026-01-30"]
        assert said[0] == "2026-01-30: backfill-2026-01-30 is running"

    def test_it_waits_for_other_executions(self) -> None:
        states, said = StepFunctions(), list[str]()
        states.others = [["nightly-1"], ["nightly-1"], []]
        backfill(machine(states), DAYS[:1], [], said.append, sleep=nap)
        assert said[0] == "2026-01-30: waiting for nightly-1"
        assert states.others == []

    def test_a_schedule_that_comes_first_is_waited_for(self) -> None:
        states = StepFunctions(
            backfill_2026_01_30={"status": "FAILED", "error": OVERLAP, "cause": "held", "states": []}
        )
        states.others = [[], ["nightly-1"], []]
        backfill(machine(states), DAYS[:1], [], nap_say, sleep=nap)
        assert list(states.inputs) == ["backfill-2026-01-30", "backfill-2026-01-30-2"]
        assert states.others == []

    @pytest.mark.parametrize(
        ("first", "last", "expected"),
        [
            ("2026-02-30", "2026-03-01", r"--from 2026-02-30: a date such as"),
            ("2026-01-01", "today", r"--to today: a date such as"),
            ("2026-01-02", "2026-01-01", "ends before it begins"),
        ],
    )
    def test_a_range_that_is_none(self, first: str, last: str, expected: str) -> None:
        with pytest.raises(ConfigError, match=expected):
            dates(first, last)

    def test_a_range_over_the_end_of_a_year(self) -> None:
        assert dates("2027-12-31", "2028-01-01") == [date(2027, 12, 31), date(2028, 1, 1)]

    def test_days_without_raw_data_are_named_before_anything_runs(self) -> None:
        with mock_aws():
            s3 = boto3.client("s3", region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x")
            s3.create_bucket(Bucket="raw")
            for day in ("2026-01-30", "2026-02-01"):
                s3.put_object(Bucket="raw", Key=f"playlists/date={day}/mpd.slice.0-9.json", Body=b"{}")
            check_raw_data([DAYS[0], DAYS[2]], "s3://raw/playlists", s3)
            with pytest.raises(InputError, match="no raw data for 1 of 3 days: 2026-01-31"):
                check_raw_data(DAYS, "s3://raw/playlists", s3)


class TestMachine:
    @pytest.fixture
    def outputs(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
        def give(found: dict[str, str]) -> None:
            monkeypatch.setattr(executions, "outputs_of", lambda *_: found)

        return give

    def test_it_is_found_by_the_output_of_its_stack(self, outputs: Callable[[dict[str, str]], None]) -> None:
        outputs({"StateMachineArn": ARN})
        assert machine_of("dev", lambda name: name) == Machine("dev", ARN, "stepfunctions")

    def test_a_stack_without_it(self, outputs: Callable[[dict[str, str]], None]) -> None:
        outputs({})
        with pytest.raises(InputError, match="no output StateMachineArn"):
            machine_of("dev", lambda name: name)


class TestCommand:
    @pytest.mark.parametrize(
        "arguments",
        [["run"], ["backfill", "--from", "2026-01-01", "--to", "2026-01-01"], ["smoke"]],
        ids=lambda arguments: arguments[0],
    )
    def test_ctrl_c_leaves_time_to_stop_the_execution(
        self, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
    ) -> None:
        """Otherwise the process ends after a few seconds, before Step Functions has answered."""
        states, graces = StepFunctions(), list[float]()

        def interrupt(_: float) -> None:
            graces.append(interrupts._state.grace)
            raise KeyboardInterrupt

        monkeypatch.setattr(executions, "machine_of", lambda *_: machine(states))
        monkeypatch.setattr(executions, "check_raw_data", lambda *_: None)
        monkeypatch.setattr("encore.aws.deployment.outputs_of", lambda *_: {"RawBucket": "raw"})
        monkeypatch.setattr(Machine.follow, "__kwdefaults__", {"sleep": interrupt})
        for function in (run, backfill):
            monkeypatch.setattr(function, "__kwdefaults__", {**(function.__kwdefaults__ or {}), "sleep": interrupt})
        monkeypatch.setenv("AWS_REGION", REGION)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        done = CliRunner().invoke(app, ["deploy", *arguments, "--stage", "dev"])
        assert done.exit_code == 130, done.output
        assert len(states.stopped) == 1
        assert graces == [STOP_SECONDS]
