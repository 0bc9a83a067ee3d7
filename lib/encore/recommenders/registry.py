"""All models, by name. A new one is a module with a MODEL, and a line here."""

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
    """The model of that name. Raises ConfigError that lists the known ones."""
    if name not in MODELS:
        raise ConfigError(f"no model {name!r}", remedy=f"one of: {', '.join(sorted(MODELS))}")
    return MODELS[name]
