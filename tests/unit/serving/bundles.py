"""Small bundles, made without Spark and without a lake."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from encore import temporary
from encore.arrays.ragged import Ragged
from encore.config import RecommendConfig
from encore.recommenders.registry import with_parts
from encore.serving import bundle, catalogue
from tests.unit.recommenders.cases import CONFIG, TRAIN, fitted

URIS = [f"spotify:track:{i:022d}" for i in range(TRAIN.n_tracks)]


def texts(rows: Sequence[str]) -> Ragged:
    """Texts as `catalogue.build` takes them."""
    return Ragged.from_lists([list(row.encode()) for row in rows], np.uint8)


@lru_cache
def small_bundle(model: str = "ranker") -> Path:
    """The folder of a bundle of a model that was fitted on the training data of the contract tests."""
    return new_bundle(model)


def new_bundle(model: str, config: RecommendConfig = CONFIG) -> Path:
    """The folder of a bundle of its own, with other settings if given."""
    arrays: dict[str, dict[str, Path]] = {}
    source = Path(temporary.new_folder("arrays"))
    for entry in with_parts([model]):
        own = source / entry.name
        own.mkdir()
        arrays[entry.name] = {}
        for name, array in fitted(entry.name, TRAIN, config).arrays.items():
            np.save(own / f"{name}.npy", array)
            arrays[entry.name][name] = own / f"{name}.npy"
    folder = Path(temporary.new_folder("bundle")) / model
    bundle.write(
        folder,
        model=model,
        arrays=arrays,
        catalogue=catalogue.build(
            texts(URIS),
            texts([f"Track {i}" for i in range(TRAIN.n_tracks)]),
            texts(["" if a < 0 else f"Artist {a}" for a in TRAIN.artist_of]),
            TRAIN.counts,
        ),
        fingerprints={name: f"of-{name}" for name in arrays},
        settings=config.model_dump(mode="json"),
        versions={"tracks": 0, "holdout": 0},
        table_ids={"tracks": "t", "holdout": "h"},
        n_tracks=TRAIN.n_tracks,
        created="2026-01-01T00:00:00+00:00",
    )
    return folder
