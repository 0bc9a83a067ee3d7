"""How people open MLflow's pages: a port-forward into its task on Fargate, or a signed link to SageMaker's server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from encore.aws.account import translate_errors
from encore.aws.deployment import ClientFactory, outputs_of
from encore.errors import EnvironmentMissing, InputError

CONTAINER = "mlflow"
"""The container of MLflow's task, with the server on this port."""
SERVER_PORT = 5000

DOCUMENT = "AWS-StartPortForwardingSession"

AGENT = "ExecuteCommandAgent"
"""The agent that ECS adds to a container, which takes sessions from Systems Manager."""


@dataclass(frozen=True)
class Access:
    """What opens the pages: a `command` that forwards a port until it ends, or None if the address needs none.

    `password_command` prints user and password, and is None if the address signs in by itself.
    """

    address: str
    command: tuple[str, ...] | None = None
    password_command: tuple[str, ...] | None = None


def access(stage: str, port: int, clients: ClientFactory) -> Access:
    """How to open MLflow of a deployed stage on a port of this machine. InputError if it is not running there."""
    outputs = outputs_of(stage, "mlflow", clients)
    if "TrackingServer" in outputs:
        return Access(_signed_link(outputs["TrackingServer"], clients))
    missing = [name for name in ("TrackingCluster", "TrackingService", "TrackingAdministrator") if name not in outputs]
    if missing:
        raise InputError(
            f"stack encore-{stage}-mlflow: no output {missing[0]}",
            remedy=f"it was deployed by an older commit: run `make deploy STAGE={stage}`",
        )
    region = clients("ecs").meta.region_name
    target = _target(stage, outputs["TrackingCluster"], outputs["TrackingService"], clients)
    ports = json.dumps({"portNumber": [str(SERVER_PORT)], "localPortNumber": [str(port)]})
    session = ("--target", target, "--document-name", DOCUMENT, "--parameters", ports)
    secret = ("--secret-id", outputs["TrackingAdministrator"], "--query", "SecretString", "--output", "text")
    return Access(
        f"http://localhost:{port}",
        ("aws", "ssm", "start-session", "--region", region, *session),
        ("aws", "secretsmanager", "get-secret-value", "--region", region, *secret),
    )


def _signed_link(arn: str, clients: ClientFactory) -> str:
    """A link to SageMaker's server that signs its reader in once, within five minutes."""
    service = clients("sagemaker")
    with translate_errors(arn):
        if ":mlflow-app/" in arn:
            link: str = service.create_presigned_mlflow_app_url(Arn=arn)["AuthorizedUrl"]
        else:
            name = arn.rpartition("/")[2]
            link = service.create_presigned_mlflow_tracking_server_url(TrackingServerName=name)["AuthorizedUrl"]
    return link


def _target(stage: str, cluster: str, service: str, clients: ClientFactory) -> str:
    """Systems Manager's name for the server's container. InputError if there is none that takes sessions."""
    ecs = clients("ecs")
    with translate_errors(f"service {service}"):
        arns = ecs.list_tasks(cluster=cluster, serviceName=service, desiredStatus="RUNNING")["taskArns"]
        tasks = ecs.describe_tasks(cluster=cluster, tasks=arns)["tasks"] if arns else []
    running = [task for task in tasks if task["lastStatus"] == "RUNNING"]
    if not running:
        raise InputError(
            f"stage {stage}: no task of MLflow is running",
            remedy=f"look at its events: `aws ecs describe-services --cluster {cluster} --services {service}`",
        )
    targets = [found for task in running for found in _sessions(task, cluster)]
    if not targets:
        raise InputError(
            f"stage {stage}: no task of MLflow takes sessions (its {AGENT} is not running)",
            remedy=(
                "wait a minute after a deployment; a task that was started without it is replaced by "
                f"`aws ecs update-service --cluster {cluster} --service {service} --force-new-deployment`"
            ),
        )
    return targets[0]


def _sessions(task: dict[str, Any], cluster: str) -> Iterator[str]:
    """The targets of a task's containers that hold the server and take sessions."""
    for container in task["containers"]:
        agents = {one["name"]: one["lastStatus"] for one in container.get("managedAgents", ())}
        if container["name"] == CONTAINER and agents.get(AGENT) == "RUNNING":
            yield f"ecs:{cluster}_{task['taskArn'].rpartition('/')[2]}_{container['runtimeId']}"


PROGRAMS = {
    "aws": "install the AWS CLI: https://docs.aws.amazon.com/cli/latest/userguide/getting-started-install.html",
    "session-manager-plugin": (
        "install the AWS CLI's plugin: https://docs.aws.amazon.com/systems-manager/latest/userguide/"
        "session-manager-working-with-install-plugin.html"
    ),
}
"""What a port-forward needs on this machine, and how to get it."""


def require_programs() -> None:
    """EnvironmentMissing for the first program of PROGRAMS that is not installed."""
    for program, remedy in PROGRAMS.items():
        if shutil.which(program) is None:
            raise EnvironmentMissing(f"{program} is not on the PATH: the port-forward needs it", remedy=remedy)
