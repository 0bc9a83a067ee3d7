"""The functions that CloudFormation calls to migrate MLflow's database, against stubs of ECS and CloudFormation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

import tests.deploy.synth  # noqa: F401 - makes deploy/cdk importable

CLUSTER, TASK = "mlflow-cluster", "arn:aws:ecs:us-east-1:111111111111:task/mlflow-cluster/0123"
PROPERTIES = {
    "Cluster": CLUSTER,
    "TaskDefinition": "arn:aws:ecs:us-east-1:111111111111:task-definition/migration:7",
    "Subnets": ["subnet-a", "subnet-b"],
    "SecurityGroup": "sg-server",
    "Triggers": [],
}
STACK = "arn:aws:cloudformation:us-east-1:111111111111:stack/encore-dev-mlflow/0123"


def event(request: str, **more: Any) -> dict[str, Any]:
    """An event as the CDK's provider passes it on."""
    return {
        "RequestType": request,
        "RequestId": "4a7d5bd2-6d5a-4f0e-9b1a-0f5a2f6a7c11",
        "StackId": STACK,
        "ResourceProperties": PROPERTIES,
        **more,
    }


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Stubber]]:
    """Stubs of services by name, which check requests and answers against the models of the services."""
    monkeypatch.setenv("LOG", "the-log-group")
    made: dict[str, Stubber] = {}

    def stub(service: str) -> Stubber:
        if service not in made:
            client = real(service, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
            made[service] = Stubber(client)
            made[service].activate()
        return made[service]

    real = boto3.client
    monkeypatch.setattr(boto3, "client", lambda service: stub(service).client)
    yield stub
    for one in made.values():
        one.assert_no_pending_responses()


def stack_is(stubs: Callable[[str], Stubber], status: str) -> None:
    described = {"StackName": "encore-dev-mlflow", "CreationTime": "2026-01-01T00:00:00Z", "StackStatus": status}
    stubs("cloudformation").add_response("describe_stacks", {"Stacks": [described]}, {"StackName": STACK})


def task_is(stubs: Callable[[str], Stubber], **state: Any) -> None:
    stubs("ecs").add_response("describe_tasks", {"tasks": [state]}, {"cluster": CLUSTER, "tasks": [TASK]})


def test_a_change_runs_the_task_once_in_the_private_subnets(stubs: Callable[[str], Stubber]) -> None:
    from hooks import migrate_database

    stack_is(stubs, "UPDATE_IN_PROGRESS")
    expected = {
        "cluster": CLUSTER,
        "taskDefinition": PROPERTIES["TaskDefinition"],
        "launchType": "FARGATE",
        "networkConfiguration": {
            "awsvpcConfiguration": {
                "subnets": PROPERTIES["Subnets"],
                "securityGroups": ["sg-server"],
                "assignPublicIp": "DISABLED",
            }
        },
        "startedBy": "cloudformation",
        "clientToken": event("Update")["RequestId"],
    }
    stubs("ecs").add_response("run_task", {"tasks": [{"taskArn": TASK}], "failures": []}, expected)
    started = migrate_database.start(event("Update", PhysicalResourceId="migration"), None)
    assert started == {"PhysicalResourceId": "migration", "Data": {"Task": TASK}}
    waiting = event("Update", **started)
    task_is(stubs, lastStatus="RUNNING", containers=[{}])
    assert migrate_database.is_complete(waiting, None) == {"IsComplete": False}
    task_is(stubs, lastStatus="STOPPED", containers=[{"exitCode": 0}])
    assert migrate_database.is_complete(waiting, None) == {"IsComplete": True}


@pytest.mark.parametrize(("request_type", "status"), [("Delete", None), ("Update", "UPDATE_ROLLBACK_IN_PROGRESS")])
def test_nothing_runs_when_the_stack_is_deleted_or_rolled_back(
    stubs: Callable[[str], Stubber], request_type: str, status: str | None
) -> None:
    """A rollback that ran the old image's migration on the new schema would fail, and leave the stack stuck."""
    from hooks import migrate_database

    if status:
        stack_is(stubs, status)
    found = migrate_database.start(event(request_type, PhysicalResourceId="migration"), None)
    assert migrate_database.is_complete(event(request_type, **found), None) == {"IsComplete": True}


@pytest.mark.parametrize(
    ("task", "why"),
    [
        ({"containers": [{"exitCode": 1}], "stoppedReason": "Essential container exited"}, "exit code 1"),
        ({"containers": [{"reason": "CannotPullContainerError"}]}, "CannotPullContainerError"),
        ({"containers": [{"exitCode": 137, "reason": "OutOfMemoryError"}]}, "OutOfMemoryError"),
    ],
)
def test_a_failed_task_fails_the_deployment_and_names_its_log(
    stubs: Callable[[str], Stubber], task: dict[str, Any], why: str
) -> None:
    from hooks import migrate_database

    task_is(stubs, lastStatus="STOPPED", **task)
    with pytest.raises(migrate_database.MigrationError) as caught:
        migrate_database.is_complete(event("Create", Data={"Task": TASK}), None)
    assert why in str(caught.value)
    assert "the-log-group" in str(caught.value)


def test_a_task_that_cannot_start_fails_the_deployment(stubs: Callable[[str], Stubber]) -> None:
    from hooks import migrate_database

    stack_is(stubs, "CREATE_IN_PROGRESS")
    stubs("ecs").add_response("run_task", {"tasks": [], "failures": [{"reason": "RESOURCE:CPU"}]})
    with pytest.raises(migrate_database.MigrationError, match="RESOURCE:CPU"):
        migrate_database.start(event("Create"), None)
