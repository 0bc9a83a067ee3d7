"""MLflow's own server with the registry, in a process of its own, and bundles that are registered in it."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient

from encore.serving.registry import FOLDER
from tests.serving.process import Running, free_port, started

FILES = "files"


@contextmanager
def mlflow_server(folder: Path) -> Iterator[Running]:
    """The server, with its database and its artefacts in a folder."""
    # the plug-in for SageMaker warns of each request to any other server
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / FILES)),
    ]
    with started(command, port, {}, "/health", log=folder / "log") as running:
        yield running


def register(client: MlflowClient, name: str, bundle: Path, folder: Path) -> str:
    """Register a bundle as a new version; returns it. `folder`: that of the server, into which the files are copied."""
    run = client.create_run("0")
    source = f"{run.info.artifact_uri}/model"
    place = source.removeprefix("mlflow-artifacts:/")
    shutil.copytree(bundle, folder / FILES / place / FOLDER)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    return str(client.create_model_version(name, source, run.info.run_id).version)
