"""The ASGI application of the scorer: routes, limits, access, errors.

Each request that needs a model is computed in one of `threads` threads. At most `max_waiting` requests wait for one;
further ones are refused at once, so that an overload is answered fast and passes. Nothing of a request is repeated in
an error, and no error shows a stack trace.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import parse_qsl

import orjson

from encore import __version__
from encore.recommenders.reasons import Reason
from encore.serving.models import Served, Serving
from encore.serving.protocols import mlflow, rest
from encore.serving.protocols.common import INVALID, NOT_FOUND, UNAVAILABLE, Asked, Refused, invalid
from encore.serving.scorer import Row, shown
from encore.serving.settings import Settings
from encore.serving.static import content_security_policy, files

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Result = TypeVar("Result")

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"
RETRY: Final = {"Retry-After": "1"}
MAX_LISTED: Final = 50
"""Tracks that GET /api/tracks lists at most."""
MAX_IDS: Final = 500
DISCARDED_BODIES: Final = 8
"""A body that is too large is read to its end, so that the client sees the answer, unless it is this many times the
limit."""

log = logging.getLogger("encore.serving")


class Observer(Protocol):
    """Is told what happens, for metrics. Called in the thread of the event loop."""

    def answered(self, route: str, served: Served | None, code: int, seconds: float) -> None:
        """A request of a route, a template such as /v2/models/{model}, was answered."""

    def scored(self, served: Served, seconds: float, seeds: int, unknown: int, empty: int) -> None:
        """A model answered: how many seeds it had, how many were unknown, and how many rows are empty."""

    def refused(self, reason: str) -> None:
        """A request was refused for a limit: its name."""

    def load(self, in_flight: int, waiting: int) -> None:
        """How many requests are being answered and how many of them wait for a thread."""

    def render(self) -> bytes:
        """The metrics in the text format of Prometheus."""


class Unobserved:
    """Keeps no metrics."""

    def answered(self, route: str, served: Served | None, code: int, seconds: float) -> None:
        """See Observer."""

    def scored(self, served: Served, seconds: float, seeds: int, unknown: int, empty: int) -> None:
        """See Observer."""

    def refused(self, reason: str) -> None:
        """See Observer."""

    def load(self, in_flight: int, waiting: int) -> None:
        """See Observer."""

    def render(self) -> bytes:
        """See Observer."""
        return b""


@dataclass
class Call:
    """A request. `given`: the variable parts of its path."""

    scope: Scope
    receive: Receive
    deadline: float
    headers: dict[bytes, bytes]
    given: dict[str, str] = field(default_factory=dict)
    served: Served | None = None
    """The version that answered, once it is known."""

    def query(self) -> dict[str, str]:
        """The parameters of the query string; of repeated ones the last."""
        try:
            text = self.scope["query_string"].decode()
            return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=16, errors="strict"))
        except ValueError:
            raise invalid("query: expected at most 16 parameters in UTF-8") from None


@dataclass(frozen=True)
class Answer:
    """A response."""

    body: bytes
    status: int = 200
    type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[["App", Call], Awaitable[Answer]]


class App:
    """The application. `playlists`: the playlist of a pid, title and URIs, or None; None where no lake is at hand."""

    def __init__(
        self,
        serving: Serving,
        settings: Settings,
        *,
        playlists: Callable[[int], tuple[str | None, list[str]] | None] | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.serving = serving
        self.settings = settings
        self.playlists = playlists
        self.observer: Observer = observer or Unobserved()
        self._pages = files()
        self._page_headers = {
            "Content-Security-Policy": content_security_policy(settings.embed),
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }
        self._token = f"Bearer {settings.token}".encode() if settings.token else None
        self._pool = ThreadPoolExecutor(settings.threads, "score")
        self._lookups = ThreadPoolExecutor(1, "lookup")
        self._computing = 0
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']}: only HTTP is spoken")
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        call = Call(scope, receive, loop.time() + self.settings.seconds, dict(scope["headers"]))
        self.in_flight += 1
        template = "other"
        try:
            template, handler = self._route(call)
            answer = await handler(self, call)
        except Refused as refused:
            answer = Answer(refused.body(), refused.status, headers=dict(refused.headers))
        except Exception:
            log.exception("%s failed", template)
            answer = Answer(Refused(500, "INTERNAL_ERROR", "the request could not be answered").body(), 500)
        finally:
            self.in_flight -= 1
        await self._send(scope, send, answer, call.served)
        self.observer.answered(template, call.served, answer.status, time.perf_counter() - started)

    async def _send(self, scope: Scope, send: Send, answer: Answer, served: Served | None) -> None:
        headers = [
            (b"content-type", answer.type.encode()),
            (b"content-length", str(len(answer.body)).encode()),
            (b"x-content-type-options", b"nosniff"),
        ]
        if answer.type == JSON and "Cache-Control" not in answer.headers:
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

    def _route(self, call: Call) -> tuple[str, Handler]:
        path, method = call.scope["path"], call.scope["method"]
        if method == "HEAD":
            method = "GET"
        template, found = path, EXACT.get(path)
        if found is None:
            template, found, call.given = _matched(path)
        if found is None:
            raise Refused(404, "ENDPOINT_NOT_FOUND", "no such path")
        handler = found.get(method)
        if handler is None:
            allowed = sorted(found) + (["HEAD"] if "GET" in found else [])
            raise Refused(405, "METHOD_NOT_ALLOWED", "this path has other methods", {"Allow": ", ".join(allowed)})
        if self._token is not None and not _is_open(template):
            given = call.headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._token):
                raise Refused(
                    401,
                    "UNAUTHENTICATED",
                    "expected the header Authorization with a bearer token",
                    {"WWW-Authenticate": "Bearer"},
                )
        return template, handler

    # --- bodies and threads

    async def body(self, call: Call) -> bytes:
        """The body of a request, which must be JSON. Raises Refused if it is too large, slow or of another type."""
        kind = call.headers.get(b"content-type", b"").split(b";")
        if kind[0].strip().lower() != JSON.encode():
            raise Refused(415, "UNSUPPORTED_MEDIA_TYPE", f"Content-Type: expected {JSON}")
        if call.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Refused(415, "UNSUPPORTED_MEDIA_TYPE", "Content-Encoding: expected none")
        limit = self.settings.max_body_bytes
        too_large = Refused(
            413, "REQUEST_TOO_LARGE", f"body: expected at most {limit} bytes, found more", {"Connection": "close"}
        )
        declared = call.headers.get(b"content-length", b"")
        huge = declared.isdigit() and int(declared) > limit
        if huge and (call.headers.get(b"expect") or int(declared) > DISCARDED_BODIES * limit):
            self.observer.refused("body")
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout_at(call.deadline):
                while True:
                    message = await call.receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "MALFORMED_REQUEST", "body: the connection was closed")
                    part = message.get("body", b"")
                    size += len(part)
                    if size <= limit:
                        parts.append(part)
                    elif size > DISCARDED_BODIES * limit:
                        break
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            self.observer.refused("slow_body")
            raise Refused(
                408,
                "REQUEST_TIMEOUT",
                f"body: expected within {self.settings.seconds:g} seconds",
                {"Connection": "close"},
            ) from None
        if size > limit:
            self.observer.refused("body")
            raise too_large
        return b"".join(parts) if len(parts) != 1 else parts[0]

    async def computed(self, call: Call, work: Callable[[], Result]) -> Result:
        """The result of work in a thread. Raises Refused if too many requests wait, or if it takes too long."""
        waiting = self._computing - self.settings.threads
        if waiting >= self.settings.max_waiting:
            self.observer.refused("waiting")
            raise Refused(503, UNAVAILABLE, "too many requests are waiting", RETRY)
        loop = asyncio.get_running_loop()
        self._computing += 1
        self.observer.load(self.in_flight, max(0, waiting + 1))
        future = self._pool.submit(work)
        # counted until the thread is free, which may be after the answer
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._ended))
        try:
            async with asyncio.timeout_at(call.deadline):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            self.observer.refused("time")
            raise Refused(503, UNAVAILABLE, f"not answered within {self.settings.seconds:g} seconds", RETRY) from None

    def _ended(self) -> None:
        self._computing -= 1
        self.observer.load(self.in_flight, max(0, self._computing - self.settings.threads))

    async def looked_up(self, call: Call, work: Callable[[], Result]) -> Result:
        """The result of short work in a thread of its own, which does not wait for models."""
        try:
            async with asyncio.timeout_at(call.deadline):
                return await asyncio.get_running_loop().run_in_executor(self._lookups, work)
        except TimeoutError:
            raise Refused(503, UNAVAILABLE, f"not answered within {self.settings.seconds:g} seconds", RETRY) from None

    async def rows(self, call: Call, served: Served, asked: Asked) -> tuple[list[Row], float]:
        """The recommendations for the playlists of a request, and the seconds that they took."""
        model = self.model_of(served, asked.model)

        def work() -> tuple[list[Row], float]:
            started = time.perf_counter()
            with served.used() as scorer:
                rows = scorer.recommend(asked.playlists, asked.k, model) if asked.playlists else []
            return rows, time.perf_counter() - started

        rows, seconds = await self.computed(call, work)
        self.observe_rows(served, asked, rows, seconds)
        return rows, seconds

    def observe_rows(self, served: Served, asked: Asked, rows: list[Row], seconds: float) -> None:
        """Tell the observer what a model answered."""
        self.observer.scored(
            served,
            seconds,
            sum(len(playlist.tracks) for playlist in asked.playlists),
            sum(row.unknown for row in rows),
            sum(not len(row.ids) for row in rows),
        )

    def model_of(self, served: Served, model: str | None) -> str:
        """The model of a name. Raises Refused if it is not loaded."""
        if model is not None and model not in served.scorer.models:
            raise Refused(400, INVALID, f"model: expected one of {', '.join(sorted(served.scorer.models))}")
        return model or served.name

    def pick(self, call: Call, body: bytes = b"") -> Served:
        """The version that answers a request, by its user if it tells, else by its body."""
        key = call.headers.get(b"x-encore-user") or _cookie(call.headers.get(b"cookie", b""), b"encore_user")
        call.served = self.serving.pick(key or hashlib.blake2b(body, digest_size=8).digest())
        return call.served


def _cookie(header: bytes, name: bytes) -> bytes:
    for part in header.split(b";"):
        key, _, value = part.strip().partition(b"=")
        if key == name:
            return value
    return b""


def _is_open(template: str) -> bool:
    """Whether a route needs no token: the page, probes and metrics."""
    return template in OPEN or template.startswith("/page/")


# --- handlers


async def ping(app: App, call: Call) -> Answer:
    """Ready: a line feed, as MLflow's server answers."""
    if not app.serving.is_ready:
        return Answer(b"\n", 503, JSON, dict(RETRY))
    return Answer(b"\n")


