"""The pipeline on a real cluster: code only from the archive, data only in S3, no disk shared between processes.

Its MLflow behaves like one managed by SageMaker, which authenticates jobs by their role.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from mlflow import MlflowClient

from encore.aws.access import REGISTERS, REGISTRY, TRACKING, tracking_statements
from encore.aws.submit import request
from encore.config import Config, load_config
from encore.runtime.pipeline import plan, run_pipeline
from encore.runtime.registry import JOBS
from encore.spark.session import Session
from tests import recompute
from tests.conftest import QUICK_MODELS, ROOT, settings
from tests.deploy.cluster import Cluster, DiskUsage, can_isolate, isolated, monitored, other_pythons, standalone
from tests.deploy.mlflow_server import secrets_manager
from tests.deploy.s3proxy import Recorder, recording
from tests.deploy.sagemaker import ARN, REGION, ManagedServer, sagemaker
from tests.deploy.simulator import denial, is_allowed
from tests.s3server import S3Server

K = 50
LOGIN = "cluster-mlflow"
"""Name of the secret with the ARN of the MLflow server."""
OWN = [f"recommend.k={K}", QUICK_MODELS]
SIZES = (
    'spark.settings={spark.executor.cores: "1", spark.executor.memory: 1g, spark.executor.memoryOverhead: 1g, '
    'spark.default.parallelism: "2"}'
)
"""One executor per worker, small enough for these machines."""

pytestmark = [
    pytest.mark.slow,
    # the first test waits for the archive and eight jobs
    pytest.mark.timeout(1800),
    pytest.mark.s3,
    pytest.mark.skipif(
        not can_isolate(), reason="running as other users with hidden folders takes root on Linux, unshare and setpriv"
    ),
]


@pytest.fixture(scope="module")
def shared_folder() -> Iterator[Path]:
    """A folder that other users may read."""
    with tempfile.TemporaryDirectory(prefix="encore-cluster-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def cluster(shared_folder: Path, s3_server: S3Server) -> Iterator[Cluster]:
    with standalone(shared_folder, s3_server, [ROOT, *other_pythons()]) as made:
        yield made


@pytest.fixture(scope="module")
def config(s3_server: S3Server, generated: Path, package: Path) -> Config:
    """Raw slices and the application archive on the S3 server, an empty lake."""
    client = s3_server.client()
    for kind in ("lake", "raw", "code", "logs", "artefacts"):
        client.create_bucket(Bucket=f"cluster-{kind}")
    for folder, bucket in ((generated, "raw"), (package, "code")):
        s3_server.upload(folder, f"cluster-{bucket}")
    own = [
        "lake.path=s3://cluster-lake/lake",
        "raw.playlists=s3://cluster-raw/",
        "raw.features=s3://cluster-raw/features",
    ]
    own += ["s3.path_style=true", f"s3.endpoint={s3_server.endpoint}", f"tracking.login={LOGIN}"]
    # as `encore submit` sends it: YARN does not tell its containers their region
    own += [f"s3.region={REGION}"]
    own += ["emr.cluster=j-CLUSTER", "emr.code=s3://cluster-code", "emr.logs=s3://cluster-logs"]
    return load_config("emr", [*own, *OWN, SIZES])


def on_this_cluster(step: dict[str, Any], cluster: Cluster) -> list[str]:
    """The command of a step with this cluster's master and client mode, otherwise unchanged."""
    (parameters,) = step["Steps"]
    command: list[str] = list(parameters["HadoopJarStep"]["Args"])
    assert command[:5] == ["spark-submit", "--master", "yarn", "--deploy-mode", "cluster"]
    command[:5] = [str(cluster.spark / "bin" / "spark-submit"), "--master", cluster.master, "--deploy-mode", "client"]
    return command


@pytest.fixture(scope="module")
def mlflow(config: Config, s3_server: S3Server) -> Iterator[ManagedServer]:
    """The MLflow server that the secret refers to."""
    with sagemaker(s3_server, "cluster-artefacts") as server:
        yield server


@pytest.fixture(scope="module")
def artefacts(s3_server: S3Server) -> Iterator[Recorder]:
    """A recording proxy of the S3 server, for boto3 in the drivers."""
    with recording(s3_server.endpoint) as recorder:
        yield recorder


