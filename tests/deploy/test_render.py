"""What is rendered for this machine, for EMR Serverless and for a cluster, held as files: a change of them is seen."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from encore.aws import render
from encore.aws.states import definition, filled, placeholders, sized
from encore.aws.submit import request
from encore.config import Config, load_config
from encore.errors import ConfigError
from encore.runtime.registry import nodes

GOLDEN = Path(__file__).with_name("golden")

PLACES = [
    "lake.path=s3://my-lake/lake",
    "raw.playlists=s3://my-raw/playlists/",
    "raw.features=s3://my-raw/features/",
    "tracking.login=arn:aws:secretsmanager:REGION:ACCOUNT:secret:mlflow",
    "emr.application=00application",
    "emr.role=arn:aws:iam::ACCOUNT:role/recommend",
    "emr.cluster=j-CLUSTER",
    "emr.code=s3://my-code/0123456789abcdef",
    "emr.logs=s3://my-logs",
]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a developer has set changes no golden file."""
    for name in list(os.environ):
        if name.startswith(("ENCORE_", "MLFLOW_TRACKING_URI")):
            monkeypatch.delenv(name)


def emr(*more: str) -> Config:
    return load_config("emr", [*PLACES, *more])


def same_as_file(name: str, found: str) -> None:
    """Compare with a file; GOLDEN=write in the environment writes it instead, to be looked at in the diff."""
    path = GOLDEN / name
    if os.environ.get("GOLDEN") == "write":
        path.write_text(found)
    assert found == path.read_text(), f"{path} differs: GOLDEN=write takes what is rendered now"


def readable(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def test_a_line_of_this_machine() -> None:
    config = load_config("local", ["lake.path=my/lake", "raw.playlists=my/raw", "spark.master=local[2]"])
    asked = render.submission("split_holdout", config, "run-1", force=True)
    same_as_file("local.txt", " \\\n  ".join(map(shlex.quote, render.local(asked, config.spark.master))) + "\n")


def test_a_run_of_emr_serverless() -> None:
    same_as_file("emr-serverless.json", readable(request("recommend", emr(), "emr-serverless", "run-1")))


def test_a_step_of_a_cluster() -> None:
    same_as_file("emr-ec2.json", readable(request("recommend", emr(), "emr-ec2", "run-1")))


def test_a_task_of_the_state_machine() -> None:
    machine = definition(nodes(), limits=sized())
    full = filled(machine, {name: f"<{name}>" for name in placeholders(machine)})
    found = [state for state in _states(full) if _entry(state).endswith("/recommend.py")]
    assert len(found) == 1
    same_as_file("state.json", readable(found[0]["Parameters"]))


def _entry(state: dict[str, Any]) -> str:
    driver: dict[str, Any] = state.get("Parameters", {}).get("JobDriver", {}).get("SparkSubmit", {})
    return str(driver.get("EntryPoint", ""))


def _states(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        own = [value] if value.get("Type") == "Task" else []
        return own + [state for inner in value.values() for state in _states(inner)]
    return [state for inner in value for state in _states(inner)] if isinstance(value, list) else []


def test_what_a_job_is_given_is_the_configuration_that_was_meant() -> None:
    """The arguments, read as the job reads them, give the same configuration but for what stays behind."""
    config = emr("recommend.k=17", "features.columns={tempo: bpm}", "vectors.weights={tempo: 0.5}", "report.top=3")
    arguments = render.submission("recommend", config, "run-1").arguments()
    env, settings = arguments[1], json.loads(arguments[arguments.index("--set-json") + 1])
    read = load_config(env, settings)
    meant = config.model_dump()
    for name in ("application", "role", "cluster", "code", "logs"):
        meant["emr"][name] = None
    assert read.model_dump() == meant


def test_what_is_secret_is_not_sent() -> None:
    with pytest.raises(ConfigError, match=r"tracking.uri holds a login") as caught:
        render.submission("recommend", emr("tracking.login=null", "tracking.uri=https://me:word@mlflow"), "run-1")
    assert "word" not in str(caught.value)
    sent = " ".join(render.submission("recommend", emr("tracking.uri=https://me:word@mlflow"), "run-1").arguments())
    assert "word" not in sent, "with a secret that is named, no address is sent at all"


def test_spark_and_delta_are_those_of_emr() -> None:
    for target in ("emr-serverless", "emr-ec2"):
        text = json.dumps(request("recommend", emr(), target, "run-1"))
        assert "spark.jars.packages" not in text
        for known in (f"spark.jars={render.SERVERLESS_JARS}", "command-runner.jar"):
            text = text.replace(known, "")
        assert ".jar" not in text


@pytest.mark.parametrize(
    ("target", "missing", "expected"),
    [
        ("emr-serverless", ["emr.application=null", "emr.role=null"], "emr.application, emr.role not set"),
        ("emr-ec2", ["emr.cluster=null"], "emr.cluster not set"),
        ("emr-ec2", ["emr.code=null"], "emr.code not set"),
    ],
)
def test_a_place_that_is_not_set_is_named(target: str, missing: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        request("recommend", emr(*missing), target, "run-1")
    assert "--stage" in str(caught.value.remedy)
