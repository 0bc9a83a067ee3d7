"""Gives a secret of a deployed stage a new value, in Secrets Manager and where it is checked."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from typing import Any

from encore.aws.account import translate_errors
from encore.aws.deployment import ClientFactory, outputs_of
from encore.errors import EnvironmentMissing, InputError, LakeError, TransientError

OUTPUTS = {
    "jobs": ("mlflow", "TrackingLogin"),
    "administrator": ("mlflow", "TrackingAdministrator"),
    "scorer": ("serving", "ScorerToken"),
}
"""What can be rotated, with the stack and the output that has the ARN of its secret."""

_LENGTH = 48
_SECONDS = 30


def rotate(stage: str, what: str, clients: ClientFactory, address: str | None = None) -> list[str]:
    """Give a secret a new value; returns what is left to do, one sentence each.

    A password is changed in MLflow, as its administrator, before it is stored, and must then log in; if it cannot be
    stored, the old one is set again. `address`: where MLflow is reached from here; None: where jobs reach it. Raises
    InputError for an unknown secret or a stage that has none, EnvironmentMissing if MLflow refuses the administrator.
    """
    if what not in OUTPUTS:
        raise InputError(f"no secret {what!r}", remedy=f"one of {', '.join(OUTPUTS)}")
    stack, output = OUTPUTS[what]
    outputs = outputs_of(stage, stack, clients)
    if "TrackingServer" in outputs:
        raise InputError(f"{stage}: MLflow of SageMaker has no password", remedy="access is by IAM role alone")
    if output not in outputs:
        raise InputError(f"stack encore-{stage}-{stack}: no output {output}", remedy=f"run `make deploy STAGE={stage}`")
    secret = outputs[output]
    service = clients("secretsmanager")
    with translate_errors(secret):
        new = service.get_random_password(PasswordLength=_LENGTH, ExcludePunctuation=True)["RandomPassword"]
        if what == "scorer":
            service.put_secret_value(SecretId=secret, SecretString=new)
            return _after(stage, what)
        user = json.loads(service.get_secret_value(SecretId=secret)["SecretString"])
        administrator = json.loads(
            service.get_secret_value(SecretId=outputs[OUTPUTS["administrator"][1]])["SecretString"]
        )
    url = (address or user["uri"]).rstrip("/")
    old = user["password"]
    _set_password(url, administrator, user["username"], old, new)
    try:
        with translate_errors(secret):
            service.put_secret_value(SecretId=secret, SecretString=json.dumps({**user, "password": new}))
    except (InputError, LakeError, EnvironmentMissing, TransientError):
        own = {**administrator, "password": new} if what == "administrator" else administrator
        _set_password(url, own, user["username"], new, old)
        raise
    _call(url, "GET", f"users/get?username={user['username']}", {**user, "password": new})
    return _after(stage, what)


def _after(stage: str, what: str) -> list[str]:
    restart = (
        f"restart its tasks: `make deploy STAGE={stage}` does not, `aws ecs update-service --force-new-deployment` does"
    )
    if what == "jobs":
        return [
            "jobs read the secret when they first contact MLflow: those that run now may log nothing more, and "
            "`encore log RUN_ID` logs it later",
            f"a scorer holds the password since its task started: {restart}",
        ]
    if what == "scorer":
        return [
            f"the scorer knows the new token only after its tasks were replaced: {restart}",
            "callers read the new token from the secret; until all tasks are replaced, they try the other one on 401",
        ]
    return ["people who were signed in to MLflow's pages stay so until they close the browser"]


def _set_password(url: str, administrator: dict[str, str], username: str, old: str, new: str) -> None:
    body = {"username": username, "password": new, "current_password": old}
    _call(url, "PATCH", "users/update-password", administrator, body)


def _call(url: str, method: str, path: str, user: dict[str, str], body: dict[str, Any] | None = None) -> None:
    """Call MLflow as a user. Neither the error nor the log shows a password."""
    login = base64.b64encode(f"{user['username']}:{user['password']}".encode()).decode()
    request = urllib.request.Request(
        f"{url}/api/2.0/mlflow/{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Basic {login}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS):
            return
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise EnvironmentMissing(
                f"MLflow at {url} refuses the user {user['username']} of the secret: {error.code}",
                remedy="run the migration task, which sets the passwords of both secrets: see the runbook",
            ) from error
        raise TransientError(f"MLflow at {url}: {method} {path.partition('?')[0]}: HTTP {error.code}") from error
    except OSError as error:
        raise TransientError(
            f"MLflow at {url} does not answer: {getattr(error, 'reason', error)}",
            remedy="open a tunnel, `make mlflow-tunnel STAGE=...`, and pass --mlflow http://localhost:5000",
        ) from error
