"""The source that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from encore.errors import ConfigError
from encore.serving.bundle import Manifest
from encore.serving.models import Folder, Source
from encore.serving.settings import Settings

REGISTRY_PREFIX: Final = "models:/"


def source_of(settings: Settings) -> Source:
    """The source of `settings.model`. Raises ConfigError if it names none, InputError if a folder is no bundle."""
    if not settings.model:
        raise ConfigError("no model is named", remedy="set ENCORE_SERVE_MODEL to a folder with a bundle")
    if settings.model.startswith(REGISTRY_PREFIX):
        raise ConfigError(f"{settings.model}: models of a registry cannot be read yet", remedy="name a folder")
    folder = Path(settings.model)
    Manifest.read(folder)
    return Folder(folder)
