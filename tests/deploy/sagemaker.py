"""An MLflow server as SageMaker manages one: who calls signs each request by IAM, and MLflow itself stands behind."""

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
from tests.deploy.proxy import Asked, forwarding
from tests.s3server import S3Server

REGION = "us-east-1"
SERVICE = "sagemaker-mlflow"
ARN = f"arn:aws:sagemaker:{REGION}:123456789012:mlflow-tracking-server/encore-tests"

ACTIONS = {
    "experiments/create": "CreateExperiment",
    "experiments/delete": "DeleteExperiment",
    "experiments/get-by-name": "GetExperimentByName",
    "experiments/search": "SearchExperiments",
    "runs/create": "CreateRun",
    "runs/delete": "DeleteRun",
    "runs/get": "GetRun",
    "runs/log-batch": "LogBatch",
    "runs/search": "SearchRuns",
    "runs/set-tag": "SetTag",
    "runs/update": "UpdateRun",
}
"""What IAM calls the ends of MLflow's REST interface: the service authorization reference of SageMaker with MLflow."""


@dataclass
class Managed:
    """The server as its callers see it: the endpoint in place of SageMaker's, the actions that were asked for, what was
    refused, and requests of which it is not known what they take."""

    endpoint: str
    server: MlflowServer
    actions: set[str] = field(default_factory=set)
    refusals: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def action_of(asked: Asked) -> str:
    """The action that a request takes. ValueError for a request that is not known here."""
    found = re.fullmatch(r"/api/2\.0/mlflow/(.+)", urlsplit(asked.target).path)
    if found is None or found[1] not in ACTIONS:
        raise ValueError(f"{asked.method} {asked.target}: not known")
    return f"{SERVICE}:{ACTIONS[found[1]]}"


def wanting(asked: Asked, key: str, secret: str) -> str | None:
    """None where a request is for ARN and signed with that key for this service and region, else what is wrong with it.

    The signature is computed anew, by botocore, from what arrived.
    """
    if asked.headers.get("x-mlflow-sm-tracking-server-arn") != ARN:
        return "no ARN of a server that is here"
    given = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, "
        r"SignedHeaders=([^,]+), Signature=([0-9a-f]{64})",
        asked.headers.get("authorization", ""),
    )
    if given is None:
        return "not signed"
    if given[1] != key or given[3] != REGION or given[4] != SERVICE:
        return f"signed for {given[1]}, {given[3]}, {given[4]}"
    if asked.headers.get("x-amz-content-sha256") != hashlib.sha256(asked.body).hexdigest():
        return "the body is not that which was signed"
    signed = {name: asked.headers[name] for name in given[5].split(";")}
    request = AWSRequest(asked.method, f"http://{asked.headers['host']}{asked.target}", signed, asked.body)
    request.context["timestamp"] = asked.headers["x-amz-date"]
    auth = SigV4Auth(Credentials(key, secret), SERVICE, REGION)
    text = auth.string_to_sign(request, auth.canonical_request(request))
    return None if auth.signature(text, request) == given[6] else "the signature is another one"


@contextmanager
def sagemaker(s3: S3Server, bucket: str) -> Iterator[Managed]:
    """Such a server, with artefacts in a bucket, into which its callers put them."""
    with managed_mlflow(s3, bucket) as server:
        found = Managed("", server)

        def answered(asked: Asked, _: int) -> None:
            found.actions.add(action_of(asked))

        def refuses(asked: Asked) -> str | None:
            why = wanting(asked, s3.access_key, s3.secret_key)
            if why is not None:
                found.refusals.append(f"{asked.method} {asked.target}: {why}")
            return why

        with forwarding(server.uri, answered, found.unknown, refuses) as found.endpoint:
            yield found
