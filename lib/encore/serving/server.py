"""The HTTP server of the scorer: uvicorn in one process, with limits of its own on slow clients, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import socket
from asyncio.events import TimerHandle
from collections.abc import Callable, Iterator
from typing import Final

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from encore.errors import EnvironmentMissing
from encore.serving.app import App
from encore.serving.protocols.common import MALFORMED, UNAVAILABLE, Refused
from encore.serving.settings import Settings

MAX_HEAD_BYTES: Final = 65_536
"""Bytes of a request before its body."""

_BACKLOG: Final = 2048
_UPGRADE: Final = re.compile(rb"\r\nupgrade[ \t]*:", re.IGNORECASE)

log = logging.getLogger("encore.serving")


class Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to `run`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        """Handle no signals."""
        yield


class Limited(HttpToolsProtocol):
    """A connection that bounds what uvicorn does not: the number of connections, the size of a request's head, the time
    that it takes to arrive, and the time that a client takes to read an answer."""

    head_seconds = 10.0
    max_connections = 1000

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse the connection if there are too many."""
        super().connection_made(transport)
        self._head_bytes = 0
        self._is_in_head, self._is_in_body = True, False
        self._timer: TimerHandle | None = None
        if len(self.connections) > self.max_connections:
            self._refuse(Refused(503, UNAVAILABLE, "too many connections", {"Retry-After": "1"}))
            return
        self._timer = self.loop.call_later(self.timeout_keep_alive, self._late)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless the head of the request is too large."""
        if self._is_in_head and not self._head_bytes:
            self._arm()
        if not self._is_in_body and b"pgrade" in data:
            data = without_upgrade(data)
        super().data_received(data)
        if self._is_in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(Refused(431, "REQUEST_TOO_LARGE", f"head: expected at most {MAX_HEAD_BYTES} bytes"))
            elif self._timer is None:
                self._arm()

    def on_message_begin(self) -> None:
        """The head of a request begins."""
        self._is_in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head of a request is there; the application bounds the time for the body."""
        self._is_in_head, self._is_in_body = False, True
        self._head_bytes = 0
        self._disarm()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is there."""
        self._is_in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Drop a connection whose client does not read the answer."""
        super().on_response_complete()
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self.loop.call_later(self.head_seconds, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        """Drop an idle connection, even if its client has not read the last answer."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._disarm()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._refuse(Refused(400, MALFORMED, "expected HTTP"))

    def _refuse(self, refused: Refused) -> None:
        self._disarm()
        body = refused.body()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        lines = [f"{name}: {value}\r\n".encode() for name, value in {**headers, **refused.headers}.items()]
        self.transport.write(b"".join([STATUS_LINE[refused.status], *lines, b"\r\n", body]))
        self.transport.close()

    def _arm(self) -> None:
        self._disarm()
        self._timer = self.loop.call_later(self.head_seconds, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            if self._head_bytes:
                self._refuse(Refused(408, "REQUEST_TIMEOUT", f"head: expected within {self.head_seconds:g} seconds"))
            else:
                self.transport.close()


def without_upgrade(data: bytes) -> bytes:
    """The head of a request without the header Upgrade, and what follows unchanged.

    Some clients (Java's, `curl --http2`) offer to go on in HTTP/2 with the first request, which a server may ignore.
    The parser would take the body for something that is not HTTP.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\nx-upgrade-ignored:", head) + end + rest


def run(app: App, settings: Settings, on_start: Callable[[str], None] = lambda address: None) -> None:
    """Serve until SIGTERM or SIGINT, then answer the requests that are there and return.

    After SIGTERM, readiness is 503 at once, and new connections are still accepted for `linger_seconds`, in which a
    load balancer notices. `on_start` is called with the address of the server, once it listens. Raises
    EnvironmentMissing if it cannot listen there.
    """
    # it warns of each request that is not HTTP
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    limited = type(
        "Limited", (Limited,), {"head_seconds": settings.seconds, "max_connections": settings.max_connections}
    )
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        loop="uvloop",
        http=limited,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=int(settings.drain_seconds),
    )
    server, listener = Server(config), _listening(settings.host, settings.port)
    host, port, *_ = listener.getsockname()
    on_start(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    async def serve() -> None:
        loop = asyncio.get_running_loop()

        def end(seconds: float) -> None:
            if not app.serving.draining:
                log.info("draining")
            app.serving.draining = True
            loop.call_later(seconds, setattr, server, "should_exit", True)

        loop.add_signal_handler(signal.SIGTERM, end, settings.linger_seconds)
        loop.add_signal_handler(signal.SIGINT, end, 0)
        app.serving.start()
        await server.serve([listener])

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
    app.serving.stop()


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise EnvironmentMissing(
            f"{host}:{port}: {getattr(error, 'strerror', None) or error}",
            remedy="choose another address: serve.host and serve.port, or ENCORE_SERVE_HOST and ENCORE_SERVE_PORT",
        ) from error
