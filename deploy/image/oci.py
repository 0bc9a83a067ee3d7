"""Write a root folder as an image in the layout of the Open Container Initiative (image-spec 1.1)."""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any, Final

LEVEL: Final = 6
_TYPES: Final = "application/vnd.oci.image"


def write(out: Path, root: Path, image: dict[str, Any], architecture: str) -> None:
    """Write the image of a root folder to a folder, which must not exist. `image`: see files.toml."""
    blobs = out / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layer, content = _layer(blobs, root, image)
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {
            "User": f"{image['user']}:{image['user']}",
            "Entrypoint": image["entrypoint"],
            "Env": [f"{name}={value}" for name, value in sorted(image["environment"].items())],
            "ExposedPorts": {f"{image['port']}/tcp": {}},
            "WorkingDir": "/",
            # where a volume is mounted instead, it belongs to the user only if the image says so
            "Volumes": {folder: {} for folder in image["writable"]},
        },
        "rootfs": {"type": "layers", "diff_ids": [content]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_TYPES}.manifest.v1+json",
        "config": _blob(blobs, f"{_TYPES}.config.v1+json", config),
        "layers": [layer],
    }
    described = _blob(blobs, f"{_TYPES}.manifest.v1+json", manifest)
    described["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    index = {"schemaVersion": 2, "mediaType": f"{_TYPES}.index.v1+json", "manifests": [described]}
    (out / "index.json").write_text(json.dumps(index))
    (out / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))


def _blob(blobs: Path, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    content = json.dumps(value).encode()
    name = hashlib.sha256(content).hexdigest()
    (blobs / name).write_bytes(content)
    return {"mediaType": kind, "digest": f"sha256:{name}", "size": len(content)}


def _layer(blobs: Path, root: Path, image: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The layer, and the digest of its uncompressed content."""
    temporary = blobs / "layer"
    with (
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=LEVEL, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root))
            entry = tar.gettarinfo(str(path), name)
            entry.mtime, entry.uname, entry.gname = 0, "", ""
            entry.uid = entry.gid = image["user"] if f"/{name}" in image["writable"] else 0
            if entry.isreg():
                with path.open("rb") as file:
                    tar.addfile(entry, file)
            else:
                tar.addfile(entry)
    with gzip.open(temporary) as file:
        content = hashlib.sha256()
        while block := file.read(1 << 20):
            content.update(block)
    with temporary.open("rb") as compressed:
        name = hashlib.file_digest(compressed, "sha256").hexdigest()
    size = temporary.stat().st_size
    temporary.rename(blobs / name)
    layer = {"mediaType": f"{_TYPES}.layer.v1.tar+gzip", "digest": f"sha256:{name}", "size": size}
    return layer, f"sha256:{content.hexdigest()}"
