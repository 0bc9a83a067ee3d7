"""All models, by name. To add one, write a module that defines MODEL and list it here."""

from __future__ import annotations

from encore.errors import ConfigError
from encore.recommenders import cosine, popularity, uniform
from encore.recommenders.base import Model

MODELS: dict[str, Model] = {
    entry.name: entry
    for entry in (
        cosine.MODEL,
        popularity.MODEL,
        uniform.MODEL,
    )
}


def model(name: str) -> Model:
    """The model with this name. Raises a ConfigError that lists the known models if there is none."""
    if name not in MODELS:
        raise ConfigError(f"no model {name!r}", remedy=f"one of: {', '.join(sorted(MODELS))}")
    return MODELS[name]
