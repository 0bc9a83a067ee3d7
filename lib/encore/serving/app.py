"""The ASGI application of the scorer: finds the route, checks the token, and makes an answer of all that can happen.

Nothing of a request is repeated in an error, and no error shows a stack trace.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import orjson

from encore.serving.calls import JSON, Answer, Call, Core, Receive, Scope
from encore.serving.models import Served, Serving
from encore.serving.openapi import document
from encore.serving.protocols.common import Refused
from encore.serving.routes import Route, Router
from encore.serving.settings import Settings

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OTHER: Final = "other"
"""The label of requests without a route."""

log = logging.getLogger("encore.serving")


class App:
    """The application.

    `playlists`: the title and the URIs of the playlist with a pid, None if there is no such one; without this function,
    no lake is at hand. It is called in one thread.
    """

    def __init__(
        self,
        serving: Serving,
        settings: Settings,
        *,
        playlists: Callable[[int], tuple[str | None, list[str]] | None] | None = None,
    ) -> None:
        self.serving = serving
        self.metrics = serving.metrics
        self._core = Core(serving, settings, playlists)
        self._core.openapi = orjson.dumps(document(settings))
        self._router = Router()
        self._settings = settings
        self._token = f"Bearer {settings.token}".encode() if settings.token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']}: only HTTP is spoken")
        started = time.perf_counter()
        self.metrics.in_flight(1)
        deadline = asyncio.get_running_loop().time() + self._settings.seconds
        call = Call(scope, receive, deadline, dict(scope["headers"]))
        label = OTHER
        try:
            route = self._route(call)
            label = route.label_of_metrics
            answer = await route.handler(self._core, call)
        except Refused as refused:
            inference = scope["path"].startswith(("/v1/", "/v2/"))
            answer = Answer(refused.body(inference=inference), refused.status, headers=dict(refused.headers))
        except Exception:
            log.exception("%s failed", label)
            answer = Answer(Refused(500, "INTERNAL_ERROR", "the request could not be answered").body(), 500)
        finally:
            self.metrics.in_flight(-1)
        served = call.served
        about = (served.name, served.version, served.role) if served is not None else ("", "", "")
        await self._send(scope, send, answer, served)
        self.metrics.request(label, answer.status, time.perf_counter() - started, about)

    def _route(self, call: Call) -> Route:
        method = call.scope["method"]
        matched = self._router.match(call.scope["path"])
        if matched is None:
            raise Refused(404, "ENDPOINT_NOT_FOUND", "no such path")
        call.given = matched.given
        route = matched.routes.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = sorted({*matched.routes, *(["HEAD"] if "GET" in matched.routes else [])})
            raise Refused(405, "METHOD_NOT_ALLOWED", "this path has other methods", {"Allow": ", ".join(allowed)})
        if self._token is not None and not route.is_open:
            given = call.headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._token):
                self.metrics.rejected("unauthorized")
                message = "expected the header Authorization with a bearer token"
                raise Refused(401, "UNAUTHENTICATED", message, {"WWW-Authenticate": "Bearer"})
        return route

    async def _send(self, scope: Scope, send: Send, answer: Answer, served: Served | None) -> None:
        headers = [
            (b"content-type", answer.type.encode()),
            (b"content-length", str(len(answer.body)).encode()),
            (b"x-content-type-options", b"nosniff"),
        ]
        if answer.type == JSON:
            headers.append((b"cache-control", b"no-store"))
        if served is not None:
            headers += [
                (b"x-encore-model", served.name.encode()),
                (b"x-encore-version", served.version.encode()),
                (b"x-encore-role", served.role.encode()),
            ]
        headers += [(name.lower().encode(), value.encode()) for name, value in answer.headers.items()]
        if self.serving.draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})
