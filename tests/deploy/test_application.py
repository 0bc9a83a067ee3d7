"""The application is stopped before it is changed or deleted, and nothing that runs is lost without being asked for."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from encore.aws.application import LONGEST_SECONDS, POLL_SECONDS, stop
from encore.errors import EnvironmentMissing, TransientError
from tests.conftest import ROOT
from tests.deploy.test_executions import ARN, StepFunctions, error

ID = "00application"


class Formation:
    """CloudFormation with some stacks, by the part of the name that the stage has not."""

    meta = type("Meta", (), {"region_name": "us-east-1"})

    def __init__(self, *stacks: str) -> None:
        self.stacks = stacks

    def describe_stacks(self, StackName: str) -> dict[str, Any]:
        outputs = {"compute": {"ApplicationId": ID}, "orchestration": {"StateMachineArn": ARN}}
        name = StackName.removeprefix("encore-dev-")
        if name not in self.stacks:
            raise error("ValidationError", 404)
        return {"Stacks": [{"Outputs": [{"OutputKey": k, "OutputValue": v} for k, v in outputs[name].items()]}]}


class Emr:
    """EMR Serverless: refuses to stop an application whose job runs have not ended, and takes a while to do it."""

    def __init__(self, state: str = "STARTED", **runs: str) -> None:
        self.state, self.runs = state, runs
        self.polls = 0
        self.cancelled: list[str] = []
        self.slow = False

    def get_paginator(self, name: str) -> Emr:
        assert name == "list_job_runs"
        return self

    def paginate(self, applicationId: str, states: list[str]) -> list[dict[str, Any]]:
        assert applicationId == ID
        found = [{"jobRuns": [{"id": name, "state": state}]} for name, state in self.runs.items() if state in states]
        if not self.slow:
            self.runs = {name: "CANCELLED" if state == "CANCELLING" else state for name, state in self.runs.items()}
        return found

    def cancel_job_run(self, applicationId: str, jobRunId: str) -> None:
        self.cancelled.append(jobRunId)
        self.runs[jobRunId] = "CANCELLING"

    def get_application(self, applicationId: str) -> dict[str, Any]:
        self.polls += 1
        if self.state in ("STARTING", "STOPPING") and self.polls % 2 == 0 and not self.slow:
            self.state = {"STARTING": "STARTED", "STOPPING": "STOPPED"}[self.state]
        return {"application": {"state": self.state}}

    def stop_application(self, applicationId: str) -> None:
        if {"RUNNING", "CANCELLING", "QUEUED"} & set(self.runs.values()):
            raise ClientError({"Error": {"Code": "ConflictException", "Message": "runs"}}, "StopApplication")
        self.state = "STOPPING"


def account(emr: Emr, *stacks: str, states: StepFunctions | None = None) -> Callable[[str], Any]:
    made = {
        "cloudformation": Formation(*(stacks or ("compute", "orchestration"))),
        "emr-serverless": emr,
        "stepfunctions": states or StepFunctions(),
    }
    return lambda service: made[service]


class Clock:
    """Sleeps at once, and counts."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, seconds: float) -> None:
        self.seconds += seconds
        assert self.seconds <= 2 * LONGEST_SECONDS


@pytest.mark.parametrize("state", ["CREATED", "STARTING", "STARTED", "STOPPING", "STOPPED"])
def test_it_is_stopped_whatever_it_was_doing(state: str) -> None:
    emr = Emr(state, done="SUCCESS", gone="CANCELLED")
    assert stop("dev", account(emr), print, sleep=Clock()) == ID
    assert emr.state == ("CREATED" if state == "CREATED" else "STOPPED")
    assert emr.cancelled == []


@pytest.mark.parametrize("stacks", [("storage",), ("orchestration",)])
def test_before_the_first_deployment_there_is_nothing_to_stop(stacks: tuple[str, ...]) -> None:
    assert stop("dev", account(Emr(), *stacks), print, sleep=Clock()) is None


@pytest.mark.parametrize("state", ["RUNNING", "QUEUED", "SUBMITTED"])
def test_a_job_run_in_progress_is_not_lost(state: str) -> None:
    emr = Emr(mine=state)
    with pytest.raises(TransientError, match=rf"dev: 1 job run\(s\) in progress: mine \({state.lower()}\)") as caught:
        stop("dev", account(emr), print, sleep=Clock())
    assert "--cancel" in str(caught.value.remedy)
    assert (emr.state, emr.cancelled) == ("STARTED", [])


