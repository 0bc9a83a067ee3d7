"""Serves recommendations over HTTP from this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

from rich.console import Console

from encore.config import Config, ServeConfig
from encore.errors import EncoreError
from encore.lake.store import Store, open_store
from encore.lake.tables import PLAYLISTS, TRACKS
from encore.serving.models import Source
from encore.serving.server import run
from encore.serving.settings import PREFIX, Settings
from encore.serving.sources import REGISTRY_PREFIX, create, source_of


def serve_model(config: Config, model: str | None, err: Console) -> None:
    """Serve a model until SIGINT or SIGTERM. `model`: see serve.model, which it replaces.

    Raises InputError if a folder is no bundle, or no registered model has a champion, ConfigError if `model` has
    another form.
    """
    settings = settings_of(config.serve)
    if model is not None:
        settings = replace(settings, model=model)
    source = _source(config, settings)
    app = create(settings, source, playlists_of(config))
    run(app, settings, lambda address: err.print(f"encore: open {address}", highlight=False))


def _source(config: Config, settings: Settings) -> Source:
    if settings.model and not settings.model.startswith(REGISTRY_PREFIX):
        return source_of(settings)
    # imported here because it brings MLflow's client
    from encore.cli.models import registered_source

    return registered_source(config, settings.model or None, Path(settings.cache))


def settings_of(config: ServeConfig) -> Settings:
    """The section `serve` as settings of the scorer, with the token of the environment."""
    canary = {f"canary_{name}": value for name, value in config.canary.model_dump().items()}
    own = {**config.model_dump(), **canary, "token": os.environ.get(f"{PREFIX}TOKEN")}
    given = {field.name: own[field.name] for field in fields(Settings) if own.get(field.name) is not None}
    return Settings(**given)


def playlists_of(config: Config) -> Callable[[int], tuple[str | None, list[str]] | None] | None:
    """A function that reads the title and the tracks of a playlist from the lake; None where there is no lake."""
    try:
        store = open_store(config)
        if store.state(PLAYLISTS) is None or store.state(TRACKS) is None:
            return None
    except EncoreError:
        # the scorer needs no lake
        return None
    return lambda pid: _playlist(store, pid)


def _playlist(store: Store, pid: int) -> tuple[str | None, list[str]] | None:
    (row, *_) = store.read_rows(PLAYLISTS, ["name", "track_ids"], "pid", [pid]).to_pylist() or [None]
    if row is None:
        return None
    found = store.read_rows(TRACKS, ["track_id", "track_uri"], "track_id", set(row["track_ids"]))
    uris = dict(zip(found["track_id"].to_pylist(), found["track_uri"].to_pylist(), strict=True))
    return row["name"], [uris[track] for track in row["track_ids"] if track in uris]
