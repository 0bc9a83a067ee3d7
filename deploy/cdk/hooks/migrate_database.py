"""Lambda functions of a custom resource that runs MLflow's migration task once, and waits until it has ended.

CloudFormation calls them, through the CDK's provider, before it changes the service that depends on the resource.
"""

from __future__ import annotations

import os
from typing import Any

import boto3

ROLLBACK = "UPDATE_ROLLBACK_IN_PROGRESS"


class MigrationError(Exception):
    """The migration task did not start, or failed."""


def start(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Run the task, unless the resource is deleted; its ARN is among the data of the result.

    In a rollback nothing is run: schemas cannot be migrated back, and the tasks of before are still running.
    """
    result = {"PhysicalResourceId": event.get("PhysicalResourceId", "migration"), "Data": {"Task": ""}}
    if event["RequestType"] == "Delete" or _is_rollback(event["StackId"]):
        return result
    properties = event["ResourceProperties"]
    network = {"subnets": properties["Subnets"], "securityGroups": [properties["SecurityGroup"]]}
    found = boto3.client("ecs").run_task(
        cluster=properties["Cluster"],
        taskDefinition=properties["TaskDefinition"],
        launchType="FARGATE",
        networkConfiguration={"awsvpcConfiguration": {**network, "assignPublicIp": "DISABLED"}},
        startedBy="cloudformation",
        # CloudFormation may call twice for one change
        clientToken=event["RequestId"],
    )
    if not found["tasks"]:
        raise MigrationError(f"MLflow's migration task did not start: {found['failures']}")
    result["Data"] = {"Task": found["tasks"][0]["taskArn"]}
    return result


def is_complete(event: dict[str, Any], context: object) -> dict[str, bool]:
    """Whether the task has ended. Raises MigrationError if it failed: CloudFormation then changes nothing."""
    task = event["Data"]["Task"]
    if not task:
        return {"IsComplete": True}
    found = boto3.client("ecs").describe_tasks(cluster=event["ResourceProperties"]["Cluster"], tasks=[task])["tasks"]
    if not found:
        raise MigrationError(f"MLflow's migration task {task} is unknown to ECS")
    if found[0]["lastStatus"] != "STOPPED":
        return {"IsComplete": False}
    (container,) = found[0]["containers"]
    if container.get("exitCode") != 0:
        why = container.get("reason") or found[0].get("stoppedReason") or "no reason given"
        raise MigrationError(
            f"MLflow's migration task ended with exit code {container.get('exitCode')} ({why}); "
            f"its log is in {os.environ['LOG']}. The service was not changed."
        )
    return {"IsComplete": True}


def _is_rollback(stack: str) -> bool:
    found = boto3.client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
    return bool(found[0]["StackStatus"] == ROLLBACK)
