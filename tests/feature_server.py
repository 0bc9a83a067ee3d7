"""A local web server that responds like Spotify and ReccoBeats, including their failures."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

CLIENT = ("the-client", "the-secret")
TOKEN = "the-token"


@dataclass(frozen=True)
class Mood:
    """The response to one request instead of the real data."""

    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """Announce the length of the whole body, but send only half of it."""
    slow: float = 0.0
    change: Callable[[Any], Any] | None = None
    """Applied to the response before it is sent."""


def throttled(seconds: float, *, as_date: bool = False) -> Mood:
    """429 with Retry-After, in seconds or as an HTTP date."""
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    after = format_datetime(moment, usegmt=True) if as_date else str(seconds)
    return Mood(429, b'{"error": {"status": 429, "message": "rate limit"}}', {"Retry-After": after})


@dataclass
class FeatureServer:
    """The state of the server: the data, the moods of the next requests in order, and the requests so far."""

    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    moods: list[Mood] = field(default_factory=list)
    token_moods: list[Mood] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)
    tokens_given: int = 0
    url: str = ""

    def spotify(self, ids: list[str]) -> Any:
        """One entry per id, null for unknown ids."""
        entries = [{"id": i, "type": "audio_features", **self.features[i]} if i in self.features else None for i in ids]
        return {"audio_features": entries}

    def reccobeats(self, ids: list[str]) -> Any:
        """Entries in no particular order, without unknown ids; `id` is the service's own id."""
        return {
            "content": [
                {
                    "id": f"00000000-0000-4000-8000-{place:012d}",
                    "href": f"https://open.spotify.com/track/{i}",
                    "isrc": "XX0000000000",
                    **self.features[i],
                }
                for place, i in enumerate(reversed(ids))
                if i in self.features
            ]
        }


@contextmanager
def feature_server(service: str) -> Iterator[FeatureServer]:
    """Run a server for `spotify` or `reccobeats` on 127.0.0.1."""
    state = FeatureServer()
    limit = {"spotify": 100, "reccobeats": 40}[service]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", "0"))
            self.rfile.read(length)
            basic = "Basic " + base64.b64encode(":".join(CLIENT).encode()).decode()
            mood = state.token_moods.pop(0) if state.token_moods else Mood()
            if urlsplit(self.path).path != "/api/token" or service != "spotify":
                self.answer(Mood(404), {"error": "not found"})
            elif mood.status == 200 and self.headers.get("Authorization") != basic:
                self.answer(Mood(400), {"error": "invalid_client", "error_description": "Invalid client"})
            else:
                state.tokens_given += mood.status == 200
                self.answer(mood, {"access_token": TOKEN, "token_type": "Bearer", "expires_in": 3600})

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            ids = [i for text in parse_qs(parts.query).get("ids", []) for i in text.split(",")]
            if parts.path.rstrip("/") != "/v1/audio-features":
                self.answer(Mood(404), {"error": {"status": 404, "message": "no such page"}})
                return
            state.batches.append(ids)
            if service == "spotify" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(Mood(401), {"error": {"status": 401, "message": "Invalid access token"}})
            elif not 1 <= len(ids) <= limit:
                self.answer(Mood(400), {"error": {"status": 400, "message": f"size must be 1 to {limit}"}})
            else:
                truth = state.spotify(ids) if service == "spotify" else state.reccobeats(ids)
                self.answer(state.moods.pop(0) if state.moods else Mood(), truth)

        def answer(self, mood: Mood, truth: Any) -> None:
            time.sleep(mood.slow)
            body = mood.body
            if body is None:
                body = json.dumps(truth if mood.change is None else mood.change(truth)).encode()
            self.send_response(mood.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            for name, value in mood.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if mood.cut else body)
            if mood.cut:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Ignore clients that gave up waiting."""

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
