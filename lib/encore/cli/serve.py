"""Serves recommendations over HTTP from this machine."""

from __future__ import annotations

import os
from dataclasses import fields, replace

from rich.console import Console

from encore.config import Config, ServeConfig
from encore.serving.server import run
from encore.serving.settings import PREFIX, Settings
from encore.serving.sources import create


def serve_model(config: Config, model: str | None, err: Console) -> None:
    """Serve a model until SIGINT or SIGTERM. `model`: see serve.model, which it replaces.

    Raises ConfigError if there is no model, InputError if a folder is no bundle.
    """
    settings = settings_of(config.serve)
    if model is not None:
        settings = replace(settings, model=model)
    app = create(settings)
    run(app, settings, lambda address: err.print(f"encore: open {address}", highlight=False))


def settings_of(config: ServeConfig) -> Settings:
    """The section `serve` as settings of the scorer, with the token of the environment."""
    canary = {f"canary_{name}": value for name, value in config.canary.model_dump().items()}
    own = {**config.model_dump(), **canary, "token": os.environ.get(f"{PREFIX}TOKEN")}
    given = {field.name: own[field.name] for field in fields(Settings) if own.get(field.name) is not None}
    return Settings(**given)
