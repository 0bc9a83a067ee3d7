"""MLflow's address and login out of a secret: who gets them, and who does not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator

import boto3
import pytest
from moto import mock_aws

from encore import tracking as tracking_module
from encore.config import Config
from encore.tracking import Tracking, read_secret

REGION = "us-east-1"
LOGIN = {"uri": "http://mlflow.private:1", "username": "line", "password": "a-word"}


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Keep a text as the secret `mlflow` of an account of moto's."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    # what is set by a job is gone after the test
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "before")
    with mock_aws():
        client = boto3.client("secretsmanager", region_name=REGION)
        yield lambda text: client.create_secret(Name="mlflow", SecretString=text)


def test_address_and_login_go_where_mlflow_looks(
    secrets: Callable[[str], None], lake_settings: Callable[..., Config]
) -> None:
    secrets(json.dumps(LOGIN))
    tracking = Tracking(lake_settings("tracking.login=mlflow"), "run-1")
    assert tracking._uri == LOGIN["uri"], "the secret's, not that of tracking.uri"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("line", "a-word")
    assert tracking.place == "of the secret mlflow"


@pytest.mark.parametrize("text", ["a-word", '["a-word"]', '{"password": "a-word"}', '{"uri": 7}'])
def test_a_secret_of_another_shape_is_not_shown(secrets: Callable[[str], None], text: str) -> None:
    secrets(text)
    with pytest.raises(ValueError, match="the secret mlflow: ") as caught:
        read_secret("mlflow", REGION)
    assert "a-word" not in str(caught.value)


def test_an_arn_is_that_of_an_mlflow_server(secrets: Callable[[str], None]) -> None:
    secrets(json.dumps({"uri": "arn:aws:sagemaker:us-east-1:123456789012:endpoint/other"}))
    with pytest.raises(ValueError, match="the secret mlflow: `uri` is an ARN, but not of an MLflow server"):
        read_secret("mlflow", REGION)


def test_without_a_database_s_packages_a_store_of_one_is_said_not_to_be_there(
    lake_settings: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on EMR, where mlflow-skinny is all that there is of MLflow."""
    monkeypatch.setattr(tracking_module, "find_spec", lambda name: None)
    tracking = Tracking(lake_settings(), "run-1")
    assert "only a server can be spoken to from here" in str(tracking.check())


def test_a_secret_that_is_not_there_ends_no_job(
    secrets: Callable[[str], None], lake_settings: Callable[..., Config]
) -> None:
    tracking = Tracking(lake_settings("tracking.login=mlflow"), "run-1")
    assert tracking._try("look", lambda: tracking._uri) is None
    assert tracking.failed is not None
    assert "ResourceNotFoundException" in tracking.failed


def test_the_address_is_in_no_error(secrets: Callable[[str], None], lake_settings: Callable[..., Config]) -> None:
    secrets(json.dumps(LOGIN))
    tracking = Tracking(lake_settings("tracking.login=mlflow"), "run-1")

    def fails() -> None:
        raise OSError(f"{tracking._uri}: host='mlflow.private', port=1: refused")

    tracking._try("look", fails)
    assert tracking.failed == "...: host='...', ...: refused"
    plain = Tracking(lake_settings(), "run-1")
    assert plain._without_address("mlflow.private") == "mlflow.private"
