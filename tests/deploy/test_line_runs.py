"""The state machine at work: moto interprets it, each job is a real spark-submit, the lake is on a real S3 server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from deltalake import DeltaTable
from mlflow import MlflowClient
from moto import mock_aws

from encore.aws.acceptance import accepted, facts_of, gate
from encore.aws.access import Buckets, statements
from encore.aws.executions import ExecutionFailed, Machine, backfill, dates
from encore.aws.executions import run as start_and_follow
from encore.aws.states import Limits, definition, placeholders, substitute
from encore.config import load_config
from encore.lake.store import Store
from encore.lake.tables import ALL, JOB_COSTS, JOB_RUNS, Table
from encore.runtime.graph import edges
from encore.runtime.registry import JOBS, SMOKE, extra_nodes, node, nodes, upkeep
from encore.spark.session import Session
from tests.conftest import QUICK_MODELS
from tests.deploy.emr import Runner, RunResult, ServiceError, emr_serverless, spark_submit
from tests.deploy.mlflow_server import MlflowServer, mlflow_server, secrets_manager
from tests.deploy.s3proxy import Call, recording
from tests.deploy.simulator import denial
from tests.s3server import S3Server

REGION = "us-east-1"
FEW = ("split_holdout", "evaluate", "report")
QUICK = Limits(job_seconds=600, queue_seconds=60, tries=3, wait_seconds=1, retry_seconds=1)
SETTINGS = [
    "s3.path_style=true",
    "spark.shuffle_partitions=4",
    "recommend.k=50",
    "run.chunk_playlists=200",
    QUICK_MODELS,
]


@dataclass
class Account:
    """A mock account with the state machine, and clients to inspect it."""

    machine: str
    queue: str
    logs: str
    table: str
    values: dict[str, str]
    states: Any
    sqs: Any
    s3: Any
    dynamodb: Any
    started: list[str] = field(default_factory=list)

    def run(self, name: str, machine_input: dict[str, Any] | None = None, seconds: float = 900) -> dict[str, Any]:
        """Start an execution and wait until it ends."""
        arn = self.states.start_execution(
            stateMachineArn=self.machine, name=name, input=json.dumps(machine_input or {})
        )
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found: dict[str, Any] = self.states.describe_execution(executionArn=arn["executionArn"])
            if found["status"] != "RUNNING":
                return found
            time.sleep(0.1)
        raise AssertionError(f"{name} is still running after {seconds} s")

    def entered(self, arn: str) -> list[str]:
        """The states that an execution entered, in order."""
        events = self.states.get_execution_history(executionArn=arn, maxResults=1000)["events"]
        return [event["stateEnteredEventDetails"]["name"] for event in events if "stateEnteredEventDetails" in event]

    def messages(self) -> list[dict[str, Any]]:
        """Receive what was published to the topic, from a queue that subscribes to it."""
        found = self.sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get("Messages", [])
        for message in found:
            self.sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])
        return [json.loads(json.loads(message["Body"])["Message"]) for message in found]

    def lock(self) -> dict[str, Any] | None:
        """The lock's item, None if the lock is free."""
        item: dict[str, Any] | None = self.dynamodb.get_item(
            TableName=self.table, Key={"line": {"S": self.values["Lake"]}}
        ).get("Item")
        return item


