"""The Open Inference Protocol, version 2, as KServe speaks it.

Input `tracks`, BYTES: of shape [n] or [n, 1], a JSON list of URIs for each of n playlists; of shape [n, m] with m > 1,
the URIs themselves, a row for each playlist, filled up with empty strings. Input `title`, BYTES of shape [n] or [n, 1],
optional; an empty string is no title. Parameter `k`. Outputs, where m is the length of the longest list: `tracks`,
BYTES [n, m], filled up with empty strings; `scores`, FP32 [n, m], filled up with 0; `count`, INT32 [n], the length of
each list.
"""

from __future__ import annotations

from math import prod
from typing import Any, Final

import orjson

from encore.serving.catalogue import Catalogue
from encore.serving.protocols.common import (
    Asked,
    a_list,
    an_object,
    count_checked,
    invalid,
    k_of,
    kind,
    parsed,
    title_of,
    tracks_of,
)
from encore.serving.scorer import Playlist, Row
from encore.serving.settings import Settings

DEFAULT_K: Final = 500
OUTPUTS: Final = {"tracks": "BYTES", "scores": "FP32", "count": "INT32"}
MAX_ID: Final = 256
"""Characters of the id of a request."""


def metadata(model: str, versions: list[str]) -> dict[str, Any]:
    """The description of a model."""
    return {
        "name": model,
        "versions": versions,
        "platform": "encore",
        "inputs": [
            {"name": "tracks", "datatype": "BYTES", "shape": [-1, -1]},
            {"name": "title", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1] if name == "count" else [-1, -1]}
            for name, datatype in OUTPUTS.items()
        ],
    }


def asked(body: bytes, settings: Settings) -> Asked:
    """What a body asks. Raises Refused."""
    content = an_object("body", parsed(body), ("id", "model_name", "inputs", "outputs", "parameters"))
    given = content.get("id")
    if given is not None and (not isinstance(given, str) or len(given) > MAX_ID):
        raise invalid(f"id: expected a string of at most {MAX_ID} characters")
    inputs = _by_name("inputs", content.get("inputs"), ("name", "shape", "datatype", "parameters", "data"))
    if "tracks" not in inputs or not inputs.keys() <= {"tracks", "title"}:
        raise invalid("inputs: expected `tracks`, and perhaps `title`")
    playlists = _playlists(inputs["tracks"], settings)
    titles: list[str | None] = [None] * len(playlists)
    if "title" in inputs:
        shape, values = _strings("inputs.title", inputs["title"])
        if shape not in ([len(playlists)], [len(playlists), 1]):
            raise invalid(f"inputs.title.shape: expected [{len(playlists)}], as many titles as playlists")
        titles = [title_of("inputs.title", value) or None for value in values]
    outputs = tuple(OUTPUTS)
    if content.get("outputs") is not None:
        outputs = tuple(_by_name("outputs", content["outputs"], ("name", "parameters")))
        if not outputs or not set(outputs) <= set(OUTPUTS):
            raise invalid(f"outputs: expected some of {', '.join(OUTPUTS)}")
    k = min(DEFAULT_K, settings.max_k)
    parameters = content.get("parameters")
    if parameters is not None:
        k = k_of("parameters.k", an_object("parameters", parameters, ("k",)).get("k", k), settings)
    rows = [Playlist(tracks, title) for tracks, title in zip(playlists, titles, strict=True)]
    return Asked(rows, k, extra={"id": given, "outputs": outputs})


def answer(model: str, version: str, asked: Asked, rows: list[Row], catalogue: Catalogue) -> dict[str, Any]:
    """The answer to a request: see the module."""
    longest = max((len(row.ids) for row in rows), default=0)
    tracks: list[str] = []
    scores: list[float] = []
    for row in rows:
        left = longest - len(row.ids)
        tracks += [*catalogue.uris(row.ids), *[""] * left]
        scores += [*row.scores.tolist(), *[0.0] * left]
    data = {"tracks": tracks, "scores": scores, "count": [len(row.ids) for row in rows]}
    outputs = [
        {
            "name": name,
            "datatype": OUTPUTS[name],
            "shape": [len(rows)] if name == "count" else [len(rows), longest],
            "data": data[name],
        }
        for name in asked.extra["outputs"]
    ]
    found: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": outputs}
    if asked.extra["id"] is not None:
        found["id"] = asked.extra["id"]
    return found


def _by_name(where: str, value: Any, known: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Tensors by name."""
    found: dict[str, dict[str, Any]] = {}
    for i, tensor in enumerate(a_list(where, value)):
        name = an_object(f"{where}[{i}]", tensor, known).get("name")
        if not isinstance(name, str):
            raise invalid(f"{where}[{i}].name: expected a string, found {kind(name)}")
        if name in found:
            raise invalid(f"{where}[{i}].name: expected another name than those before")
        found[name] = tensor
    return found


def _strings(where: str, tensor: dict[str, Any]) -> tuple[list[int], list[str]]:
    """The shape and the values of a tensor of BYTES; `data` may be flat or nested."""
    if tensor.get("datatype") != "BYTES":
        raise invalid(f"{where}.datatype: expected BYTES")
    shape = a_list(f"{where}.shape", tensor.get("shape"))
    if len(shape) not in (1, 2) or not all(type(size) is int and 0 <= size <= 1 << 31 for size in shape):
        raise invalid(f"{where}.shape: expected one or two sizes")
    if tensor.get("parameters") is not None:
        an_object(f"{where}.parameters", tensor["parameters"])
    values = a_list(f"{where}.data", tensor.get("data"))
    if len(shape) == 2 and len(values) == shape[0] and all(isinstance(row, list) for row in values):
        if any(len(row) != shape[1] for row in values):
            raise invalid(f"{where}.data: expected rows of {shape[1]} values, as in `shape`")
        values = [value for row in values for value in row]
    if len(values) != prod(shape):
        raise invalid(f"{where}.data: expected {prod(shape)} values, as in `shape`, found {len(values)}")
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise invalid(f"{where}.data[{i}]: expected a string, found {kind(value)}")
    return shape, values


def _playlists(tensor: dict[str, Any], settings: Settings) -> list[list[str]]:
    where = "inputs.tracks"
    shape, values = _strings(where, tensor)
    if len(shape) == 2 and shape[1] != 1:
        n, m = shape
        count_checked(f"{where}.data", [None] * min(n, settings.max_playlists + 1), settings)
        rows = [[value for value in values[i * m : (i + 1) * m] if value] for i in range(n)]
        return [tracks_of(f"{where}.data, row {i}", row, settings) for i, row in enumerate(rows)]
    found = []
    for i, text in enumerate(count_checked(f"{where}.data", values, settings)):
        try:
            tracks = orjson.loads(text)
        except orjson.JSONDecodeError:
            raise invalid(f"{where}.data[{i}]: expected a JSON list of URIs, found text that is not JSON") from None
        found.append(tracks_of(f"{where}.data[{i}]", tracks, settings))
    return found
