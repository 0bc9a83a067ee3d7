"""The source that the settings name, and the application that answers from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from encore.errors import ConfigError
from encore.serving.app import App
from encore.serving.bundle import Manifest
from encore.serving.canary import Rule, steps_of
from encore.serving.metrics import Metrics
from encore.serving.models import Folder, Serving, Source
from encore.serving.registry import RegisteredModel, Registry
from encore.serving.rollout import Rollout
from encore.serving.settings import Settings

REGISTRY_PREFIX: Final = "models:/"


def source_of(settings: Settings) -> Source:
    """The source of `settings.model`. Raises ConfigError if it names none, InputError if a folder is no bundle."""
    if not settings.model:
        raise ConfigError("no model is named", remedy="set ENCORE_SERVE_MODEL to a folder with a bundle")
    if settings.model.startswith(REGISTRY_PREFIX):
        if not settings.registry:
            raise ConfigError(
                f"{settings.model}: no registry is named", remedy="set ENCORE_SERVE_REGISTRY to the server's address"
            )
        return RegisteredModel(Registry(settings.registry), settings.model, Path(settings.cache))
    folder = Path(settings.model)
    Manifest.read(folder)
    return Folder(folder)


def create(
    settings: Settings,
    source: Source | None = None,
    playlists: Callable[[int], tuple[str | None, list[str]] | None] | None = None,
) -> App:
    """The application. `source`: instead of that of the settings; `playlists`: see App.

    Raises what `source_of` raises, and ConfigError for steps of a canary.
    """
    return App(_serving(settings, source or source_of(settings)), settings, playlists=playlists)


def _serving(settings: Settings, source: Source) -> Serving:
    rule = Rule(
        min_requests=settings.canary_min_requests,
        slow_requests=settings.canary_slow_requests,
        bound_ms=settings.canary_bound_ms,
        slow_ratio=settings.canary_slow_ratio,
        seconds=settings.canary_seconds,
    )
    return Rollout(
        source,
        Metrics(),
        steps=steps_of(settings.canary_steps),
        rule=rule,
        threads=settings.threads,
        poll_seconds=settings.poll_seconds,
    )