async def version(app: App, call: Call) -> Answer:
    """The version of Encore."""
    return Answer(__version__.encode(), type=TEXT)


async def invocations(app: App, call: Call) -> Answer:
    """MLflow's protocol."""
    body = await app.body(call)
    served = app.pick(call, body)
    asked = mlflow.asked(body, app.settings)
    rows, seconds = await app.rows(call, served, asked)
    predictions = [shown(row, served.scorer.catalogue) for row in rows]
    return Answer(orjson.dumps({"predictions": predictions}), headers=_timing(seconds))


def _timing(seconds: float) -> dict[str, str]:
    return {"Server-Timing": f"score;dur={seconds * 1000:.2f}"}


async def recommend(app: App, call: Call) -> Answer:
    """Recommendations for people."""
    body = await app.body(call)
    served = app.pick(call, body)
    asked = rest.asked(body, app.settings)
    model = app.model_of(served, asked.model)
    playlist = asked.playlists[0]

    def work() -> tuple[Row, list[Reason | None] | None, list[dict[str, Any]], float]:
        started = time.perf_counter()
        with served.used() as scorer:
            (row,) = scorer.recommend([playlist], asked.k, model)
            why = scorer.explain(playlist, row.ids, model) if asked.explain else None
            found = rest.recommendations(row, scorer.catalogue, why)
        return row, why, found, time.perf_counter() - started

    row, _, found, seconds = await app.computed(call, work)
    app.observe_rows(served, asked, [row], seconds)
    answer = {
        "model": model,
        "version": served.version,
        "role": served.role,
        "milliseconds": round(seconds * 1000, 2),
        "unknown": row.unknown,
        "recommendations": found,
    }
    return Answer(orjson.dumps(answer), headers=_timing(seconds))


