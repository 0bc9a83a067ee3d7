"""The smoke job on a local lake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from encore.config import Config
from encore.jobs import smoke
from encore.runtime.runner import run_job
from encore.runtime.tracking import Tracking
from encore.spark.session import Session
from tests import recompute


@pytest.mark.slow
def test_it_describes_both_processes_and_leaves_only_the_record_of_its_run(
    session: Session, lake_settings: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = lake_settings("tracking.uri=http://127.0.0.1:9")
    # importing all packages takes seconds, so only the executor does it
    monkeypatch.setattr(smoke, "required_distributions", lambda _: ["orjson", "pyarrow"])
    first = run_job("smoke", config, session, Tracking(config, "first"))
    assert first.status == "done"
    assert {"python", "version", "libc", "packages", "compile_seconds"} <= set(first.facts["driver"])
    assert first.facts["executor"]["version"] == first.facts["driver"]["version"]
    assert first.facts["executor"]["packages"] > 2, "the executor has imported all packages"
    assert first.facts["mlflow"].startswith("failed: "), "a warning only"
    assert "identity" not in first.facts
    left = {path.relative_to(config.lake.path).parts[0] for path in Path(config.lake.path).rglob("*.parquet")}
    assert left == {"job_runs", "job_costs"}
    assert not Path(config.lake.path, "_smoke").exists()
    again = run_job("smoke", config, session, Tracking(config, "second"))
    assert again.status == "done", "there is always something to check"
    runs = recompute.table(Path(config.lake.path), "job_runs")
    assert [row["status"] for row in runs] == ["done", "done"]
