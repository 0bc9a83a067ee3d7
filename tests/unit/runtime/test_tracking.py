"""MLflow's address and login out of a secret: who gets them, and who does not."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from moto import mock_aws

from encore.config import Config
from encore.lake.tables import PLAYLISTS
from encore.runtime import tracking as tracking_module
from encore.runtime.result import JobResult
from encore.runtime.tracking import PARAM_LENGTH, InputTable, Tracking, read_secret, shortened

REGION = "us-east-1"
LOGIN = {"uri": "http://mlflow.private:1", "username": "line", "password": "a-word"}


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Keep a text as the secret `mlflow` of an account of moto's."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    # what is set by a job is gone after the test
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "before")
    with mock_aws():
        client = boto3.client("secretsmanager", region_name=REGION)
        yield lambda text: client.create_secret(Name="mlflow", SecretString=text)


def test_address_and_login_go_where_mlflow_looks(
    secrets: Callable[[str], None], lake_settings: Callable[..., Config]
) -> None:
    secrets(json.dumps(LOGIN))
    tracking = Tracking(lake_settings("tracking.login=mlflow"), "run-1")
    assert tracking._uri == LOGIN["uri"], "the secret's, not that of tracking.uri"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("line", "a-word")
    assert tracking.place == "of the secret mlflow"


@pytest.mark.parametrize("text", ["a-word", '["a-word"]', '{"password": "a-word"}', '{"uri": 7}'])
def test_a_secret_of_another_shape_is_not_shown(secrets: Callable[[str], None], text: str) -> None:
    secrets(text)
    with pytest.raises(ValueError, match="the secret mlflow: ") as caught:
        read_secret("mlflow", REGION)
    assert "a-word" not in str(caught.value)


@pytest.mark.parametrize(
    "arn",
    [
        "arn:aws:sagemaker:us-east-1:123456789012:endpoint/other",
        "arn:aws-cn:sagemaker:cn-north-1:123456789012:mlflow-tracking-server/mine",
        "arn:aws:sagemaker",
    ],
)
def test_an_arn_is_that_of_an_mlflow_server(secrets: Callable[[str], None], arn: str) -> None:
    secrets(json.dumps({"uri": arn}))
    with pytest.raises(ValueError, match="the secret mlflow: `uri` is an ARN, but not of an MLflow server"):
        read_secret("mlflow", REGION)


@pytest.mark.parametrize("kind", ["mlflow-tracking-server/mine", "mlflow-app/app-ABCDEF012345"])
def test_the_arn_of_a_server_or_an_app_is_an_address(secrets: Callable[[str], None], kind: str) -> None:
    login = {"uri": f"arn:aws:sagemaker:us-east-1:123456789012:{kind}"}
    secrets(json.dumps(login))
    assert read_secret("mlflow", REGION) == login


@pytest.mark.parametrize("uri", ["https://mlflow:port", "mlflow.private", "https://", "http://[::1"])
def test_an_address_that_is_none_ends_no_job(
    secrets: Callable[[str], None], lake_settings: Callable[..., Config], uri: str
) -> None:
    secrets(json.dumps({"uri": uri}))
    tracking = Tracking(lake_settings("tracking.login=mlflow", f"s3.region={REGION}"), "run-1")
    assert tracking.check() == "the secret mlflow: `uri` is no address such as https://host:port"


def test_a_secret_without_a_text(secrets: Callable[[str], None]) -> None:
    boto3.client("secretsmanager", region_name=REGION).create_secret(Name="binary", SecretBinary=b"a-word")
    with pytest.raises(ValueError, match="the secret binary: "):
        read_secret("binary", REGION)


def test_the_region_of_a_secret_is_that_of_its_arn(
    secrets: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets(json.dumps(LOGIN))
    arn = boto3.client("secretsmanager", region_name=REGION).describe_secret(SecretId="mlflow")["ARN"]
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert read_secret(arn, None) == LOGIN


def test_without_a_database_s_packages_a_store_of_one_is_said_not_to_be_there(
    lake_settings: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on EMR, where mlflow-skinny is all that there is of MLflow."""
    monkeypatch.setattr(tracking_module, "find_spec", lambda name: None)
    tracking = Tracking(lake_settings(), "run-1")
    assert "only a server can be spoken to from here" in str(tracking.check())


