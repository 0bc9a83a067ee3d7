"""A store of MLflow's for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def its_own_mlflow(empty_mlflow: Path, tmp_path: Path) -> None:
    """A copy where the settings of a test have it."""
    shutil.copy(empty_mlflow, tmp_path / "lake-mlflow.db")
