"""The double for SageMaker's authentication accepts only requests signed with the key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import boto3
import pytest
import requests
from sagemaker_mlflow.auth import AuthBoto

from tests.deploy.proxy import Request
from tests.deploy.sagemaker import ARN, REGION, SERVICE, action_of, rejection

URL = "http://127.0.0.1:5000/api/2.0/mlflow/runs/search"


def signed(region: str = REGION, service: str = SERVICE) -> Request:
    """A request as MLflow's client makes it and SageMaker's plugin signs it."""
    session = boto3.Session("key", "secret")
    auth = AuthBoto(region, service, boto3_session=session)
    headers = {"x-mlflow-sm-tracking-server-arn": ARN, "Connection": "keep-alive", "Host": "127.0.0.1:5000"}
    made = auth(requests.Request("POST", URL, headers, data=b"{}").prepare())
    arrived = {
        name.lower(): value if isinstance(value, str) else value.decode() for name, value in made.headers.items()
    }
    return Request("POST", "/api/2.0/mlflow/runs/search", arrived, b"{}")


def test_a_request_signed_with_the_key_is_accepted() -> None:
    assert rejection(signed(), "key", "secret") is None
    assert action_of(signed()) == "sagemaker-mlflow:SearchRuns"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda request: replace(request, body=b"{1}"), "the body differs from the signed one"),
        (lambda request: replace(request, target=f"{request.target}?x=1"), "the signature does not match"),
        (
            lambda request: replace(request, headers={**request.headers, "x-amz-date": "20200101T000000Z"}),
            "does not match",
        ),
        (lambda request: replace(request, headers={**request.headers, "authorization": "Basic a2V5"}), "not signed"),
        (lambda request: replace(request, headers={}), "not the ARN"),
        (lambda _: signed(region="eu-west-1"), "signed for key, eu-west-1"),
        (lambda _: signed(service="sagemaker"), "signed for key, us-east-1, sagemaker"),
    ],
)
def test_a_request_not_signed_for_this_server_is_rejected(change: Callable[[Request], Request], why: str) -> None:
    assert why in str(rejection(change(signed()), "key", "secret"))


def test_another_key_is_rejected() -> None:
    assert rejection(signed(), "key", "other") == "the signature does not match"
    assert "signed for key" in str(rejection(signed(), "other", "secret"))


def test_an_unknown_endpoint_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown request"):
        action_of(Request("POST", "/api/2.0/mlflow/registered-models/rename", {}, b""))


@pytest.mark.parametrize(
    ("method", "path", "action"),
    [
        ("POST", "registered-models/alias", "SetRegisteredModelAlias"),
        ("DELETE", "registered-models/alias", "DeleteRegisteredModelAlias"),
        ("PATCH", "logged-models/m-0123", "FinalizeLoggedModel"),
    ],
)
def test_the_action_of_a_request_depends_on_its_method(method: str, path: str, action: str) -> None:
    assert action_of(Request(method, f"/api/2.0/mlflow/{path}", {}, b"")) == f"sagemaker-mlflow:{action}"
