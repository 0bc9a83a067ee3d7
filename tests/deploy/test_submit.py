"""A submission that is followed to its end, and all that can be wrong with one, against boto3's own stubs."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError, TokenRetrievalError
from botocore.response import StreamingBody
from botocore.stub import Stubber
from rich.console import Console
from typer.testing import CliRunner

from encore.aws.account import aws_error
from encore.aws.command import deployment_findings, submit_job
from encore.aws.deployment import settings_of
from encore.aws.stage import UnknownStage
from encore.aws.submit import Clients, JobFailed, submit
from encore.cli import app
from encore.config import Config, load_config
from encore.errors import EncoreError, EnvironmentMissing, InputError, PassingFailure
from tests.deploy.test_render import PLACES

REGION = "eu-central-1"
ARN = f"arn:aws:emr-serverless:{REGION}:{'0' * 12}:/applications/00application"
ROLE = f"arn:aws:iam::{'0' * 12}:role/recommend"
OUTCOME = "outcomes/recommend/run-1/1.json"
LOGS = [
    f"logs/recommend/run-1/applications/00application/jobs/run-id/SPARK_DRIVER/{name}.gz"
    for name in ("stderr", "stdout")
]


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch, logging_as_before: None) -> None:
    """Keys of no account, and no way to one."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "ENCORE_", "MLFLOW_TRACKING_URI")):
            monkeypatch.delenv(name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_REGION", REGION)
    # it keeps the keys that it found first
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


# one for all tests: it keeps the descriptions of services, which take seconds to read
SESSION = boto3.Session(aws_access_key_id="testing", aws_secret_access_key="testing", region_name=REGION)


@dataclass
class Stubs:
    """Stubbed clients: calls are answered in the order in which they are told."""

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
    return load_config("emr", [*PLACES, *more])


def places_are_there(s3: Stubber) -> None:
    for bucket in ("my-lake", "my-raw", "my-logs"):
        s3.add_response("head_bucket", {"BucketRegion": REGION}, {"Bucket": bucket})
    for name in ("environment.tar.gz", "manifest.json"):
        s3.add_response("head_object", {}, {"Bucket": "my-code", "Key": f"0123456789abcdef/{name}"})


def has(s3: Stubber, key: str, content: bytes | None) -> None:
    asked = {"Bucket": "my-logs", "Key": key}
    if content is None:
        s3.add_client_error("get_object", "NoSuchKey", http_status_code=404, expected_params=asked)
    else:
        s3.add_response("get_object", {"Body": StreamingBody(io.BytesIO(content), len(content))}, asked)


def application(emr: Stubber, state: str = "STARTED", starts: bool = True) -> None:
    times = {"createdAt": 0, "updatedAt": 0}
    found = {"applicationId": "00application", "arn": ARN, "releaseLabel": "r", "type": "SPARK", **times}
    found |= {"state": state, "autoStartConfiguration": {"enabled": starts}}
    emr.add_response("get_application", {"application": found}, {"applicationId": "00application"})


def started(emr: Stubber) -> None:
    emr.add_response("start_job_run", {"applicationId": "00application", "jobRunId": "run-id", "arn": ARN})


def becomes(emr: Stubber, state: str, details: str = "so it goes") -> None:
    found = {"applicationId": "00application", "jobRunId": "run-id", "arn": ARN, "createdBy": ROLE}
    found |= {
        "createdAt": 0,
        "updatedAt": 0,
        "executionRole": ROLE,
        "releaseLabel": "r",
        "jobDriver": {"sparkSubmit": {"entryPoint": "x"}},
    }
    run = {"jobRun": {**found, "state": state, "stateDetails": details}}
    emr.add_response("get_job_run", run, {"applicationId": "00application", "jobRunId": "run-id"})


def follow(made: Stubs, target: str = "emr-serverless", *more: str) -> list[str]:
    said: list[str] = []
    submit(
        "recommend",
        config(*more),
        target,
        "run-1",
        on_state=said.append,
        speak=made.clients(),
        seconds=0,
    )
    return said


Three = tuple[Stubs, Stubber, Stubber]


def test_a_run_is_followed_until_it_has_ended_well(serverless: Three) -> None:
    made, s3, emr = serverless
    places_are_there(s3)
    application(emr)
    started(emr)
    for state in ("SUBMITTED", "RUNNING", "RUNNING", "SUCCESS"):
        becomes(emr, state)
    words = ("started", "submitted: so it goes", "running: so it goes", "success")
    assert follow(made) == [f"job run run-id: {word}" for word in words]


def test_a_job_that_fails_says_why_in_its_own_words_with_its_own_code_and_the_log(serverless: Three) -> None:
    made, s3, emr = serverless
    places_are_there(s3)
    application(emr)
    started(emr)
    becomes(emr, "FAILED", "Job failed. ExitCode: 3.")
    has(s3, LOGS[0], gzip.compress(b"x" * 9000 + b"\nthe JVM's end"))
    has(s3, LOGS[1], gzip.compress(b"x" * 9000 + b"\nthe end of it"))
    has(s3, OUTCOME, json.dumps({"code": 3, "reason": "slice 7 is cut", "remedy": "fetch it again"}).encode())
    with pytest.raises(JobFailed, match="recommend: slice 7 is cut") as caught:
        follow(made)
    assert (caught.value.exit_code, caught.value.remedy) == (3, "fetch it again")
    assert "the JVM's end" in caught.value.log
    assert caught.value.log.endswith("the end of it"), "what Python says is in standard output"
    assert len(caught.value.log) < 5000


@pytest.mark.parametrize(
    ("state", "details", "code", "expected"),
    [
        ("FAILED", "Worker lost.", 75, "job run run-id failed: Worker lost."),
        ("CANCELLED", "Job timed out: execution timeout exceeded", 4, "was ended before it was done: Job timed out"),
    ],
)
def test_a_job_that_left_no_word(serverless: Three, state: str, details: str, code: int, expected: str) -> None:
    made, s3, emr = serverless
    places_are_there(s3)
    application(emr)
    started(emr)
    becomes(emr, state, details)
    for log in LOGS:
        has(s3, log, None)
    has(s3, OUTCOME, None)
    with pytest.raises(JobFailed, match=expected) as caught:
        follow(made)
    assert caught.value.exit_code == code
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("state", "starts", "expected"),
    [("STOPPED", False, "stopped, and it does not start by itself"), ("TERMINATED", True, "terminated")],
)
def test_an_application_that_takes_no_runs(serverless: Three, state: str, starts: bool, expected: str) -> None:
    made, s3, emr = serverless
    places_are_there(s3)
    application(emr, state, starts)
    with pytest.raises(EnvironmentMissing, match=expected) as caught:
        follow(made)
    assert caught.value.remedy


