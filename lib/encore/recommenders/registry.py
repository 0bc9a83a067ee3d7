"""All models, by name. To add one, write a module that defines MODEL and list it here."""

from __future__ import annotations

from collections.abc import Iterable

from encore.errors import ConfigError
from encore.recommenders import (
    adjacency,
    artist,
    cosine,
    fusion,
    ials,
    interactions,
    item_knn,
    playlist_knn,
    popularity,
    ranker,
    title,
    uniform,
)
from encore.recommenders.base import Model

MODELS: dict[str, Model] = {
    entry.name: entry
    for entry in (
        adjacency.MODEL,
        artist.MODEL,
        cosine.MODEL,
        fusion.MODEL,
        ials.MODEL,
        item_knn.MODEL,
        playlist_knn.MODEL,
        popularity.MODEL,
        ranker.MODEL,
        title.MODEL,
        uniform.MODEL,
    )
}

PARTS: dict[str, Model] = {entry.name: entry for entry in (interactions.MODEL,)}
"""What models are made of and is fitted and stored like them, but recommends nothing by itself."""


def model(name: str) -> Model:
    """The model with this name. Raises a ConfigError that lists the known models if there is none."""
    if name not in MODELS:
        raise ConfigError(f"no model {name!r}", remedy=f"one of: {', '.join(sorted(MODELS))}")
    return MODELS[name]


def with_parts(names: Iterable[str]) -> list[Model]:
    """Some models or parts of models and all that they are made of, each once and after its parts."""
    found: dict[str, Model] = {}

    def add(entry: Model) -> None:
        for part in entry.parts:
            add(MODELS.get(part) or PARTS[part])
        found.setdefault(entry.name, entry)

    for name in names:
        add(PARTS.get(name) or model(name))
    return list(found.values())
