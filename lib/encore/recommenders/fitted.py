"""Fingerprints of fitted models, and loading them from the lake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from encore.config import Config, RecommendConfig
from encore.errors import LakeError
from encore.lake.model_arrays import ModelArrays
from encore.lake.store import Store
from encore.lake.tables import (
    CHALLENGE_PLAYLISTS,
    HOLDOUT,
    MODELS,
    TRACK_VECTORS,
    TRACKS,
    Table,
)
from encore.recommenders.base import Model
from encore.recommenders.registry import with_parts
from encore.runtime.fingerprint import code_digest, fingerprint

INPUTS: dict[str, tuple[Table, ...]] = {
    "counts": (HOLDOUT,),
    "pids": (HOLDOUT,),
    "lists": (HOLDOUT,),
    "titles": (HOLDOUT,),
    "trial": (HOLDOUT,),
    "artist_of": (),
    "album_of": (),
    "vector_ids": (TRACK_VECTORS,),
    "vectors": (TRACK_VECTORS,),
}
"""The tables that each field of the training data is made of, besides `tracks`."""


def fingerprints(config: Config, names: Iterable[str], data_ids: Mapping[str, str]) -> dict[str, str]:
    """The fingerprints of some models and their parts, by name.

    A fingerprint depends on the model's code, its settings, its parts, and the data that it needs. `data_ids`: id and
    data version of each table, by name.
    """
    found: dict[str, str] = {}
    for entry in with_parts(names):
        found[entry.name] = _fingerprint(config, entry, data_ids, found)
    return found


def _fingerprint(config: Config, entry: Model, data_ids: Mapping[str, str], parts: Mapping[str, str]) -> str:
    recommend = config.recommend.model_dump(mode="json")
    settings = {name: recommend[name] for name in entry.settings}
    tables = {TRACKS, *(table for field in entry.needs for table in INPUTS[field])}
    if HOLDOUT in tables:
        settings["train_on_challenge"] = config.recommend.train_on_challenge
        tables |= {CHALLENGE_PLAYLISTS} if config.recommend.train_on_challenge else set()
    if {"lists", "trial"} & set(entry.needs):
        settings |= {"trial_playlists": recommend["trial_playlists"], "split": config.split.model_dump(mode="json")}
    code = code_digest(entry.fit.__module__) + code_digest("encore.recommenders.training")
    return fingerprint(
        f"model {entry.name}",
        code=code,
        settings={**settings, "parts": {name: parts[name] for name in entry.parts}},
        inputs={table.name: data_ids.get(table.name, "") for table in tables},
        writes=(MODELS,),
    )


@dataclass(frozen=True)
class FittedModels:
    """Fitted models in a lake. Picklable: executors load them too. `fingerprints`: of models and parts, by name."""

    arrays: ModelArrays
    settings: RecommendConfig
    fingerprints: Mapping[str, str]

    @classmethod
    def best(cls, config: Config, store: Store) -> str:
        """The first of `recommend.models` that has been fitted in the lake. Raises LakeError if none has."""
        fitted = set(store.read_small(MODELS, ["model"])["model"].to_pylist())
        for name in config.recommend.models:
            if name in fitted:
                return name
        raise LakeError(f"the lake {store.path} has no fitted model", remedy="call `encore run`")

    @classmethod
    def newest(cls, config: Config, store: Store, name: str) -> FittedModels:
        """The newest fitted version of a model, and its parts, according to the table `models`.

        Raises LakeError if the model has never been fitted on the present table `tracks`.
        """
        state = store.state(TRACKS)
        found = store.read_small(MODELS, ["model", "fingerprint", "parts", "fitted_at", "table_ids"])
        # as numbers, because pyarrow imports pandas to make a datetime
        at = found["fitted_at"].cast(pa.int64())
        rows = found.set_column(found.column_names.index("fitted_at"), "fitted_at", at).to_pylist()
        usable = [row for row in rows if state is not None and dict(row["table_ids"]).get(TRACKS.name) == state.id]
        known = {(row["model"], row["fingerprint"]): row for row in usable}
        own = [row for row in usable if row["model"] == name]
        if not own:
            raise LakeError(
                f"the lake {store.path} has no fitted model {name}",
                remedy=f"add {name} to recommend.models and call `encore run`",
            )
        chosen: dict[str, str] = {}

        def add(model_name: str, fingerprint: str) -> None:
            chosen[model_name] = fingerprint
            for part, of_part in dict(known.get((model_name, fingerprint), {}).get("parts") or ()).items():
                add(part, of_part)

        add(name, max(own, key=lambda row: row["fitted_at"])["fingerprint"])
        return cls(ModelArrays.of(config), config.recommend, chosen)

    def load(self, name: str) -> Any:
        """A fitted model, with its arrays mapped. Raises LakeError if it, or one of its parts, is not stored."""
        loaded: dict[str, Any] = {}
        for entry in with_parts([name]):
            arrays = self.arrays.open(entry.name, self.fingerprints[entry.name])
            loaded[entry.name] = entry.load(arrays, self.settings, loaded)
        return loaded[name]