def test_one_that_is_stopped_and_starts_by_itself_is_well(serverless: Three) -> None:
    made, s3, emr = serverless
    places_are_there(s3)
    application(emr, "STOPPED")
    started(emr)
    becomes(emr, "SUCCESS")
    assert follow(made)[-1] == "job run run-id: success"


@pytest.mark.parametrize(
    ("code", "status", "kind", "expected"),
    [
        ("ServiceQuotaExceededException", 402, PassingFailure, "out of quota"),
        ("ThrottlingException", 429, PassingFailure, "ThrottlingException"),
        ("ResourceNotFoundException", 404, InputError, "00application: does not exist"),
        ("AccessDeniedException", 403, EnvironmentMissing, "access refused"),
        ("ExpiredTokenException", 403, EnvironmentMissing, "credentials have expired"),
        ("UnrecognizedClientException", 403, EnvironmentMissing, "does not know these credentials"),
    ],
)
def test_what_the_service_refuses_is_a_sentence_and_a_remedy(
    serverless: Three, code: str, status: int, kind: type[EncoreError], expected: str
) -> None:
    made, s3, emr = serverless
    places_are_there(s3)
    application(emr)
    emr.add_client_error("start_job_run", code, "said by AWS", http_status_code=status)
    with pytest.raises(kind, match=expected) as caught:
        follow(made)
    assert "00application" in str(caught.value)
    assert caught.value.remedy
    assert caught.value.exit_code != 0


