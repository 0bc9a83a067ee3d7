"""What the routes of the scorer answer. A handler is given what all share and the request, and may raise Refused."""

from __future__ import annotations

from typing import Any, Final

import orjson

from encore import __version__
from encore.serving.calls import RETRY, TEXT, Answer, Call, Core, model_of
from encore.serving.models import Served
from encore.serving.protocols import mlflow, rest, v1, v2
from encore.serving.protocols.common import MAX_TITLE, NOT_FOUND, Asked, Refused, invalid
from encore.serving.scorer import Row, shown

MAX_LISTED: Final = 50
"""Tracks that GET /api/tracks finds at most."""
MAX_IDS: Final = 500
"""Tracks that GET /api/tracks can be asked for by URI."""


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return Answer(orjson.dumps(value), status, headers=headers or {})


def _timing(seconds: float) -> dict[str, str]:
    return {"Server-Timing": f"score;dur={seconds * 1000:.2f}"}


# --- probes, MLflow's protocol


async def ping(core: Core, call: Call) -> Answer:
    """A line feed, as MLflow's server answers, if requests can be answered."""
    return Answer(b"\n") if core.serving.is_ready else Answer(b"\n", 503, headers=dict(RETRY))


async def version(core: Core, call: Call) -> Answer:
    """The version of Encore."""
    return Answer(__version__.encode(), type=TEXT)


async def invocations(core: Core, call: Call) -> Answer:
    """Recommendations in MLflow's protocol."""
    body = await core.body(call)
    served = core.pick(call, body)
    return await _predictions(core, call, served, mlflow.asked(body, core.settings), served.name)


async def _predictions(core: Core, call: Call, served: Served, asked: Asked, model: str) -> Answer:
    def predictions(by: Served, rows: list[Row]) -> list[dict[str, Any]]:
        return [shown(row, by.scorer.catalogue) for row in rows]

    found, seconds = await core.recommended(call, served, asked, model, predictions)
    return _json({"predictions": found}, headers=_timing(seconds))


# --- the REST API


async def recommend(core: Core, call: Call) -> Answer:
    """Recommendations with what people want to know of them."""
    body = await core.body(call)
    served = core.pick(call, body)
    asked = rest.asked(body, core.settings)
    model = model_of(served, asked.model)

    def people(by: Served, rows: list[Row]) -> dict[str, Any]:
        (row,) = rows
        why = by.scorer.explain(asked.playlists[0], row.ids, model) if asked.explain else None
        return {
            "model": model,
            "version": by.version,
            "role": by.role,
            "unknown": row.unknown,
            "recommendations": rest.recommendations(row, by.scorer.catalogue, why),
        }

    found, seconds = await core.recommended(call, served, asked, model, people)
    return _json({**found, "milliseconds": round(seconds * 1000, 2)}, headers=_timing(seconds))


async def tracks(core: Core, call: Call) -> Answer:
    """Tracks by URI, by the beginnings of words, or the most popular ones."""
    query = call.query("q", "n", "ids")
    text = query.get("n", "10")
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_LISTED):
        raise invalid(f"n: expected a whole number from 1 to {MAX_LISTED}")
    wanted = query["ids"].split(",") if query.get("ids") else []
    if len(wanted) > MAX_IDS:
        raise invalid(f"ids: expected at most {MAX_IDS} URIs, found {len(wanted)}")
    catalogue = core.champion().scorer.catalogue

    def work() -> list[dict[str, Any]]:
        if "ids" in query:
            ids = [track for track in catalogue.ids_of(wanted).tolist() if track >= 0]
        elif query.get("q"):
            ids = catalogue.search(query["q"], int(text))
        else:
            ids = catalogue.popular(int(text))
        return [rest.track(catalogue[track]) for track in ids]

    return _json({"tracks": await core.looked_up(call, work)})


