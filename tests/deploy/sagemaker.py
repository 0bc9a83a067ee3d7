"""An MLflow server like one managed by SageMaker: clients sign each request for IAM, and MLflow itself responds."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.deploy.mlflow_server import MlflowServer, managed_mlflow
from tests.deploy.proxy import Request, forwarding
from tests.s3server import S3Server

REGION = "us-east-1"
SERVICE, SERVER_HEADER = "sagemaker-mlflow", "x-mlflow-sm-tracking-server-arn"
APP_SERVICE = "sagemaker"
ARN = f"arn:aws:sagemaker:{REGION}:123456789012:mlflow-tracking-server/encore-tests"
APP = f"arn:aws:sagemaker:{REGION}:123456789012:mlflow-app/app-0123456789ab"

ACTIONS = {
    "experiments/create": "CreateExperiment",
    "experiments/delete": "DeleteExperiment",
    "experiments/get-by-name": "GetExperimentByName",
    "experiments/search": "SearchExperiments",
    "runs/create": "CreateRun",
    "runs/delete": "DeleteRun",
    "runs/get": "GetRun",
    "experiments/set-experiment-tag": "SetExperimentTag",
    "runs/log-batch": "LogBatch",
    "runs/log-inputs": "LogInputs",
    "runs/search": "SearchRuns",
    "runs/set-tag": "SetTag",
    "runs/update": "UpdateRun",
}
"""IAM actions by MLflow REST endpoint, from the service authorization reference of SageMaker with MLflow."""

REGISTRY = {
    "POST registered-models/create": "CreateRegisteredModel",
    "GET registered-models/get": "GetRegisteredModel",
    "GET registered-models/search": "SearchRegisteredModels",
    "POST registered-models/alias": "SetRegisteredModelAlias",
    "DELETE registered-models/alias": "DeleteRegisteredModelAlias",
    "POST model-versions/create": "CreateModelVersion",
    "GET model-versions/get": "GetModelVersion",
    "GET model-versions/search": "SearchModelVersions",
    "GET model-versions/get-download-uri": "GetDownloadURIForModelVersionArtifacts",
    "POST model-versions/set-tag": "SetModelVersionTag",
    "POST runs/outputs": "LogOutputs",
    "POST logged-models": "LogModel",
    "PATCH logged-models/ID": "FinalizeLoggedModel",
    "GET logged-models/ID": "GetLoggedModel",
}
"""The same for those of the registry, with their method. No action is named after `POST logged-models`; LogModel is the
likeliest."""


@dataclass
class ManagedServer:
    """The server as clients see it: the endpoint that replaces SageMaker's, the actions requested, the rejected
    requests, and requests whose action is unknown."""

    endpoint: str
    server: MlflowServer
    actions: set[str] = field(default_factory=set)
    rejections: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def action_of(request: Request) -> str:
    """The action that a request needs. ValueError for an unknown request."""
    found = re.fullmatch(r"/api/2\.0/mlflow/(.+)", urlsplit(request.target).path)
    path = re.sub(r"^logged-models/[^/]+$", "logged-models/ID", found[1]) if found else ""
    action = ACTIONS.get(path) or REGISTRY.get(f"{request.method} {path}")
    if action is None:
        raise ValueError(f"{request.method} {request.target}: unknown request")
    return f"{SERVICE}:{action}"


def rejection(request: Request, key: str, secret: str, arn: str = ARN) -> str | None:
    """None if a request is for a server or an app, and signed with this key for its service and region, else what is
    wrong with it.

    botocore recomputes the signature from the request as it arrived.
    """
    header, service = ("x-sm-mlflow-app-arn", APP_SERVICE) if arn == APP else (SERVER_HEADER, SERVICE)
    if request.headers.get(header) != arn:
        return "not the ARN of this server"
    given = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, "
        r"SignedHeaders=([^,]+), Signature=([0-9a-f]{64})",
        request.headers.get("authorization", ""),
    )
    if given is None:
        return "not signed"
    if given[1] != key or given[3] != REGION or given[4] != service:
        return f"signed for {given[1]}, {given[3]}, {given[4]}"
    if request.headers.get("x-amz-content-sha256") != hashlib.sha256(request.body).hexdigest():
        return "the body differs from the signed one"
    signed = {name: request.headers[name] for name in given[5].split(";")}
    signed_request = AWSRequest(
        request.method, f"http://{request.headers['host']}{request.target}", signed, request.body
    )
    signed_request.context["timestamp"] = request.headers["x-amz-date"]
    auth = SigV4Auth(Credentials(key, secret), service, REGION)
    text = auth.string_to_sign(signed_request, auth.canonical_request(signed_request))
    return None if auth.signature(text, signed_request) == given[6] else "the signature does not match"


@contextmanager
def sagemaker(s3: S3Server, bucket: str, arn: str = ARN) -> Iterator[ManagedServer]:
    """Such a server, or app; clients write artefacts to `bucket` themselves."""
    with managed_mlflow(s3, bucket) as server:
        found = ManagedServer("", server)

        def on_response(request: Request, _: int) -> None:
            found.actions.add(action_of(request))

        def reject(request: Request) -> str | None:
            reason = rejection(request, s3.access_key, s3.secret_key, arn)
            if reason is not None:
                found.rejections.append(f"{request.method} {request.target}: {reason}")
            return reason

        with forwarding(server.uri, on_response, found.unknown, reject) as found.endpoint:
            yield found
