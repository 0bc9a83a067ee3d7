"""A scorer in a process of its own, as in its container."""

from __future__ import annotations

import http.client
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

READY_SECONDS = 120.0
"""With loops that have to be compiled first."""


@dataclass(frozen=True)
class Running:
    """A server. `ready_seconds`: from its start to the first answer that it is ready."""

    process: psutil.Popen
    port: int
    ready_seconds: float

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def connection(self, timeout: float = 30.0) -> http.client.HTTPConnection:
        """A new connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def post(self, path: str, body: bytes, timeout: float = 30.0) -> tuple[int, bytes]:
        """Send JSON over a new connection."""
        connection = self.connection(timeout)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def get(self, path: str) -> bytes:
        """The content of a GET request over a new connection."""
        connection = self.connection()
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        finally:
            connection.close()

    def status(self, path: str = "/ping") -> int:
        """The status of a GET request over a new connection; 0 if nothing answers."""
        connection = self.connection(5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()
        return answer.status

    def processes(self) -> list[psutil.Process]:
        """The process and those that it started."""
        return [self.process, *self.process.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """CPU time so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes())

    def private_bytes(self) -> int:
        """Memory that is not mapped from files (RssAnon)."""
        return sum(_anonymous(process.pid) for process in self.processes())


def _anonymous(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def free_port() -> int:
    """A port that is free now."""
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def started(
    command: list[str], port: int, environment: Mapping[str, str], path: str = "/ping", log: Path | None = None
) -> Iterator[Running]:
    """A server that is started by a command, ready once `path` is 200; it is ended after the block."""
    began = time.monotonic()
    with (log or Path(os.devnull)).open("wb") as out:
        process = psutil.Popen(
            command, env={**os.environ, **environment}, stdout=out, stderr=out, start_new_session=True
        )
        try:
            running = Running(process, port, 0.0)
            while running.status(path) != 200:
                if process.poll() is not None or time.monotonic() - began > READY_SECONDS:
                    text = log.read_text()[-2000:] if log else ""
                    raise RuntimeError(f"{' '.join(command)}: not ready, exit code {process.poll()}: {text}")
                time.sleep(0.01)
            yield Running(process, port, time.monotonic() - began)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def scorer(bundle: Path, log: Path | None = None, **settings: object) -> Iterator[Running]:
    """The scorer of a bundle, as its container starts it. `settings`: those of encore.serving.settings."""
    port = free_port()
    given = {"model": bundle, "port": port, **settings}
    environment = {f"ENCORE_SERVE_{name.upper()}": str(value) for name, value in given.items()}
    with started([sys.executable, "-m", "encore.serving"], port, environment, log=log) as running:
        yield running
