"""Model versions in an MLflow store, registered from a small bundle without a lake."""

from __future__ import annotations

import shutil
from pathlib import Path

from encore.config import Config, load_config
from encore.runtime.fingerprint import source_of
from encore.runtime.model_registry import CHAMPION, ModelRegistry, Package
from encore.runtime.tracking import FINGERPRINT, Tracking
from encore.serving.portable import write_package
from tests.unit.serving.bundles import URIS

MODEL = "ranker"
NAME = f"encore-{MODEL}"
SEEDS = [[URIS[3], URIS[17], "spotify:track:" + "z" * 22], [URIS[5]], []]
TITLES = ["Rock", None, "Chill"]
REVERSED = 2
"""The version whose code answers with the tracks in reverse order."""


def configured(uri: str, folder: Path) -> Config:
    """Settings with a store."""
    return load_config("local", [f"tracking.uri={uri}", f"tracking.artifacts={folder}/artifacts"])


def register_two(config: Config, bundle: Path, folder: Path) -> ModelRegistry:
    """Register the same bundle twice, with different code; the first version is the champion."""
    registry = ModelRegistry(Tracking(config, "test"))
    code, evaluation = folder / "code", folder / "evaluation"
    evaluation.mkdir()
    (evaluation / "evaluation.json").write_text("{}")
    package = write_package(code)
    other = f"{package}_other"
    shutil.copytree(code / package, code / other)
    for path in (code / other).rglob("*.py"):
        text = path.read_text().replace(package, other)
        path.write_text(text.replace("catalogue.uris(row.ids)", "catalogue.uris(row.ids)[::-1]"))
    for number, name in enumerate((package, other), start=1):
        logged = Package(bundle, evaluation, source_of("encore.serving.pyfunc"), code, name, tuple(URIS[:3]))
        version = registry.register(MODEL, logged, None, {FINGERPRINT: f"of-{number}"})
        assert version.version == number
    registry.promote(MODEL, 1)
    assert registry.aliases(MODEL) == {CHAMPION: 1}
    return registry