def test_a_secret_that_is_not_there_ends_no_job(
    secrets: Callable[[str], None], lake_settings: Callable[..., Config]
) -> None:
    tracking = Tracking(lake_settings("tracking.login=mlflow"), "run-1")
    assert tracking._try("look", lambda: tracking._uri) is None
    assert tracking.failed is not None
    assert "ResourceNotFoundException" in tracking.failed


def test_the_address_is_in_no_error(secrets: Callable[[str], None], lake_settings: Callable[..., Config]) -> None:
    secrets(json.dumps(LOGIN))
    tracking = Tracking(lake_settings("tracking.login=mlflow"), "run-1")

    def fails() -> None:
        raise OSError(f"{tracking._uri}: host='mlflow.private', port=1: refused")

    tracking._try("look", fails)
    assert tracking.failed == "...: host='...', ...: refused"
    plain = Tracking(lake_settings(), "run-1")
    assert plain._without_address("mlflow.private") == "mlflow.private"


# runs that several processes share ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for the tests here: to make one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


Process = Callable[[str], Tracking]


@pytest.fixture
def process(store: str, lake_settings: Callable[..., Config], tmp_path: Path) -> Process:
    """Tracking as another process of the same pipeline run has it."""
    return lambda run: Tracking(lake_settings(f"tracking.uri={store}", f"tracking.artifacts={tmp_path}"), run)


def parents(store: str, run: str) -> list[Run]:
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("encore")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], f"tags.`encore.run_id` = '{run}'"))


def test_processes_that_start_at_the_same_time_share_the_oldest_parent(process: Process, store: str) -> None:
    first, second = process("together"), process("together")
    first.check()
    make = first._client.create_run

    def both(*given: Any, **named: Any) -> Any:
        """The first is about to make its run as the second makes its own."""
        assert second.parent() is not None
        time.sleep(0.002)
        return make(*given, **named)

    first._client.create_run = both
    assert first.parent() == second.parent()
    kinds = {run.info.run_id: run.data.tags["encore.kind"] for run in parents(store, "together")}
    assert sorted(kinds.values()) == ["pipeline", "superseded"]
    assert kinds[str(first.parent())] == "pipeline"
    assert process("together").parent() == first.parent()


def test_an_experiment_that_another_process_made_meanwhile_is_taken(process: Process) -> None:
    tracking = process("meanwhile")
    assert tracking.check() is None
    real, seen = tracking._client.get_experiment_by_name, []

    def at_first_not(name: str) -> Any:
        seen.append(name)
        return None if len(seen) == 1 else real(name)

    process("other").parent()
    tracking._client.get_experiment_by_name = at_first_not
    assert tracking.parent() is not None
    assert tracking.failed is None


def test_a_run_is_failed_as_long_as_one_of_its_jobs_is(process: Process, store: str) -> None:
    def status() -> str:
        (run,) = parents(store, "parallel")
        return str(run.info.status)

    def ends(done: Sequence[str], failed: str | None) -> None:
        one = process("parallel")
        assert one.parent() is not None
        one.finish(done, failed)
        assert one.failed is None

    ends(["ingest_playlists"], None)
    assert status() == "FINISHED"
    ends([], "recommend")
    assert status() == "FAILED"
    ends(["build_centroids"], None)
    assert status() == "FAILED", "a job beside it that ends well changes nothing"
    ends(["recommend"], None)
    assert status() == "FINISHED", "tried again, and well"


def test_a_run_that_was_interrupted_ends_killed(lake_settings: Callable[..., Config]) -> None:
    config = lake_settings()
    tracking = Tracking(config, "interrupted")
    parent = tracking.parent()
    assert parent is not None
    tracking.finish(["ingest_playlists"], "split_holdout", killed=True)
    assert MlflowClient(config.tracking.uri).get_run(parent).info.status == "KILLED"


# what MLflow's pages show ------------------------------------------------------------------------------------------

READ = InputTable(PLAYLISTS, "s3://lake/playlists", "9f3c2a1b-0000-4000-8000-000000000000", 7, 1234)


