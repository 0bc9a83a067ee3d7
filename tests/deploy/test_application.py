"""The application is stopped before it is changed or deleted, and nothing that runs is lost without being asked for."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
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


def planned(*arguments: str) -> list[str]:
    """The commands that make would run, without those of its other targets."""
    command = ["make", "-n", "--no-print-directory", "-o", "setup", "PACKAGED=yes", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [line.split("/encore ")[1] if "/encore deploy" in line else "cdk" for line in done.stdout.splitlines()
            if "/encore deploy" in line or "aws-cdk@" in line]  # fmt: skip


def test_make_stops_the_application_before_it_is_changed_and_checks_it_after() -> None:
    stopped, checked = "deploy stop --stage prod", "deploy smoke --stage prod"
    assert [line.strip() for line in planned("deploy", "STAGE=prod")] == [stopped, "cdk", checked]
    assert [line.strip() for line in planned("deploy", "STAGE=prod", "STACKS=encore-prod-*")] == [
        stopped,
        "cdk",
        checked,
    ]
    assert [line.strip() for line in planned("deploy", "STAGE=prod", "STACKS=encore-prod-compute")] == [stopped, "cdk"]
    assert planned("deploy", "STACKS=encore-delivery") == ["cdk"], "it has no application"
    assert [line.strip() for line in planned("cdk", "STAGE=prod", "ARGS=destroy 'encore-prod-*'")] == [stopped, "cdk"]
    assert planned("cdk", "STAGE=prod", "CANCEL=yes", "ARGS=destroy --all") == [f"{stopped} --cancel", "cdk"]
    assert planned("cdk", "ARGS=diff") == ["cdk"]