async def tracks(app: App, call: Call) -> Answer:
    """Tracks by the beginnings of words, by URI, or the most popular ones."""
    query = call.query()
    if unknown := query.keys() - {"q", "n", "ids"}:
        raise invalid(f"query: {len(unknown)} unknown parameters; known are: q, n, ids")
    text = query.get("n", "10")
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_LISTED):
        raise invalid(f"n: expected a whole number from 1 to {MAX_LISTED}")
    n = int(text)
    catalogue = app.pick(call).scorer.catalogue
    call.served = None

    def work() -> list[dict[str, Any]]:
        if "ids" in query:
            wanted = query["ids"].split(",")
            if len(wanted) > MAX_IDS:
                raise invalid(f"ids: expected at most {MAX_IDS} URIs, found {len(wanted)}")
            ids = [track for track in catalogue.ids_of(wanted).tolist() if track >= 0]
        elif "q" in query:
            ids = catalogue.search(query["q"], n)  # type: ignore[attr-defined]
        else:
            ids = catalogue.popular(n)  # type: ignore[attr-defined]
        return [rest.track(catalogue[track]) for track in ids]

    return Answer(orjson.dumps({"tracks": await app.looked_up(call, work)}))


async def playlist(app: App, call: Call) -> Answer:
    """A playlist of the lake."""
    pid, read = call.given["pid"], app.playlists
    if read is None or not (pid.isascii() and pid.isdigit() and len(pid) < 19):
        raise Refused(404, NOT_FOUND, "no such playlist")
    catalogue = app.pick(call).scorer.catalogue
    call.served = None

    def work() -> dict[str, Any] | None:
        found = read(int(pid))
        if found is None:
            return None
        title, uris = found
        ids = catalogue.ids_of(uris).tolist()
        known = [rest.track(catalogue[track]) for track in ids if track >= 0]
        return {"pid": int(pid), "title": title, "tracks": known}

    found = await app.looked_up(call, work)
    if found is None:
        raise Refused(404, NOT_FOUND, "no such playlist")
    return Answer(orjson.dumps(found))


