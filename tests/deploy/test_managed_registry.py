"""Registering models at an MLflow server like one managed by SageMaker, with the permissions of the job's role."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
import requests
from mlflow import MlflowClient
from mlflow.store.artifact import s3_artifact_repo

from encore.aws.access import REGISTERS, REGISTRY, TRACKING, tracking_statements
from encore.runtime.pipeline import plan, run_pipeline
from encore.runtime.runner import run_job
from encore.runtime.tracking import Tracking
from tests.conftest import settings
from tests.deploy import mlflow_calls
from tests.deploy.s3proxy import recording
from tests.deploy.sagemaker import APP, ARN, REGION, SERVICE, sagemaker
from tests.deploy.simulator import denial, is_allowed
from tests.local_spark import LocalSession
from tests.s3server import S3Server

BUCKET = "registry-artefacts"


@pytest.mark.slow
@pytest.mark.parametrize("arn", [ARN, APP])
def test_all_calls_of_jobs_are_answered_by_the_mlflow_that_sagemaker_runs(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verified: Callable[[str], None], arn: str
) -> None:
    """SageMaker's servers are of MLflow 3.0, older than the client; an app is spoken to in the same way."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    kind = arn.rsplit(":", 1)[1].split("/")[0]
    bucket = f"calls-{kind}"
    s3_server.client().create_bucket(Bucket=bucket)
    for name, value in {
        "AWS_ACCESS_KEY_ID": s3_server.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL_S3": s3_server.endpoint,
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "120",
    }.items():
        monkeypatch.setenv(name, value)
    with sagemaker(s3_server, bucket, arn) as server:
        assert requests.get(f"{server.server.uri}/version", timeout=120).text == "3.0.0"
        monkeypatch.setenv("SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT", server.endpoint)
        config = settings(tmp_path / "lake", f"tracking.uri={arn}")
        run = mlflow_calls.track(config, "calls", tmp_path)
        mlflow_calls.register(config, "calls", run, tmp_path)
    assert (server.rejections, server.unknown) == ([], [])
    verified(f"an {kind} with MLflow 3.0.0: {len(server.actions)} kinds of requests of the client answered")


@pytest.mark.slow
def test_the_role_of_register_models_may_do_what_registering_takes_and_no_more(
    s3_server: S3Server,
    generated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verified: Callable[[str], None],
) -> None:
    """The second version is compared with the first one, whose evaluation is read from S3."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    # MLflow keeps the client of an earlier test, which speaks to the server and not to the recorder
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    s3_server.client().create_bucket(Bucket=BUCKET)
    raw = (f"raw.playlists={generated}", f"raw.features={generated}/features")
    models = ("recommend.models=[adjacency]", "registry.models=[adjacency]")
    own = (*raw, *models, "recommend.k=30", f"tracking.uri={ARN}")
    with sagemaker(s3_server, BUCKET) as server, recording(s3_server.endpoint) as recorder:
        for name, value in {
            "AWS_ACCESS_KEY_ID": s3_server.access_key,
            "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL_S3": recorder.endpoint,
            "SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT": server.endpoint,
        }.items():
            monkeypatch.setenv(name, value)
        for run, more in (("first", ()), ("second", ("recommend.adjacency.reach=3",))):
            config = settings(tmp_path / "lake", *own, *more)
            session = LocalSession(config, tmp_path / run)
            run_pipeline(config, plan(last=REGISTERS), session=session, run_id=run)
        registering = set(server.actions)
        recorded = run_job("record_canary", config, session, Tracking(config, "recorded"))
        assert recorded.status == "done"
        client = MlflowClient(tracking_uri=server.server.uri, registry_uri=server.server.uri)
        versions = client.search_model_versions("name = 'encore-adjacency'")
        assert len(versions) == 2
        assert client.get_model_version_by_alias("encore-adjacency", "champion")
        compared = [version.tags.get("encore.verdict.compared_with") for version in versions]
        assert sorted(filter(None, compared)) == ["1"]

    assert (server.rejections, server.unknown, recorder.unknown) == ([], [], [])
    artefacts = f"arn:aws:s3:::{BUCKET}/artefacts"
    allowed, others = tracking_statements(ARN, artefacts, REGISTERS), tracking_statements(ARN, artefacts, "recommend")
    assert [action for action in registering if not is_allowed(allowed, action, ARN, {})] == []
    of_canary = tracking_statements(ARN, artefacts, "record_canary")
    assert all(is_allowed(of_canary, action, ARN, {}) for action in server.actions - registering)
    assert {f"{SERVICE}:{action}" for action in REGISTRY[REGISTERS]} <= registering, "and nothing else is allowed"
    assert not set(TRACKING) & set(REGISTRY[REGISTERS])
    calls = {call for call in recorder.calls if call.bucket == BUCKET}
    assert [call for call in calls if denial(allowed, call)] == []
    reading = [call for call in calls if call.action in ("s3:GetObject", "s3:ListBucket")]
    assert reading
    assert all(denial(others, call) for call in reading), "no other job reads artefacts"
    verified(f"models registered at a managed MLflow by {len(server.actions)} actions that the role of the job allows")