@pytest.fixture(scope="module")
def driver(
    shared_folder: Path, package: Path, mlflow: ManagedServer, artefacts: Recorder
) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder in which drivers start, which holds only the unpacked archive, and their environment variables.

    In cluster mode YARN would unpack the archive there and set the first of the variables; the last replace AWS's
    endpoints with those of this machine.
    """
    folder = shared_folder / "driver"
    (folder / "environment").mkdir(parents=True)
    with tarfile.open(package / "environment.tar.gz") as archive:
        archive.extractall(folder / "environment", filter="fully_trusted")
    python = "./environment/bin/python"
    with secrets_manager() as secrets:
        secret = boto3.client(
            "secretsmanager",
            endpoint_url=secrets,
            region_name=REGION,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        secret.create_secret(Name=LOGIN, SecretString=json.dumps({"uri": ARN}))
        yield (
            folder,
            {
                "PYSPARK_PYTHON": python,
                "PYSPARK_DRIVER_PYTHON": python,
                "TMPDIR": str(folder),
                "HOME": "/nowhere",
                "AWS_ENDPOINT_URL_S3": artefacts.endpoint,
                "AWS_ENDPOINT_URL_SECRETS_MANAGER": secrets,
                "SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT": mlflow.endpoint,
            },
        )


def step(
    job: str, config: Config, run_id: str, cluster: Cluster, driver: tuple[Path, dict[str, str]]
) -> subprocess.CompletedProcess[str]:
    """Run a job by the command of its step, with a driver that cannot see the checkout, and wait for it."""
    folder, variables = driver
    return subprocess.run(
        isolated(on_this_cluster(request(job, config, "emr-ec2", run_id), cluster), None, cluster.hidden),
        env={**cluster.environment, **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def ran(
    cluster: Cluster, config: Config, driver: tuple[Path, dict[str, str]], package: Path
) -> dict[str, dict[str, DiskUsage]]:
    """Run every job of the pipeline by its rendered command; the peak disk usage by job and worker."""
    packed = (package / "environment.tar.gz").stat().st_size
    found = {}
    for job in JOBS:
        with monitored(cluster.workers, packed) as usage:
            done = step(job, config, "run-1", cluster, driver)
        assert done.returncode == 0, f"{job}:\n{done.stderr[-2000:]}{done.stdout[-4000:]}"
        found[job] = usage
        for worker in cluster.workers:
            worker.clean()
    return found


def test_the_lake_equals_that_of_a_local_run(
    ran: dict[str, dict[str, DiskUsage]],
    s3_server: S3Server,
    session: Session,
    generated: Path,
    tmp_path: Path,
    verified: Callable[[str], None],
) -> None:
    s3_server.download("cluster-lake", "", tmp_path / "cluster")
    raw = [f"raw.playlists={generated}", f"raw.features={generated}/features"]
    local = settings(tmp_path / "local" / "lake", *raw, *OWN)
    results = run_pipeline(local, plan(), session=session)
    assert {result.status for result in results} == {"done"}
    expected, found = recompute.contents(tmp_path / "local" / "lake"), recompute.contents(tmp_path / "cluster" / "lake")
    assert set(expected) == set(found)
    assert [name for name, rows in expected.items() if found[name] != rows] == []
    n = sum(map(len, expected.values()))
    verified(
        f"{len(JOBS)} jobs run by the commands of EMR steps on a cluster whose two workers are other users, code from "
        f"the archive only: all {n:,} rows equal those of a local run"
    )


def test_jobs_log_metrics_to_a_managed_mlflow_with_the_permissions_of_their_roles(
    ran: dict[str, dict[str, DiskUsage]], mlflow: ManagedServer, artefacts: Recorder, verified: Callable[[str], None]
) -> None:
    assert mlflow.rejections == [], "each request was signed for this server"
    assert (mlflow.unknown, artefacts.unknown) == ([], [])
    client = MlflowClient(tracking_uri=mlflow.server.uri)
    experiment = client.get_experiment_by_name("encore")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (pipeline,) = [run for run in runs if run.data.tags["encore.kind"] == "pipeline"]
    assert {f"seconds.{job}" for job in JOBS} <= set(pipeline.data.metrics)
    models = {run.data.tags["model"]: run for run in runs if run.data.tags["encore.kind"] == "model"}
    assert models["cosine"].data.metrics["r_precision"] > 0
    artefacts_arn = "arn:aws:s3:::cluster-artefacts/artefacts"
    allowed = tracking_statements(ARN, artefacts_arn)
    assert [action for action in mlflow.actions if not is_allowed(allowed, action, ARN, {})] == []
    # a tag is set when a job fails, one of an experiment when an older release created it; a champion's bundle is
    # looked up when there is one to compare with (test_managed_registry)
    later = ("SetTag", "SetExperimentTag", "GetDownloadURIForModelVersionArtifacts")
    unused = {f"sagemaker-mlflow:{action}" for action in later}
    allowed_actions = {f"sagemaker-mlflow:{action}" for action in (*TRACKING, *REGISTRY[REGISTERS])}
    assert allowed_actions - unused <= mlflow.actions, "and nothing else is allowed"
    stored = {call for call in artefacts.calls if call.bucket == "cluster-artefacts"}
    assert any(call.key.startswith(f"artefacts/{experiment.experiment_id}/") for call in stored)
    assert [call for call in stored if denial(allowed, call)] == []
    verified(
        f"MLflow with SageMaker's authentication: {len(mlflow.actions)} actions, each request signed, metrics "
        f"of {len(JOBS)} jobs and {len(stored)} artefacts; the roles' statements allow these actions and no others"
    )


def test_workers_cannot_read_the_checkout_and_both_are_used(
    ran: dict[str, dict[str, DiskUsage]], cluster: Cluster, verified: Callable[[str], None]
) -> None:
    for worker in cluster.workers:
        others = [str(other.scratch) for other in cluster.workers if other is not worker]
        command = isolated(["ls", str(ROOT / "lib"), *others], worker.user, cluster.hidden)
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode != 0
        assert result.stdout == "", "neither the checkout nor the other worker's folder is readable"
        for python in {Path("/usr/bin/python3"), Path(sys.base_prefix) / "bin" / "python3.11"}:
            starts = subprocess.run(isolated([str(python), "-c", ""], worker.user, cluster.hidden), check=False)
            assert starts.returncode != 0, "jobs ran in the archive's Python, as there is no other"
    for job in ("ingest_playlists", "recommend"):
        for worker in cluster.workers:
            assert ran[job][worker.user].archive > 0, f"{job} ran on {worker.user}"
    peaks = {job: max(usage.values(), key=lambda one: one.total) for job, usage in ran.items()}
    for job in ("ingest_playlists", "recommend", "evaluate"):
        one = peaks[job]
        verified(
            f"{job}, peak disk usage of an executor: {one.total / 1e6:,.0f} MB, of which archive (packed and unpacked) "
            f"{one.archive / 1e6:,.0f}, broadcast arrays {one.arrays / 1e6:,.2f}, compiled loops "
            f"{one.compiled / 1e6:,.1f}"
        )


def test_a_second_run_of_a_job_has_nothing_to_do(
    ran: dict[str, dict[str, DiskUsage]], cluster: Cluster, config: Config, driver: tuple[Path, dict[str, str]]
) -> None:
    done = step("recommend", config, "run-2", cluster, driver)
    assert done.returncode == 0, done.stderr[-3000:]
    # spark-submit passes Python's output on through its own standard output
    assert "up to date" in done.stdout


def test_a_failed_job_writes_its_outcome_where_submit_reads_it(
    ran: dict[str, dict[str, DiskUsage]],
    cluster: Cluster,
    config: Config,
    driver: tuple[Path, dict[str, str]],
    s3_server: S3Server,
) -> None:
    wrong = config.model_copy(update={"raw": config.raw.model_copy(update={"playlists": "s3://cluster-raw/nothing/"})})
    done = step("ingest_playlists", wrong, "run-3", cluster, driver)
    assert done.returncode == 3, done.stderr[-3000:]
    body = s3_server.client().get_object(Bucket="cluster-logs", Key="outcomes/ingest_playlists/run-3/1.json")["Body"]
    assert json.loads(body.read())["code"] == 3
