"""What stands for AWS in these tests: it shows all that was asked, also what it does not know, and leaves nothing."""

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
from tests.deploy.cluster import may_isolate
from tests.deploy.mlflow_server import MlflowServer, secrets_manager
from tests.deploy.s3proxy import Call, recording
from tests.s3server import S3Server


class Echo(BaseHTTPRequestHandler):
    """Answers with the method and what was asked for."""

    def do_GET(self) -> None:
        body = f"{self.command} {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def echo() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_s3_is_asked_and_is_not_known_is_answered_and_kept(echo: str) -> None:
    with recording(echo) as recorder:
        known = requests.get(f"{recorder.endpoint}/b/k", timeout=10)
        assert (known.status_code, known.text) == (200, "GET /b/k")
        assert recorder.unknown == []
        assert requests.get(f"{recorder.endpoint}/b?location", timeout=10).text == "GET /b?location"
        assert requests.post(f"{recorder.endpoint}/b?delete=", b"<no", timeout=10).text == "POST /b?delete="
    assert recorder.calls == {Call("s3:GetObject", "b", "k")}
    assert recorder.unknown[0] == "GET /b?location: not known"
    assert recorder.unknown[1].startswith("POST /b?delete=: ")
    assert len(recorder.unknown) == 2, "asked once each"


def test_what_sagemaker_is_asked_and_is_not_known_is_answered_and_kept(
    echo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def instead(*_: object) -> Iterator[MlflowServer]:
        yield MlflowServer(echo, "", "", "none", {}, Path())

    monkeypatch.setattr(managed, "managed_mlflow", instead)
    monkeypatch.setattr(managed, "wanting", lambda *_: None)
    with managed.sagemaker(S3Server("", "", ""), "b") as server:
        for end in ("runs/search", "registered-models/create"):
            target = f"/api/2.0/mlflow/{end}"
            assert requests.post(server.endpoint + target, timeout=10).text == f"POST {target}"
    assert server.actions == {"sagemaker-mlflow:SearchRuns"}
    assert server.unknown == ["POST /api/2.0/mlflow/registered-models/create: not known"]


def test_an_account_ends_with_its_block_also_where_that_fails() -> None:
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


def test_a_container_whose_root_may_not_mount_does_not_isolate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, script in (("setpriv", "exit 0"), ("unshare", 'echo "$@" >>"$0.asked"; exit 0')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    assert may_isolate()
    assert "mount -t tmpfs" in (tmp_path / "unshare.asked").read_text()
    (tmp_path / "unshare").write_text("#!/bin/sh\nexit 1\n")
    assert not may_isolate()


@pytest.mark.slow
def test_what_stands_for_an_archive_goes_with_the_process() -> None:
    code = "from tests.deploy.synth import package; print(package(), (package() / 'manifest.json').is_file())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    folder, there = done.stdout.split()
    assert there == "True"
    assert not Path(folder).exists()
