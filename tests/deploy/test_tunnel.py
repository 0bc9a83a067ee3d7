"""How people reach MLflow: the port-forward into its task, and the signed link to SageMaker's server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from encore.aws.deployment import ClientFactory
from encore.aws.tunnel import access, require_programs
from encore.errors import EnvironmentMissing, InputError
from tests.conftest import ROOT

SESSION = boto3.Session(aws_access_key_id="testing", aws_secret_access_key="testing", region_name="eu-central-1")
CLUSTER, SERVICE = "encore-dev-mlflow-Cluster", "encore-dev-mlflow-Service"
TASK = f"arn:aws:ecs:eu-central-1:111122223333:task/{CLUSTER}/0123456789abcdef0123456789abcdef"
OUTPUTS = {"TrackingCluster": CLUSTER, "TrackingService": SERVICE, "TrackingAdministrator": "arn:secret"}
SERVER = "arn:aws:sagemaker:eu-central-1:111122223333:mlflow-tracking-server/encore-dev"
APP = "arn:aws:sagemaker:eu-central-1:111122223333:mlflow-app/app-0123456789AB"


Response = tuple[str, str, dict[str, Any], dict[str, Any]]


def account(outputs: dict[str, str], *responses: Response) -> ClientFactory:
    """Clients of an account whose stack of MLflow has these outputs: (service, operation, request, response)."""
    made = {name: SESSION.client(name) for name in ("cloudformation", "ecs", "sagemaker")}
    stubs = {name: Stubber(client) for name, client in made.items()}
    stack: dict[str, Any] = {"StackName": "encore-dev-mlflow", "CreationTime": 0, "StackStatus": "CREATE_COMPLETE"}
    stack["Outputs"] = [{"OutputKey": name, "OutputValue": value} for name, value in outputs.items()]
    about = {"StackName": "encore-dev-mlflow"}
    stubs["cloudformation"].add_response("describe_stacks", {"Stacks": [stack]}, about)
    for service, operation, request, response in responses:
        stubs[service].add_response(operation, response, request)
    for stub in stubs.values():
        stub.activate()
    return lambda name: made[name]


def tasks(*found: dict[str, Any]) -> ClientFactory:
    """An account where MLflow has these tasks."""
    arns = [task["taskArn"] for task in found]
    listed = {"cluster": CLUSTER, "serviceName": SERVICE, "desiredStatus": "RUNNING"}
    responses: list[Response] = [("ecs", "list_tasks", listed, {"taskArns": arns})]
    if arns:
        responses.append(("ecs", "describe_tasks", {"cluster": CLUSTER, "tasks": arns}, {"tasks": list(found)}))
    return account(OUTPUTS, *responses)


def task(number: int, status: str = "RUNNING", agent: str | None = "RUNNING") -> dict[str, Any]:
    """A task as ECS describes it; `agent`: the status of its agent, None if it was started without one."""
    agents = {} if agent is None else {"managedAgents": [{"name": "ExecuteCommandAgent", "lastStatus": agent}]}
    containers = [
        {"name": "aws-guardduty-agent", "runtimeId": f"{number}-other", **agents},
        {"name": "mlflow", "runtimeId": f"{number}-server", **agents},
    ]
    return {"taskArn": TASK[:-1] + str(number), "lastStatus": status, "containers": containers}


def test_the_forward_ends_in_a_running_task_that_takes_sessions() -> None:
    found = access("dev", 15000, tasks(task(1, status="PENDING"), task(2, agent="PENDING"), task(3)))
    assert found.address == "http://localhost:15000"
    assert found.command is not None
    assert found.command[:5] == ("aws", "ssm", "start-session", "--region", "eu-central-1")
    options = dict(zip(found.command[5::2], found.command[6::2], strict=True))
    assert options["--target"] == f"ecs:{CLUSTER}_{TASK.rpartition('/')[2][:-1]}3_3-server"
    assert options["--document-name"] == "AWS-StartPortForwardingSession"
    assert json.loads(options["--parameters"]) == {"portNumber": ["5000"], "localPortNumber": ["15000"]}
    assert found.password_command is not None
    assert "arn:secret" in found.password_command


@pytest.mark.parametrize(
    ("clients", "message", "remedy"),
    [
        (tasks, "no task of MLflow is running", "describe-services"),
        (lambda: tasks(task(1, agent=None)), "no task of MLflow takes sessions", "--force-new-deployment"),
        (lambda: account({"TrackingLogin": "arn"}), "no output TrackingCluster", "make deploy STAGE=dev"),
    ],
)
def test_without_a_task_to_forward_to(clients: Callable[[], ClientFactory], message: str, remedy: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        access("dev", 5000, clients())
    assert remedy in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("arn", "operation", "request_"),
    [
        (SERVER, "create_presigned_mlflow_tracking_server_url", {"TrackingServerName": "encore-dev"}),
        (APP, "create_presigned_mlflow_app_url", {"Arn": APP}),
    ],
)
def test_the_pages_of_a_managed_server_have_a_signed_link(arn: str, operation: str, request_: dict[str, str]) -> None:
    link = {"AuthorizedUrl": "https://server.example.org/auth?token=1"}
    found = access("dev", 5000, account({"TrackingServer": arn}, ("sagemaker", operation, request_, link)))
    assert (found.address, found.command, found.password_command) == (link["AuthorizedUrl"], None, None)


@pytest.mark.parametrize("missing", ["aws", "session-manager-plugin"])
def test_a_missing_program_is_named_with_where_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for program in {"aws", "session-manager-plugin"} - {missing}:
        install(tmp_path, program, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentMissing, match=f"^{missing} is not on the PATH") as caught:
        require_programs()
    assert "https://docs.aws.amazon.com/" in str(caught.value.remedy)


def install(folder: Path, program: str, script: str) -> None:
    (folder / program).write_text(f"#!/bin/sh\n{script}\n")
    (folder / program).chmod(0o755)


def test_the_command_becomes_the_forward(tmp_path: Path) -> None:
    """With its standard streams and exit code, so that Ctrl-C reaches it alone."""
    install(tmp_path, "aws", 'echo "forward: $*"; exit 7')
    install(tmp_path, "session-manager-plugin", "exit 0")
    script = """
        from encore.cli.deploy import open_tunnel
        from tests.deploy.test_tunnel import task, tasks
        open_tunnel("dev", 5000, tasks(task(1)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'lib'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    first, second, third, last = done.stdout.splitlines()
    assert first == "MLflow of dev is at http://localhost:5000 until Ctrl-C."
    assert second == "User and password of its administrator:"
    assert third.startswith("aws secretsmanager get-secret-value --region eu-central-1 --secret-id arn:secret")
    assert last.startswith("forward: ssm start-session --region eu-central-1 --target ecs:")


@pytest.mark.parametrize(("given", "port"), [([], "5000"), (["PORT=8081"], "8081"), (["PORT=8080"], "8080")])
def test_make_forwards_mlflows_own_port_unless_one_is_given(given: list[str], port: str) -> None:
    """PORT has a default for the scorer."""
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", "mlflow-tunnel", "STAGE=staging", *given],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PORT"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"encore deploy tunnel --stage staging --port {port}" in done.stdout.splitlines()[-1]
