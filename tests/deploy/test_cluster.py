"""The line on a real cluster: code only from the archive, data only in S3, no disk that two processes share.

Its MLflow is one that SageMaker would manage, to which the role of a job is the login.
"""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from mlflow import MlflowClient

from encore.aws.access import TRACKING, tracking_statements
from encore.aws.submit import request
from encore.config import Config, load_config
from encore.runtime.pipeline import plan, run_pipeline
from encore.runtime.registry import JOBS
from encore.spark.session import Session
from tests import recompute
from tests.conftest import ROOT, settings
from tests.deploy.cluster import Cluster, Held, isolated, may_isolate, standalone, watched
from tests.deploy.mlflow_server import secrets_manager
from tests.deploy.s3proxy import Recorder, recording
from tests.deploy.sagemaker import ARN, REGION, Managed, sagemaker
from tests.deploy.simulator import decides, refused
from tests.s3server import S3Server

K = 50
LOGIN = "cluster-mlflow"
"""Of the secret with the ARN of the MLflow server."""
OWN = [f"recommend.k={K}"]
SIZES = 'spark.settings={spark.executor.cores: "1", spark.executor.memory: 1g, spark.executor.memoryOverhead: 1g}'
"""One executor a worker, as small as these machines."""

pytestmark = [
    pytest.mark.slow,
    # the first test waits for the archive, and for eight jobs
    pytest.mark.timeout(1800),
    pytest.mark.s3,
    pytest.mark.skipif(not may_isolate(), reason="other users and hidden folders: root on Linux, unshare, setpriv"),
]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that other users may look into."""
    with tempfile.TemporaryDirectory(prefix="encore-cluster-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def cluster(place: Path, s3_server: S3Server) -> Iterator[Cluster]:
    with standalone(place, s3_server) as made:
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
    # as `encore submit` sends it: YARN tells its containers of no region
    own += [f"s3.region={REGION}"]
    own += ["emr.cluster=j-CLUSTER", "emr.code=s3://cluster-code", "emr.logs=s3://cluster-logs"]
    return load_config("emr", [*own, *OWN, SIZES])


def on_this_cluster(step: dict[str, Any], cluster: Cluster) -> list[str]:
    """The command of a step, with this cluster's master and its client mode put in, and nothing else changed."""
    (asked,) = step["Steps"]
    command: list[str] = list(asked["HadoopJarStep"]["Args"])
    assert command[:5] == ["spark-submit", "--master", "yarn", "--deploy-mode", "cluster"]
    command[:5] = [str(cluster.spark / "bin" / "spark-submit"), "--master", cluster.master, "--deploy-mode", "client"]
    return command


@pytest.fixture(scope="module")
def mlflow(config: Config, s3_server: S3Server) -> Iterator[Managed]:
    """The server, and the secret that says where it is."""
    with sagemaker(s3_server, "cluster-artefacts") as server:
        yield server


@pytest.fixture(scope="module")
def artefacts(s3_server: S3Server) -> Iterator[Recorder]:
    """The S3 server as boto3 in a driver sees it, which writes down what is asked of it."""
    with recording(s3_server.endpoint) as recorder:
        yield recorder


@pytest.fixture(scope="module")
def driver(place: Path, package: Path, mlflow: Managed, artefacts: Recorder) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder in which drivers are started, which holds the archive and nothing else, and their variables.

    In cluster mode YARN would unpack it there and set the first of these; the last say where this machine's services
    are in place of AWS's.
    """
    folder = place / "driver"
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
    """Run a job by the command of its step, from a driver that does not see the checkout, and wait until it ends."""
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
) -> dict[str, dict[str, Held]]:
    """Every job of the line by its rendered command; what each worker's folder held at most meanwhile."""
    packed = (package / "environment.tar.gz").stat().st_size
    found = {}
    for job in JOBS:
        with watched(cluster.workers, packed) as held:
            done = step(job, config, "run-1", cluster, driver)
        assert done.returncode == 0, f"{job}:\n{done.stderr[-2000:]}{done.stdout[-4000:]}"
        found[job] = held
        for worker in cluster.workers:
            worker.clean()
    return found


