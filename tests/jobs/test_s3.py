"""The line as a user runs it, by its command, with slices, features and lake in S3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from encore.config import load_config
from encore.job import Session
from encore.pipeline import plan, run_pipeline
from tests import recompute
from tests.conftest import FAST_JVM
from tests.s3server import S3Server

BUCKET = "encore-line"


def encore(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("encore")), *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600)


@pytest.mark.s3
def test_the_line_with_slices_features_and_lake_in_s3(
    s3_server: S3Server, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = s3_server.client()
    client.create_bucket(Bucket=BUCKET)
    for path in generated.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), BUCKET, f"mpd/{path.relative_to(generated)}")
    spark = {"spark.ui.enabled": "false", "spark.driver.extraJavaOptions": FAST_JVM}
    settings = [f"spark.settings={json.dumps(spark)}", "spark.master=local[2]", "recommend.k=50", "log.level=error"]
    settings += [f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", f"tracking.artifacts={tmp_path}/artifacts"]
    settings += [f"raw.playlists=s3://{BUCKET}/mpd/", f"raw.features=s3://{BUCKET}/mpd/features"]
    settings += [f"lake.path=s3://{BUCKET}/lake", "s3.path_style=true"]
    command = ["run", "--to", "evaluate", *(part for setting in settings for part in ("--set", setting))]
    done = encore(*command, environment=s3_server.environment())
    assert done.returncode == 0, done.stderr[-3000:]
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    own = load_config("local", settings)
    unused = Session(own)
    again = run_pipeline(own, plan(last="evaluate"), session=unused)
    assert {result.status for result in again} == {"up_to_date"}
    assert not unused.started
    assert s3_server.secret_key not in done.stdout + done.stderr

    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="lake/"):
        for item in page.get("Contents", []):
            target = tmp_path / item["Key"]
            if not item["Key"].endswith("/"):
                target.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(BUCKET, item["Key"], str(target))
    assert recompute.problems(tmp_path / "lake", generated, k=50) == []
    left = [path for path in (tmp_path / "lake").glob("_scratch/**/*") if path.is_file()]
    assert left == [], "what is set aside between two passes is removed"
