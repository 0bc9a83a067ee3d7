"""Every command of the runbooks: that it exists, and, where no account is needed, that it does what the page says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import jmespath  # type: ignore[import-untyped]
import pytest
import requests
import typer
from botocore import xform_name
from deltalake import DeltaTable

from encore.cli.app import app
from encore.config import Config, load_config
from encore.lake.inspection import inspect
from encore.lake.lock import LEASE_SECONDS, LakeLock
from encore.lake.store import open_store
from encore.lake.tables import ALL, FRAMEWORK, RECOMMENDATIONS
from encore.runtime.pipeline import plan, run_pipeline
from tests import recompute
from tests.conftest import QUICK_MODELS, REGISTERED, ROOT
from tests.deploy.mlflow_server import mlflow_server, secrets_manager
from tests.deploy.runbooks import KINDS, Block, Shell, blocks
from tests.local_spark import LocalSession
from tests.s3server import S3Server
from tests.serving import drill
from tests.unit.serving.bundles import small_bundle

CASES = (
    "A job failed",
    "The lock is stuck",
    "Ingest was partial",
    "Roll a model back",
    "Restore a table",
    "Restore the lake from its backup",
    "Rotate a secret",
    "The bill is too high",
)

EXAMPLES = {"$LAKE": "--set lake.path=lake", "$REGISTRY": "--set tracking.uri=x", "$VERSION": "1"}
GLOBAL_OPTIONS = {"query", "output", "max-items", "region"}


def of(section: str, *kinds: str) -> list[Block]:
    return [block for block in blocks() if block.section == section and block.kind in (kinds or KINDS)]


def test_each_case_has_its_page_with_commands() -> None:
    assert [case for case in CASES if not of(case)] == []
    assert {block.kind for block in blocks()} == set(KINDS)


def arguments(words: list[str]) -> list[str]:
    """Words with examples in the place of variables."""
    return [word for one in words for word in EXAMPLES.get(one, one).split(" " if one in EXAMPLES else "\0")]


def test_each_command_of_encore_exists_with_its_options() -> None:
    group, seen = typer.main.get_command(app), 0
    for block in blocks():
        for words in block.commands("encore"):
            command: Any = group
            name, given = "encore", arguments(words)
            while hasattr(command, "commands"):
                name, *given = given
                assert name in command.commands, words
                command = command.commands[name]
            command.make_context(name, given)
            seen += 1
    assert seen > 30


def test_each_call_of_aws_exists_with_its_parameters() -> None:
    session, seen = botocore.session.get_session(), 0
    for block in blocks():
        for words in block.commands("aws"):
            seen += 1
            service, operation, *rest = words
            if service == "s3":
                assert operation in ("ls", "cp", "sync")
                continue
            model = session.get_service_model({"s3api": "s3"}.get(service, service))
            operations = {xform_name(name, "-"): name for name in model.operation_names}
            assert operation in operations, words
            shape = model.operation_model(operations[operation]).input_shape
            assert shape is not None
            members = {xform_name(name, "-"): name for name in shape.members}
            given = {word[2:] for word in rest if word.startswith("--")}
            assert given - members.keys() - GLOBAL_OPTIONS == set(), words
            assert set(shape.required_members) <= {members[name] for name in given & members.keys()}, words
            if "--query" in rest:
                jmespath.compile(rest[rest.index("--query") + 1])
    assert seen > 15


def test_each_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = {words[0] for block in blocks() for words in block.commands("make")}
    assert called
    assert called - targets == set()


@pytest.fixture
def raw(generated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(generated, tmp_path / "raw"))


@pytest.fixture
def config(raw: Path, tmp_path: Path) -> Config:
    """The settings of a lake on which all jobs have run; its path is the default one, relative to `tmp_path`."""
    found = load_config("local", overrides(tmp_path, raw))
    run_pipeline(found, plan(), session=LocalSession(found, tmp_path / "sent"))
    return found


def overrides(folder: Path, raw: Path) -> list[str]:
    return [
        f"lake.path={folder}/data/lake",
        f"raw.playlists={raw}",
        f"raw.features={raw}/features",
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
        f"tracking.artifacts={folder}/artifacts",
        f"report.path={folder}/report",
        "ingest.vanished=remove",
        # of so few playlists, metrics say little
        *(f"check.expect.{name}.severity=warn" for name in ("ndcg_lost", "r_precision_lost", "unserved_more")),
        "recommend.k=20",
        "spark.master=local[2]",
        "log.level=error",
        QUICK_MODELS,
        REGISTERED,
    ]


def programs(folder: Path) -> str:
    """A PATH with `encore` of this checkout."""
    own = folder / "bin"
    own.mkdir()
    script = own / "encore"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from encore.cli.entry import main; main()" "$@"\n')
    script.chmod(0o755)
    return f"{own}:{os.environ['PATH']}"


def rows(config: Config) -> dict[str, list[str]]:
    store = open_store(config)
    tables = [table.name for table in ALL if table not in FRAMEWORK and store.exists(table)]
    return {name: sorted(map(str, recompute.table(Path(config.lake.path), name))) for name in tables}


def hold_lock(config: Config, seconds: float) -> None:
    """Let a run on another machine hold the lake's lock, for some seconds from now."""
    lock = LakeLock(config, "elsewhere")
    lock.take()
    path = Path(config.lake.path) / "_lock"
    text = path.read_text()
    lock.release()
    found = json.loads(text)
    for holder in found["holders"]:
        holder |= {"machine": "another", "token": "another", "until": time.time() + seconds}
    path.write_text(json.dumps(found))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_pages_on_a_lake(config: Config, raw: Path, tmp_path: Path, verified: Callable[[str], None]) -> None:
    given = " ".join(f"--set {setting}" for setting in overrides(tmp_path, raw))
    shell = Shell(tmp_path, {"LAKE": given, "BACKUP": str(tmp_path / "backup"), "PATH": programs(tmp_path)})
    nothing = "Nothing to do: every table is up to date."

    # a job failed: a third of the playlists is gone, which the check refuses until it is accepted
    for path in sorted(raw.glob("*.json"))[4:]:
        path.unlink()
    with pytest.raises(Exception, match="not as expected"):
        run_pipeline(config, plan(), session=LocalSession(config, tmp_path / "sent-2"))
    show, checks, accept, again = of("A job failed", "lake")
    assert "failed" in shell.run(show)
    assert "playlists_lost" in shell.run(checks)
    shell.run(accept)
    assert nothing in shell.run(again)

    # the lock: of a machine that is gone, and of one that is alive
    wait, take_over = of("The lock is stuck", "lake")
    hold_lock(config, -LEASE_SECONDS)
    os.utime(next(raw.glob("*.json")))
    assert "another" in shell.run(wait)
    hold_lock(config, 3600)
    os.utime(next(raw.glob("*.json")))
    with pytest.raises(AssertionError, match="is in use by run elsewhere"):
        shell.run(wait)
    shell.run(take_over)

    # ingest was partial
    (raw / "damaged.json").write_text('{"playlists": [')
    look, deliver = of("Ingest was partial", "lake")
    with pytest.raises(AssertionError):
        shell.run(Block("", "lake", "encore run $LAKE --set check.expect.files_refused.severity=fail"))
    said = shell.run(look)
    assert "damaged.json" in said
    assert "not_json" in said
    (raw / "damaged.json").unlink()
    shell.run(deliver)
    assert nothing in shell.run(deliver)

    # restore a table that another program emptied
    before = rows(config)
    shell.variables["VERSION"] = str(open_store(config).there(RECOMMENDATIONS).version())
    DeltaTable(f"{config.lake.path}/recommendations").delete()
    versions, go_back, afterwards = of("Restore a table", "lake")
    assert "another program" in shell.run(versions)
    shell.run(go_back)
    assert rows(config) == before
    assert nothing in shell.run(afterwards)

    # restore the lake, from damage and from nothing
    take, bring_back, from_replica = of("Restore the lake from its backup", "lake")
    assert "every file is intact" in shell.run(take)
    for path in sorted(Path(config.lake.path).rglob("*.parquet"))[::3]:
        path.unlink()
    assert nothing in shell.run(bring_back)
    shutil.rmtree(config.lake.path)
    assert nothing in shell.run(bring_back)
    assert rows(config) == before
    assert [found for found in inspect(open_store(config)) if found.remedy] == []
    assert nothing in shell.run(from_replica)

    estimate, tables = of("The bill is too high", "lake")
    assert "in dollars" in shell.run(estimate)
    assert "recommendations" in shell.run(tables)
    verified("runbooks: a failed check, locks, partial ingest, damage to tables and lake")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_page_on_rolling_back_with_a_scorer_that_follows(tmp_path: Path, verified: Callable[[str], None]) -> None:
    look, cancel, back = of("Roll a model back", "registry", "registry-canary")
    (look_2,) = of("Roll a model back", "registry-scorer")
    assert (cancel.kind, back.kind) == ("registry-canary", "registry")
    with drill.registry(tmp_path, [small_bundle(drill.MODEL), drill.good_bundle()]) as found:
        found.client.set_registered_model_alias(drill.NAME, "previous", "1")
        found.client.set_registered_model_alias(drill.NAME, "champion", "2")
        found.start("1", "0.05:3600")
        with drill.scorer(found, tmp_path, poll_seconds=0.2, token="secret") as running:
            shell = Shell(
                tmp_path,
                {
                    "MODEL": drill.MODEL,
                    "REGISTRY": f"--set tracking.uri={found.running.url}",
                    "SCORER": running.url,
                    "TOKEN": "secret",
                    "PATH": programs(tmp_path),
                },
            )
            shell.run(look)
            shell.run(cancel)
            assert served(shell, look_2) == "2"
            shell.run(back)
            until = time.monotonic() + 60
            while served(shell, look_2) != "1":
                assert time.monotonic() < until, "the scorer does not follow"
                time.sleep(0.2)
    verified("runbooks: a model is rolled back, and a scorer follows without a restart")


