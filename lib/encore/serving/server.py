"""The HTTP server of the scorer: uvicorn in one process, with limits of its own on slow clients, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from typing import Any, Final

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from encore.serving.app import App
from encore.serving.settings import Settings

MAX_HEAD_BYTES: Final = 65_536
"""Bytes of a request before its body."""

log = logging.getLogger("encore.serving")


class Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to `run`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        """Handle no signals."""
        yield


def run(app: App, settings: Settings, on_start: Callable[[str], None] = lambda address: None) -> None:
    """Serve until SIGTERM or SIGINT, then answer the requests that are there and return.

    After SIGTERM, readiness is 503 at once, and new connections are still accepted for `linger_seconds`, in which a
    load balancer notices. `on_start` is called with the address of the server, once it listens.
    """
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=HttpToolsProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=int(settings.drain_seconds),
    )
    server = Server(config)

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
        started = asyncio.create_task(_announce(server, on_start))
        await server.serve()
        await started

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
    app.serving.stop()


async def _announce(server: Server, on_start: Callable[[str], None]) -> None:
    while not server.started and not server.should_exit:
        await asyncio.sleep(0.01)
    for listener in getattr(server, "servers", ()):
        address: Any = listener.sockets[0].getsockname()
        on_start(f"http://{address[0]}:{address[1]}")
        return
