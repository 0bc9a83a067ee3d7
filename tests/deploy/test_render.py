"""Rendered commands and requests for this machine, EMR Serverless and a cluster, compared with golden files."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from encore.aws import render
from encore.aws.states import default_limits, definition, placeholders, substitute
from encore.aws.submit import request
from encore.config import Config, load_config
from encore.errors import ConfigError
from encore.runtime.registry import nodes

GOLDEN = Path(__file__).with_name("golden")

LOCATIONS = [
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
    """Clear a developer's own settings, which would change what is rendered."""
    for name in list(os.environ):
        if name.startswith(("ENCORE_", "MLFLOW_TRACKING_URI")):
            monkeypatch.delenv(name)


def emr(*more: str) -> Config:
    return load_config("emr", [*LOCATIONS, *more])


def assert_matches_golden(name: str, found: str) -> None:
    """Compare with a golden file; GOLDEN=write in the environment rewrites it, to be reviewed in the diff."""
    path = GOLDEN / name
    if os.environ.get("GOLDEN") == "write":
        path.write_text(found)
    assert found == path.read_text(), f"{path} differs: GOLDEN=write accepts what is rendered now"


def readable(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def test_a_local_command() -> None:
    config = load_config("local", ["lake.path=my/lake", "raw.playlists=my/raw", "spark.master=local[2]"])
    submission = render.make_submission("split_holdout", config, "run-1", force=True)
    assert_matches_golden(
        "local.txt", " \\\n  ".join(map(shlex.quote, render.local_command(submission, config.spark.master))) + "\n"
    )


def test_a_submission_that_takes_the_lock_over() -> None:
    config = load_config("local", ["lake.path=my/lake"])
    arguments = render.make_submission("split_holdout", config, "run-1", take_over=True).arguments()
    assert arguments[-1] == "--take-over"
    assert "--take-over" not in render.make_submission("split_holdout", config, "run-1").arguments()


def test_an_emr_serverless_job_run() -> None:
    assert_matches_golden("emr-serverless.json", readable(request("recommend", emr(), "emr-serverless", "run-1")))


def test_an_emr_step() -> None:
    assert_matches_golden("emr-ec2.json", readable(request("recommend", emr(), "emr-ec2", "run-1")))


@pytest.mark.parametrize("target", ["emr-serverless", "emr-ec2"])
def test_a_job_is_cut_for_all_of_its_executors(target: str) -> None:
    """Not for those that have registered when it starts: on a cold start that is none."""
    sent = dict(part.split("=", 1) for part in conf_of(request("recommend", emr(), target, "run-1")))
    executors = int(sent["spark.dynamicAllocation.maxExecutors"])
    assert int(sent["spark.dynamicAllocation.initialExecutors"]) <= executors
    assert int(sent["spark.default.parallelism"]) == executors * int(sent["spark.executor.cores"])


def conf_of(sent: dict[str, Any]) -> list[str]:
    """The Spark settings of a request, as name=value."""
    driver = sent.get("jobDriver", {}).get("sparkSubmit", {})
    words = shlex.split(driver["sparkSubmitParameters"]) if driver else sent["Steps"][0]["HadoopJarStep"]["Args"]
    return [words[i + 1] for i, word in enumerate(words) if word == "--conf"]


def test_a_state_machine_task() -> None:
    machine = definition(nodes(), limits=default_limits())
    full = substitute(machine, {name: f"<{name}>" for name in placeholders(machine)})
    found = [state for state in _states(full) if _entry(state).endswith("/recommend.py")]
    assert len(found) == 1
    assert_matches_golden("state.json", readable(found[0]["Parameters"]))


def _entry(state: dict[str, Any]) -> str:
    driver: dict[str, Any] = state.get("Parameters", {}).get("JobDriver", {}).get("SparkSubmit", {})
    return str(driver.get("EntryPoint", ""))


def _states(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        own = [value] if value.get("Type") == "Task" else []
        return own + [state for inner in value.values() for state in _states(inner)]
    return [state for inner in value for state in _states(inner)] if isinstance(value, list) else []


def test_arguments_reproduce_the_configuration() -> None:
    """Arguments parsed as a job parses them give the same configuration, except for settings that are not sent."""
    config = emr("recommend.k=17", "features.columns={tempo: bpm}", "vectors.weights={tempo: 0.5}", "report.top=3")
    arguments = render.make_submission("recommend", config, "run-1").arguments()
    env, settings = arguments[1], json.loads(arguments[arguments.index("--set-json") + 1])
    read = load_config(env, settings)
    expected = config.model_dump()
    for name in ("application", "role", "cluster", "code", "logs"):
        expected["emr"][name] = None
    assert read.model_dump() == expected


def test_secrets_are_not_sent() -> None:
    with pytest.raises(ConfigError, match=r"tracking.uri holds a login") as caught:
        render.make_submission("recommend", emr("tracking.login=null", "tracking.uri=https://me:word@mlflow"), "run-1")
    assert "word" not in str(caught.value)
    sent = " ".join(
        render.make_submission("recommend", emr("tracking.uri=https://me:word@mlflow"), "run-1").arguments()
    )
    assert "word" not in sent, "if a secret is named, no address is sent at all"


def test_spark_and_delta_come_from_emr() -> None:
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
def test_a_missing_setting_is_named(target: str, missing: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        request("recommend", emr(*missing), target, "run-1")
    assert "--stage" in str(caught.value.remedy)