async def models(app: App, call: Call) -> Answer:
    """The loaded model versions."""
    loaded = app.serving.loaded()
    if not loaded:
        app.serving.pick(b"")
    found = [
        {
            "name": served.name,
            "version": served.version,
            "role": served.role,
            "size_bytes": served.scorer.manifest.size,
            "n_tracks": served.scorer.manifest.n_tracks,
            "created": served.scorer.manifest.created,
            "fingerprint": served.fingerprint,
            "models": sorted(served.scorer.models),
        }
        for served in loaded
    ]
    return Answer(orjson.dumps({"served": loaded[0].name, "models": found, "canary": None}))


async def settings(app: App, call: Call) -> Answer:
    """What the page needs to know."""
    own = app.settings
    return Answer(
        orjson.dumps(
            {
                "embed": own.embed,
                "max_k": own.max_k,
                "max_seeds": own.max_seeds,
                "max_title": 1000,
                "playlists": app.playlists is not None,
                "token": bool(own.token),
            }
        )
    )


async def metrics(app: App, call: Call) -> Answer:
    """Metrics in the text format of Prometheus."""
    return Answer(app.observer.render(), type="text/plain; version=0.0.4; charset=utf-8")


async def page(app: App, call: Call) -> Answer:
    """A file of the page."""
    found = app._pages.get(call.given.get("file", "index.html"))
    if found is None:
        raise Refused(404, "ENDPOINT_NOT_FOUND", "no such path")
    headers = {**app._page_headers, "ETag": found.tag}
    if call.headers.get(b"if-none-match", b"").decode("latin-1") == found.tag:
        return Answer(b"", 304, found.type, headers)
    return Answer(found.content, type=found.type, headers=headers)


EXACT: Final[dict[str, dict[str, Handler]]] = {
    "/": {"GET": page},
    "/ping": {"GET": ping},
    "/health": {"GET": ping},
    "/version": {"GET": version},
    "/invocations": {"POST": invocations},
    "/metrics": {"GET": metrics},
    "/api/recommend": {"POST": recommend},
    "/api/tracks": {"GET": tracks},
    "/api/models": {"GET": models},
    "/api/settings": {"GET": settings},
}
"""Handlers by path and method."""
OPEN: Final = frozenset({"/", "/ping", "/health", "/version", "/metrics"})


def _matched(path: str) -> tuple[str, dict[str, Handler] | None, dict[str, str]]:
    """The route of a path with variable parts: its template, handlers by method, and the parts."""
    if path.startswith("/page/"):
        return "/page/{file}", {"GET": page}, {"file": path.removeprefix("/page/")}
    parts = path.split("/")
    if len(parts) == 4 and parts[:3] == ["", "api", "playlists"]:
        return "/api/playlists/{pid}", {"GET": playlist}, {"pid": parts[3]}
    return "other", None, {}
