"""The files of the page, read once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).with_name("page")
TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}


@dataclass(frozen=True)
class File:
    """A file of the page. `tag`: its ETag."""

    content: bytes
    type: str
    tag: str


def files(folder: Path = FOLDER) -> dict[str, File]:
    """The files in a folder by path, `index.html` and `js/app.js` for example; those of other types are left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in TYPES:
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            found[path.relative_to(folder).as_posix()] = File(content, TYPES[path.suffix], tag)
    return found


def content_security_policy(embed: bool) -> str:
    """The policy of the page: only its own files; with `embed`, frames of Spotify's player too."""
    frames = "https://open.spotify.com" if embed else "'none'"
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        f"connect-src 'self'; manifest-src 'self'; frame-src {frames}; form-action 'none'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
