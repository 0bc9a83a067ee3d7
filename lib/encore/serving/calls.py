"""A request and its answer, and what handlers need: the body, a thread to compute in, the version that answers.

Each request that needs a model is computed in one of `threads` threads. At most `max_waiting` requests wait for one;
further ones are refused at once, so that an overload is answered fast and passes.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from encore.serving.models import Served, Serving
from encore.serving.protocols.common import INVALID, NOT_FOUND, UNAVAILABLE, Asked, Refused, invalid
from encore.serving.scorer import Row
from encore.serving.settings import Settings
from encore.serving.static import File, content_security_policy, files

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Result = TypeVar("Result")

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"
RETRY: Final = {"Retry-After": "1"}
CLOSE: Final = {"Connection": "close"}
CLIENT_CLOSED: Final = 499
"""The status, in metrics alone, of a request whose client has gone away; nginx's."""
DISCARDED: Final = 8
"""A body that is too large is read to its end, so that the client sees the answer, unless it is this many times the
limit."""
MAX_PARAMETERS: Final = 16
"""Of a query string."""


@dataclass
class Call:
    """A request. `given`: the variable parts of its path."""

    scope: Scope
    receive: Receive
    deadline: float
    """Time of the event loop by which it is answered."""
    headers: dict[bytes, bytes]
    given: dict[str, str] = field(default_factory=dict)
    served: Served | None = None
    """The version that answers, once it is known."""

    def query(self, *known: str) -> dict[str, str]:
        """The parameters of the query string. Raises Refused if one is repeated or not among the known ones."""
        try:
            text = self.scope["query_string"].decode()
            pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_PARAMETERS, errors="strict")
        except ValueError:
            raise invalid(f"query: expected at most {MAX_PARAMETERS} parameters in UTF-8") from None
        found = dict(pairs)
        if len(found) < len(pairs) or not found.keys() <= set(known):
            raise invalid(f"query: expected only the parameters {', '.join(known)}, each at most once")
        return found


@dataclass(frozen=True)
class Answer:
    """A response."""

    body: bytes
    status: int = 200
    type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)


async def _disconnected(call: Call) -> None:
    """Wait until the client of a request whose body is there goes away."""
    while (await call.receive())["type"] != "http.disconnect":
        pass


