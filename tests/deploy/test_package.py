"""The application archive: what is in it, that it is the same each time, and that a job runs from it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyspark
import pytest

from encore.job import EXTRA_JOBS, JOBS
from tests import recompute
from tests.conftest import FAST_JVM, ROOT
from tests.deploy.conftest import COMMIT, packaged

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@pytest.fixture(scope="module")
def names(package: Path) -> list[str]:
    with tarfile.open(package / "environment.tar.gz") as archive:
        return archive.getnames()


def test_the_manifest_says_what_is_there(package: Path) -> None:
    manifest = json.loads((package / "manifest.json").read_text())
    files = {str(path.relative_to(package)): path for path in package.rglob("*") if path.is_file()}
    del files["manifest.json"]
    assert {name: about["sha256"] for name, about in manifest["files"].items()} == {
        name: digest(path) for name, path in files.items()
    }
    assert {f"jobs/{job}.py" for job in (*JOBS, *EXTRA_JOBS)} <= set(files)
    assert manifest["commit"] == COMMIT
    # other content, other name
    content = json.dumps(manifest["files"], sort_keys=True)
    assert manifest["version"] == hashlib.sha256(content.encode()).hexdigest()[:16]


def test_it_has_what_emr_lacks_and_nothing_that_emr_has(names: list[str]) -> None:
    site = "lib/python3.11/site-packages"
    assert {f"{site}/encore/job.py", f"{site}/encore/COMMIT", "conf/base.yaml", "conf/emr.yaml", "bin/python"} <= {
        *names
    }
    assert {
        f"{site}/{name}/__init__.py"
        for name in ("numba", "mlflow", "sagemaker_mlflow", "pyarrow", "deltalake", "boto3")
    } <= {*names}
    top = {name.split("/")[3] for name in names if name.startswith(f"{site}/") and name.count("/") >= 3}
    assert top & {"pyspark", "delta", "py4j", "sklearn", "sqlalchemy", "pytest", "moto", "aws_cdk"} == set()
    assert [name for name in names if name.endswith(".jar")] == []


def test_the_same_input_gives_the_same_bytes(package: Path, tmp_path: Path, proved: Callable[[str], None]) -> None:
    """Built again, from a checkout elsewhere whose files are newer, with another umask."""
    other = tmp_path / "checkout"
    for name in ("lib", "jobs", "conf", "deploy"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "cdk")
        shutil.copytree(ROOT / name, other / name, ignore=ignored, copy_function=shutil.copyfile)
    before = os.umask(0o077)
    try:
        again = packaged(other, tmp_path / "again")
    finally:
        os.umask(before)
    first = (package / "manifest.json").read_text()
    assert (again / "manifest.json").read_text() == first
    assert digest(again / "environment.tar.gz") == digest(package / "environment.tar.gz")
    size = (package / "environment.tar.gz").stat().st_size / 1e6
    proved(f"the application archive, {size:,.0f} MB, built twice in different places: the same bytes")


def test_a_job_runs_from_it_by_spark_submit_with_pyspark_outside(
    package: Path, generated: Path, tmp_path: Path, proved: Callable[[str], None]
) -> None:
    with tarfile.open(package / "environment.tar.gz") as archive:
        archive.extractall(tmp_path / "elsewhere", filter="fully_trusted")
    python = tmp_path / "elsewhere" / "bin" / "python"
    alone = subprocess.run([python, "-c", "import encore, pyspark"], capture_output=True, text=True, check=False)
    assert "No module named 'pyspark'" in alone.stderr, "it comes with Spark, not with the archive"
    kept = ("JAVA_HOME", "LANG", "LD_LIBRARY_PATH")
    spark = Path(pyspark.__file__).parent
    variables = {name: os.environ[name] for name in kept if name in os.environ}
    variables |= {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SPARK_HOME": str(spark)}
    variables |= {"PYSPARK_PYTHON": str(python), "PYSPARK_DRIVER_PYTHON": str(python)}
    command = [str(spark / "bin" / "spark-submit"), "--master", "local[2]", "--conf", "spark.ui.enabled=false"]
    command += ["--conf", f"spark.driver.extraJavaOptions={FAST_JVM}", str(package / "jobs" / "ingest_playlists.py")]
    command += ["--env", "emr", "--set", f"lake.path={tmp_path}/lake", "--set", f"raw.playlists={generated}"]
    command += ["--set", "tracking.uri=http://127.0.0.1:9"]
    done = subprocess.run(
        command, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(recompute.table(tmp_path / "lake", "playlists")) == 300
    assert "mlflow_failed" in done.stdout, "nobody listens there, and the job ends well all the same"
    proved("a job from the unpacked archive by spark-submit, pyspark outside of it, in no checkout")
