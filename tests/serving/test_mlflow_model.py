"""A registered model works with MLflow alone, where neither Java, Spark nor Encore is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from encore.serving.scorer import Playlist, Scorer, shown
from tests.s3server import free_ports
from tests.serving.registered import NAME, SEEDS, TITLES, configured, register_two

pytestmark = pytest.mark.timeout(600)

CODE = """
import importlib.util, json, os, shutil, sys
import mlflow
import pandas as pd
present = [name for name in ("pyspark", "py4j", "delta", "jpype", "encore") if importlib.util.find_spec(name)]
rows = pd.DataFrame({"tracks": json.loads(sys.argv[2]), "title": json.loads(sys.argv[3])})
found = {}
for version in ("1", "2", "1"):
    model = mlflow.pyfunc.load_model(f"models:/{sys.argv[4]}/{version}")
    found[version] = model.predict(rows, params={"k": 10})
champion = mlflow.pyfunc.load_model(f"models:/{sys.argv[4]}@champion")
found["default k"] = [len(row["tracks"]) for row in champion.predict(rows)]
found["present"] = present
found["java"] = shutil.which("java") or os.environ.get("JAVA_HOME")
open(sys.argv[1], "w").write(json.dumps(found))
"""


@pytest.fixture(scope="module")
def store(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a store with two versions."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    register_two(configured(uri, folder), bundle, folder)
    return uri


@pytest.fixture(scope="module")
def environment(store: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of an environment that has the model's own requirements, a shell, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    found = next(Path(store.removeprefix("sqlite:///")).parent.rglob("requirements.txt"))
    requirements = found.read_text().split()
    assert {line.split("==")[0] for line in requirements} == {"mlflow", "numba", "numpy", "orjson", "xxhash"}
    uv = Path(sys.prefix) / "bin" / "uv"
    for command in (("venv", "--python", sys.executable), ("pip", "install", "--python", folder / "venv", "-r", found)):
        where = [folder / "venv"] if command[0] == "venv" else []
        subprocess.run([uv, *command, *where], check=True, capture_output=True, timeout=500)
    programs = folder / "bin"
    programs.mkdir()
    for name in ("bash", "sh", "uname"):
        (programs / name).symlink_to(shutil.which(name) or "")
    return {
        "PATH": f"{folder}/venv/bin:{programs}",
        "HOME": str(folder),
        "MLFLOW_TRACKING_URI": store,
        "NUMBA_CACHE_DIR": str(folder / "compiled"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


@pytest.fixture(scope="module")
def expected(bundle: Path) -> list[dict[str, Any]]:
    """What the scorer answers."""
    scorer = Scorer.open(bundle)
    playlists = [Playlist(seeds, title) for seeds, title in zip(SEEDS, TITLES, strict=True)]
    return [shown(row, scorer.catalogue) for row in scorer.recommend(playlists, 10)]


def test_two_versions_load_into_one_process(
    environment: dict[str, str], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "found.json"
    command = ["python", "-c", CODE, str(out), json.dumps(SEEDS), json.dumps(TITLES), NAME]
    program = shutil.which("python", path=environment["PATH"])
    done = subprocess.run(
        command, executable=program, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["present"] == []
    assert found["java"] is None
    assert found["1"] == expected
    assert found["2"] == [{**row, "tracks": row["tracks"][::-1]} for row in expected], "its own code"
    assert len(expected[0]["tracks"]) == 10
    assert all(n > 10 for n in found["default k"])


def test_mlflow_serves_it(environment: dict[str, str], expected: list[dict[str, Any]], tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = ["mlflow", "models", "serve", "-m", f"models:/{NAME}@champion", "-p", str(port), "--env-manager", "local"]
    program = shutil.which("mlflow", path=environment["PATH"])
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, executable=program, env=environment, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            try:
                if requests.get(f"{url}/ping", timeout=5).ok:
                    break
            except requests.ConnectionError:
                assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        rows = [list(row) for row in zip(SEEDS, TITLES, strict=True)]
        body = {"dataframe_split": {"columns": ["tracks", "title"], "data": rows}, "params": {"k": 10}}
        answer = requests.post(f"{url}/invocations", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"predictions": expected}
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)