@contextmanager
def account(values: dict[str, str], jobs: Sequence[str] = JOBS) -> Iterator[Account]:
    """A mock account with the state machine for some jobs, the topic and a queue that subscribes to it, the lock table
    and the log bucket. Use few jobs: moto takes seconds to parse the whole pipeline at each start."""
    with mock_aws(config={"stepfunctions": {"execute_state_machine": True}}):
        sns, sqs, s3, states, dynamodb = (
            boto3.client(name, region_name=REGION) for name in ("sns", "sqs", "s3", "stepfunctions", "dynamodb")
        )
        topic = sns.create_topic(Name="failures")["TopicArn"]
        queue = sqs.create_queue(QueueName="listener")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
        s3.create_bucket(Bucket=values["LogBucket"])
        dynamodb.create_table(
            TableName=values["LockTable"],
            KeySchema=[{"AttributeName": "line", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "line", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        role = "arn:aws:iam::" + topic.split(":")[4] + ":role/machine"
        machine = definition([node(name) for name in jobs], extra=extra_nodes(), limits=QUICK)
        full = substitute(machine, {**dict.fromkeys(placeholders(machine), role), **values, "TopicArn": topic})
        made = states.create_state_machine(name="line", definition=json.dumps(full), roleArn=role)
        yield Account(
            made["stateMachineArn"],
            queue,
            values["LogBucket"],
            values["LockTable"],
            values,
            states,
            sqs,
            s3,
            dynamodb,
        )


def placeholder_values(prefix: str) -> dict[str, str]:
    """The values that a deployment would fill in, with the buckets of one test."""
    return {
        "ApplicationId": "00application",
        "Region": REGION,
        "CodePrefix": f"s3://{prefix}-code/current",
        "Lake": f"s3://{prefix}-lake/lake",
        "RawPrefix": f"s3://{prefix}-raw",
        "LogBucket": f"{prefix}-logs",
        "TrackingLogin": f"{prefix}-mlflow",
        "LockTable": "lock",
    }


@pytest.fixture(autouse=True)
def moto_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here calls AWS, but moto needs some credentials."""
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)


def write_outcome(machine: Account, parameters: dict[str, Any], outcome: dict[str, Any]) -> None:
    """Write the outcome of a try where its arguments say, as the job does."""
    arguments = parameters["JobDriver"]["SparkSubmit"]["EntryPointArguments"]
    bucket, _, key = arguments[arguments.index("--outcome") + 1].removeprefix("s3://").partition("/")
    machine.s3.put_object(Bucket=bucket, Key=key, Body=json.dumps(outcome).encode())


# the state machine's decisions, without Spark ----------------------------------------------------------------------


@pytest.fixture
def decisions() -> Iterator[tuple[Account, list[str], dict[str, list[Any]]]]:
    """A state machine whose jobs end at once, as `script` says for each job: with a positive exit code, which the job
    records as its outcome; a negative one, which it does not; or the name of a service error."""
    ran: list[str] = []
    script: dict[str, list[Any]] = {}
    with account(placeholder_values("decide"), FEW) as made:

        def run(job: str, parameters: dict[str, Any]) -> RunResult:
            ran.append(job)
            result = script[job].pop(0) if script.get(job) else 0
            if isinstance(result, str):
                raise ServiceError(result)
            if result > 0:
                write_outcome(
                    made, parameters, {"code": result, "reason": f"{job} ended with {result}", "remedy": "fix it"}
                )
            return RunResult(abs(result))

        with emr_serverless(run):
            yield made, ran, script


Decisions = tuple[Account, list[str], dict[str, list[Any]]]


@pytest.mark.slow
def test_all_jobs_run_in_an_order_that_the_graph_allows() -> None:
    ran: list[str] = []

    def run(job: str, parameters: dict[str, Any]) -> RunResult:
        ran.append(job)
        write_outcome(made, parameters, {"code": 0, "reason": "", "remedy": ""})
        return RunResult(0)

    with account(placeholder_values("all")) as made, emr_serverless(run):
        assert made.run("whole")["status"] == "SUCCEEDED"
        assert made.messages() == []
        assert made.lock() is None
    assert sorted(ran) == sorted([SMOKE, *JOBS]), "but no other extra jobs"
    assert ran[0] == SMOKE
    assert all(ran.index(before) < ran.index(after) for before, _, after in edges(nodes()))


def test_a_job_that_warns_is_notified_and_the_run_goes_on() -> None:
    told: list[str | None] = ["files_refused: 3 %", "", None]

    def run(job: str, parameters: dict[str, Any]) -> RunResult:
        warning = told.pop(0)
        if warning is not None:
            write_outcome(made, parameters, {"code": 0, "reason": warning, "remedy": "look"})
        return RunResult(0)

    with account(placeholder_values("warn"), ["check"]) as made, emr_serverless(run):
        only = {"only": ["check"]}
        assert made.run("warns", only)["status"] == "SUCCEEDED"
        (message,) = made.messages()
        assert (message["job"], message["run_id"]) == ("check", "warns")
        assert (message["warning"], message["remedy"]) == ("files_refused: 3 %", "look")
        assert made.run("quiet", only)["status"] == "SUCCEEDED"
        assert made.messages() == []
        assert made.run("lost", only)["status"] == "SUCCEEDED"
        assert "could not be read" in made.messages()[0]["warning"], "no warning is lost in silence"


@pytest.mark.parametrize("code", [3, *(pytest.param(code, marks=pytest.mark.slow) for code in (1, 2, 4, 5))])
def test_a_permanent_failure_is_not_retried_and_is_notified(decisions: Decisions, code: int) -> None:
    made, ran, script = decisions
    script["split_holdout"] = [code]
    found = made.run("bad", {"only": ["split_holdout", "evaluate"]})
    assert found["status"] == "FAILED"
    assert ran == ["split_holdout"]
    (message,) = made.messages()
    assert message["job"] == "split_holdout"
    assert message["run_id"] == "bad"
    assert message["exit_code"] == code
    assert message["reason"] == f"split_holdout ended with {code}"
    assert message["log"].endswith(f"/s3/buckets/{made.logs}?prefix=logs/split_holdout/bad/")
    assert made.lock() is None, "the lock is released after a failure too"


@pytest.mark.parametrize(
    "result", [75, *(pytest.param(one, marks=pytest.mark.slow) for one in (-137, "ThrottlingException"))]
)
def test_transient_errors_are_retried(decisions: Decisions, result: Any) -> None:
    made, ran, script = decisions
    script["split_holdout"] = [result]
    assert made.run("again", {"only": ["split_holdout", "evaluate"]})["status"] == "SUCCEEDED"
    assert ran == ["split_holdout", "split_holdout", "evaluate"]
    assert made.messages() == []


def test_who_follows_an_execution_learns_which_job_failed_and_why(decisions: Decisions) -> None:
    made, _, script = decisions
    script["evaluate"] = [3]
    said: list[str] = []
    machine = Machine("dev", made.machine, made.states)
    with pytest.raises(ExecutionFailed, match="evaluate failed: evaluate ended with 3") as caught:
        start_and_follow(machine, "told", {"only": ["split_holdout", "evaluate"]}, said.append, sleep=pause)
    assert (caught.value.exit_code, caught.value.remedy) == (3, "fix it")
    assert said == ["told: started in dev", "split_holdout: started", "evaluate: started"]
    days = dates("2026-01-01", "2026-01-02")
    assert backfill(machine, days, [], said.append, sleep=pause) == 2
    assert backfill(machine, days, [], said.append, sleep=pause) == 0


def pause(_: float) -> None:
    """Wait less than between two polls of Step Functions."""
    time.sleep(0.1)


@pytest.mark.slow
def test_nothing_runs_where_the_smoke_job_fails(decisions: Decisions) -> None:
    made, ran, script = decisions
    script[SMOKE] = [4]
    assert made.run("smoke", {})["status"] == "FAILED"
    assert ran == [SMOKE]
    (message,) = made.messages()
    assert (message["job"], message["exit_code"]) == (SMOKE, 4)


@pytest.mark.slow
def test_each_job_is_tried_at_most_three_times(decisions: Decisions) -> None:
    made, ran, script = decisions
    script["split_holdout"], script["evaluate"] = [75, 75], [75, 75, 75]
    assert made.run("enough", {"only": ["split_holdout", "evaluate"]})["status"] == "FAILED"
    assert ran == ["split_holdout"] * 3 + ["evaluate"] * 3
    (message,) = made.messages()
    assert (message["job"], message["exit_code"], message["tries"]) == ("evaluate", 75, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "tries"), [(3, 1), (137, 2)])
def test_without_an_outcome_the_state_details_decide(decisions: Decisions, code: int, tries: int) -> None:
    made, ran, script = decisions
    script["split_holdout"] = [-code]
    assert made.run("text", {"only": ["split_holdout"]})["status"] == ("FAILED" if tries == 1 else "SUCCEEDED")
    assert ran == ["split_holdout"] * tries


@pytest.mark.slow
def test_a_permanent_service_error_is_notified_at_once(decisions: Decisions) -> None:
    made, ran, script = decisions
    script["split_holdout"] = ["ValidationException"]
    assert made.run("refused", {"only": ["split_holdout"]})["status"] == "FAILED"
    assert ran == ["split_holdout"]
    assert made.messages()[0]["error"] == "EMRServerless.ValidationException"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine_input", "expected"),
    [
        ({"from": "evaluate"}, [SMOKE, "evaluate", "report"]),
        ({"only": ["maintain"]}, ["maintain"]),
        ({"only": [SMOKE]}, [SMOKE]),
        ({"from": "report", "set": ["report.top=5"], "env": "emr", "date": "2026-11-25", "smoke": False}, ["report"]),
    ],
)
def test_part_of_the_pipeline(decisions: Decisions, machine_input: dict[str, Any], expected: list[str]) -> None:
    made, ran, _ = decisions
    assert made.run("part", machine_input)["status"] == "SUCCEEDED"
    assert ran == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "machine_input",
    [{"from": "nothing"}, {"only": ["nothing"]}, {"from": "report", "only": ["report"]}, {"date": "today"}],
)
def test_invalid_input_is_rejected_before_anything_runs(decisions: Decisions, machine_input: dict[str, Any]) -> None:
    made, ran, _ = decisions
    found = made.run("wrong", machine_input)
    assert (found["status"], found["error"]) == ("FAILED", "Encore.Input")
    assert ran == []
    assert made.lock() is None


def test_arguments_contain_the_run_the_settings_and_the_date() -> None:
    seen: list[list[str]] = []

    def run(_: str, parameters: dict[str, Any]) -> RunResult:
        seen.append(parameters["JobDriver"]["SparkSubmit"]["EntryPointArguments"])
        return RunResult(0)

    with account(placeholder_values("say"), FEW) as made, emr_serverless(run):
        made.run("run-7", {"only": ["report"], "set": ["report.top=5", "recommend.k=9"], "date": "2026-11-25"})
    (arguments,) = seen
    pairs = list(zip(arguments[::2], arguments[1::2], strict=True))
    assert ("--run-id", "run-7") in pairs
    assert ("--set-json", '["report.top=5","recommend.k=9"]') in [
        (name, value.replace(", ", ",")) for name, value in pairs
    ]
    assert ("--set", "raw.playlists=s3://say-raw/playlists/date=2026-11-25/") in pairs
    assert ("--outcome", "s3://say-logs/outcomes/report/run-7/1.json") in pairs


@contextmanager
def running_execution(name: str) -> Iterator[tuple[Account, str, threading.Event]]:
    """An execution that holds the lock while its job runs; yields its ARN, and the event that lets the job end."""
    started, finish = threading.Event(), threading.Event()

    def run(_: str, __: dict[str, Any]) -> RunResult:
        started.set()
        assert finish.wait(30)
        return RunResult(0)

    with account(placeholder_values(name), FEW) as made, emr_serverless(run):
        arn = made.states.start_execution(stateMachineArn=made.machine, name=name, input='{"only": ["report"]}')
        assert started.wait(30)
        yield made, arn["executionArn"], finish


@pytest.mark.slow
def test_two_executions_never_overlap() -> None:
    with running_execution("first") as (made, first, finish):
        second = made.run("second", {"only": ["report"]})
        assert (second["status"], second["error"]) == ("FAILED", "Encore.Overlap")
        assert made.messages()[0]["run_id"] == "second"
        holder = made.lock()
        assert holder is not None
        assert holder["execution"]["S"] == first, "the second did not touch the first one's lock"
        finish.set()
        until = time.monotonic() + 30
        while made.states.describe_execution(executionArn=first)["status"] == "RUNNING":
            assert time.monotonic() < until
            time.sleep(0.05)
        assert made.run("third", {"only": ["report"]})["status"] == "SUCCEEDED"


@pytest.mark.slow
def test_the_lock_of_a_stopped_execution_is_taken_over() -> None:
    with running_execution("stopped") as (made, stopped, finish):
        made.states.stop_execution(executionArn=stopped)
        holder = made.lock()
        assert holder is not None, "a stopped execution releases nothing"
        assert holder["execution"]["S"] == stopped
        finish.set()
        assert made.run("next", {"only": ["report"]})["status"] == "SUCCEEDED"
        assert made.lock() is None


@pytest.mark.slow
def test_the_lock_of_an_execution_that_no_longer_exists_is_taken_over(decisions: Decisions) -> None:
    made, ran, _ = decisions
    existing = made.run("existing", {"only": ["report"]})["executionArn"]
    forgotten = existing.replace(":existing", ":forgotten")
    item = {"line": {"S": made.values["Lake"]}, "execution": {"S": forgotten}}
    made.dynamodb.put_item(TableName=made.table, Item=item)
    assert made.run("next", {"only": ["report"]})["status"] == "SUCCEEDED"
    assert ran == ["report", "report"]
    assert made.lock() is None


# the pipeline itself -----------------------------------------------------------------------------------------------


@dataclass
class PipelineRun:
    """A run of the whole pipeline by the state machine, and what was observed."""

    account: Account
    server: S3Server
    values: dict[str, str]
    calls: dict[str, set[Call]]
    ended: dict[str, list[RunResult]]
    mlflow: MlflowServer
    unknown: list[str]
    """S3 requests whose permissions are unknown."""
    on_end: dict[str, Callable[[], None]]
    """By job, what to do when it next ends."""


@pytest.fixture(scope="module")
def pipeline(s3_server: S3Server, generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipelineRun]:
    """A state machine with real jobs, raw data on the S3 server, and MLflow as a deployment runs it."""
    folder = tmp_path_factory.mktemp("working-directory")
    values, client = placeholder_values("line"), s3_server.client()
    for kind in ("raw", "lake", "logs", "code", "artefacts"):
        client.create_bucket(Bucket=f"line-{kind}")
    s3_server.upload(generated, "line-raw", "playlists/")
    s3_server.upload(generated / "features", "line-raw", "features/")
    calls: dict[str, set[Call]] = {}
    unknown: list[str] = []
    ended: dict[str, list[RunResult]] = {}
    on_end: dict[str, Callable[[], None]] = {}
    with mlflow_server(s3_server, "line-artefacts") as mlflow, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        # for the client in these tests: jobs do not inherit them
        patch.setenv("MLFLOW_TRACKING_USERNAME", mlflow.username)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", mlflow.password)
        with account(values) as made, secrets_manager() as endpoint:
            login = {"uri": mlflow.uri, "username": mlflow.username, "password": mlflow.password}
            secret = boto3.client("secretsmanager", region_name=REGION)
            secret.create_secret(Name=values["TrackingLogin"], SecretString=json.dumps(login))
            with emr_serverless(_run_real_jobs(made, s3_server, endpoint, calls, unknown, ended, on_end, folder)):
                yield PipelineRun(made, s3_server, values, calls, ended, mlflow, unknown, on_end)


def _run_real_jobs(
    made: Account,
    server: S3Server,
    secrets: str,
    calls: dict[str, set[Call]],
    unknown: list[str],
    ended: dict[str, list[RunResult]],
    on_end: dict[str, Callable[[], None]],
    folder: Path,
) -> Runner:
    def run(job: str, parameters: dict[str, Any]) -> RunResult:
        with recording(server.endpoint) as recorder:
            own = {"AWS_ENDPOINT_URL": recorder.endpoint, "AWS_ENDPOINT_URL_SECRETS_MANAGER": secrets}
            done = spark_submit(job, parameters, {**server.environment(), **own}, folder)
        calls.setdefault(job, set()).update(recorder.calls)
        unknown.extend(recorder.unknown)
        ended.setdefault(job, []).append(done)
        on_end.pop(job, lambda: None)()
        # copy what the job wrote to the bucket that moto's state machine reads
        client = server.client()
        for item in client.list_objects_v2(Bucket=made.logs).get("Contents", []):
            body = client.get_object(Bucket=made.logs, Key=item["Key"])["Body"].read()
            made.s3.put_object(Bucket=made.logs, Key=item["Key"], Body=body)
        return done

    return run


@pytest.mark.slow
@pytest.mark.s3
# the first test waits for eight jobs, on a machine that may be busy
@pytest.mark.timeout(1800)
class TestThePipeline:
    """In order: each test continues where the one before it ended."""

    def test_it_runs_and_its_metrics_are_in_mlflow(
        self, pipeline: PipelineRun, verified: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = pipeline.account.run("nightly-1", {"set": SETTINGS})
        assert found["status"] == "SUCCEEDED", {job: one[-1].log for job, one in pipeline.ended.items() if one[-1].code}
        assert {job: len(one) for job, one in pipeline.ended.items()} == dict.fromkeys([SMOKE, *JOBS], 1)
        assert pipeline.account.messages() == []
        client = MlflowClient(tracking_uri=pipeline.mlflow.uri)
        experiment = client.get_experiment_by_name("encore")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        kinds = {run.data.tags["encore.kind"]: run for run in runs}
        assert kinds["pipeline"].data.tags["encore.run_id"] == "nightly-1"
        assert {run.data.tags.get("model") for run in runs} >= {"cosine", "popularity", "random"}
        assert kinds["model"].data.metrics["r_precision"] >= 0
        plots = client.list_artifacts(kinds["model"].info.run_id, "plots")
        assert plots, "artefacts are stored by the server in its bucket"
        stored = pipeline.server.client().list_objects_v2(Bucket="line-artefacts")["KeyCount"]
        assert stored >= len(plots)
        lake = [f"lake.path={pipeline.values['Lake']}", "raw.playlists=s3://unused", "s3.path_style=true"]
        use_keys(pipeline.server, monkeypatch)
        facts = facts_of("dev", load_config("emr", lake))
        assert facts.run_id == "nightly-1"
        assert [one for one in accepted(facts, 300) if one.remedy] == []
        assert [one for one in gate(facts, facts) if one.remedy] == []
        verified(
            f"the state machine ran the smoke job and {len(JOBS)} others by spark-submit on an S3 server; metrics are "
            f"in MLflow on {pipeline.mlflow.store}, started by its image's script, with authentication"
        )

    def test_mlflows_address_and_login_appear_in_no_command_line_log_or_table(
        self, pipeline: PipelineRun, verified: Callable[[str], None]
    ) -> None:
        output = " ".join(one.output for runs in pipeline.ended.values() for one in runs)
        assert pipeline.values["TrackingLogin"] in output, "the secret's name is all that is passed on"
        found = {name: DeltaTable(f"{pipeline.values['Lake']}/{name}", storage_options=storage(pipeline.server))
                 for name in ("job_runs", "job_costs")}  # fmt: skip
        tables = str([table.to_pyarrow_table().to_pylist() for table in found.values()])
        logs = objects(pipeline.server, pipeline.account.logs)
        for secret in (pipeline.mlflow.password, pipeline.mlflow.uri):
            assert secret not in output
            assert secret not in tables
            assert secret not in logs
        verified("MLflow's address and login come from a secret, and appear in no argument, output, table or outcome")

    def test_a_job_succeeds_and_warns_while_mlflow_is_down(
        self, pipeline: PipelineRun, verified: Callable[[str], None]
    ) -> None:
        pipeline.mlflow.stop()
        machine_input = {"only": ["report"], "set": [*SETTINGS, "report.top=7"]}
        found = pipeline.account.run("without-mlflow", machine_input)
        pipeline.mlflow.start()
        assert found["status"] == "SUCCEEDED", pipeline.ended["report"][-1].log
        output = pipeline.ended["report"][-1].output
        assert "mlflow_failed" in output
        assert pipeline.mlflow.uri.rsplit(":", 1)[1] not in output, "the error does not contain the address either"
        verified("a job succeeds while MLflow is down, and logs a warning")

    def test_each_role_allows_the_calls_that_its_job_made(
        self, pipeline: PipelineRun, verified: Callable[[str], None]
    ) -> None:
        assert set(pipeline.calls) == {SMOKE, *JOBS}
        assert pipeline.unknown == []
        for job, calls in pipeline.calls.items():
            allowed = policy(job)
            assert [denial(allowed, call) for call in calls if denial(allowed, call)] == [], job
            assert {call.action for call in calls} >= {"s3:GetObject", "s3:PutObject", "s3:ListBucket"}
        n = sum(len(calls) for calls in pipeline.calls.values())
        verified(
            f"{n} different S3 calls of {len(pipeline.calls)} jobs, by three clients: each job's own role allows them"
        )

    def test_bad_input_is_not_retried_and_is_notified(
        self, pipeline: PipelineRun, verified: Callable[[str], None]
    ) -> None:
        before = len(pipeline.ended["ingest_features"])
        machine_input = {"only": ["ingest_features", "report"], "set": [*SETTINGS, "raw.features=null"]}
        assert pipeline.account.run("bad-input", machine_input)["status"] == "FAILED"
        assert [one.code for one in pipeline.ended["ingest_features"][before:]] == [3]
        (message,) = pipeline.account.messages()
        assert (message["job"], message["run_id"], message["exit_code"]) == ("ingest_features", "bad-input", 3)
        assert "no audio features are given" in message["reason"]
        assert "raw.features" in message["remedy"]
        verified("bad input: one try, exit code 3, message and remedy published to the topic, received by a queue")

    def test_a_transient_failure_is_retried(self, pipeline: PipelineRun, verified: Callable[[str], None]) -> None:
        """Maintenance refuses to remove files while MLflow does not respond; then MLflow is back."""
        pipeline.mlflow.stop()
        pipeline.on_end["maintain"] = pipeline.mlflow.start
        found = pipeline.account.run("maintenance-1", {"only": ["maintain"], "set": SETTINGS})
        assert [one.code for one in pipeline.ended["maintain"]] == [75, 0], pipeline.ended["maintain"][-1].log
        assert found["status"] == "SUCCEEDED"
        assert pipeline.account.messages() == []
        verified("a transient failure, exit code 75: retried, successfully")
        allowed = policy("maintain")
        assert [denial(allowed, call) for call in pipeline.calls["maintain"] if denial(allowed, call)] == []

    def test_a_second_run_after_maintenance_has_nothing_to_do(
        self, pipeline: PipelineRun, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use_keys(pipeline.server, monkeypatch)
        config = load_config(
            "emr", [f"lake.path={pipeline.values['Lake']}", "raw.playlists=unused", "s3.path_style=true"]
        )
        store = Store(config, Session(config))
        recorded = (JOB_RUNS, JOB_COSTS)
        before = {table.name: data_id(store, table) for table in ALL if table not in recorded}
        for name in pipeline.server.environment():
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        # the setting with which the report was last made
        machine_input = {"set": [*SETTINGS, "report.top=7"]}
        assert pipeline.account.run("nightly-2", machine_input)["status"] == "SUCCEEDED"
        use_keys(pipeline.server, monkeypatch)
        assert {table.name: data_id(store, table) for table in ALL if table not in recorded} == before
        costs = store.read_rows(JOB_COSTS, ["job"], "run_id", {"nightly-2"})
        assert set(costs["job"].to_pylist()) == {SMOKE}


def use_keys(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process read the lake on a server. boto3's session keeps the keys that it has found first."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


def data_id(store: Store, table: Table) -> str | None:
    """The id of the current data of a table, which changes with its rows; None if the table does not exist."""
    state = store.state(table)
    return state.data_id if state else None


def storage(server: S3Server) -> dict[str, str]:
    """Storage options of delta-rs for a server."""
    return {**server.environment(), "AWS_ALLOW_HTTP": "true"}


def objects(server: S3Server, bucket: str) -> str:
    """The content of all objects in a bucket, as text."""
    client = server.client()
    listed = client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return " ".join(
        client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read().decode(errors="replace") for item in listed
    )


def policy(job: str) -> list[dict[str, Any]]:
    """The statements of a job's role, for the buckets of this test."""
    lake, raw, code, logs = (f"arn:aws:s3:::line-{kind}" for kind in ("lake", "raw", "code", "logs"))
    return statements(node(job), Buckets(lake, raw, code, logs), upkeep(job))
