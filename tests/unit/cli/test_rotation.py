"""Rotating secrets: what is changed where, and that nothing is left half changed."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest.mock import MagicMock

import pytest
from botocore.exceptions import ClientError

from encore.cli import rotation
from encore.errors import EncoreError, EnvironmentMissing, InputError, TransientError

NEW = "n" * 48


class Mlflow(ThreadingHTTPServer):
    """MLflow's users: the administrator may set any password, others may only log in."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.passwords = {"administrator": "a-old", "encore": "e-old"}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Mlflow

    def _answer(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _user(self) -> str | None:
        name, _, password = base64.b64decode(self.headers["Authorization"].split()[1]).decode().partition(":")
        return name if self.server.passwords.get(name) == password else None

    def do_GET(self) -> None:
        self._answer(200 if self._user() else 401)

    def do_PATCH(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._user() != "administrator":
            self._answer(401)
            return
        own = body["username"] == "administrator"
        if own and body.get("current_password") != self.server.passwords["administrator"]:
            self._answer(400)
            return
        self.server.passwords[body["username"]] = body["password"]
        self._answer(200)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def mlflow() -> Iterator[Mlflow]:
    server = Mlflow()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def account(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """Secrets Manager with the secrets of a stage."""
    outputs = {"TrackingLogin": "login", "TrackingAdministrator": "administrator", "ScorerToken": "token"}
    monkeypatch.setattr(rotation, "outputs_of", lambda *_: outputs)
    service = MagicMock()
    service.stored = {
        "login": json.dumps({"uri": mlflow.url, "username": "encore", "password": "e-old"}),
        "administrator": json.dumps({"uri": mlflow.url, "username": "administrator", "password": "a-old"}),
        "token": "t-old",
    }
    service.get_random_password.return_value = {"RandomPassword": NEW}
    service.get_secret_value.side_effect = lambda SecretId: {"SecretString": service.stored[SecretId]}
    service.put_secret_value.side_effect = lambda SecretId, SecretString: service.stored.update(
        {SecretId: SecretString}
    )
    return service


@pytest.mark.parametrize(("what", "secret", "user"), [("jobs", "login", "encore"), ("administrator",) * 3])
def test_a_password_is_changed_in_mlflow_and_in_its_secret_alone(
    account: MagicMock, mlflow: Mlflow, what: str, secret: str, user: str
) -> None:
    before, passwords = dict(account.stored), dict(mlflow.passwords)
    rotation.rotate("prod", what, lambda _: account)
    assert mlflow.passwords == {**passwords, user: NEW}
    assert json.loads(account.stored[secret]) == {**json.loads(before[secret]), "password": NEW}
    assert {name for name in before if account.stored[name] != before[name]} == {secret}


@pytest.mark.parametrize("what", ["jobs", "administrator"])
def test_a_password_that_cannot_be_stored_is_set_back(account: MagicMock, mlflow: Mlflow, what: str) -> None:
    before, passwords = dict(account.stored), dict(mlflow.passwords)
    refused = ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "PutSecretValue")
    account.put_secret_value.side_effect = refused
    with pytest.raises(EncoreError):
        rotation.rotate("prod", what, lambda _: account)
    assert (account.stored, mlflow.passwords) == (before, passwords)


def test_the_token_of_the_scorer_needs_no_mlflow(account: MagicMock, mlflow: Mlflow) -> None:
    mlflow.passwords.clear()
    left = rotation.rotate("prod", "scorer", lambda _: account)
    assert account.stored["token"] == NEW
    assert any("force-new-deployment" in text for text in left)


def test_what_cannot_be_rotated_is_refused_and_nothing_changes(account: MagicMock, mlflow: Mlflow) -> None:
    before = dict(account.stored)
    with pytest.raises(InputError, match="no secret 'database'"):
        rotation.rotate("prod", "database", lambda _: account)
    with pytest.raises(TransientError, match="does not answer") as caught:
        rotation.rotate("prod", "jobs", lambda _: account, "http://127.0.0.1:1")
    assert "mlflow-tunnel" in str(caught.value.remedy)
    mlflow.passwords["administrator"] = "changed by hand"
    with pytest.raises(EnvironmentMissing, match="refuses the user administrator") as refused:
        rotation.rotate("prod", "jobs", lambda _: account)
    assert "a-old" not in str(refused.value)
    assert account.stored == before