def test_an_execution_between_two_jobs_would_start_it_again() -> None:
    states, emr = StepFunctions(), Emr()
    states.others = [["nightly-1"]]
    with pytest.raises(TransientError, match=r"1 execution\(s\) in progress: nightly-1"):
        stop("dev", account(emr, states=states), print, sleep=Clock())
    assert emr.state == "STARTED"
    states.others = [["nightly-1"]]
    assert stop("dev", account(emr, states=states), print, cancel=True, sleep=Clock()) == ID
    assert states.stopped == ["nightly-1"]
    assert emr.state == "STOPPED"


def test_cancelling_waits_until_the_runs_have_ended() -> None:
    emr, said = Emr(one="RUNNING", two="QUEUED", three="CANCELLING"), list[str]()
    assert stop("dev", account(emr, "compute"), said.append, cancel=True, sleep=Clock()) == ID
    assert emr.cancelled == ["one", "two"]
    assert emr.state == "STOPPED"
    assert said == ["job run one: cancelled", "job run two: cancelled", f"application {ID}: stopping"]


@pytest.mark.parametrize(("emr", "expected"), [(Emr("STOPPING"), "still stopping"), (Emr(a="RUNNING"), "have not")])
def test_what_takes_too_long_is_given_up(emr: Emr, expected: str) -> None:
    emr.slow = True
    clock = Clock()
    with pytest.raises(TransientError, match=f"{expected}.* 15 minutes"):
        stop("dev", account(emr), print, cancel=True, sleep=clock)
    assert LONGEST_SECONDS <= clock.seconds <= LONGEST_SECONDS + POLL_SECONDS


def test_an_error_that_is_not_about_a_missing_stack_is_raised() -> None:
    clients = account(Emr())

    class Refuses(Formation):
        def describe_stacks(self, StackName: str) -> dict[str, Any]:
            raise error("AccessDenied", 403)

    with pytest.raises(EnvironmentMissing, match="access denied"):
        stop("dev", lambda name: Refuses() if name == "cloudformation" else clients(name), print, sleep=Clock())


class Make:
    """The Makefile with `encore` and the CDK replaced: each call is recorded, and `encore` ends as `codes` say."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._calls = folder, folder / "calls"

    def __call__(self, *arguments: str, **codes: int) -> list[str]:
        """The calls, in order; what fails ends them."""
        self._calls.write_text("")
        ends = "".join(f'[ "$2" = {name} ] && exit {code}\n' for name, code in codes.items())
        (self._folder / "encore").write_text(
            f'#!/bin/sh\necho "${{AWS_PROFILE:+[$AWS_PROFILE] }}$*" >> {self._calls}\n{ends}exit 0\n'
        )
        (self._folder / "encore").chmod(0o755)
        subprocess.run(
            ["make", "--no-print-directory", "-o", "setup", f"BIN={self._folder}", f"CDK=echo cdk >> {self._calls}; #",
             "PACKAGED=yes", "STAGE=prod", *arguments],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return [line.strip() for line in self._calls.read_text().splitlines()]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    for name in ("AWS_PROFILE", "MAKEFLAGS", "RUN_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    return Make(tmp_path)


STOPPED, CHECKED = "deploy stop --stage prod", "deploy smoke --stage prod"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["deploy"], [STOPPED, "cdk", CHECKED]),
        (["deploy", "STACKS=encore-prod-*", "CANCEL=yes"], [f"{STOPPED} --cancel", "cdk", CHECKED]),
        (["deploy", "STACKS=encore-prod-compute"], [STOPPED, "cdk"]),
        (["deploy", "STACKS=encore-delivery"], ["cdk"]),
        (["deploy", "RUN_PROFILE=run"], [f"[run] {STOPPED}", "cdk", f"[run] {CHECKED}"]),
        (["cdk", "ARGS=destroy 'encore-prod-*'"], [STOPPED, "cdk"]),
        (["cdk", "ARGS=destroy --all", "CANCEL=yes"], [f"{STOPPED} --cancel", "cdk"]),
        (["cdk", "ARGS=diff"], ["cdk"]),
    ],
)
def test_make_stops_the_application_before_it_is_changed_and_checks_it_after(
    make: Make, arguments: list[str], expected: list[str]
) -> None:
    assert make(*arguments) == expected


def test_make_changes_nothing_while_something_is_in_progress(make: Make) -> None:
    assert make("deploy", stop=75) == [STOPPED]
    assert make("deploy", "RUN_PROFILE=run", stop=75) == [f"[run] {STOPPED}"]
    assert make("cdk", "ARGS=destroy --all", stop=75) == [STOPPED]
    assert make("deploy", stop=4) == [STOPPED], "the caller's own credentials have to do"


def test_the_role_that_stops_is_made_by_the_first_deployment(make: Make) -> None:
    assert make("deploy", "RUN_PROFILE=run", stop=4) == [f"[run] {STOPPED}", "cdk", f"[run] {CHECKED}"]
