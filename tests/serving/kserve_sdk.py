"""What KServe's own package makes of our manifest and server; runs in an environment of its own, without ours.

    python kserve_sdk.py manifest FILE    the InferenceService of a manifest, as KServe's model holds it, as JSON
    python kserve_sdk.py ask URL MODEL    answers of a server to KServe's client, as JSON

What is asked comes as JSON from standard input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from types import SimpleNamespace
from typing import Any

import kserve
import yaml
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kubernetes import client


def manifest(path: str) -> dict[str, Any]:
    with open(path) as file:
        (document,) = [one for one in yaml.safe_load_all(file) if one["kind"] == "InferenceService"]
    # it looks up types in the models of Kubernetes alone
    for name in dir(kserve.models):
        if name.startswith("V1beta1") and not hasattr(client.models, name):
            setattr(client.models, name, getattr(kserve.models, name))
    api = client.ApiClient()
    found = api.deserialize(SimpleNamespace(data=json.dumps(document)), "V1beta1InferenceService")
    predictor = found.spec.predictor
    (container,) = predictor.containers
    return {
        "type": type(found).__name__,
        "again": api.sanitize_for_serialization(found),
        "given": document,
        "canary": predictor.canary_traffic_percent,
        "container": type(container).__name__,
        "probes": [container.readiness_probe.http_get.path, container.liveness_probe.http_get.path],
    }


async def ask(url: str, model: str, asked: dict[str, Any]) -> dict[str, Any]:
    v1 = InferenceRESTClient(RESTConfig(protocol="v1", retries=0))
    v2 = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    rows = asked["rows"]
    tracks = InferInput("tracks", [len(rows)], "BYTES", [json.dumps(row) for row in rows])
    titles = InferInput("title", [len(rows)], "BYTES", ["a title"] * len(rows))
    request = InferRequest(model_name=model, infer_inputs=[tracks, titles], parameters={"k": asked["k"]})
    found = await v2.infer(url, request, model_name=model)
    again = await v2.infer(url, {"inputs": [tracks_of(rows)], "parameters": {"k": asked["k"]}}, model_name=model)
    bare: dict[str, Any] = {"inputs": [{**tracks_of(rows), "data": "a"}]}
    return {
        "live": await v2.is_server_live(url),
        "ready": await v2.is_server_ready(url),
        "model_ready": await v2.is_model_ready(url, model),
        "v1_model_ready": await v1.is_model_ready(url, model),
        "outputs": {
            output.name: [output.datatype, output.shape, output.as_numpy().tolist()] for output in found.outputs
        },
        "id_repeated": found.id is not None,
        "without_id": [output.data for output in again.outputs],
        "v1": await v1.infer(url, {"instances": [{"tracks": row} for row in rows]}, model_name=model),
        "refused": await refused(v2, url, model, bare),
        "no_such_model": await refused(v2, url, "nosuch", bare),
    }


def tracks_of(rows: list[list[str]]) -> dict[str, Any]:
    return {"name": "tracks", "shape": [len(rows)], "datatype": "BYTES", "data": [json.dumps(row) for row in rows]}


async def refused(v2: InferenceRESTClient, url: str, model: str, body: dict[str, Any]) -> dict[str, Any]:
    """The status and the text of the error that the client raises."""
    try:
        await v2.infer(url, body, model_name=model)
    except Exception as error:  # noqa: BLE001 - whatever the client makes of it
        response = getattr(error, "response", None)
        return {"status": getattr(response, "status_code", None), "text": str(error)}
    return {"status": 200, "text": ""}


if __name__ == "__main__":
    if sys.argv[1] == "manifest":
        result = manifest(sys.argv[2])
    else:
        result = asyncio.run(ask(sys.argv[2], sys.argv[3], json.load(sys.stdin)))
    json.dump(result, sys.stdout, default=lambda value: value.decode() if isinstance(value, bytes) else str(value))
