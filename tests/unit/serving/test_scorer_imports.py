"""Scoring needs few packages: those of the container, and numba where loops are compiled on the machine."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from encore.runtime import fingerprint
from tests.unit.serving.bundles import small_bundle

NOT_NEEDED = (
    "boto3",
    "botocore",
    "deltalake",
    "lightgbm",
    "matplotlib",
    "mlflow",
    "omegaconf",
    "pandas",
    "psutil",
    "pyarrow",
    "pydantic",
    "pyspark",
    "rich",
    "sklearn",
    "structlog",
)

CODE = f"""
import sys
from pathlib import Path
import encore.serving.__main__, encore.serving.server, encore.serving.sources
from encore.serving.scorer import Playlist, Scorer
assert not set(sys.modules) & {{"numba"}}, "importing the scorer loads numba"
scorer = Scorer.open(Path(sys.argv[1]))
scorer.warm_up()
playlist = Playlist([scorer.catalogue.uri(3)], "Rock")
for model in scorer.models:
    rows = scorer.recommend([playlist], 5, model)
    scorer.explain(playlist, rows[0].ids, model)
sys.exit(", ".join(sorted(set(sys.modules) & set({NOT_NEEDED!r}))) or 0)
"""


def test_scoring_loads_none_of_the_packages_that_jobs_need() -> None:
    command = [sys.executable, "-c", CODE, str(small_bundle())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("model", "needs"),
    [
        ("ials", {"encore.recommenders.ials_training", "encore.lake.array_files"}),
        ("ranker", {"encore.recommenders.ranker_training"}),
    ],
)
def test_fingerprints_cover_code_that_only_fit_imports(
    model: str, needs: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    covered: set[str] = set()
    parsed = fingerprint._module

    def noted(name: str) -> Any:
        covered.add(name)
        return parsed(name)

    monkeypatch.setattr(fingerprint, "_module", noted)
    fingerprint._closure_digest.__wrapped__(f"encore.recommenders.{model}", frozenset())
    assert needs <= covered