def test_the_lake_is_that_of_a_local_run(
    ran: dict[str, dict[str, Held]],
    s3_server: S3Server,
    session: Session,
    generated: Path,
    tmp_path: Path,
    proved: Callable[[str], None],
) -> None:
    s3_server.download("cluster-lake", "", tmp_path / "cluster")
    raw = [f"raw.playlists={generated}", f"raw.features={generated}/features"]
    local = settings(tmp_path / "local" / "lake", *raw, *OWN)
    results = run_pipeline(local, plan(), session=session)
    assert {result.status for result in results} == {"done"}
    ours, theirs = recompute.contents(tmp_path / "local" / "lake"), recompute.contents(tmp_path / "cluster" / "lake")
    assert set(ours) == set(theirs)
    assert [name for name, rows in ours.items() if theirs[name] != rows] == []
    n = sum(map(len, ours.values()))
    proved(
        f"{len(JOBS)} jobs by the commands of EMR steps on a cluster of two workers of other users, code from the "
        f"archive alone: {n:,} rows equal those of a local run"
    )


def test_metrics_are_in_a_managed_mlflow_by_the_roles_of_the_jobs(
    ran: dict[str, dict[str, Held]], mlflow: Managed, artefacts: Recorder, proved: Callable[[str], None]
) -> None:
    assert mlflow.refusals == [], "each request was signed for this server"
    assert (mlflow.unknown, artefacts.unknown) == ([], [])
    client = MlflowClient(tracking_uri=mlflow.server.uri)
    experiment = client.get_experiment_by_name("encore")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (pipeline,) = [run for run in runs if run.data.tags["encore.kind"] == "pipeline"]
    assert {f"seconds.{job}" for job in JOBS} <= set(pipeline.data.metrics)
    models = {run.data.tags["model"]: run for run in runs if run.data.tags["encore.kind"] == "model"}
    assert models["cosine"].data.metrics["r_precision"] > 0
    kept = "arn:aws:s3:::cluster-artefacts/artefacts"
    allowed = tracking_statements(ARN, kept)
    assert [action for action in mlflow.actions if not decides(allowed, action, ARN, {})] == []
    assert {f"sagemaker-mlflow:{action}" for action in TRACKING} == mlflow.actions, "and nothing is allowed besides"
    stored = {call for call in artefacts.calls if call.bucket == "cluster-artefacts"}
    assert any(call.key.startswith(f"artefacts/{experiment.experiment_id}/") for call in stored)
    assert [call for call in stored if refused(allowed, call)] == []
    proved(
        f"MLflow with SageMaker's sign-on: {len(mlflow.actions)} actions, each request signed and checked, metrics of "
        f"{len(JOBS)} jobs and {len(stored)} artefacts; the roles' statements allow these actions and no others"
    )


def test_workers_had_nothing_of_the_checkout_and_used_both(
    ran: dict[str, dict[str, Held]], cluster: Cluster, proved: Callable[[str], None]
) -> None:
    for worker in cluster.workers:
        others = [str(other.scratch) for other in cluster.workers if other is not worker]
        look = isolated(["ls", str(ROOT / "lib"), *others], worker.user, cluster.hidden)
        seen = subprocess.run(look, capture_output=True, text=True, check=False)
        assert seen.returncode != 0
        assert seen.stdout == "", "neither the checkout nor the other worker's folder can be read"
    for job in ("ingest_playlists", "recommend"):
        for worker in cluster.workers:
            assert ran[job][worker.user].archive > 0, f"{job} ran on {worker.user}"
    most = {job: max(held.values(), key=lambda one: one.all) for job, held in ran.items()}
    for job in ("ingest_playlists", "recommend", "evaluate"):
        one = most[job]
        proved(
            f"{job}, disk of an executor at most: {one.all / 1e6:,.0f} MB, of it the archive packed and unpacked "
            f"{one.archive / 1e6:,.0f}, arrays that were sent {one.arrays / 1e6:,.2f}, compiled loops "
            f"{one.compiled / 1e6:,.1f}"
        )


def test_a_second_run_of_a_job_has_nothing_to_do(
    ran: dict[str, dict[str, Held]], cluster: Cluster, config: Config, driver: tuple[Path, dict[str, str]]
) -> None:
    done = step("recommend", config, "run-2", cluster, driver)
    assert done.returncode == 0, done.stderr[-3000:]
    # spark-submit hands on what Python says by its own standard output
    assert "up to date" in done.stdout


def test_a_job_that_fails_leaves_its_outcome_where_submit_looks(
    ran: dict[str, dict[str, Held]],
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
