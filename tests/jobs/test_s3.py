"""The pipeline with slices, features and lake on a real S3 server."""

from __future__ import annotations

from pathlib import Path

import pytest

from encore.aws.acceptance import accepted, facts_of
from encore.config import load_config
from encore.runtime.pipeline import plan, run_pipeline
from encore.runtime.registry import JOBS
from encore.spark.session import Session
from tests import recompute
from tests.conftest import QUICK_MODELS
from tests.s3server import S3Server

BUCKET = "encore-line"


@pytest.mark.slow
@pytest.mark.s3
def test_the_line_with_slices_features_and_lake_in_s3(
    s3_server: S3Server,
    session: Session,
    generated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    client = s3_server.client()
    client.create_bucket(Bucket=BUCKET)
    s3_server.upload(generated, BUCKET, "mpd/")
    settings = ["spark.master=local[2]", "recommend.k=50", QUICK_MODELS, "log.level=info", "log.format=json"]
    settings += [f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", f"tracking.artifacts={tmp_path}/artifacts"]
    settings += [f"raw.playlists=s3://{BUCKET}/mpd/", f"raw.features=s3://{BUCKET}/mpd/features"]
    settings += [f"lake.path=s3://{BUCKET}/lake", "s3.path_style=true"]
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
        # the environment of the Python workers; with different values, they are not the workers of other tests
        monkeypatch.setitem(session().sparkContext.environment, name, value)
    config = load_config("local", settings)
    done = run_pipeline(config, plan(last="evaluate"), session=session)
    assert {result.status for result in done} == {"done"}
    unused = Session(config)
    again = run_pipeline(config, plan(last="evaluate"), session=unused)
    assert {result.status for result in again} == {"up_to_date"}
    assert not unused.started
    facts = facts_of("dev", config)
    assert facts.rows["playlists"] == 300
    assert facts.failed == {}
    missing = ", ".join(job for job in JOBS if job not in {result.name for result in done})
    assert {one.what: one.fact for one in accepted(facts, 300) if one.remedy} == {"jobs": f"never done: {missing}"}
    said = capfd.readouterr()
    assert s3_server.secret_key not in said.out + said.err

    s3_server.download(BUCKET, "lake/", tmp_path)
    assert recompute.problems(tmp_path / "lake", generated, k=50) == []
    left = [path for path in (tmp_path / "lake").glob("_scratch/**/*") if path.is_file()]
    assert left == [], "what is set aside between two passes is removed"
