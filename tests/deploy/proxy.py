"""A reverse proxy that reports each request to a server, and can reject requests itself."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "te", "upgrade"}


@dataclass(frozen=True)
class Request:
    """A request: path and query as sent, headers by lower-case name."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@contextmanager
def forwarding(
    endpoint: str,
    on_response: Callable[[Request, int], None],
    unknown: list[str],
    reject: Callable[[Request], str | None] = lambda _: None,
) -> Iterator[str]:
    """A proxy in front of the server at `endpoint` while the block runs; yields its URL.

    `on_response` is called with each request and the status of its response. If it raises ValueError, the message is
    added to `unknown` and the response is sent all the same: a client whose connection breaks would retry, and hide the
    unknown request. Requests for which `reject` returns a reason are not forwarded, but answered with 403 and that.
    """
    origin = urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Do not log: requests are recorded elsewhere."""

        def forward(self) -> None:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                body = b"".join(iter(self._chunk, b""))
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items() if name.lower() not in HOP}
            headers["content-length"] = str(len(body))
            request = Request(self.command, self.path, headers, body)
            reason = reject(request)
            if reason is not None:
                self._report(request, 403)
                self._respond(403, "Forbidden", [], reason.encode())
                return
            # signatures cover the Host header as the client sent it, so forward it unchanged
            with closing(http.client.HTTPConnection(origin, timeout=60)) as connection:
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                content = response.read()
            self._report(request, response.status)
            length = response.getheader("Content-Length") if self.command == "HEAD" else None
            self._respond(response.status, response.reason, response.getheaders(), content, length)

        def _report(self, request: Request, status: int) -> None:
            try:
                on_response(request, status)
            except ValueError as error:
                unknown.append(str(error))

        def _respond(
            self, status: int, reason: str, headers: list[tuple[str, str]], content: bytes, length: str | None = None
        ) -> None:
            self.send_response_only(status, reason)
            for name, value in headers:
                if name.lower() not in HOP | {"content-length"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _chunk(self) -> bytes:
            size = int(self.rfile.readline().split(b";")[0], 16)
            data = self.rfile.read(size)
            self.rfile.readline()
            return data

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = forward

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