def served(shell: Shell, block: Block) -> str:
    """The version that the scorer says it serves."""
    models = json.loads(shell.run(block))["models"]
    return str(models[0]["version"])


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """A shell in a mock account with the outputs of a deployed stage."""
    if shutil.which("aws") is None:
        pytest.skip("no AWS CLI")
    with secrets_manager() as url:
        variables = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_PAGER": "",
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield Shell(tmp_path, {**variables, "PATH": programs(tmp_path)})


def stack(name: str, outputs: dict[str, str], resources: dict[str, Any] | None = None) -> None:
    """A stack with these outputs."""
    unused = {"Unused": {"Type": "AWS::SNS::Topic", "Properties": {}}}
    template = {
        "Resources": resources or unused,
        "Outputs": {output: {"Value": value} for output, value in outputs.items()},
    }
    boto3.client("cloudformation").create_stack(StackName=f"encore-prod-{name}", TemplateBody=json.dumps(template))


def mock_stage() -> str:
    """Create what the pages look at; returns the ARN of an execution that is running and holds the lock."""
    s3 = boto3.client("s3")
    for bucket in ("the-lake", "the-logs"):
        s3.create_bucket(Bucket=bucket)
    s3.put_bucket_versioning(Bucket="the-lake", VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket="the-lake", Key="lake/_lock", Body=b'{"holders": []}')
    role = "arn:aws:iam::123456789012:role/machine"
    definition = {"StartAt": "Done", "States": {"Done": {"Type": "Succeed"}}}
    steps = boto3.client("stepfunctions")
    machine = steps.create_state_machine(name="encore", definition=json.dumps(definition), roleArn=role)
    running = steps.start_execution(stateMachineArn=machine["stateMachineArn"], name="run-2")["executionArn"]
    lock = {
        "Lock": {
            "Type": "AWS::DynamoDB::Table",
            "Properties": {
                "KeySchema": [{"AttributeName": "line", "KeyType": "HASH"}],
                "AttributeDefinitions": [{"AttributeName": "line", "AttributeType": "S"}],
                "BillingMode": "PAY_PER_REQUEST",
            },
        }
    }
    stack("orchestration", {"StateMachineArn": machine["stateMachineArn"]}, lock)
    (table,) = boto3.client("dynamodb").list_tables()["TableNames"]
    item = {"line": {"S": "s3://the-lake/lake"}, "execution": {"S": running}}
    boto3.client("dynamodb").put_item(TableName=table, Item=item)
    application = boto3.client("emr-serverless").create_application(
        name="encore", releaseLabel="emr-7.0.0", type="SPARK"
    )
    boto3.client("emr-serverless").start_job_run(
        applicationId=application["applicationId"],
        executionRoleArn=role,
        jobDriver={"sparkSubmit": {"entryPoint": "s3://the-code/jobs/recommend.py"}},
    )
    stack("storage", {"LakePath": "s3://the-lake/lake", "LogBucket": "the-logs"})
    stack("compute", {"ApplicationId": application["applicationId"]})
    return str(running)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_pages_on_aws(account: Shell, monkeypatch: pytest.MonkeyPatch, verified: Callable[[str], None]) -> None:
    running = mock_stage()
    steps, s3 = boto3.client("stepfunctions"), boto3.client("s3")
    failed = steps.start_execution(
        stateMachineArn=steps.list_state_machines()["stateMachines"][0]["stateMachineArn"], name="run-1"
    )["executionArn"]
    (setup,) = [block for block in blocks() if not block.section]
    account.run(setup)

    (look,) = of("A job failed", "aws")
    # moto has no execution that fails by itself
    steps.stop_execution(executionArn=failed)
    outcome = {"code": 3, "error": "no usable playlist"}
    s3.put_object(Bucket="the-logs", Key="outcomes/recommend/run-1/1.json", Body=json.dumps(outcome).encode())
    s3.put_object(Bucket="the-logs", Key="logs/recommend/run-1/stderr", Body=b"a log")
    said = account.run(look, replace={"FAILED": "ABORTED"})
    assert "no usable playlist" in said
    assert "logs/recommend/run-1/stderr" in said

    lake, holder, stop = of("The lock is stuck", "aws")
    assert "holders" in account.run(lake)
    assert "run-2" in account.run(holder)
    account.run(stop)
    assert steps.describe_execution(executionArn=running)["status"] == "ABORTED"

    (undelete,) = of("Restore the lake from its backup", "aws")
    for key in ("lake/a b", "lake/t/model=x/1.parquet"):
        s3.put_object(Bucket="the-lake", Key=key, Body=b"rows")
        s3.delete_object(Bucket="the-lake", Key=key)
    account.run(undelete)
    assert {item["Key"] for item in s3.list_objects_v2(Bucket="the-lake")["Contents"]} == {
        "lake/_lock",
        "lake/a b",
        "lake/t/model=x/1.parquet",
    }
    # nothing is deleted now
    account.run(undelete)

    (token,) = of("Rotate a secret", "aws")
    secrets = boto3.client("secretsmanager")
    arn = secrets.create_secret(Name="token", SecretString="old")["ARN"]
    stack("serving", {"ScorerToken": arn})
    assert "scorer: changed" in account.run(token)
    assert len(secrets.get_secret_value(SecretId=arn)["SecretString"]) == 48
    verified("runbooks: the AWS CLI finds a failed run, the lock and its holder, and brings deleted objects back")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_passwords_of_mlflow_are_rotated(
    account: Shell, s3_server: S3Server, verified: Callable[[str], None]
) -> None:
    s3_server.client().create_bucket(Bucket="rotated")
    (block,) = of("Rotate a secret", "aws-mlflow")
    secrets = boto3.client("secretsmanager")
    with mlflow_server(s3_server, "rotated") as server:
        users = {
            "TrackingLogin": (server.username, server.password),
            "TrackingAdministrator": ("administrator", server.environment["MLFLOW_AUTH_ADMIN_PASSWORD"]),
        }
        arns = {}
        for output, (name, password) in users.items():
            value = {"uri": server.uri, "username": name, "password": password}
            arns[output] = secrets.create_secret(Name=name, SecretString=json.dumps(value))["ARN"]
        stack("mlflow", arns)
        account.variables["STAGE"] = "prod"
        said = account.run(block, replace={"http://localhost:5000": server.uri})
        assert said.count(": changed") == 2
        for output, (name, old) in users.items():
            new = json.loads(secrets.get_secret_value(SecretId=arns[output])["SecretString"])
            assert new["uri"] == server.uri
            url = f"{server.uri}/api/2.0/mlflow/users/get?username={name}"
            assert requests.get(url, auth=(name, new["password"]), timeout=30).status_code == 200
            assert requests.get(url, auth=(name, old), timeout=30).status_code == 401
            assert new["password"] not in said
    verified("runbooks: both passwords of MLflow are changed in MLflow and in Secrets Manager, and log in")


def test_the_drill_is_a_target_of_make() -> None:
    done = subprocess.run(["make", "-n", "restore-drill"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "tests.restore_drill" in done.stdout