def experiment_tags(store: str, name: str) -> dict[str, str]:
    experiment = MlflowClient(tracking_uri=store).get_experiment_by_name(name)
    assert experiment is not None
    return dict(experiment.tags)


def test_an_experiment_opens_on_its_runs_and_says_what_it_is(process: Process, store: str) -> None:
    assert process("kind").parent() is not None
    tags = experiment_tags(store, "encore")
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert "run of the pipeline" in tags["mlflow.note.content"]


def test_an_experiment_that_exists_gets_what_it_lacks_and_keeps_what_it_has(
    store: str, lake_settings: Callable[..., Config], tmp_path: Path
) -> None:
    client = MlflowClient(tracking_uri=store)
    client.create_experiment("older", artifact_location=str(tmp_path), tags={"mlflow.note.content": "ours"})
    tracking = Tracking(lake_settings(f"tracking.uri={store}", "tracking.experiment=older"), "older")
    assert tracking.parent() is not None
    tags = experiment_tags(store, "older")
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags["mlflow.note.content"] == "ours"


def test_tables_that_were_read_are_datasets_of_the_pipeline_s_run_and_of_the_model_s(
    process: Process, store: str
) -> None:
    tracking = process("datasets")
    result = JobResult("recommend", "done", 1.0, {}, {})
    # two jobs that read one version of a table have read one dataset
    tracking.log_job(result, {}, [READ])
    tracking.log_job(replace(result, name="evaluate"), {}, [READ, replace(READ, version=8)])
    tracking.log_model("cosine", {"r_precision": 0.5}, {}, [READ], {})
    assert tracking.failed is None
    found = {run.data.tags["encore.kind"]: run.inputs.dataset_inputs for run in parents(store, "datasets")}
    assert sorted(item.dataset.digest for item in found["pipeline"]) == ["9f3c2a1b@7", "9f3c2a1b@8"]
    (item,) = found["model"]
    dataset = item.dataset
    assert (dataset.name, dataset.digest, dataset.source_type) == ("playlists", "9f3c2a1b@7", "delta_table")
    assert json.loads(dataset.source) == {
        "path": READ.url,
        "delta_table_version": 7,
        "delta_table_id": READ.id,
    }
    assert json.loads(dataset.profile) == {"num_rows": 1234}
    columns = {column["name"]: column for column in json.loads(dataset.schema)["mlflow_colspec"]}
    assert columns["pid"] == {"name": "pid", "type": "long", "required": True}
    assert columns["track_ids"]["type"] == "array<int>"


def test_what_a_run_refused_is_a_metric_of_its_job(process: Process, store: str) -> None:
    for job, n in (("ingest_playlists", 3), ("ingest_features", 1)):
        process("refused").log_job(JobResult(job, "done", 1.0, {"tracks": 9, "quarantine": n}, {}), {}, [])
    (run,) = parents(store, "refused")
    refused = {name: value for name, value in run.data.metrics.items() if name.startswith(("refused", "rows"))}
    assert refused == {"refused.ingest_playlists": 3, "refused.ingest_features": 1, "rows.tracks": 9}


def test_a_long_setting_is_cut_visibly_and_kept_whole_in_the_artefact(
    store: str, lake_settings: Callable[..., Config], tmp_path: Path
) -> None:
    whole = "x" * 7000
    config = lake_settings(f"tracking.uri={store}", f"tracking.artifacts={tmp_path}", f"raw.features={whole}")
    tracking = Tracking(config, "long")
    parent = tracking.parent()
    assert parent is not None, tracking.failed
    (run,) = parents(store, "long")
    shown = run.data.params["raw.features"]
    assert shown.endswith("x\N{HORIZONTAL ELLIPSIS} (cut: 7,000 characters in all)")
    assert len(shown) == PARAM_LENGTH
    kept = Path(MlflowClient(store).download_artifacts(parent, "config.yaml", str(tmp_path))).read_text()
    assert whole in kept
    assert shortened("y" * PARAM_LENGTH) == "y" * PARAM_LENGTH


def test_the_length_of_a_parameter_is_the_one_that_mlflow_accepts() -> None:
    from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

    assert PARAM_LENGTH == MAX_PARAM_VAL_LENGTH