def test_a_bucket_that_is_missing_or_in_another_region_is_said_before_anything_starts(serverless: Three) -> None:
    made, s3, _ = serverless
    s3.add_client_error("head_bucket", "404", http_status_code=404)
    with pytest.raises(InputError, match=r"s3://my-lake/lake: the bucket my-lake: does not exist"):
        follow(made)
    s3.add_client_error(
        "head_bucket",
        "301",
        http_status_code=301,
        response_meta={"HTTPHeaders": {"x-amz-bucket-region": "us-west-2"}},
    )
    with pytest.raises(
        InputError, match="the bucket my-lake is in us-west-2, jobs would run in eu-central-1"
    ) as caught:
        follow(made)
    assert "AWS_REGION=us-west-2" in str(caught.value.remedy)
    s3.add_response("head_bucket", {"BucketRegion": "us-west-2"})
    with pytest.raises(InputError, match="is in us-west-2"):
        follow(made)


def test_code_that_was_not_uploaded(serverless: Three) -> None:
    made, s3, _ = serverless
    for _ in range(3):
        s3.add_response("head_bucket", {"BucketRegion": REGION})
    s3.add_client_error("head_object", "404", http_status_code=404)
    with pytest.raises(InputError, match=r"environment\.tar\.gz: there is no application archive") as got:
        follow(made)
    assert "make package" in str(got.value.remedy)


