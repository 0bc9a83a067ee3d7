"""Does what stands for SageMaker's sign-on let in those alone who have the key?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import boto3
import pytest
import requests
from sagemaker_mlflow.auth import AuthBoto

from tests.deploy.proxy import Asked
from tests.deploy.sagemaker import ARN, REGION, SERVICE, action_of, wanting

URL = "http://127.0.0.1:5000/api/2.0/mlflow/runs/search"


def signed(region: str = REGION, service: str = SERVICE) -> Asked:
    """A request as MLflow's client makes it and SageMaker's plugin signs it."""
    session = boto3.Session("key", "secret")
    auth = AuthBoto(region, service, boto3_session=session)
    headers = {"x-mlflow-sm-tracking-server-arn": ARN, "Connection": "keep-alive", "Host": "127.0.0.1:5000"}
    made = auth(requests.Request("POST", URL, headers, data=b"{}").prepare())
    arrived = {
        name.lower(): value if isinstance(value, str) else value.decode() for name, value in made.headers.items()
    }
    return Asked("POST", "/api/2.0/mlflow/runs/search", arrived, b"{}")


def test_who_has_the_key_is_let_in() -> None:
    assert wanting(signed(), "key", "secret") is None
    assert action_of(signed()) == "sagemaker-mlflow:SearchRuns"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda asked: replace(asked, body=b"{1}"), "the body is not that which was signed"),
        (lambda asked: replace(asked, target=f"{asked.target}?x=1"), "the signature is another one"),
        (lambda asked: replace(asked, headers={**asked.headers, "x-amz-date": "20200101T000000Z"}), "another one"),
        (lambda asked: replace(asked, headers={**asked.headers, "authorization": "Basic a2V5"}), "not signed"),
        (lambda asked: replace(asked, headers={}), "no ARN"),
        (lambda _: signed(region="eu-west-1"), "signed for key, eu-west-1"),
        (lambda _: signed(service="sagemaker"), "signed for key, us-east-1, sagemaker"),
    ],
)
def test_what_is_not_signed_for_this_server_is_not(change: Callable[[Asked], Asked], why: str) -> None:
    assert why in str(wanting(change(signed()), "key", "secret"))


def test_another_key_is_not_let_in() -> None:
    assert wanting(signed(), "key", "other") == "the signature is another one"
    assert "signed for key" in str(wanting(signed(), "other", "secret"))


def test_an_end_of_the_interface_that_is_not_known_is_not_passed_over() -> None:
    with pytest.raises(ValueError, match="not known"):
        action_of(Asked("POST", "/api/2.0/mlflow/registered-models/create", {}, b""))
