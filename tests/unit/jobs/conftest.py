"""A store of MLflow's for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of MLflow's, made once: making one takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def its_own_mlflow(empty_mlflow: Path, tmp_path: Path) -> None:
    """A copy where the settings of a test have it."""
    shutil.copy(empty_mlflow, tmp_path / "lake-mlflow.db")
