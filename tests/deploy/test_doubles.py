"""The test doubles for AWS: they record every request, including unknown ones, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from tests.conftest import ROOT
from tests.deploy import sagemaker as managed
from tests.deploy.cluster import can_isolate
from tests.deploy.mlflow_server import MlflowServer, secrets_manager
from tests.deploy.s3proxy import Call, recording
from tests.s3server import S3Server


class Echo(BaseHTTPRequestHandler):
    """Responds with the method and path of the request."""

    def do_GET(self) -> None:
        body = f"{self.command} {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def echo() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_unknown_s3_requests_are_answered_and_recorded(echo: str) -> None:
    with recording(echo) as recorder:
        known = requests.get(f"{recorder.endpoint}/b/k", timeout=10)
        assert (known.status_code, known.text) == (200, "GET /b/k")
        assert recorder.unknown == []
        assert requests.get(f"{recorder.endpoint}/b?location", timeout=10).text == "GET /b?location"
        assert requests.post(f"{recorder.endpoint}/b?delete=", b"<no", timeout=10).text == "POST /b?delete="
    assert recorder.calls == {Call("s3:GetObject", "b", "k")}
    assert recorder.unknown[0] == "GET /b?location: unknown request"
    assert recorder.unknown[1].startswith("POST /b?delete=: ")
    assert len(recorder.unknown) == 2, "each was sent once"


def test_unknown_sagemaker_requests_are_answered_and_recorded(echo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def fake_mlflow(*_: object) -> Iterator[MlflowServer]:
        yield MlflowServer(echo, "", "", "none", {}, Path())

    monkeypatch.setattr(managed, "managed_mlflow", fake_mlflow)
    monkeypatch.setattr(managed, "rejection", lambda *_: None)
    with managed.sagemaker(S3Server("", "", ""), "b") as server:
        for end in ("runs/search", "registered-models/rename"):
            target = f"/api/2.0/mlflow/{end}"
            assert requests.post(server.endpoint + target, timeout=10).text == f"POST {target}"
    assert server.actions == {"sagemaker-mlflow:SearchRuns"}
    assert server.unknown == ["POST /api/2.0/mlflow/registered-models/rename: unknown request"]


def test_a_mock_account_ends_with_its_block_even_if_that_fails() -> None:
    addresses = []

    def fails() -> None:
        with secrets_manager() as address:
            assert requests.get(address, timeout=10).status_code < 500
            addresses.append(address)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    with pytest.raises(requests.ConnectionError):
        requests.get(addresses[0], timeout=10)


def test_isolation_is_reported_as_unavailable_where_root_may_not_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, script in (("setpriv", "exit 0"), ("unshare", 'echo "$@" >>"$0.asked"; exit 0')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    assert can_isolate()
    assert "mount -t tmpfs" in (tmp_path / "unshare.asked").read_text()
    (tmp_path / "unshare").write_text("#!/bin/sh\nexit 1\n")
    assert not can_isolate()


@pytest.mark.slow
def test_the_placeholder_archive_is_removed_when_the_process_ends() -> None:
    code = "from tests.deploy.synth import package; print(package(), (package() / 'manifest.json').is_file())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    folder, there = done.stdout.split()
    assert there == "True"
    assert not Path(folder).exists()
