"""Settings of the scorer. In a container they come from environment variables, elsewhere from the configuration."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from encore.errors import ConfigError
from encore.serving.canary import DEFAULT_STEPS

PREFIX: Final = "ENCORE_SERVE_"


@dataclass(frozen=True)
class Settings:
    """What the scorer does with a request, and where its model comes from.

    The environment variable of a field is ENCORE_SERVE_ and its name in capitals. Fields are those of the section
    `serve` of the configuration, which documents them.
    """

    model: str = ""
    """A folder with a bundle, or models:/encore-ranker@champion or models:/encore-ranker/3 in the registry."""
    registry: str = ""
    """http(s):// address of the MLflow server with the registry."""
    cache: str = "data/serve"
    """Folder of downloaded bundles."""
    host: str = "127.0.0.1"
    port: int = 8080
    token: str = ""
    """If set, requests to the APIs need the header `Authorization: Bearer TOKEN`."""
    max_body_bytes: int = 1_000_000
    max_seeds: int = 10_000
    """Tracks of a playlist."""
    max_playlists: int = 256
    """Playlists of a request."""
    max_k: int = 500
    threads: int = 2
    """Requests that are computed at a time; one alone uses all threads if its model is made of several."""
    max_waiting: int = 64
    """Requests that wait for a thread; further ones are answered with 503."""
    max_connections: int = 1000
    """Open connections; further ones are answered with 503 and closed."""
    seconds: float = 10.0
    """A request that has not been answered after this time is answered with 503."""
    drain_seconds: float = 20.0
    """After SIGTERM, requests have this long to be answered."""
    linger_seconds: float = 1.0
    """After SIGTERM, new connections are still accepted for this long, in which a load balancer learns of it."""
    keep_alive_seconds: int = 75
    """An idle connection is closed after this time. It must be longer than the idle time-out of a load balancer in
    front, or that one sends requests to connections that are being closed and answers 502."""
    embed: bool = False
    """Whether the page may show Spotify's player, which loads content from open.spotify.com."""

    poll_seconds: float = 10.0
    """The registry is asked this often which versions to serve."""
    canary_steps: str = DEFAULT_STEPS
    """The ramp of a challenger: weight:seconds of each step, unless the tags of its version say otherwise."""
    canary_seconds: float = 30.0
    """Interval of verdicts."""
    canary_min_requests: int = 200
    """Requests of either version without which there is no verdict."""
    canary_slow_requests: int = 500
    """Requests of a challenger from which on its 99th percentile is compared."""
    canary_bound_ms: float = 40.0
    """A challenger whose 99th percentile is below this, or"""
    canary_slow_ratio: float = 1.5
    """below this multiple of the champion's, is not slow."""

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """From environment variables. Raises ConfigError for an unknown name or a value of the wrong type."""
        known = {field.name: field for field in fields(cls)}
        values: dict[str, object] = {}
        for name, text in environment.items():
            if not name.startswith(PREFIX):
                continue
            field = known.get(name.removeprefix(PREFIX).lower())
            if field is None:
                raise ConfigError(f"{name}: no such setting", remedy=f"known: {', '.join(sorted(known))}")
            value = values[field.name] = _parsed(name, text, str(field.type))
            low = _LOWEST.get(field.name, 0)
            if not isinstance(value, str) and not (low <= value < math.inf):
                raise ConfigError(f"{name}: expected a number from {low:g} up, found {value}")
        return cls(**values)  # type: ignore[arg-type]


_LOWEST: Final = {
    "max_body_bytes": 1,
    "max_seeds": 1,
    "max_playlists": 1,
    "max_k": 1,
    "threads": 1,
    "max_connections": 1,
    "seconds": 0.001,
    "keep_alive_seconds": 1,
    "poll_seconds": 0.01,
    "canary_seconds": 0.01,
}
"""The least value of a number, if it is not 0."""


def _parsed(name: str, text: str, kind: str) -> str | bool | int | float:
    if kind == "str":
        return text
    if kind == "bool":
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise ConfigError(f"{name}: expected true or false, found {text!r}")
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        raise ConfigError(f"{name}: expected a number, found {text!r}") from None
