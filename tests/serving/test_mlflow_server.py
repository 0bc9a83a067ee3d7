"""A version is registered on an MLflow server, and read from it by the scorer's own client."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from encore.cli.models import registered_source
from encore.errors import InputError, TransientError
from encore.runtime.model_registry import BUNDLE, EVALUATION, ModelRegistry
from encore.runtime.tracking import Tracking
from encore.serving.bundle import verify
from encore.serving.models import Resolved
from encore.serving.registry import RegisteredModel, Registry
from tests.s3server import free_ports
from tests.serving.registered import MODEL, NAME, configured, register_two

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server with an artefact proxy."""
    folder = tmp_path_factory.mktemp("server")
    (port,) = free_ports(1)
    options = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts"]
    command = [
        f"{sys.prefix}/bin/mlflow",
        "server",
        "--port",
        str(port),
        "--workers",
        "1",
        "--serve-artifacts",
        *options,
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(1200):
            try:
                if requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok:
                    break
            except requests.ConnectionError:
                assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.fixture(scope="module")
def registry(address: str, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    folder = tmp_path_factory.mktemp("registered")
    return register_two(configured(address, folder), bundle, folder)


def test_the_bundle_arrives_as_it_was_registered(
    registry: ModelRegistry, address: str, bundle: Path, tmp_path: Path
) -> None:
    source = RegisteredModel(Registry(address, {}), f"models:/{NAME}@champion", tmp_path)
    assert source.resolve() == Resolved("1")
    folder = source.fetch("1")
    assert folder.is_relative_to(tmp_path)
    assert verify(folder) == verify(bundle)
    version = registry.version(MODEL, 1)
    assert version is not None
    assert verify(registry.folder(version, BUNDLE)) == verify(bundle)
    assert (registry.folder(version, EVALUATION) / "evaluation.json").read_text() == "{}"


def test_both_clients_see_the_same_aliases_and_tags(registry: ModelRegistry, address: str, tmp_path: Path) -> None:
    source = RegisteredModel(Registry(address, {}), f"models:/{NAME}@champion", tmp_path)
    source.set_alias("challenger", "2")
    source.set_tag("2", "encore.canary.weight", "0.5")
    assert registry.aliases(MODEL) == {"champion": 1, "challenger": 2}
    assert source.resolve() == Resolved("1", "2", {"encore.fingerprint": "of-2", "encore.canary.weight": "0.5"})
    source.delete_alias("challenger")
    source.delete_alias("challenger")
    assert source.resolve() == Resolved("1")
    none = RegisteredModel(Registry(address, {}), "models:/encore-none@champion", tmp_path)
    assert none.resolve() == Resolved(None)
    with pytest.raises(TransientError, match="RESOURCE_DOES_NOT_EXIST"):
        none.fetch("1")


def test_what_aliases_refer_to_is_kept(registry: ModelRegistry, address: str, tmp_path: Path) -> None:
    registry.set_tags(MODEL, 1, {"version.holdout": "7"})
    referred = Tracking(configured(address, tmp_path), "maintain").references()
    assert referred is not None
    assert referred.fitted == {"of-1"}
    assert referred.versions["holdout"] == {7}


def test_the_configuration_names_the_source(registry: ModelRegistry, address: str, tmp_path: Path) -> None:
    config = configured(address, tmp_path)
    source = registered_source(config, None, tmp_path)
    assert isinstance(source, RegisteredModel)
    assert source.name == NAME
    other = config.model_copy(update={"recommend": config.recommend.model_copy(update={"models": ("cosine",)})})
    with pytest.raises(InputError, match=r"no model of recommend\.models has a champion"):
        registered_source(other, None, tmp_path)