class Core:
    """What all handlers share. `playlists`: see App."""

    def __init__(
        self,
        serving: Serving,
        settings: Settings,
        playlists: Callable[[int], tuple[str | None, list[str]] | None] | None,
    ) -> None:
        self.serving = serving
        self.settings = settings
        self.playlists = playlists
        self.metrics = serving.metrics
        self.openapi = b""
        self.pages: dict[str, File] = files()
        self.page_headers = {
            "Content-Security-Policy": content_security_policy(settings.embed),
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }
        self._pool = ThreadPoolExecutor(settings.threads, "score")
        self._lookups = ThreadPoolExecutor(1, "lookup")
        self._computing = 0

    async def body(self, call: Call) -> bytes:
        """The body of a request, which must be JSON. Raises Refused if it is too large, slow or of another type."""
        check_type(call.headers)
        limit = self.settings.max_body_bytes
        declared = call.headers.get(b"content-length", b"")
        size = int(declared) if declared.isdigit() else 0
        if size > DISCARDED * limit or (size > limit and b"expect" in call.headers):
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout_at(call.deadline):
                more = True
                while more and size <= DISCARDED * limit:
                    message = await call.receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "MALFORMED_REQUEST", "body: the connection was closed")
                    part = message.get("body", b"")
                    size += len(part)
                    if size <= limit:
                        parts.append(part)
                    more = message.get("more_body", False)
        except TimeoutError:
            self.metrics.rejected("timeout")
            text = f"body: expected within {self.settings.seconds:g} seconds"
            raise Refused(408, "REQUEST_TIMEOUT", text, CLOSE) from None
        if size > limit:
            raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> Refused:
        self.metrics.rejected("too_large")
        message = f"body: expected at most {self.settings.max_body_bytes} bytes, found more"
        return Refused(413, "REQUEST_TOO_LARGE", message, CLOSE)

    async def computed(self, call: Call, work: Callable[[], Result]) -> Result:
        """The result of work in a thread. Raises Refused if too many requests wait, if it takes too long, or if the
        client goes away while it waits."""
        if self._computing >= self.settings.threads + self.settings.max_waiting:
            self.metrics.rejected("busy")
            raise Refused(503, UNAVAILABLE, "too many requests are waiting", RETRY)
        loop = asyncio.get_running_loop()
        self._count(1)
        future = self._pool.submit(work)
        # counted until the thread is free, which may be after the answer
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._count, -1))
        answer = asyncio.wrap_future(future)
        try:
            async with asyncio.timeout_at(call.deadline):
                if self._waiting:
                    await self._began(call, future, answer)
                return await answer
        except TimeoutError:
            raise self._late() from None
        finally:
            answer.cancel()

    async def _began(self, call: Call, future: Future[Result], answer: asyncio.Future[Result]) -> None:
        """Wait for the answer, or until the client goes away: then work that has not begun is dropped, and its place in
        the queue is free. Raises Refused for that."""
        gone = asyncio.ensure_future(_disconnected(call))
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if not answer.done() and future.cancel():
            self.metrics.rejected("disconnected")
            raise Refused(CLIENT_CLOSED, "CANCELLED", "the connection was closed")

    def _count(self, change: int) -> None:
        before = self._waiting
        self._computing += change
        if self._waiting != before:
            self.metrics.waiting(change)

    @property
    def _waiting(self) -> int:
        return max(0, self._computing - self.settings.threads)

    def _late(self) -> Refused:
        self.metrics.rejected("timeout")
        return Refused(503, UNAVAILABLE, f"not answered within {self.settings.seconds:g} seconds", RETRY)

    async def looked_up(self, call: Call, work: Callable[[], Result]) -> Result:
        """The result of short work in a thread of its own, which does not wait for models."""
        try:
            async with asyncio.timeout_at(call.deadline):
                return await asyncio.get_running_loop().run_in_executor(self._lookups, work)
        except TimeoutError:
            raise self._late() from None

    async def recommended(
        self,
        call: Call,
        served: Served,
        asked: Asked,
        model: str,
        shown: Callable[[Served, list[Row]], Result],
    ) -> tuple[Result, float]:
        """What a request is answered: the recommendations of a model, as `shown` makes them in the same thread; and the
        seconds that it took. The version is another one than `served` if that one cannot answer, unless the request
        names the version."""
        if not asked.playlists:
            return shown(served, []), 0.0

        def work(by: Served) -> tuple[list[Row], Result, float]:
            started = time.perf_counter()
            rows = by.scorer.recommend(asked.playlists, asked.k, model)
            return rows, shown(by, rows), time.perf_counter() - started

        def answer() -> tuple[Served, tuple[list[Row], Result, float]]:
            if "version" in call.given:
                with served.used():
                    return served, work(served)
            n = len(asked.playlists)
            return self.serving.answer(served, work, lambda found: any(not len(row.ids) for row in found[0]), n)

        call.served, (rows, found, seconds) = await self.computed(call, answer)
        self.observe(call.served, asked, rows, seconds)
        return found, seconds

    def observe(self, served: Served, asked: Asked, rows: list[Row], seconds: float) -> None:
        """Count what a model answered."""
        self.metrics.scored(served.name, served.role, seconds)
        self.metrics.playlists(
            sum(len(playlist.tracks) for playlist in asked.playlists),
            sum(row.unknown for row in rows),
            sum(not len(row.ids) for row in rows),
        )

    def pick(self, call: Call, body: bytes) -> Served:
        """The version that answers a request: by its user, if it names one, else by its body."""
        key = call.headers.get(b"x-encore-user") or cookie(call.headers.get(b"cookie", b""), b"encore_user")
        call.served = self._ready(self.serving.pick(key or hashlib.blake2b(body, digest_size=8).digest()))
        return call.served

    def champion(self) -> Served:
        """The version for questions that need no model, such as for the names of tracks."""
        return self._ready(self.serving.champion)

    def _ready(self, served: Served | None) -> Served:
        if served is None:
            self.metrics.rejected("not_ready")
            raise Refused(503, UNAVAILABLE, "no model is loaded yet", RETRY)
        return served

    def named(self, call: Call, body: bytes = b"") -> tuple[Served, str]:
        """The version that answers for the model, and perhaps the version, in the path. Raises Refused."""
        model, version = call.given["model"], call.given.get("version")
        served = self.pick(call, body)
        if version is not None and served.version != version:
            others = (one for one in self.serving.loaded() if one.version == version)
            call.served = found = next(others, None)
            served = found or served
        if model not in served.scorer.models or (version is not None and served.version != version):
            call.served = None
            raise Refused(404, NOT_FOUND, "model: no such model or version is loaded")
        return served, model


def check_type(headers: dict[bytes, bytes]) -> None:
    """Raise Refused, as MLflow's server does, unless the content is JSON in UTF-8."""
    kind, *parameters = headers.get(b"content-type", b"").lower().split(b";")
    if kind.strip() != JSON.encode():
        raise Refused(415, "UNSUPPORTED_MEDIA_TYPE", f"Content-Type: expected {JSON}")
    if any(parameter.strip() not in (b"charset=utf-8", b'charset="utf-8"', b"") for parameter in parameters):
        raise Refused(415, "UNSUPPORTED_MEDIA_TYPE", "Content-Type: expected UTF-8 and no other parameters")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Refused(415, "UNSUPPORTED_MEDIA_TYPE", "Content-Encoding: expected none")


def cookie(header: bytes, name: bytes) -> bytes:
    """The value of a cookie; empty if there is none."""
    for part in header.split(b";"):
        key, _, value = part.strip().partition(b"=")
        if key == name:
            return value
    return b""


def model_of(served: Served, model: str | None) -> str:
    """The model that a request names, or the one that is served. Raises Refused if it is not loaded."""
    if model is not None and model not in served.scorer.models:
        raise Refused(400, INVALID, f"model: expected one of {', '.join(sorted(served.scorer.models))}")
    return model or served.name