async def playlist(core: Core, call: Call) -> Answer:
    """A playlist of the lake."""
    pid, read = call.given["pid"], core.playlists
    if read is None or not (pid.isascii() and pid.isdigit() and len(pid) < 19):
        raise Refused(404, NOT_FOUND, "no such playlist")
    catalogue = core.champion().scorer.catalogue

    def work() -> dict[str, Any] | None:
        found = read(int(pid))
        if found is None:
            return None
        title, uris = found
        known = [rest.track(catalogue[track]) for track in catalogue.ids_of(uris).tolist() if track >= 0]
        return {"pid": int(pid), "title": title, "tracks": known}

    found = await core.looked_up(call, work)
    if found is None:
        raise Refused(404, NOT_FOUND, "no such playlist")
    return _json(found)


async def models(core: Core, call: Call) -> Answer:
    """The loaded model versions."""
    champion = core.champion()
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
        for served in core.serving.loaded()
    ]
    return _json({"served": champion.name, "models": found, "canary": core.serving.canary})


async def settings(core: Core, call: Call) -> Answer:
    """What the page needs to know."""
    own = core.settings
    return _json(
        {
            "embed": own.embed,
            "max_k": own.max_k,
            "max_seeds": own.max_seeds,
            "max_title": MAX_TITLE,
            "playlists": core.playlists is not None,
            "token": bool(own.token),
        }
    )


async def openapi(core: Core, call: Call) -> Answer:
    """The OpenAPI document."""
    return Answer(core.openapi)


# --- Open Inference Protocol, KServe


async def v2_server(core: Core, call: Call) -> Answer:
    """What the server is."""
    return _json({"name": "encore", "version": __version__, "extensions": []})


async def v2_live(core: Core, call: Call) -> Answer:
    """Whether the server runs."""
    return _json({"live": True})


async def v2_ready(core: Core, call: Call) -> Answer:
    """Whether requests can be answered."""
    ready = core.serving.is_ready
    return _json({"ready": ready}, 200 if ready else 503, None if ready else dict(RETRY))


async def v2_model(core: Core, call: Call) -> Answer:
    """What a model takes and answers."""
    served, model = core.named(call)
    versions = [one.version for one in core.serving.loaded() if model in one.scorer.models]
    return _json(v2.metadata(model, [served.version] if "version" in call.given else versions))


async def v2_model_ready(core: Core, call: Call) -> Answer:
    """Whether a model can answer."""
    _, model = core.named(call)
    return _json({"name": model, "ready": True})


async def v2_infer(core: Core, call: Call) -> Answer:
    """Recommendations in the Open Inference Protocol."""
    body = await core.body(call)
    if b"inference-header-content-length" in call.headers:
        raise invalid("Inference-Header-Content-Length: binary data is not supported")
    served, model = core.named(call, body)
    asked = v2.asked(body, core.settings)

    def outputs(by: Served, rows: list[Row]) -> dict[str, Any]:
        return v2.answer(model, by.version, asked, rows, by.scorer.catalogue)

    found, seconds = await core.recommended(call, served, asked, model, outputs)
    return _json(found, headers=_timing(seconds))


async def v1_models(core: Core, call: Call) -> Answer:
    """The names of the models."""
    return _json({"models": sorted(core.champion().scorer.models)})


async def v1_model(core: Core, call: Call) -> Answer:
    """Whether a model can answer."""
    _, model = core.named(call)
    return _json({"name": model, "ready": True})


async def v1_predict(core: Core, call: Call) -> Answer:
    """Recommendations in KServe's protocol."""
    body = await core.body(call)
    served, model = core.named(call, body)
    return await _predictions(core, call, served, v1.asked(body, core.settings), model)


# --- the page, metrics


async def page(core: Core, call: Call) -> Answer:
    """A file of the page."""
    found = core.pages.get(call.given.get("file", "index.html"))
    if found is None:
        raise Refused(404, "ENDPOINT_NOT_FOUND", "no such path")
    headers = {**core.page_headers, "ETag": found.tag}
    if call.headers.get(b"if-none-match", b"").decode("latin-1") == found.tag:
        return Answer(b"", 304, found.type, headers)
    return Answer(found.content, type=found.type, headers=headers)


async def metrics(core: Core, call: Call) -> Answer:
    """Metrics in the text format of Prometheus."""
    kind, content = core.metrics.render()
    return Answer(content, type=kind)
