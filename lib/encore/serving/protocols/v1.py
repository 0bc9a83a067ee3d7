"""KServe's protocol, version 1: POST /v1/models/{model}:predict."""

from __future__ import annotations

from encore.serving.protocols.common import Asked, an_object, invalid, parsed, playlists_of
from encore.serving.protocols.mlflow import params_k
from encore.serving.settings import Settings


def asked(body: bytes, settings: Settings) -> Asked:
    """What a body asks. Raises Refused."""
    content = an_object("body", parsed(body), ("instances", "parameters"))
    if "instances" not in content:
        raise invalid("body.instances: expected a list of playlists, found no such field")
    k = params_k("parameters", content.get("parameters"), settings)
    return Asked(playlists_of("instances", content["instances"], settings), k)
