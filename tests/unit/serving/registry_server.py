"""A small stand-in for the model registry of an MLflow server, in a thread: its REST paths, answers and errors."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

NAME = "encore-ranker"


@dataclass
class State:
    """What the server has: `files` is the folder of its artefacts, `locations` the artifact URI of each version.

    `broken`: answers that are cut off after some bytes, before they are whole; `login`: the header it wants.
    """

    files: Path
    aliases: dict[str, str] = field(default_factory=dict)
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    locations: dict[str, str] = field(default_factory=dict)
    login: str | None = None
    broken: int = 0
    failing: int = 0
    requests: list[str] = field(default_factory=list)
    redirect: str | None = None


class Handler(BaseHTTPRequestHandler):
    """Answers as MLflow 3 does."""

    protocol_version = "HTTP/1.1"
    state: State

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        """Reading."""
        url = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        self._answer(url.path, asked)

    def do_POST(self) -> None:
        """Changes."""
        self._answer(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    do_DELETE = do_POST

    def _answer(self, path: str, asked: dict[str, str]) -> None:
        state = self.state
        state.requests.append(f"{self.command} {path}")
        if state.redirect:
            self.send_response(302)
            self.send_header("Location", state.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if state.failing:
            state.failing -= 1
            self._send(503, {"error_code": "TEMPORARILY_UNAVAILABLE"})
        elif state.login and self.headers.get("Authorization") != state.login:
            self._send(401, {"error_code": "UNAUTHENTICATED"})
        elif path.startswith("/api/2.0/mlflow-artifacts/artifacts/"):
            self._file(state.files / unquote(path.removeprefix("/api/2.0/mlflow-artifacts/artifacts/")))
        else:
            status, found = self._registry(path.removeprefix("/api/2.0/mlflow/"), asked)
            self._send(status, found)

    def _registry(self, path: str, asked: dict[str, str]) -> tuple[int, Any]:
        state = self.state
        if asked["name"] != NAME:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}
        if path == "registered-models/get":
            aliases = [{"alias": alias, "version": version} for alias, version in state.aliases.items()]
            return 200, {"registered_model": {"name": NAME, **({"aliases": aliases} if aliases else {})}}
        if path == "registered-models/alias":
            if self.command == "DELETE":
                if state.aliases.pop(asked["alias"], None) is None:
                    return 400, {"error_code": "INVALID_PARAMETER_VALUE"}
            else:
                state.aliases[asked["alias"]] = asked["version"]
            return 200, {}
        if path == "model-versions/set-tag":
            state.tags.setdefault(asked["version"], {})[asked["key"]] = asked["value"]
            return 200, {}
        if path == "model-versions/get":
            tags = state.tags.get(asked["version"], {})
            found = [{"key": key, "value": value} for key, value in tags.items()]
            return 200, {"model_version": {"version": asked["version"], "tags": found}}
        if path == "model-versions/get-download-uri" and asked["version"] in state.locations:
            return 200, {"artifact_uri": state.locations[asked["version"]]}
        return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._send(404, {"error_code": "RESOURCE_DOES_NOT_EXIST"})
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.state.broken:
            self.state.broken -= 1
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.wfile.write(content)

    def _send(self, status: int, found: Any) -> None:
        body = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def registry_server(state: State) -> Iterator[str]:
    """Serve a state; yields the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"state": state}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
