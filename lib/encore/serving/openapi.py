"""The OpenAPI document, made of the declared routes, and of schemas with the limits of the settings."""

from __future__ import annotations

import re
from typing import Any, Final

from encore import __version__
from encore.serving.handlers import MAX_IDS
from encore.serving.protocols import mlflow, rest, v2
from encore.serving.protocols.common import MAX_PID, MAX_TITLE
from encore.serving.routes import ROUTES, Route
from encore.serving.settings import Settings

Schema = dict[str, Any]

ERRORS: Final = {
    400: "The request is malformed, or a field is missing, of another type or beyond its limit.",
    401: "The bearer token is missing or wrong.",
    404: "There is no such path, model, version or playlist.",
    405: "The path has other methods: see the header Allow.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The content is not JSON in UTF-8.",
    500: "A defect of the scorer.",
    503: "No model is loaded yet, too many requests are waiting, or the answer took too long: try again after the "
    "seconds in the header Retry-After.",
}
"""What each status of an error means."""

_FOR_BODIES: Final = (400, 408, 413, 415, 500)


def document(settings: Settings) -> Schema:
    """The document."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route, settings)
    components: Schema = {"schemas": schemas(settings)}
    found: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": "Encore",
            "version": __version__,
            "description": "Continues playlists. Errors have a status, an error code and a message that names the "
            "field, what was expected and the type that was found; they repeat nothing of the request.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": components,
    }
    if settings.token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return found


def _operation(route: Route, settings: Settings) -> Schema:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _PATH_PARTS[name]}
        for name in re.findall(r"\{(\w+)\}", route.template)
    ] + [{"name": name, "in": "query", "schema": schema} for name, schema in route.query.items()]
    ok: Schema = {"description": "The answer."}
    if route.answer:
        ok["content"] = {"application/json": {"schema": _ref(route.answer)}}
    else:
        ok["content"] = {route.type: {"schema": {"type": "string"}}}
    errors = {*route.errors, *(_FOR_BODIES if route.body else ())}
    if settings.token and not route.is_open:
        errors.add(401)
    responses = {"200": ok, **{str(status): _error(status, route) for status in sorted(errors)}}
    text = (route.handler.__doc__ or "").strip()
    found: Schema = {
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.template}").strip("_"),
        "tags": [route.tag],
        "summary": text,
        "responses": responses,
    }
    if parameters:
        found["parameters"] = parameters
    if route.body:
        found["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref(route.body)}},
        }
    if settings.token and not route.is_open:
        found["security"] = [{"token": []}]
    return found


def _error(status: int, route: Route) -> Schema:
    found: Schema = {"description": ERRORS[status]}
    # a probe that fails has the content of one that succeeds
    name = route.answer if route.is_open else "Error"
    found["content"] = {"application/json": {"schema": _ref(name)}}
    if status == 503:
        found["headers"] = {"Retry-After": {"schema": {"type": "string"}, "required": True}}
    return found


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_PATH_PARTS: Final[dict[str, Schema]] = {
    "model": {"type": "string", "minLength": 1},
    "version": {"type": "string", "minLength": 1},
    "pid": {"type": "integer", "minimum": 0, "maximum": MAX_PID},
}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def _list(items: Schema, most: int | None = None) -> Schema:
    return {"type": "array", "items": items, **({"maxItems": most} if most is not None else {})}


def schemas(settings: Settings) -> dict[str, Schema]:
    """The schemas of bodies and answers."""
    text, number, whole = {"type": "string"}, {"type": "number"}, {"type": "integer"}
    maybe = {"type": ["string", "null"]}
    tracks = _list(text, settings.max_seeds)
    title = {"type": ["string", "null"], "maxLength": MAX_TITLE}
    record = _object({"tracks": tracks}, {"title": title})
    k = {"type": "integer", "minimum": 1, "maximum": settings.max_k}
    params = {"anyOf": [_object({}, {"k": {**k, "default": min(mlflow.DEFAULT_K, settings.max_k)}}), {"type": "null"}]}
    rows = settings.max_playlists
    records = _list(_ref("Record"), rows)
    about = {"uri": text, "name": maybe, "artist": maybe, "popularity": whole}
    bytes_tensor = {
        "datatype": {"const": "BYTES"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 2},
        "data": {"type": "array", "items": {"type": ["string", "array"]}},
    }
    return {
        "Error": _object({"error_code": text, "message": text}, {"error": text}),
        "LineFeed": {},
        "Document": {"type": "object"},
        "Record": record,
        "Invocations": {
            "oneOf": [
                _object({shape: content}, {"params": params})
                for shape, content in {
                    "instances": records,
                    "dataframe_records": records,
                    "dataframe_split": _split(tracks, title, rows),
                    "inputs": {
                        "anyOf": [
                            records,
                            _ref("Record"),
                            _object(
                                {"tracks": _list(tracks, rows)},
                                {"title": {"anyOf": [_list(title, rows), {"type": "null"}]}},
                            ),
                        ]
                    },
                }.items()
            ]
        },
        "V1Request": _object({"instances": records}, {"parameters": params}),
        "Predictions": _object({"predictions": _list(_object({"tracks": _list(text), "scores": _list(number)}))}),
        "Recommend": _object(
            {},
            {
                "tracks": tracks,
                "title": title,
                "k": {**k, "default": min(rest.DEFAULT_K, settings.max_k)},
                "model": maybe,
                "explain": {"type": "boolean", "default": False},
                "pid": {"type": ["integer", "null"], "minimum": 0, "maximum": MAX_PID},
            },
        ),
        "Recommendations": _object(
            {
                "model": text,
                "version": text,
                "role": {"enum": ["champion", "challenger"]},
                "milliseconds": number,
                "unknown": whole,
                "recommendations": _list(
                    _object({"rank": whole, **about, "score": number, "reason": _reason(text, maybe)})
                ),
            }
        ),
        "Tracks": _object({"tracks": _list(_ref("Track"), MAX_IDS)}),
        "Track": _object(about),
        "Playlist": _object({"pid": whole, "title": maybe, "tracks": _list(_ref("Track"))}),
        "Models": _object(
            {
                "served": text,
                "models": _list(
                    _object(
                        {
                            "name": text,
                            "version": text,
                            "role": text,
                            "size_bytes": whole,
                            "n_tracks": whole,
                            "created": text,
                            "fingerprint": text,
                            "models": _list(text),
                        }
                    )
                ),
                "canary": {"type": ["object", "null"]},
            }
        ),
        "Settings": {"type": "object"},
        "V2Server": _object({"name": text, "version": text, "extensions": _list(text)}),
        "V2Live": _object({"live": {"type": "boolean"}}),
        "V2Ready": _object({"ready": {"type": "boolean"}}),
        "V2Model": _object(
            {
                "name": text,
                "versions": _list(text),
                "platform": text,
                **{
                    name: _list(_object({"name": text, "datatype": text, "shape": _list(whole)}))
                    for name in ("inputs", "outputs")
                },
            }
        ),
        "ModelReady": _object({"name": text, "ready": {"type": "boolean"}}),
        "V1Models": _object({"models": _list(text)}),
        "V2Request": _object(
            {
                "inputs": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 2,
                    "items": _object(
                        {"name": {"enum": ["tracks", "title"]}, **bytes_tensor},
                        {"parameters": {"type": ["object", "null"]}},
                    ),
                }
            },
            {
                "id": {"type": ["string", "null"], "maxLength": v2.MAX_ID},
                "model_name": text,
                "parameters": params,
                "outputs": {
                    "anyOf": [
                        {
                            "type": "array",
                            "minItems": 1,
                            "items": _object({"name": {"enum": list(v2.OUTPUTS)}}, {"parameters": {}}),
                        },
                        {"type": "null"},
                    ]
                },
            },
        ),
        "V2Answer": _object(
            {
                "model_name": text,
                "model_version": text,
                "outputs": _list(
                    _object(
                        {"name": text, "datatype": text, "shape": _list(whole), "data": {"type": "array"}},
                    )
                ),
            },
            {"id": text},
        ),
    }


def _reason(text: Schema, maybe: Schema) -> Schema:
    return {
        "anyOf": [
            {"type": "null"},
            _object({"kind": {"const": "title"}}),
            _object({"kind": {"const": "track"}, "uri": text, "name": maybe, "artist": maybe}),
        ]
    }


def _split(tracks: Schema, title: Schema, rows: int) -> Schema:
    """The shape dataframe_split, for each order of the columns."""
    columns = {"tracks": tracks, "title": title}
    return {
        "oneOf": [
            _object(
                {
                    "columns": {"const": list(names)},
                    "data": _list(
                        {
                            "type": "array",
                            "prefixItems": [columns[name] for name in names],
                            "minItems": len(names),
                            "maxItems": len(names),
                        },
                        rows,
                    ),
                },
                {"index": {"type": ["array", "null"], "description": "As long as `data`; it is not used."}},
            )
            for names in (("tracks",), ("tracks", "title"), ("title", "tracks"))
        ]
    }
