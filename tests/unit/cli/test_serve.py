"""What `encore serve` makes of the configuration."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from encore.cli.serve import playlists_of, settings_of
from encore.config import load_config
from encore.serving.settings import Settings

ELSEWHERE = {"registry", "token"}
"""Settings that are no settings of the configuration: tracking.uri takes the place of the one, the other is secret."""


def test_the_configuration_has_the_settings_of_the_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENCORE_SERVE_TOKEN", raising=False)
    config = load_config("local").serve
    assert settings_of(config) == Settings()
    own = set(config.model_dump()) - {"canary"} | {f"canary_{name}" for name in config.canary.model_dump()}
    assert own == {field.name for field in fields(Settings)} - ELSEWHERE
    monkeypatch.setenv("ENCORE_SERVE_TOKEN", "word")
    assert settings_of(config).token == "word"


def test_without_a_lake_there_are_no_playlists(tmp_path: Path) -> None:
    assert playlists_of(load_config("local", [f"lake.path={tmp_path}"])) is None
