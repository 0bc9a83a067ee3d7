"""Submissions to EMR, and everything that can go wrong with them, against boto3's stubs."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, TokenRetrievalError
from botocore.response import StreamingBody
from botocore.stub import ANY, Stubber
from rich.console import Console
from typer.testing import CliRunner

from encore.aws.deployment import STACKS, stage_settings
from encore.aws.readiness import budget_finding, scorer_findings
from encore.aws.readiness import findings as readiness_findings
from encore.aws.stage import StageError, load_stage
from encore.aws.submit import MAX_FAILED_POLLS, Clients, JobFailed, submit
from encore.cli.app import app
from encore.cli.aws import submit_job
from encore.cli.deploy import deployment_findings
from encore.config import Config, load_config
from encore.errors import ConfigError, EncoreError, EnvironmentMissing, InputError, TransientError
from encore.lake.failures import aws_error
from tests.conftest import ROOT
from tests.deploy.choices import (
    ACCOUNT,
    CERTIFICATE,
    DOMAIN,
    PIPELINE,
    SCORER_CERTIFICATE,
    SCORER_DOMAIN,
)
from tests.deploy.serving import BUNDLE
from tests.deploy.test_render import LOCATIONS

REGION = "eu-central-1"
ARN = f"arn:aws:emr-serverless:{REGION}:{'0' * 12}:/applications/00application"
ROLE = f"arn:aws:iam::{'0' * 12}:role/recommend"
TOKEN = "0123abcd"
OUTCOME = f"outcomes/recommend/run-1/{TOKEN}.json"
LOGS = [
    f"logs/recommend/run-1/applications/00application/jobs/run-id/SPARK_DRIVER/{name}.gz"
    for name in ("stderr", "stdout")
]


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dummy keys, and no other source of credentials."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "ENCORE_", "MLFLOW_TRACKING_URI")):
            monkeypatch.delenv(name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_REGION", REGION)
    # the default session keeps the keys that it found first
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


# one for all tests: it caches the service descriptions, which take seconds to load
SESSION = boto3.Session(aws_access_key_id="testing", aws_secret_access_key="testing", region_name=REGION)


@dataclass
class Stubs:
    """Stubbed clients: calls must come in the order in which their responses were added."""

    s3: Any
    emr: Any
    stubs: list[Stubber] = field(default_factory=list)

    def clients(self) -> Clients:
        return Clients(self.s3, self.emr)


@pytest.fixture
def serverless() -> Iterator[tuple[Stubs, Stubber, Stubber]]:
    yield from _stubs("emr-serverless")


@pytest.fixture
def cluster() -> Iterator[tuple[Stubs, Stubber, Stubber]]:
    yield from _stubs("emr")


def _stubs(service: str) -> Iterator[tuple[Stubs, Stubber, Stubber]]:
    made = Stubs(SESSION.client("s3"), SESSION.client(service))
    s3, emr = Stubber(made.s3), Stubber(made.emr)
    with s3, emr:
        yield made, s3, emr
        s3.assert_no_pending_responses()
        emr.assert_no_pending_responses()


def config(*more: str) -> Config:
    return load_config("emr", [*LOCATIONS, *more])


def locations_exist(s3: Stubber) -> None:
    for bucket in ("my-lake", "my-raw", "my-logs"):
        s3.add_response("head_bucket", {"BucketRegion": REGION}, {"Bucket": bucket})
    for name in ("environment.tar.gz", "manifest.json"):
        s3.add_response("head_object", {}, {"Bucket": "my-code", "Key": f"0123456789abcdef/{name}"})


def object_contains(s3: Stubber, key: str, content: bytes | None) -> None:
    expected_params = {"Bucket": "my-logs", "Key": key}
    if content is None:
        s3.add_client_error("get_object", "NoSuchKey", http_status_code=404, expected_params=expected_params)
    else:
        s3.add_response("get_object", {"Body": StreamingBody(io.BytesIO(content), len(content))}, expected_params)


def application_is(emr: Stubber, state: str = "STARTED", starts: bool = True) -> None:
    times = {"createdAt": 0, "updatedAt": 0}
    found = {"applicationId": "00application", "arn": ARN, "releaseLabel": "r", "type": "SPARK", **times}
    found |= {"state": state, "autoStartConfiguration": {"enabled": starts}}
    emr.add_response("get_application", {"application": found}, {"applicationId": "00application"})


def start_succeeds(emr: Stubber) -> None:
    anything = dict.fromkeys(
        ("applicationId", "executionRoleArn", "name", "executionTimeoutMinutes", "tags", "jobDriver"), ANY
    )
    answer = {"applicationId": "00application", "jobRunId": "run-id", "arn": ARN}
    expected_params = {**anything, "configurationOverrides": ANY, "clientToken": TOKEN}
    emr.add_response("start_job_run", answer, expected_params)


def job_run_is(emr: Stubber, state: str, details: str = "some details") -> None:
    found: dict[str, Any] = {"applicationId": "00application", "jobRunId": "run-id", "arn": ARN, "createdBy": ROLE}
    found |= {
        "createdAt": 0,
        "updatedAt": 0,
        "executionRole": ROLE,
        "releaseLabel": "r",
        "jobDriver": {"sparkSubmit": {"entryPoint": "x"}},
    }
    run = {"jobRun": {**found, "state": state, "stateDetails": details}}
    emr.add_response("get_job_run", run, {"applicationId": "00application", "jobRunId": "run-id"})


def run_submit(made: Stubs, target: str = "emr-serverless", *more: str) -> list[str]:
    messages: list[str] = []
    submit(
        "recommend",
        config(*more),
        target,
        "run-1",
        on_state=messages.append,
        clients=made.clients(),
        poll_seconds=0,
        token=TOKEN,
    )
    return messages


Stubbed = tuple[Stubs, Stubber, Stubber]


def test_a_run_is_polled_until_it_succeeds(serverless: Stubbed) -> None:
    made, s3, emr = serverless
    locations_exist(s3)
    application_is(emr)
    start_succeeds(emr)
    for state in ("SUBMITTED", "RUNNING", "RUNNING", "SUCCESS"):
        job_run_is(emr, state)
    messages = ("started", "submitted: some details", "running: some details", "success")
    assert run_submit(made) == [f"job run run-id: {message}" for message in messages]


def test_a_failed_job_is_reported_with_its_own_reason_exit_code_and_log(serverless: Stubbed) -> None:
    made, s3, emr = serverless
    locations_exist(s3)
    application_is(emr)
    start_succeeds(emr)
    job_run_is(emr, "FAILED", "Job failed. ExitCode: 3.")
    object_contains(s3, LOGS[0], gzip.compress(b"x" * 9000 + b"\nthe JVM's end"))
    object_contains(s3, LOGS[1], gzip.compress(b"x" * 9000 + b"\nthe end of it"))
    object_contains(
        s3, OUTCOME, json.dumps({"code": 3, "reason": "slice 7 is cut", "remedy": "fetch it again"}).encode()
    )
    with pytest.raises(JobFailed, match="recommend: slice 7 is cut") as caught:
        run_submit(made)
    assert (caught.value.exit_code, caught.value.remedy) == (3, "fetch it again")
    assert "the JVM's end" in caught.value.log
    assert caught.value.log.endswith("the end of it"), "Python's output is in standard output"
    assert len(caught.value.log) < 5000


@pytest.mark.parametrize(
    ("state", "details", "code", "expected"),
    [
        ("FAILED", "Worker lost.", 75, "job run run-id failed: Worker lost."),
        ("FAILED", "Job failed: executor heartbeat timed out", 75, "job run run-id failed: Job failed"),
        ("FAILED", "Job failed. ExitCode: 3. Last", 3, "job run run-id failed: Job failed"),
        ("FAILED", "Job failed. ExitCode: 137. Last", 75, "job run run-id failed: Job failed"),
        (
            "CANCELLED",
            "Job timed out: execution timeout exceeded",
            4,
            "was cancelled before it finished: Job timed out",
        ),
    ],
)
def test_a_failed_job_without_an_outcome(
    serverless: Stubbed, state: str, details: str, code: int, expected: str
) -> None:
    made, s3, emr = serverless
    locations_exist(s3)
    application_is(emr)
    start_succeeds(emr)
    job_run_is(emr, state, details)
    for log in LOGS:
        object_contains(s3, log, None)
    object_contains(s3, OUTCOME, None)
    with pytest.raises(JobFailed, match=expected) as caught:
        run_submit(made)
    assert caught.value.exit_code == code
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("state", "starts", "expected"),
    [("STOPPED", False, "stopped, and automatic start is disabled"), ("TERMINATED", True, "terminated")],
)
def test_an_application_that_accepts_no_runs(serverless: Stubbed, state: str, starts: bool, expected: str) -> None:
    made, s3, emr = serverless
    locations_exist(s3)
    application_is(emr, state, starts)
    with pytest.raises(EnvironmentMissing, match=expected) as caught:
        run_submit(made)
    assert caught.value.remedy


def test_a_stopped_application_with_automatic_start_is_accepted(serverless: Stubbed) -> None:
    made, s3, emr = serverless
    locations_exist(s3)
    application_is(emr, "STOPPED")
    start_succeeds(emr)
    job_run_is(emr, "SUCCESS")
    assert run_submit(made)[-1] == "job run run-id: success"


@pytest.mark.parametrize(
    ("code", "status", "kind", "expected"),
    [
        ("ServiceQuotaExceededException", 402, TransientError, "quota exceeded"),
        ("ThrottlingException", 429, TransientError, "ThrottlingException"),
        ("ResourceNotFoundException", 404, InputError, "00application: does not exist"),
        ("AccessDeniedException", 403, EnvironmentMissing, "access denied"),
        ("ExpiredTokenException", 403, EnvironmentMissing, "credentials have expired"),
        ("UnrecognizedClientException", 403, EnvironmentMissing, "does not know these credentials"),
    ],
)
def test_service_errors_become_a_sentence_and_a_remedy(
    serverless: Stubbed, code: str, status: int, kind: type[EncoreError], expected: str
) -> None:
    made, s3, emr = serverless
    locations_exist(s3)
    application_is(emr)
    emr.add_client_error("start_job_run", code, "a message", http_status_code=status)
    with pytest.raises(kind, match=expected) as caught:
        run_submit(made)
    assert "00application" in str(caught.value)
    assert caught.value.remedy
    assert caught.value.exit_code != 0


def test_a_bucket_that_is_missing_or_in_another_region_is_reported_before_anything_starts(serverless: Stubbed) -> None:
    made, s3, _ = serverless
    s3.add_client_error("head_bucket", "404", http_status_code=404)
    with pytest.raises(InputError, match=r"s3://my-lake/lake: the bucket my-lake: does not exist"):
        run_submit(made)
    s3.add_client_error(
        "head_bucket",
        "301",
        http_status_code=301,
        response_meta={"HTTPHeaders": {"x-amz-bucket-region": "us-west-2"}},
    )
    with pytest.raises(
        InputError, match="the bucket my-lake is in us-west-2, but jobs would run in eu-central-1"
    ) as caught:
        run_submit(made)
    assert "AWS_REGION=us-west-2" in str(caught.value.remedy)
    s3.add_response("head_bucket", {"BucketRegion": "us-west-2"})
    with pytest.raises(InputError, match="is in us-west-2"):
        run_submit(made)


def test_code_that_was_not_uploaded(serverless: Stubbed) -> None:
    made, s3, _ = serverless
    for _ in range(3):
        s3.add_response("head_bucket", {"BucketRegion": REGION})
    s3.add_client_error("head_object", "404", http_status_code=404)
    with pytest.raises(InputError, match=r"environment\.tar\.gz: there is no application archive") as got:
        run_submit(made)
    assert "make package" in str(got.value.remedy)


@pytest.mark.parametrize("target", ["emr-serverless", "emr-ec2"])
def test_ctrl_c_cancels_the_run(request: pytest.FixtureRequest, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, s3, emr = request.getfixturevalue({"emr-serverless": "serverless", "emr-ec2": "cluster"}[target])
    locations_exist(s3)
    if target == "emr-serverless":
        application_is(emr)
        start_succeeds(emr)
        job_run_is(emr, "RUNNING")
        expected_params = {"applicationId": "00application", "jobRunId": "run-id"}
        emr.add_response("cancel_job_run", expected_params, expected_params)
    else:
        cluster_is(emr)
        emr.add_response("add_job_flow_steps", {"StepIds": ["s-1"]})
        step_is(emr, "RUNNING")
        emr.add_response(
            "cancel_steps",
            {"CancelStepsInfoList": []},
            {"ClusterId": "j-CLUSTER", "StepIds": ["s-1"], "StepCancellationOption": "SEND_INTERRUPT"},
        )

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("encore.aws.submit.time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_submit(made, target)


def locations_and_a_start(s3: Stubber, emr: Stubber) -> None:
    locations_exist(s3)
    application_is(emr)
    start_succeeds(emr)


def test_ctrl_c_during_the_start_cancels_the_run(serverless: Stubbed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requested again with the same token, EMR Serverless returns the id of the run."""
    made, s3, emr = serverless
    locations_and_a_start(s3, emr)
    expected_params = {"applicationId": "00application", "jobRunId": "run-id"}
    emr.add_response("cancel_job_run", expected_params, expected_params)
    begin, calls = made.emr.start_job_run, []

    def start(**given: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return begin(**given)

    monkeypatch.setattr(made.emr, "start_job_run", start)
    with pytest.raises(KeyboardInterrupt):
        run_submit(made)
    assert calls[0] == calls[1]


def test_ctrl_c_while_a_step_is_being_added_cancels_the_step_with_its_outcome_url(
    cluster: Stubbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, s3, emr = cluster
    locations_exist(s3)
    cluster_is(emr)
    others = {"Id": "s-0", "Name": "recommend run-1", "Config": {"Args": ["--outcome", "s3://my-logs/other.json"]}}
    mine = {**others, "Id": "s-1", "Config": {"Args": ["--outcome", f"s3://my-logs/{OUTCOME}"]}}
    emr.add_response("list_steps", {"Steps": [others, mine]})
    emr.add_response(
        "cancel_steps",
        {"CancelStepsInfoList": []},
        {"ClusterId": "j-CLUSTER", "StepIds": ["s-1"], "StepCancellationOption": "SEND_INTERRUPT"},
    )

    def interrupt(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(made.emr, "add_job_flow_steps", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_submit(made, "emr-ec2")


def test_a_run_that_cannot_be_cancelled_is_reported_as_possibly_running(
    serverless: Stubbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, s3, emr = serverless
    locations_and_a_start(s3, emr)
    job_run_is(emr, "RUNNING")
    emr.add_client_error("cancel_job_run", "AccessDeniedException", "no", 403)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("encore.aws.submit.time.sleep", interrupt)
    messages: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        submit("recommend", config(), "emr-serverless", "run-1", on_state=messages.append, clients=made.clients(),
               token=TOKEN)  # fmt: skip
    assert "could not be cancelled, and may still be running" in messages[-1]


def test_a_poll_that_fails_with_a_transient_error_is_repeated(serverless: Stubbed) -> None:
    made, s3, emr = serverless
    locations_and_a_start(s3, emr)
    job_run_is(emr, "RUNNING")
    emr.add_client_error("get_job_run", "ThrottlingException", "slowly", 400)
    job_run_is(emr, "SUCCESS")
    assert "cannot be read at the moment: job run run-id: AWS returned ThrottlingException" in run_submit(made)[2]


@pytest.mark.parametrize(
    ("error", "times"), [("ThrottlingException", MAX_FAILED_POLLS + 1), ("ExpiredTokenException", 1)]
)
def test_losing_sight_of_a_run_does_not_ask_for_a_retry(serverless: Stubbed, error: str, times: int) -> None:
    made, s3, emr = serverless
    locations_and_a_start(s3, emr)
    for _ in range(times):
        emr.add_client_error("get_job_run", error, "no", 400)
    with pytest.raises(JobFailed, match=f"its state cannot be read: .*{error[:7]}|have expired") as caught:
        run_submit(made)
    assert caught.value.exit_code == 4
    assert "get-job-run --application-id 00application --job-run-id run-id" in str(caught.value.remedy)


def test_an_unreadable_outcome_is_not_taken_for_a_missing_one(serverless: Stubbed) -> None:
    made, s3, emr = serverless
    locations_and_a_start(s3, emr)
    job_run_is(emr, "FAILED", "Job failed. ExitCode: 3. Last")
    for _ in range(2):
        s3.add_client_error("get_object", "AccessDenied", "no", 403)
    with pytest.raises(JobFailed, match="its outcome cannot be read: s3://my-logs/outcomes") as caught:
        run_submit(made)
    assert caught.value.exit_code == 3
    assert "the log cannot be read" in caught.value.log


def test_truncated_logs_are_shown_and_truncated_outcomes_ignored(serverless: Stubbed) -> None:
    made, s3, emr = serverless
    locations_and_a_start(s3, emr)
    job_run_is(emr, "FAILED", "Worker lost.")
    for log in LOGS:
        object_contains(s3, log, gzip.compress(b"".join(f"{i} ".encode() for i in range(9999)))[:-4000])
    object_contains(s3, OUTCOME, b'{"code": 3, "rea')
    with pytest.raises(JobFailed, match=r"failed: Worker lost\.$") as caught:
        run_submit(made)
    assert caught.value.exit_code == 75
    assert caught.value.log


def test_a_step_that_exceeds_the_time_limit_is_cancelled(cluster: Stubbed, monkeypatch: pytest.MonkeyPatch) -> None:
    made, s3, emr = cluster
    locations_exist(s3)
    cluster_is(emr)
    emr.add_response("add_job_flow_steps", {"StepIds": ["s-1"]})
    for state in ("PENDING", "RUNNING", "RUNNING"):
        step_is(emr, state)
    emr.add_response("cancel_steps", {"CancelStepsInfoList": []})
    object_contains(s3, "cluster/j-CLUSTER/steps/s-1/stderr.gz", None)
    object_contains(s3, OUTCOME, None)
    clock = iter([0.0, 0.0, 301.0])
    monkeypatch.setattr("encore.aws.submit.time.monotonic", lambda: next(clock))
    with pytest.raises(JobFailed, match="it ran for more than 5 minutes") as caught:
        run_submit(made, "emr-ec2", "emr.minutes=5")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "setting", ["lake.path=data/lake", "raw.playlists=/slices", "raw.features=f.csv", "emr.code=c", "emr.logs=/tmp/l"]
)
def test_a_local_path_is_rejected_before_any_request(serverless: Stubbed, setting: str) -> None:
    name, _, value = setting.partition("=")
    with pytest.raises(ConfigError, match=f"{name}: emr-serverless needs an s3:// location, {value} found"):
        run_submit(serverless[0], "emr-serverless", setting)


def cluster_is(emr: Stubber, state: str = "WAITING") -> None:
    found = {"Cluster": {"Id": "j-CLUSTER", "Status": {"State": state}, "LogUri": "s3n://my-logs/cluster/"}}
    emr.add_response("describe_cluster", found, {"ClusterId": "j-CLUSTER"})


def step_is(emr: Stubber, state: str, why: str = "") -> None:
    status = {"State": state, "FailureDetails": {"Reason": why}} if why else {"State": state}
    emr.add_response("describe_step", {"Step": {"Id": "s-1", "Status": status}})


def test_a_step_is_polled_and_its_log_shown(cluster: Stubbed) -> None:
    made, s3, emr = cluster
    locations_exist(s3)
    cluster_is(emr)
    emr.add_response("add_job_flow_steps", {"StepIds": ["s-1"]})
    for state in ("PENDING", "RUNNING"):
        step_is(emr, state)
    step_is(emr, "FAILED", "Unknown Error.")
    object_contains(s3, "cluster/j-CLUSTER/steps/s-1/stderr.gz", gzip.compress(b"it went wrong"))
    object_contains(s3, OUTCOME, None)
    with pytest.raises(JobFailed, match="step s-1 failed: Unknown Error") as caught:
        run_submit(made, "emr-ec2")
    assert caught.value.log == "it went wrong"


def test_a_terminated_cluster(cluster: Stubbed) -> None:
    made, s3, emr = cluster
    locations_exist(s3)
    cluster_is(emr, "TERMINATED")
    with pytest.raises(EnvironmentMissing, match="EMR cluster j-CLUSTER: terminated"):
        run_submit(made, "emr-ec2")


@pytest.mark.parametrize(
    ("error", "kind", "expected"),
    [
        (NoCredentialsError(), EnvironmentMissing, "no AWS credentials found"),
        (TokenRetrievalError(provider="sso", error_msg="x"), EnvironmentMissing, "the login has expired"),
        (EndpointConnectionError(endpoint_url="https://x"), TransientError, "AWS does not answer"),
    ],
)
def test_errors_without_a_response(error: Any, kind: type[EncoreError], expected: str) -> None:
    found = aws_error("bucket b", error)
    assert isinstance(found, kind)
    assert expected in str(found)
    assert found.remedy


# the commands -------------------------------------------------------------------------------------------------------


def test_the_command_without_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    command = ["submit", "recommend", "--target", "emr-serverless"]
    done = CliRunner().invoke(app, [*command, *(part for place in LOCATIONS for part in ("--set", place))])
    assert done.exit_code == 4
    assert "no AWS credentials found" in done.stderr
    done = CliRunner().invoke(app, [*command, "--stage", "dev"])
    assert done.exit_code == 4
    assert "stack encore-dev-storage: no AWS credentials found" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["submit", "nothing"], 2, "no job 'nothing'; one of: ingest_playlists"),
        (["submit", "recommend", "--target", "moon"], 2, "one of local, emr-serverless, emr-ec2 expected"),
        (["submit", "recommend", "--stage", "dev"], 2, "a local run has no deployment"),
        (["submit", "recommend", "--target", "emr-ec2", "--stage", "prd"], 2, "no stage 'prd'; one of: dev"),
        (["deploy", "doctor", "--stage", "prd"], 2, "no stage 'prd'; one of: dev, staging, prod"),
        (["deploy", "doctor", "-c", "max_vcpu=many"], 2, "max_vcpu=many: a whole number expected"),
        (["deploy", "doctor", "-c", "stage=prod"], 2, "-c stage=prod: a choice as name=value expected"),
        (["deploy", "doctor", "-c", "domain"], 2, "-c domain: a choice as name=value expected"),
    ],
)
def test_invalid_arguments(arguments: list[str], code: int, expected: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code
    assert expected in done.stderr


def test_stack_outputs_become_settings_and_given_settings_take_precedence(capsys: pytest.CaptureFixture[str]) -> None:
    formation = SESSION.client("cloudformation")
    made = {
        "storage": {"LakePath": "s3://made-lake/lake", "RawBucket": "made-raw", "LogBucket": "made-logs"},
        "mlflow": {"TrackingLogin": "arn:secret"},
        "compute": {"ApplicationId": "00made", "CodePath": "s3://made-code/v1", "RoleOfRecommend": "arn:role"},
    }
    with Stubber(formation) as stub:
        for name, outputs in made.items():
            described = {"StackName": name, "CreationTime": 0, "StackStatus": "CREATE_COMPLETE"}
            listed = [{"OutputKey": key, "OutputValue": value} for key, value in outputs.items()]
            answer = {"Stacks": [{**described, "Outputs": listed}]}
            stub.add_response("describe_stacks", answer, {"StackName": f"encore-dev-{name}"})
        out = Console(width=500)
        submit_job(
            "recommend",
            "emr-serverless",
            stage="dev",
            env="emr",
            settings=["recommend.k=7", "raw.features=s3://mine/"],
            run_id="run-1",
            force=False,
            dry_run=True,
            out=out,
            err=out,
            clients=lambda _: formation,
        )
    parameters = json.loads(capsys.readouterr().out)
    assert (parameters["applicationId"], parameters["executionRoleArn"]) == ("00made", "arn:role")
    arguments = parameters["jobDriver"]["sparkSubmit"]["entryPointArguments"]
    sent = json.loads(arguments[arguments.index("--set-json") + 1])
    expected = {'lake.path="s3://made-lake/lake"', 'raw.features="s3://mine/"', "recommend.k=7"}
    expected |= {f's3.region="{REGION}"'}
    assert expected | {'tracking.login="arn:secret"'} <= set(sent)


def test_a_stage_that_is_not_deployed_in_this_region() -> None:
    formation = SESSION.client("cloudformation")
    with Stubber(formation) as stub:
        stub.add_client_error("describe_stacks", "ValidationError", "Stack encore-dev-storage does not exist", 400)
        with pytest.raises(InputError, match="stack encore-dev-storage: does not exist in eu-central-1") as caught:
            stage_settings("dev", "recommend", lambda _: formation)
    assert "make deploy STAGE=dev" in str(caught.value.remedy)


def test_a_stage_whose_deployment_failed_lacks_an_output() -> None:
    formation = SESSION.client("cloudformation")
    with Stubber(formation) as stub:
        for name in STACKS:
            described = {"StackName": name, "CreationTime": 0, "StackStatus": "ROLLBACK_COMPLETE"}
            stub.add_response("describe_stacks", {"Stacks": [described]})
        with pytest.raises(InputError, match="stage dev: none of its stacks has the output LakePath"):
            stage_settings("dev", "recommend", lambda _: formation)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"AWS_SECRET_ACCESS_KEY": None}, "AWS credentials: Partial credentials"),
        ({"AWS_PROFILE": "nobody"}, "AWS credentials: The config profile"),
        ({"AWS_CONFIG_FILE": "broken"}, "Unable to parse config file"),
    ],
)
def test_invalid_aws_settings_are_a_one_line_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str | None], expected: str
) -> None:
    (tmp_path / "broken").write_text("[default\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("ENCORE_CONF_DIR", str(ROOT / "conf"))
    for name, value in variables.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    command = ["submit", "recommend", "--target", "emr-serverless"]
    done = CliRunner().invoke(app, [*command, *(part for place in LOCATIONS for part in ("--set", place))])
    assert done.exit_code == 4, done.output
    assert expected in done.stderr


def test_an_invalid_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["submit", "recommend", "--target", "emr-serverless", "--set", "s3.endpoint=nonsense"]
    done = CliRunner().invoke(app, [*command, *(part for place in LOCATIONS for part in ("--set", place))])
    assert done.exit_code == 2, done.output
    assert "s3.endpoint: an address such as https://host:port expected, 'nonsense' found" in done.stderr


@pytest.mark.parametrize(("script", "code"), [("exit 3", 3), ("kill -9 $$", 137)])
def test_a_local_submission_ends_with_the_exit_code_of_the_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, code: int
) -> None:
    """Also from another folder, and if spark-submit is next to the interpreter but not on the PATH."""
    program = tmp_path / "spark-submit"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/given\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["submit", "recommend"])
    assert done.exit_code == code, done.output
    assert str(ROOT / "jobs" / "recommend.py") in (tmp_path / "given").read_text()