@pytest.mark.parametrize("target", ["emr-serverless", "emr-ec2"])
def test_ctrl_c_cancels_the_run(request: pytest.FixtureRequest, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, s3, emr = request.getfixturevalue({"emr-serverless": "serverless", "emr-ec2": "cluster"}[target])
    places_are_there(s3)
    if target == "emr-serverless":
        application(emr)
        started(emr)
        becomes(emr, "RUNNING")
        asked = {"applicationId": "00application", "jobRunId": "run-id"}
        emr.add_response("cancel_job_run", asked, asked)
    else:
        waits(emr)
        emr.add_response("add_job_flow_steps", {"StepIds": ["s-1"]})
        step(emr, "RUNNING")
        emr.add_response(
            "cancel_steps",
            {"CancelStepsInfoList": []},
            {"ClusterId": "j-CLUSTER", "StepIds": ["s-1"], "StepCancellationOption": "SEND_INTERRUPT"},
        )

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("encore.aws.submit.time.sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        follow(made, target)


def waits(emr: Stubber, state: str = "WAITING") -> None:
    found = {"Cluster": {"Id": "j-CLUSTER", "Status": {"State": state}, "LogUri": "s3n://my-logs/cluster/"}}
    emr.add_response("describe_cluster", found, {"ClusterId": "j-CLUSTER"})


def step(emr: Stubber, state: str, why: str = "") -> None:
    status = {"State": state, "FailureDetails": {"Reason": why}} if why else {"State": state}
    emr.add_response("describe_step", {"Step": {"Id": "s-1", "Status": status}})


def test_a_step_is_followed_and_its_log_shown(cluster: Three) -> None:
    made, s3, emr = cluster
    places_are_there(s3)
    waits(emr)
    emr.add_response("add_job_flow_steps", {"StepIds": ["s-1"]})
    for state in ("PENDING", "RUNNING"):
        step(emr, state)
    step(emr, "FAILED", "Unknown Error.")
    has(s3, "cluster/j-CLUSTER/steps/s-1/stderr.gz", gzip.compress(b"it went wrong"))
    has(s3, OUTCOME, None)
    with pytest.raises(JobFailed, match="step s-1 failed: Unknown Error") as caught:
        follow(made, "emr-ec2")
    assert caught.value.log == "it went wrong"


def test_a_cluster_that_is_gone(cluster: Three) -> None:
    made, s3, emr = cluster
    places_are_there(s3)
    waits(emr, "TERMINATED")
    with pytest.raises(EnvironmentMissing, match="EMR cluster j-CLUSTER: terminated"):
        follow(made, "emr-ec2")


@pytest.mark.parametrize(
    ("error", "kind", "expected"),
    [
        (NoCredentialsError(), EnvironmentMissing, "no AWS credentials found"),
        (TokenRetrievalError(provider="sso", error_msg="x"), EnvironmentMissing, "the login has expired"),
        (EndpointConnectionError(endpoint_url="https://x"), PassingFailure, "AWS does not answer"),
    ],
)
def test_errors_before_a_service_answers(error: Any, kind: type[EncoreError], expected: str) -> None:
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
    done = CliRunner().invoke(app, [*command, *(part for place in PLACES for part in ("--set", place))])
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
    ],
)
def test_what_cannot_be_meant(arguments: list[str], code: int, expected: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code
    assert expected in done.stderr


def test_a_stage_s_outputs_become_settings_and_those_that_are_given_win(capsys: pytest.CaptureFixture[str]) -> None:
    formation = SESSION.client("cloudformation")
    made = {
        "storage": {"LakePath": "s3://made-lake/lake", "RawBucket": "made-raw", "LogBucket": "made-logs"},
        "mlflow": {"TrackingLogin": "arn:secret"},
        "compute": {"ApplicationId": "00made", "CodePath": "s3://made-code/v1", "RoleOfRecommend": "arn:role"},
        "orchestration": {},
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
    asked = json.loads(capsys.readouterr().out)
    assert (asked["applicationId"], asked["executionRoleArn"]) == ("00made", "arn:role")
    arguments = asked["jobDriver"]["sparkSubmit"]["entryPointArguments"]
    sent = json.loads(arguments[arguments.index("--set-json") + 1])
    expected = {'lake.path="s3://made-lake/lake"', 'raw.features="s3://mine/"', "recommend.k=7"}
    assert expected | {'tracking.login="arn:secret"'} <= set(sent)


def test_a_stage_that_was_not_deployed_here() -> None:
    formation = SESSION.client("cloudformation")
    with Stubber(formation) as stub:
        stub.add_client_error("describe_stacks", "ValidationError", "Stack encore-dev-storage does not exist", 400)
        with pytest.raises(InputError, match="stack encore-dev-storage: is not in eu-central-1") as caught:
            settings_of("dev", "recommend", lambda _: formation)
    assert "make deploy STAGE=dev" in str(caught.value.remedy)


class TestTheDoctor:
    def test_without_an_archive_and_a_region(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_REGION")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        found = list(deployment_findings("dev", [], tmp_path))
        assert [one.what for one in found] == ["application archive", "AWS region"]
        assert all(one.remedy for one in found)

    def test_an_unknown_stage(self, tmp_path: Path) -> None:
        with pytest.raises(UnknownStage):
            list(deployment_findings("prd", [], tmp_path))

    def test_an_account_in_which_all_is_there(self, tmp_path: Path) -> None:
        found = {one.what: one for one in self.findings(tmp_path)}
        assert [one for one in found.values() if one.remedy] == []
        assert found["AWS account"].fact == "ACCOUNT, as user/me"
        assert found["application archive"].fact == "version v1 of commit 0123456789ab"
        assert found["certificate"].fact == "issued, for *.encore.internal"

    def test_what_is_wanting_has_its_remedy(self, tmp_path: Path) -> None:
        found = {one.what: one for one in self.findings(tmp_path, certificate="PENDING_VALIDATION", quota=16)}
        assert found["certificate"].remedy
        assert not found["certificate"].warning
        assert "16 at a time, 32 are allowed" in found["quota of vCPUs"].fact
        assert found["quota of vCPUs"].warning

    def findings(self, folder: Path, certificate: str = "ISSUED", quota: int = 100) -> list[Any]:
        (folder / "manifest.json").write_text(json.dumps({"version": "v1", "commit": "0123456789abcdef"}))
        services = ("sts", "cloudformation", "ssm", "acm", "service-quotas", "emr")
        made = {name: SESSION.client(name) for name in services}
        stubs = {name: Stubber(client) for name, client in made.items()}
        stubs["sts"].add_response("get_caller_identity", {"Account": "ACCOUNT", "Arn": "arn:aws:iam::A:user/me"})
        stack = {"StackName": "CDKToolkit", "CreationTime": 0, "StackStatus": "CREATE_COMPLETE"}
        stubs["cloudformation"].add_response("describe_stacks", {"Stacks": [stack]})
        for name in ("/encore/dev/mlflow-certificate", "/encore/git-connection"):
            stubs["ssm"].add_response(
                "get_parameter", {"Parameter": {"Value": "arn:thing:of-it-is-long"}}, {"Name": name}
            )
        about = {"DomainName": "*.encore.internal", "Status": certificate}
        stubs["acm"].add_response("describe_certificate", {"Certificate": about})
        stubs["service-quotas"].add_response("get_service_quota", {"Quota": {"Value": quota}})
        stubs["emr"].add_response("list_release_labels", {"ReleaseLabels": ["emr-spark-8.1.0"]})
        for stub in stubs.values():
            stub.activate()
        return list(deployment_findings("dev", [], folder, clients=lambda name: made[name]))
