"""A client of the application within this process, by ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import orjson

from encore.serving.app import App
from encore.serving.metrics import Metrics
from encore.serving.models import Folder, Serving
from encore.serving.settings import Settings
from tests.unit.serving.bundles import small_bundle

JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Response:
    """An answer. `headers`: names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The JSON of the body."""
        return orjson.loads(self.body)


def serving(model: str = "ranker") -> Serving:
    """A loaded bundle, without the thread that follows its source."""
    found = Serving(Folder(small_bundle(model)), Metrics())
    found.follow()
    return found


@lru_cache
def shared_serving(model: str = "ranker") -> Serving:
    """The same for all tests that do not change it."""
    return serving(model)


def new_app(settings: Settings | None = None, own: Serving | None = None, **more: Any) -> App:
    """An application that is asked by `ask`."""
    return App(own or shared_serving(), settings or Settings(), **more)


async def asked(
    app: App,
    method: str,
    path: str,
    body: bytes | Iterable[bytes] = b"",
    headers: Mapping[str, str] | None = None,
    gone: asyncio.Event | None = None,
) -> Response:
    """Send a request; a body of several parts is sent part by part. `gone`: when the client goes away."""
    parts = [body] if isinstance(body, bytes) else list(body)
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
    }
    left = [{"type": "http.request", "body": part, "more_body": i + 1 < len(parts)} for i, part in enumerate(parts)]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        if left:
            return left.pop(0)
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Response(sent[0]["status"], found, b"".join(message["body"] for message in sent[1:]))


def ask(app: App, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Response:
    """Send a request with a JSON body, or with bytes as they are."""
    content = b"" if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
    default = JSON if body is not None else {}
    return asyncio.run(asked(app, method, path, content, {**default, **(headers or {})}))


def with_settings(**values: Any) -> Settings:
    """Settings that differ from the defaults in some values."""
    return replace(Settings(), **values)
