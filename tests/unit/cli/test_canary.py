"""`encore canary` asks scorers for a canary, shows it, and stops it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console

from encore.cli.canary import print_status, start, stop
from encore.config import Config, load_config
from encore.errors import ConfigError, InputError
from encore.serving.rollout import EVENT, TAG

NAME = "encore-ials"


@pytest.fixture(scope="module")
def store(empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with three versions of a model, of which the first is the champion."""
    path = Path(shutil.copy(empty_mlflow, tmp_path_factory.mktemp("canary") / "mlflow.db"))
    client = MlflowClient(tracking_uri=f"sqlite:///{path}")
    client.create_registered_model(NAME)
    for _ in range(3):
        client.create_model_version(NAME, "file:///none")
    client.set_registered_model_alias(NAME, "champion", "1")
    return path


@pytest.fixture
def config(store: Path, tmp_path: Path) -> Config:
    shutil.copy(store, tmp_path / "mlflow.db")
    return load_config("local", [f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"])


@pytest.fixture
def client(config: Config) -> MlflowClient:
    return MlflowClient(tracking_uri=config.tracking.uri)


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def text_of(out: Console) -> str:
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_a_canary_is_requested_shown_and_stopped(config: Config, client: MlflowClient) -> None:
    out = console()
    start(config, "ials", 2, "0.05:60,0.5:120", out)
    assert "ials 2 challenges 1: 2 steps, at least 3 minutes" in text_of(out)
    assert client.get_model_version_by_alias(NAME, "challenger").version == 2
    tags = client.get_model_version(NAME, "2").tags
    assert (tags[f"{TAG}state"], tags[f"{TAG}steps"]) == ("requested", "0.05:60,0.5:120")

    client.set_model_version_tag(NAME, "2", f"{EVENT}1.0.broken", "{")
    stop(config, "ials", "lunch [break]", console())
    assert "challenger" not in client.get_registered_model(NAME).aliases
    out = console()
    print_status(config, "ials", as_json=False, out=out)
    assert text_of(out).count("by hand: lunch [break]") == 2
    out = console()
    print_status(config, None, as_json=True, out=out)
    (told,) = json.loads(text_of(out))["canaries"]
    assert (told["version"], told["state"], told["is_challenger"]) == (2, "stopped", False)
    assert [event["event"] for event in told["events"]] == ["stopped"]


def test_without_steps_those_of_the_settings_are_used(config: Config, client: MlflowClient) -> None:
    start(config, "ials", 2, None, console())
    assert client.get_model_version(NAME, "2").tags[f"{TAG}steps"] == config.serve.canary.steps


def test_what_cannot_be_started_is_refused(config: Config, client: MlflowClient) -> None:
    for model, version, message in [
        ("none", 1, "no registered version of none"),
        ("ials", 9, "ials has no version 9"),
        ("ials", 1, "ials 1 is the champion already"),
    ]:
        with pytest.raises(InputError, match=message):
            start(config, model, version, None, console())
    with pytest.raises(ConfigError, match="canary steps"):
        start(config, "ials", 2, "1:1", console())
    assert not client.get_model_version(NAME, "2").tags
    start(config, "ials", 2, None, console())
    with pytest.raises(InputError, match="version 2 of ials is a challenger already"):
        start(config, "ials", 3, None, console())
    client.delete_registered_model_alias(NAME, "champion")
    with pytest.raises(InputError, match="no champion"):
        start(config, "ials", 3, None, console())


def test_nothing_to_show_or_stop(config: Config) -> None:
    with pytest.raises(InputError, match="no version of ials was tried"):
        print_status(config, "ials", as_json=False, out=console())
    with pytest.raises(InputError, match="ials has no challenger"):
        stop(config, "ials", None, console())
