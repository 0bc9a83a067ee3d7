"""The software bill of materials of an image: CycloneDX 1.6, with every file below the component that it is from."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote


@dataclass(frozen=True)
class Component:
    """A package that files of the image are from. `kind`: deb, pypi or generic; `files`: paths in the image."""

    kind: str
    name: str
    version: str
    about: dict[str, str]
    files: list[str] = field(default_factory=list)


def document(
    components: Sequence[Component], files: dict[str, dict[str, Any]], *, name: str, version: str, cpu: str
) -> dict[str, Any]:
    """The document of an image. `files`: by path in the image, as Image.described returns them."""
    parts = [_part(component, files) for component in components]
    # the same content gives the same document, so it has no time, and its number is a digest
    content = hashlib.sha256(json.dumps([parts, name, version, cpu], sort_keys=True).encode()).hexdigest()
    root = {"type": "container", "bom-ref": "image", "name": name, "version": version}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, content)}",
        "version": 1,
        "metadata": {"component": root, "properties": [{"name": "encore:cpu", "value": cpu}]},
        "components": parts,
        "dependencies": [{"ref": "image", "dependsOn": [part["bom-ref"] for part in parts]}],
    }


def _part(component: Component, files: dict[str, dict[str, Any]]) -> dict[str, Any]:
    purl = _purl(component)
    found: dict[str, Any] = {
        "type": "application" if component.kind == "generic" else "library",
        "bom-ref": purl,
        "name": component.name,
        "version": component.version,
        "purl": purl,
    }
    if summary := component.about.get("Summary"):
        found["description"] = summary
    if licence := component.about.get("License-Expression"):
        found["licenses"] = [{"expression": licence}]
    found["components"] = [_file(path, files[path], purl) for path in component.files]
    return found


def _purl(component: Component) -> str:
    version = quote(component.version, safe="")
    if component.kind == "deb":
        return f"pkg:deb/debian/{component.name}@{version}?arch={component.about['Architecture']}&distro=debian-12"
    return f"pkg:{component.kind}/{component.name}@{version}"


def _file(path: str, about: dict[str, Any], purl: str) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "file", "bom-ref": f"{purl}#{path}", "name": path}
    if "sha256" in about:
        found["hashes"] = [{"alg": "SHA-256", "content": about["sha256"]}]
    return found