OWN_ACCOUNT = "210987654321"
OWN = tuple(
    choice.replace(ACCOUNT, OWN_ACCOUNT)
    for choice in ("domain=music.encore.dev", f"certificate={CERTIFICATE}", *PIPELINE)
)
"""A domain and a pipeline without a placeholder."""


class TestDeployDoctor:
    @pytest.fixture(autouse=True)
    def docker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CDK_DOCKER", "sh")

    def test_without_docker(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CDK_DOCKER", "no-such-program")
        found = {one.what: one for one in self.findings(tmp_path)}
        assert found["Docker"].fact == "no-such-program is not on the PATH"
        assert found["Docker"].remedy

    def test_denied_access_is_not_reported_as_missing(self, tmp_path: Path) -> None:
        found = {one.what: one for one in self.findings(tmp_path, refused=True)}
        assert "access denied (AccessDenied)" in found["CDK bootstrap"].fact
        assert "bootstrap" not in str(found["CDK bootstrap"].remedy)
        assert "access denied" in found["certificate"].fact
        assert "access denied" in found["EMR Serverless application"].fact

    def test_a_failed_bootstrap(self, tmp_path: Path) -> None:
        found = {one.what: one for one in self.findings(tmp_path, bootstrap="ROLLBACK_COMPLETE")}
        assert found["CDK bootstrap"].fact == "the stack CDKToolkit is ROLLBACK_COMPLETE"
        assert found["CDK bootstrap"].remedy

    def test_a_running_application_accepts_no_changes(self, tmp_path: Path) -> None:
        found = {one.what: one for one in self.findings(tmp_path, state="STARTED")}
        assert found["EMR Serverless application"].fact == "00application is started"
        assert "encore deploy stop --stage dev" in str(found["EMR Serverless application"].remedy)
        assert found["EMR Serverless application"].warning

    def test_an_archive_with_a_truncated_manifest(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_REGION")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        (tmp_path / "manifest.json").write_text('{"version"')
        assert "not valid JSON" in next(iter(deployment_findings("dev", [], tmp_path))).fact

    def test_without_an_archive_and_a_region(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_REGION")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        found = list(deployment_findings("dev", [], tmp_path))
        assert [one.what for one in found] == ["application archive", "AWS region"]
        assert all(one.remedy for one in found)

    def test_an_unknown_stage(self, tmp_path: Path) -> None:
        with pytest.raises(StageError):
            list(deployment_findings("prd", [], tmp_path))

    def test_an_account_that_is_ready(self, tmp_path: Path) -> None:
        found = {one.what: one for one in self.findings(tmp_path)}
        assert [one for one in found.values() if one.remedy] == []
        assert found["AWS account"].fact == f"{OWN_ACCOUNT}, as user/me"
        assert found["application archive"].fact == "version v1 of commit 0123456789ab"
        assert found["certificate"].fact == "issued, for *.music.encore.dev"
        assert found["git connection"].fact == "git (GitHub), available"

    def test_a_stage_without_a_domain_and_a_pipeline_is_ready_too(self, tmp_path: Path) -> None:
        found = {one.what: one for one in self.findings(tmp_path, choices=())}
        assert [one for one in found.values() if one.remedy] == []
        assert found["certificate"].fact.startswith("none: MLflow speaks HTTP inside the VPC")
        assert found["delivery pipeline"].fact.startswith("none")
        assert "git connection" not in found

    @pytest.mark.parametrize(
        ("choices", "what", "fact"),
        [
            (DOMAIN, "domain", "music.example.com is a placeholder"),
            (("domain=encore.internal", DOMAIN[1]), "domain", "encore.internal is a placeholder"),
            (DOMAIN, "certificate", "111122223333 is a placeholder of an account"),
            (SCORER_DOMAIN, "serving_domain", "playlists.example.com is a placeholder"),
            (SCORER_DOMAIN, "serving_certificate", "111122223333 is a placeholder of an account"),
            (PIPELINE, "connection", "111122223333 is a placeholder of an account"),
            (("account=123456789012", f"region={REGION}"), "account", "123456789012 is a placeholder of an account"),
            (("analysts=arn:aws:iam::444455556666:role/analysts",), "analysts", "444455556666 is a placeholder of an"),
        ],
    )
    def test_each_placeholder_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choices: tuple[str, ...], what: str, fact: str
    ) -> None:
        """Without credentials already, since no account makes them right."""
        monkeypatch.delenv("AWS_REGION")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        found = {one.what: one for one in deployment_findings("dev", choices, tmp_path)}
        refused = found[f"choice {what}"]
        assert refused.fact.startswith(fact)
        assert refused.remedy
        assert not refused.warning

    def test_a_certificate_of_another_region(self, tmp_path: Path) -> None:
        elsewhere = OWN[1].replace(REGION, "us-east-1")
        found = {one.what: one for one in self.findings(tmp_path, choices=(OWN[0], elsewhere))}
        assert f"us-east-1:{OWN_ACCOUNT}" in found["certificate"].fact
        assert f"is not of {REGION} and account {OWN_ACCOUNT}" in found["certificate"].fact
        assert f"in ACM in {REGION}" in str(found["certificate"].remedy)

    def test_a_certificate_of_a_private_authority(self, tmp_path: Path) -> None:
        found = {one.what: one for one in self.findings(tmp_path, authority="PRIVATE")}
        assert found["certificate"].warning
        assert "REQUESTS_CA_BUNDLE" in str(found["certificate"].remedy)

    def test_a_connection_that_nobody_has_authorised(self, tmp_path: Path) -> None:
        """As the command line and CloudFormation create one."""
        found = {one.what: one for one in self.findings(tmp_path, connection="PENDING")}
        assert found["git connection"].fact == "git (GitHub), pending"
        assert "authorise" in str(found["git connection"].remedy)
        assert not found["git connection"].warning

    def test_every_shortcoming_has_a_remedy(self, tmp_path: Path) -> None:
        found = {one.what: one for one in self.findings(tmp_path, certificate="PENDING_VALIDATION", quota=16)}
        assert found["certificate"].remedy
        assert not found["certificate"].warning
        assert "16 vCPUs in the account, the stage may use 32" in found["vCPU quota"].fact
        assert found["vCPU quota"].warning

    def test_a_scorer_that_is_ready(self) -> None:
        found = {one.what: one for one in self.scorer(f"serving_bundle={BUNDLE}")}
        assert [one for one in found.values() if one.remedy] == []
        assert found["scorer image"].fact == "encore-scorer:1.0, 40 MB"
        assert found["scorer certificate"].fact == "issued, for *.example.com"
        assert found["scorer bundle"].fact.endswith(f"artefacts-{ACCOUNT}-{REGION}/{BUNDLE}/manifest.json, 1,234 bytes")

    def test_a_champion_has_to_be_registered_first(self) -> None:
        found = {one.what: one for one in self.scorer()}
        assert found["scorer model"].fact.startswith("the champion of encore-ranker; register one first")

    def test_every_shortcoming_of_the_scorer_has_a_remedy(self) -> None:
        found = {one.what: one for one in self.scorer(f"serving_bundle={BUNDLE}", missing=True)}
        assert found["scorer image"].fact == "encore-scorer:1.0 not found"
        assert "push it to the repository encore-scorer" in str(found["scorer image"].remedy)
        assert found["scorer certificate"].fact.endswith("does not exist")
        assert "for playlists.example.com in ACM in" in str(found["scorer certificate"].remedy)
        assert "set serving_certificate" in str(found["scorer certificate"].remedy)
        assert "does not exist" in str(found["scorer bundle"].remedy)
        assert not any(found[f"scorer {name}"].warning for name in ("image", "certificate", "bundle"))

    def test_a_tag_that_may_be_moved_is_a_warning(self) -> None:
        found = {one.what: one for one in self.scorer(mutability="MUTABLE")}
        assert found["scorer image"].warning
        assert "immutable" in str(found["scorer image"].remedy)

    @pytest.mark.parametrize(
        ("tags", "expected"),
        [
            ([{"Status": "Active"}], None),
            ([{"Status": "Inactive"}], "not activated: the budget would count nothing"),
            ([], "not activated: the budget would count nothing"),
            (None, "unknown whether the tag encore:stage is activated: access denied"),
        ],
    )
    def test_a_budget_counts_nothing_before_its_tag_is_activated(self, tags: Any, expected: str | None) -> None:
        client = SESSION.client("ce")
        with Stubber(client) as stub:
            if tags is None:
                stub.add_client_error("list_cost_allocation_tags", "AccessDeniedException", "no", 400)
            else:
                listed = [{"TagKey": "encore:stage", "Type": "UserDefined", **one} for one in tags]
                stub.add_response(
                    "list_cost_allocation_tags",
                    {"CostAllocationTags": listed},
                    {"TagKeys": ["encore:stage"], "Type": "UserDefined"},
                )
            found = budget_finding({"ce": client}.__getitem__)
        assert (found.remedy is None) == (expected is None)
        assert expected is None or (expected in found.fact and found.warning)

    def scorer(self, *choices: str, missing: bool = False, mutability: str = "IMMUTABLE") -> list[Any]:
        """The findings with a public scorer; `missing`: nothing that it needs exists."""
        made = {name: SESSION.client(name) for name in ("ecr", "acm", "s3")}
        stubs = {name: Stubber(client) for name, client in made.items()}
        bundle = {"Bucket": f"encore-dev-artefacts-{ACCOUNT}-{REGION}", "Key": f"{BUNDLE}/manifest.json"}
        if missing:
            stubs["ecr"].add_client_error("describe_images", "ImageNotFoundException", "no", 400)
            stubs["acm"].add_client_error("describe_certificate", "ResourceNotFoundException", "no", 400)
            stubs["s3"].add_client_error("head_object", "404", "no", 404)
        else:
            stubs["ecr"].add_response(
                "describe_images",
                {"imageDetails": [{"imageSizeInBytes": 40_000_000}]},
                {"repositoryName": "encore-scorer", "imageIds": [{"imageTag": "1.0"}]},
            )
            stubs["ecr"].add_response("describe_repositories", {"repositories": [{"imageTagMutability": mutability}]})
            about = {"DomainName": "*.example.com", "Status": "ISSUED"}
            arn = {"CertificateArn": SCORER_CERTIFICATE}
            stubs["acm"].add_response("describe_certificate", {"Certificate": about}, arn)
            stubs["s3"].add_response("head_object", {"ContentLength": 1234}, bundle)
        for stub in stubs.values():
            stub.activate()
        given = (*choices, "serving=fargate", "serving_image=encore-scorer:1.0", "serving_access=public")
        context = dict(choice.split("=", 1) for choice in (*given, *SCORER_DOMAIN))
        stage = load_stage({"stage": "dev", **context})
        return list(scorer_findings(stage, lambda name: made[name], ACCOUNT, REGION))

    def key_is(self, stub: Stubber, *, exists: bool) -> None:
        """Whether the stack with the stage's key exists."""
        if exists:
            found = {"StackName": "encore-dev-key", "CreationTime": 0, "StackStatus": "CREATE_COMPLETE"}
            stub.add_response("describe_stacks", {"Stacks": [found]})
        else:
            stub.add_client_error("describe_stacks", "ValidationError", "Stack with id x does not exist", 400)

    def test_a_key_cannot_be_taken_back_from_what_it_has_encrypted(self, tmp_path: Path) -> None:
        found = {one.what: one for one in self.findings(tmp_path, key=True)}
        assert found["encryption"].remedy == "set customer_key=true"
        kept = {one.what: one for one in self.findings(tmp_path, key=True, choices=(*OWN, "customer_key=true"))}
        assert kept["encryption"].remedy is None

    def test_a_database_is_not_replaced_to_encrypt_it_with_a_key(self, tmp_path: Path) -> None:
        """What answers for the application's stack here is asked for the database's stack first."""
        found = {one.what: one for one in self.findings(tmp_path, choices=(*OWN, "customer_key=true"))}
        assert "replace the database of encore-dev-mlflow" in found["encryption"].fact
        assert "before" in str(found["encryption"].remedy)

    def test_the_region_of_the_copy_is_bootstrapped_too(self, tmp_path: Path) -> None:
        class Nothing:
            def describe_stacks(self, StackName: str) -> Any:
                error = {"Code": "ValidationError", "Message": f"Stack with id {StackName} does not exist"}
                raise ClientError({"Error": error}, "DescribeStacks")  # type: ignore[typeddict-item]

        asked: list[str] = []

        def elsewhere(region: str) -> Any:
            asked.append(region)
            return lambda _: Nothing()

        (tmp_path / "manifest.json").write_text(json.dumps({"version": "v1", "commit": "0123456789abcdef"}))
        sts = Mock()
        sts.get_caller_identity.return_value = {"Account": OWN_ACCOUNT, "Arn": "arn:aws:iam::A:user/me"}
        stage = load_stage({"stage": "dev", "replica_region": "eu-west-1"})
        what = "CDK bootstrap in eu-west-1"
        checked = readiness_findings(
            stage, tmp_path, lambda name: sts if name == "sts" else Nothing(), REGION, elsewhere
        )
        found = next(one for one in checked if one.what == what)
        assert asked == ["eu-west-1"]
        assert f"bootstrap aws://{OWN_ACCOUNT}/eu-west-1" in str(found.remedy)

    def findings(
        self,
        folder: Path,
        certificate: str = "ISSUED",
        quota: int = 100,
        bootstrap: str = "CREATE_COMPLETE",
        state: str = "STOPPED",
        refused: bool = False,
        authority: str = "AMAZON_ISSUED",
        connection: str = "AVAILABLE",
        choices: tuple[str, ...] = OWN,
        key: bool = False,
    ) -> list[Any]:
        (folder / "manifest.json").write_text(json.dumps({"version": "v1", "commit": "0123456789abcdef"}))
        services = ("sts", "cloudformation", "codeconnections", "acm", "service-quotas", "emr", "emr-serverless")
        made = {name: SESSION.client(name) for name in services}
        stubs = {name: Stubber(client) for name, client in made.items()}
        stubs["sts"].add_response("get_caller_identity", {"Account": OWN_ACCOUNT, "Arn": "arn:aws:iam::A:user/me"})
        stack = {"StackName": "CDKToolkit", "CreationTime": 0, "StackStatus": bootstrap}
        made_before = {"StackName": "encore-dev-compute", "CreationTime": 0, "StackStatus": "CREATE_COMPLETE"}
        made_before["Outputs"] = [{"OutputKey": "ApplicationId", "OutputValue": "00application"}]
        for number, one in enumerate((stack, made_before)):
            if number == 1:
                self.key_is(stubs["cloudformation"], exists=key)
            if refused:
                stubs["cloudformation"].add_client_error("describe_stacks", "AccessDenied", "no", 403)
            else:
                stubs["cloudformation"].add_response("describe_stacks", {"Stacks": [one]})
        application_is(stubs["emr-serverless"], state)
        about = {"DomainName": "*.music.encore.dev", "Status": certificate, "Type": authority}
        git = {"ConnectionName": "git", "ProviderType": "GitHub", "ConnectionStatus": connection}
        if refused:
            stubs["acm"].add_client_error("describe_certificate", "AccessDeniedException", "no", 403)
            stubs["codeconnections"].add_client_error("get_connection", "AccessDeniedException", "no", 403)
        else:
            stubs["acm"].add_response("describe_certificate", {"Certificate": about})
            stubs["codeconnections"].add_response("get_connection", {"Connection": git})
        stubs["service-quotas"].add_response("get_service_quota", {"Quota": {"Value": quota}})
        stubs["emr"].add_response("list_release_labels", {"ReleaseLabels": ["emr-spark-8.1.0"]})
        for stub in stubs.values():
            stub.activate()
        return list(deployment_findings("dev", choices, folder, clients=lambda name: made[name]))
