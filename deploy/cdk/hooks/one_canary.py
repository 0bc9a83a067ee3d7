"""Lambda function that ECS calls before it starts tasks of a new revision.

It refuses the deployment while the registry has a challenger: with two canaries at a time, of an image and of a model,
nobody could tell from the alarms which of them is bad.
"""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import boto3

ALIAS = "/api/2.0/mlflow/registered-models/alias"
SECONDS = 10


def handler(event: dict[str, Any], context: object) -> dict[str, str]:
    """SUCCEEDED or FAILED, as ECS expects it. Raises OSError if the registry does not answer, which fails it too."""
    secret = boto3.client("secretsmanager").get_secret_value(SecretId=os.environ["LOGIN"])
    version = challenger(json.loads(secret["SecretString"]), os.environ["MODEL"])
    if version is None:
        return {"hookStatus": "SUCCEEDED"}
    print(  # noqa: T201 - the function's log
        f"refused: version {version} of {os.environ['MODEL']} is a challenger; "
        "deploy after it was promoted, or stop it: encore canary stop"
    )
    return {"hookStatus": "FAILED"}


def challenger(login: dict[str, str], model: str) -> str | None:
    """The version of a registered model with the alias `challenger`; None if there is none.

    `login`: uri, username and password of MLflow.
    """
    query = urllib.parse.urlencode({"name": model, "alias": "challenger"})
    token = base64.b64encode(f"{login['username']}:{login['password']}".encode()).decode()
    request = urllib.request.Request(
        f"{login['uri'].rstrip('/')}{ALIAS}?{query}", headers={"Authorization": f"Basic {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            found = json.load(response)
    except urllib.error.HTTPError as error:
        # MLflow answers a missing alias with 400, and a missing model with 404
        if error.code in (400, 404) and _code(error) in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            return None
        raise
    return str(found["model_version"]["version"])


def _code(error: urllib.error.HTTPError) -> str | None:
    try:
        found = json.load(error)
    except ValueError:
        return None
    return found.get("error_code") if isinstance(found, dict) else None
