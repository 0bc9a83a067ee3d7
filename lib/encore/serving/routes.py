"""The routes of the scorer, declared once: what is called, what is documented, and what needs a token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from encore.serving import handlers
from encore.serving.calls import TEXT, Answer, Call, Core

Handler = Callable[[Core, Call], Awaitable[Answer]]

PREFIX: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Route:
    """A path with variable parts in braces, and the handler of a method.

    `body` and `answer`: names of schemas in `openapi`; `type`: of the answer if it is not JSON. `errors`: statuses
    besides those that each route, and each route with a body, may answer. `query`: parameters, name to JSON schema.
    `is_open`: needs no token. `label`: for metrics.
    """

    method: str
    template: str
    handler: Handler
    tag: str
    body: str = ""
    answer: str = ""
    type: str = "application/json"
    errors: tuple[int, ...] = ()
    query: dict[str, dict[str, Any]] = field(default_factory=dict)
    is_open: bool = False
    label: str = ""

    @property
    def label_of_metrics(self) -> str:
        """The value of the label `route`."""
        return self.label or self.template


def _query(kind: str, text: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "description": text, **more}


_V2: Final = "/v2/models/{model}"
_V2_VERSION: Final = "/v2/models/{model}/versions/{version}"

ROUTES: Final[tuple[Route, ...]] = (
    Route("GET", "/ping", handlers.ping, "MLflow", answer="LineFeed", errors=(503,), is_open=True),
    Route("GET", "/health", handlers.ping, "MLflow", answer="LineFeed", errors=(503,), is_open=True),
    Route("GET", "/version", handlers.version, "MLflow", type=TEXT, is_open=True),
    Route("POST", "/invocations", handlers.invocations, "MLflow", "Invocations", "Predictions", errors=(503,)),
    Route("POST", "/api/recommend", handlers.recommend, "REST", "Recommend", "Recommendations", errors=(503,)),
    Route(
        "GET",
        "/api/tracks",
        handlers.tracks,
        "REST",
        answer="Tracks",
        errors=(400, 503),
        query={
            "q": _query("string", "Beginnings of words of name and artist; the most popular tracks come first."),
            "n": _query("integer", "How many tracks at most.", minimum=1, maximum=handlers.MAX_LISTED, default=10),
            "ids": _query(
                "string", f"At most {handlers.MAX_IDS} URIs, separated by commas; unknown ones are left out."
            ),
        },
    ),
    Route("GET", "/api/playlists/{pid}", handlers.playlist, "REST", answer="Playlist", errors=(404, 503)),
    Route("GET", "/api/models", handlers.models, "REST", answer="Models", errors=(503,)),
    Route("GET", "/api/settings", handlers.settings, "REST", answer="Settings"),
    Route("GET", "/api/openapi.json", handlers.openapi, "REST", answer="Document"),
    Route("GET", "/v2", handlers.v2_server, "V2", answer="V2Server"),
    Route("GET", "/v2/health/live", handlers.v2_live, "V2", answer="V2Live", is_open=True),
    Route("GET", "/v2/health/ready", handlers.v2_ready, "V2", answer="V2Ready", errors=(503,), is_open=True),
    Route("GET", _V2, handlers.v2_model, "V2", answer="V2Model", errors=(404, 503)),
    Route("GET", _V2_VERSION, handlers.v2_model, "V2", answer="V2Model", errors=(404, 503), label=_V2),
    Route("GET", f"{_V2}/ready", handlers.v2_model_ready, "V2", answer="ModelReady", errors=(404, 503)),
    Route(
        "GET",
        f"{_V2_VERSION}/ready",
        handlers.v2_model_ready,
        "V2",
        answer="ModelReady",
        errors=(404, 503),
        label=f"{_V2}/ready",
    ),
    Route("POST", f"{_V2}/infer", handlers.v2_infer, "V2", "V2Request", "V2Answer", errors=(404, 503)),
    Route(
        "POST",
        f"{_V2_VERSION}/infer",
        handlers.v2_infer,
        "V2",
        "V2Request",
        "V2Answer",
        errors=(404, 503),
        label=f"{_V2}/infer",
    ),
    Route("GET", "/v1/models", handlers.v1_models, "V1", answer="V1Models", errors=(503,)),
    Route("GET", "/v1/models/{model}", handlers.v1_model, "V1", answer="ModelReady", errors=(404, 503)),
    Route(
        "POST", "/v1/models/{model}:predict", handlers.v1_predict, "V1", "V1Request", "Predictions", errors=(404, 503)
    ),
    Route("GET", "/metrics", handlers.metrics, "other", type=PREFIX, is_open=True),
    Route("GET", "/", handlers.page, "page", is_open=True, type="text/html; charset=utf-8"),
)
PAGE: Final = Route("GET", "/page/{file}", handlers.page, "page", is_open=True)
"""The other files of the page; `file` may contain slashes."""


@dataclass(frozen=True)
class Matched:
    """The routes of a path by method, and the variable parts of the path."""

    routes: dict[str, Route]
    given: dict[str, str]


class Router:
    """Finds the routes of a path."""

    def __init__(self, routes: tuple[Route, ...] = ROUTES) -> None:
        by_template: dict[str, dict[str, Route]] = {}
        for route in routes:
            by_template.setdefault(route.template, {})[route.method] = route
        self._exact = {template: Matched(own, {}) for template, own in by_template.items() if "{" not in template}
        self._variable = [(template.split("/"), own) for template, own in by_template.items() if "{" in template]

    def match(self, path: str) -> Matched | None:
        """The routes of a path; None if there are none."""
        found = self._exact.get(path)
        if found is not None:
            return found
        if path.startswith("/page/"):
            return Matched({"GET": PAGE}, {"file": path.removeprefix("/page/")})
        parts = path.split("/")
        for template, routes in self._variable:
            given = _given(template, parts)
            if given is not None:
                return Matched(routes, given)
        return None


def _given(template: list[str], parts: list[str]) -> dict[str, str] | None:
    """The variable parts if a path matches a template; None if it does not."""
    if len(template) != len(parts):
        return None
    given = {}
    for expected, found in zip(template, parts, strict=True):
        if not expected.startswith("{"):
            if expected != found:
                return None
            continue
        name, end = expected[1:].split("}")
        # a value has no colon, so that {model} is not {model}:predict
        value = found.removesuffix(end) if found.endswith(end) else ""
        if not value or ":" in value:
            return None
        given[name] = value
    return given
