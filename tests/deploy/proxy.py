"""A proxy before a server that shows what is asked of it, and may refuse it in the server's place."""

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
class Asked:
    """A request: path and query as they were sent, headers by their names in small letters."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@contextmanager
def forwarding(
    endpoint: str,
    answered: Callable[[Asked, int], None],
    unknown: list[str],
    refuses: Callable[[Asked], str | None] = lambda _: None,
) -> Iterator[str]:
    """A proxy before the server at `endpoint` for as long as the block lasts: its address.

    `answered` is shown each request with the status of its answer. A ValueError of it is written into `unknown`, and
    the answer is given all the same: a client whose connection breaks would ask again, and hide what is not known. What
    `refuses` has a reason for is not handed on, and answered by it with 403.
    """
    origin = urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """What is asked is written down elsewhere."""

        def forward(self) -> None:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                body = b"".join(iter(self._chunk, b""))
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            given = {name.lower(): value for name, value in self.headers.items() if name.lower() not in HOP}
            given["content-length"] = str(len(body))
            asked = Asked(self.command, self.path, given, body)
            reason = refuses(asked)
            if reason is not None:
                self._show(asked, 403)
                self._answer(403, "Forbidden", [], reason.encode())
                return
            # a signature covers the name of the host as the client knows it, so that goes on unchanged
            with closing(http.client.HTTPConnection(origin, timeout=60)) as connection:
                connection.request(self.command, self.path, body, given)
                answer = connection.getresponse()
                content = answer.read()
            self._show(asked, answer.status)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self._answer(answer.status, answer.reason, answer.getheaders(), content, length)

        def _show(self, asked: Asked, status: int) -> None:
            try:
                answered(asked, status)
            except ValueError as error:
                unknown.append(str(error))

        def _answer(
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
