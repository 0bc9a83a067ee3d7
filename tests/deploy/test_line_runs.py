"""The state machine runs: moto interprets the definition, each job is a real spark-submit, the lake is on a real S3."""

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

from encore.aws.access import Buckets, statements
from encore.aws.states import Limits, definition, filled, placeholders
from encore.config import load_config
from encore.lake.store import Store
from encore.lake.tables import ALL, JOB_RUNS, Table
from encore.runtime.graph import edges
from encore.runtime.registry import JOBS, extra_nodes, node, nodes, upkeep
from encore.spark.session import Session
from tests.deploy.emr import Ended, Runner, ServiceError, emr_serverless, spark_submit
from tests.deploy.mlflow_server import MlflowServer, mlflow_server, secrets_manager
from tests.deploy.s3proxy import Call, recording
from tests.deploy.simulator import refused
from tests.s3server import S3Server

REGION = "us-east-1"
FEW = ("split_holdout", "evaluate", "report")
QUICK = Limits(job_seconds=600, queue_seconds=60, tries=3, wait_seconds=1, retry_seconds=1)
SETTINGS = ["s3.path_style=true", "spark.shuffle_partitions=4", "recommend.k=50", "run.chunk_playlists=200"]


@dataclass
class Account:
    """An account of moto's with the machine in it, and what reads its messages."""

    machine: str
    queue: str
    logs: str
    table: str
    known: dict[str, str]
    states: Any
    sqs: Any
    s3: Any
    dynamodb: Any
    started: list[str] = field(default_factory=list)

    def run(self, name: str, asked: dict[str, Any] | None = None, seconds: float = 900) -> dict[str, Any]:
        """Start an execution, and wait for its end."""
        arn = self.states.start_execution(stateMachineArn=self.machine, name=name, input=json.dumps(asked or {}))
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found: dict[str, Any] = self.states.describe_execution(executionArn=arn["executionArn"])
            if found["status"] != "RUNNING":
                return found
            time.sleep(0.1)
        raise AssertionError(f"{name} still runs after {seconds} s")

    def entered(self, arn: str) -> list[str]:
        """The states that an execution entered, in order."""
        events = self.states.get_execution_history(executionArn=arn, maxResults=1000)["events"]
        return [event["stateEnteredEventDetails"]["name"] for event in events if "stateEnteredEventDetails" in event]

    def messages(self) -> list[dict[str, Any]]:
        """What was said on the topic, as a queue that listens to it has it."""
        found = self.sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get("Messages", [])
        for message in found:
            self.sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])
        return [json.loads(json.loads(message["Body"])["Message"]) for message in found]

    def lock(self) -> dict[str, Any] | None:
        """The item that says who has the line."""
        item: dict[str, Any] | None = self.dynamodb.get_item(
            TableName=self.table, Key={"line": {"S": self.known["Lake"]}}
        ).get("Item")
        return item


@contextmanager
def account(known: dict[str, str], jobs: Sequence[str] = JOBS) -> Iterator[Account]:
    """moto's account with the machine of some jobs, the topic and a queue on it, the lock's table and the bucket of
    logs. Few jobs: moto takes seconds to read the whole line, each time it is started."""
    with mock_aws(config={"stepfunctions": {"execute_state_machine": True}}):
        sns, sqs, s3, states, dynamodb = (
            boto3.client(name, region_name=REGION) for name in ("sns", "sqs", "s3", "stepfunctions", "dynamodb")
        )
        topic = sns.create_topic(Name="failures")["TopicArn"]
        queue = sqs.create_queue(QueueName="listener")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
        s3.create_bucket(Bucket=known["LogBucket"])
        dynamodb.create_table(
            TableName=known["LockTable"],
            KeySchema=[{"AttributeName": "line", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "line", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        role = "arn:aws:iam::" + topic.split(":")[4] + ":role/machine"
        machine = definition([node(name) for name in jobs], extra=extra_nodes(), limits=QUICK)
        full = filled(machine, {**dict.fromkeys(placeholders(machine), role), **known, "TopicArn": topic})
        made = states.create_state_machine(name="line", definition=json.dumps(full), roleArn=role)
        yield Account(
            made["stateMachineArn"],
            queue,
            known["LogBucket"],
            known["LockTable"],
            known,
            states,
            sqs,
            s3,
            dynamodb,
        )


def known_for(place: str) -> dict[str, str]:
    """What the deployment knows, with the buckets of one test."""
    return {
        "ApplicationId": "00application",
        "Region": REGION,
        "CodePrefix": f"s3://{place}-code/current",
        "Lake": f"s3://{place}-lake/lake",
        "RawPrefix": f"s3://{place}-raw",
        "LogBucket": f"{place}-logs",
        "TrackingLogin": f"{place}-mlflow",
        "LockTable": "lock",
    }


@pytest.fixture(autouse=True)
def moto_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here speaks to AWS, and moto wants some credentials."""
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)


def leaves(machine: Account, asked: dict[str, Any], outcome: dict[str, Any]) -> None:
    """Put the outcome of a failed try where its arguments say, as the job does."""
    arguments = asked["JobDriver"]["SparkSubmit"]["EntryPointArguments"]
    bucket, _, key = arguments[arguments.index("--outcome") + 1].removeprefix("s3://").partition("/")
    machine.s3.put_object(Bucket=bucket, Key=key, Body=json.dumps(outcome).encode())


# what the machine decides, without Spark ---------------------------------------------------------------------------


@pytest.fixture
def decisions() -> Iterator[tuple[Account, list[str], dict[str, list[Any]]]]:
    """A machine whose jobs end at once, as `script` says by job: an exit code, which it writes down;
    one that it does not, negative; or a service's error."""
    ran: list[str] = []
    script: dict[str, list[Any]] = {}
    with account(known_for("decide"), FEW) as made:

        def run(job: str, asked: dict[str, Any]) -> Ended:
            ran.append(job)
            then = script[job].pop(0) if script.get(job) else 0
            if isinstance(then, str):
                raise ServiceError(then)
            if then > 0:
                leaves(made, asked, {"code": then, "reason": f"{job} ended with {then}", "remedy": "mend it"})
            return Ended(abs(then))

        with emr_serverless(run):
            yield made, ran, script


Decisions = tuple[Account, list[str], dict[str, list[Any]]]


@pytest.mark.slow
def test_all_jobs_run_in_an_order_that_the_graph_allows() -> None:
    ran: list[str] = []

    def run(job: str, _: dict[str, Any]) -> Ended:
        ran.append(job)
        return Ended(0)

    with account(known_for("all")) as made, emr_serverless(run):
        assert made.run("whole")["status"] == "SUCCEEDED"
        assert made.messages() == []
        assert made.lock() is None
    assert sorted(ran) == sorted(JOBS), "and the extra jobs do not"
    assert all(ran.index(before) < ran.index(after) for before, _, after in edges(nodes()))


@pytest.mark.parametrize("code", [3, *(pytest.param(code, marks=pytest.mark.slow) for code in (1, 2, 4, 5))])
def test_a_failure_that_stays_is_not_tried_again_and_is_told(decisions: Decisions, code: int) -> None:
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
    assert made.lock() is None, "the lock is let go after a failure too"


@pytest.mark.parametrize(
    "passing", [75, *(pytest.param(one, marks=pytest.mark.slow) for one in (-137, "ThrottlingException"))]
)
def test_what_passes_is_tried_again(decisions: Decisions, passing: Any) -> None:
    made, ran, script = decisions
    script["split_holdout"] = [passing]
    assert made.run("again", {"only": ["split_holdout", "evaluate"]})["status"] == "SUCCEEDED"
    assert ran == ["split_holdout", "split_holdout", "evaluate"]
    assert made.messages() == []


@pytest.mark.slow
def test_it_is_tried_three_times_and_each_job_has_its_own(decisions: Decisions) -> None:
    made, ran, script = decisions
    script["split_holdout"], script["evaluate"] = [75, 75], [75, 75, 75]
    assert made.run("enough", {"only": ["split_holdout", "evaluate"]})["status"] == "FAILED"
    assert ran == ["split_holdout"] * 3 + ["evaluate"] * 3
    (message,) = made.messages()
    assert (message["job"], message["exit_code"], message["tries"]) == ("evaluate", 75, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "tries"), [(3, 1), (137, 2)])
def test_where_the_job_left_no_word_the_service_s_text_decides(decisions: Decisions, code: int, tries: int) -> None:
    made, ran, script = decisions
    script["split_holdout"] = [-code]
    assert made.run("text", {"only": ["split_holdout"]})["status"] == ("FAILED" if tries == 1 else "SUCCEEDED")
    assert ran == ["split_holdout"] * tries


@pytest.mark.slow
def test_a_call_that_the_service_refuses_for_good_is_told_at_once(decisions: Decisions) -> None:
    made, ran, script = decisions
    script["split_holdout"] = ["ValidationException"]
    assert made.run("refused", {"only": ["split_holdout"]})["status"] == "FAILED"
    assert ran == ["split_holdout"]
    assert made.messages()[0]["error"] == "EMRServerless.ValidationException"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"from": "evaluate"}, ["evaluate", "report"]),
        ({"only": ["maintain"]}, ["maintain"]),
        ({"from": "report", "set": ["report.top=5"], "env": "emr", "date": "2026-11-25"}, ["report"]),
    ],
)
def test_part_of_the_line(decisions: Decisions, asked: dict[str, Any], expected: list[str]) -> None:
    made, ran, _ = decisions
    assert made.run("part", asked)["status"] == "SUCCEEDED"
    assert ran == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked", [{"from": "nothing"}, {"only": ["nothing"]}, {"from": "report", "only": ["report"]}, {"date": "today"}]
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(decisions: Decisions, asked: dict[str, Any]) -> None:
    made, ran, _ = decisions
    found = made.run("wrong", asked)
    assert (found["status"], found["error"]) == ("FAILED", "Encore.Input")
    assert ran == []
    assert made.lock() is None


def test_arguments_carry_the_run_the_settings_and_the_date() -> None:
    seen: list[list[str]] = []

    def run(_: str, asked: dict[str, Any]) -> Ended:
        seen.append(asked["JobDriver"]["SparkSubmit"]["EntryPointArguments"])
        return Ended(0)

    with account(known_for("say"), FEW) as made, emr_serverless(run):
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
def at_work(name: str) -> Iterator[tuple[Account, str, threading.Event]]:
    """An execution of that name which has the lock and whose job is at work: its ARN, and what lets the job end."""
    inside, go = threading.Event(), threading.Event()

    def run(_: str, __: dict[str, Any]) -> Ended:
        inside.set()
        assert go.wait(30)
        return Ended(0)

    with account(known_for(name), FEW) as made, emr_serverless(run):
        arn = made.states.start_execution(stateMachineArn=made.machine, name=name, input='{"only": ["report"]}')
        assert inside.wait(30)
        yield made, arn["executionArn"], go


@pytest.mark.slow
def test_two_executions_never_overlap() -> None:
    with at_work("first") as (made, first, go):
        second = made.run("second", {"only": ["report"]})
        assert (second["status"], second["error"]) == ("FAILED", "Encore.Overlap")
        assert made.messages()[0]["run_id"] == "second"
        holder = made.lock()
        assert holder is not None
        assert holder["execution"]["S"] == first, "the second left the first one's lock alone"
        go.set()
        until = time.monotonic() + 30
        while made.states.describe_execution(executionArn=first)["status"] == "RUNNING":
            assert time.monotonic() < until
            time.sleep(0.05)
        assert made.run("third", {"only": ["report"]})["status"] == "SUCCEEDED"


@pytest.mark.slow
def test_the_lock_of_an_execution_that_was_stopped_is_taken_over() -> None:
    with at_work("stopped") as (made, stopped, go):
        made.states.stop_execution(executionArn=stopped)
        holder = made.lock()
        assert holder is not None, "who is stopped lets nothing go"
        assert holder["execution"]["S"] == stopped
        go.set()
        assert made.run("next", {"only": ["report"]})["status"] == "SUCCEEDED"
        assert made.lock() is None


@pytest.mark.slow
def test_the_lock_of_an_execution_that_is_not_known_any_more_is_taken_over(decisions: Decisions) -> None:
    made, ran, _ = decisions
    known = made.run("known", {"only": ["report"]})["executionArn"]
    forgotten = known.replace(":known", ":forgotten")
    item = {"line": {"S": made.known["Lake"]}, "execution": {"S": forgotten}}
    made.dynamodb.put_item(TableName=made.table, Item=item)
    assert made.run("next", {"only": ["report"]})["status"] == "SUCCEEDED"
    assert ran == ["report", "report"]
    assert made.lock() is None


# the line itself ---------------------------------------------------------------------------------------------------


@dataclass
class Proof:
    """One run of the whole line by the machine, and what was seen of it."""

    account: Account
    server: S3Server
    known: dict[str, str]
    calls: dict[str, set[Call]]
    ended: dict[str, list[Ended]]
    mlflow: MlflowServer
    unknown: list[str]
    """Requests to S3 that take a permission which is not known here."""
    after: dict[str, Callable[[], None]]
    """What is to happen once the job of that name has ended next."""


@pytest.fixture(scope="module")
def line(s3_server: S3Server, generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proof]:
    """A machine whose jobs are real, with raw data on the S3 server, and MLflow as a deployment runs it."""
    folder = tmp_path_factory.mktemp("started-in")
    known, client = known_for("line"), s3_server.client()
    for kind in ("raw", "lake", "logs", "code", "artefacts"):
        client.create_bucket(Bucket=f"line-{kind}")
    s3_server.upload(generated, "line-raw", "playlists/")
    s3_server.upload(generated / "features", "line-raw", "features/")
    calls: dict[str, set[Call]] = {}
    unknown: list[str] = []
    ended: dict[str, list[Ended]] = {}
    after: dict[str, Callable[[], None]] = {}
    with mlflow_server(s3_server, "line-artefacts") as mlflow, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        # for the client of these tests: jobs are started without them
        patch.setenv("MLFLOW_TRACKING_USERNAME", mlflow.username)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", mlflow.password)
        with account(known) as made, secrets_manager() as endpoint:
            login = {"uri": mlflow.uri, "username": mlflow.username, "password": mlflow.password}
            secret = boto3.client("secretsmanager", region_name=REGION)
            secret.create_secret(Name=known["TrackingLogin"], SecretString=json.dumps(login))
            with emr_serverless(_real(made, s3_server, endpoint, calls, unknown, ended, after, folder)):
                yield Proof(made, s3_server, known, calls, ended, mlflow, unknown, after)


def _real(
    made: Account,
    server: S3Server,
    secrets: str,
    calls: dict[str, set[Call]],
    unknown: list[str],
    ended: dict[str, list[Ended]],
    after: dict[str, Callable[[], None]],
    folder: Path,
) -> Runner:
    def run(job: str, asked: dict[str, Any]) -> Ended:
        with recording(server.endpoint) as recorder:
            own = {"AWS_ENDPOINT_URL": recorder.endpoint, "AWS_ENDPOINT_URL_SECRETS_MANAGER": secrets}
            done = spark_submit(job, asked, {**server.environment(), **own}, folder)
        calls.setdefault(job, set()).update(recorder.calls)
        unknown.extend(recorder.unknown)
        ended.setdefault(job, []).append(done)
        after.pop(job, lambda: None)()
        # what the job wrote for the machine is where the machine of this test looks
        client = server.client()
        for item in client.list_objects_v2(Bucket=made.logs).get("Contents", []):
            body = client.get_object(Bucket=made.logs, Key=item["Key"])["Body"].read()
            made.s3.put_object(Bucket=made.logs, Key=item["Key"], Body=body)
        return done

    return run


@pytest.mark.slow
@pytest.mark.s3
# the first test waits for eight jobs, on machines that may be busy
@pytest.mark.timeout(1800)
class TestTheLine:
    """In order: each test goes on where the one before it ended."""

    def test_it_runs_and_its_metrics_are_in_mlflow(self, line: Proof, proved: Callable[[str], None]) -> None:
        found = line.account.run("nightly-1", {"set": SETTINGS})
        assert found["status"] == "SUCCEEDED", {job: one[-1].log for job, one in line.ended.items() if one[-1].code}
        assert {job: len(one) for job, one in line.ended.items()} == dict.fromkeys(JOBS, 1)
        assert line.account.messages() == []
        client = MlflowClient(tracking_uri=line.mlflow.uri)
        experiment = client.get_experiment_by_name("encore")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        kinds = {run.data.tags["encore.kind"]: run for run in runs}
        assert kinds["pipeline"].data.tags["encore.run_id"] == "nightly-1"
        assert {run.data.tags.get("model") for run in runs} >= {"cosine", "popularity", "random"}
        assert kinds["model"].data.metrics["r_precision"] >= 0
        plots = client.list_artifacts(kinds["model"].info.run_id, "plots")
        assert plots, "artefacts go by the server into its bucket"
        stored = line.server.client().list_objects_v2(Bucket="line-artefacts")["KeyCount"]
        assert stored >= len(plots)
        proved(
            f"the state machine ran {len(JOBS)} jobs by spark-submit on a real S3 server; metrics are in MLflow on "
            f"{line.mlflow.store}, which was started by the script of its image and knows one user"
        )

    def test_where_mlflow_is_and_its_login_stand_in_no_command_line_log_or_table(
        self, line: Proof, proved: Callable[[str], None]
    ) -> None:
        said = " ".join(one.said for runs in line.ended.values() for one in runs)
        assert line.known["TrackingLogin"] in said, "the secret's name is all that they have"
        found = {name: DeltaTable(f"{line.known['Lake']}/{name}", storage_options=storage(line.server))
                 for name in ("job_runs", "job_costs")}  # fmt: skip
        tables = str([table.to_pyarrow_table().to_pylist() for table in found.values()])
        logs = objects(line.server, line.account.logs)
        for secret in (line.mlflow.password, line.mlflow.uri):
            assert secret not in said
            assert secret not in tables
            assert secret not in logs
        proved("address and login of MLflow come from a secret, and stand in no argument, output, table or outcome")

    def test_a_job_ends_well_while_mlflow_is_away_and_says_so(self, line: Proof, proved: Callable[[str], None]) -> None:
        line.mlflow.stop()
        asked = {"only": ["report"], "set": [*SETTINGS, "report.top=7"]}
        found = line.account.run("without-mlflow", asked)
        line.mlflow.start()
        assert found["status"] == "SUCCEEDED", line.ended["report"][-1].log
        said = line.ended["report"][-1].said
        assert "mlflow_failed" in said
        assert line.mlflow.uri.rsplit(":", 1)[1] not in said, "nor is the address in the error"
        proved("a job whose MLflow is down ends well, and says so")

    def test_roles_allow_what_the_jobs_did_and_nothing_on_tables_that_they_do_not_declare(
        self, line: Proof, proved: Callable[[str], None]
    ) -> None:
        assert set(line.calls) == set(JOBS)
        assert line.unknown == []
        for job, calls in line.calls.items():
            allowed = policy(job)
            assert [refused(allowed, call) for call in calls if refused(allowed, call)] == [], job
            assert {call.action for call in calls} >= {"s3:GetObject", "s3:PutObject", "s3:ListBucket"}
        n = sum(len(calls) for calls in line.calls.values())
        proved(f"{n} different S3 calls of {len(line.calls)} jobs, by three clients: each job's own role allows them")

    def test_bad_input_is_not_tried_again_and_is_told(self, line: Proof, proved: Callable[[str], None]) -> None:
        before = len(line.ended["ingest_features"])
        asked = {"only": ["ingest_features", "report"], "set": [*SETTINGS, "raw.features=null"]}
        assert line.account.run("bad-input", asked)["status"] == "FAILED"
        assert [one.code for one in line.ended["ingest_features"][before:]] == [3]
        (message,) = line.account.messages()
        assert (message["job"], message["run_id"], message["exit_code"]) == ("ingest_features", "bad-input", 3)
        assert "no audio features are given" in message["reason"]
        assert "raw.features" in message["remedy"]
        proved("bad input: one try, exit code 3, its sentence and remedy on the topic, read back by a queue")

    def test_a_failure_that_passes_is_tried_again(self, line: Proof, proved: Callable[[str], None]) -> None:
        """Maintenance refuses to remove files while MLflow does not answer; then it answers."""
        line.mlflow.stop()
        line.after["maintain"] = line.mlflow.start
        found = line.account.run("maintenance-1", {"only": ["maintain"], "set": SETTINGS})
        assert [one.code for one in line.ended["maintain"]] == [75, 0], line.ended["maintain"][-1].log
        assert found["status"] == "SUCCEEDED"
        assert line.account.messages() == []
        proved("a transient failure, exit code 75: tried again, and well")
        allowed = policy("maintain")
        assert [refused(allowed, call) for call in line.calls["maintain"] if refused(allowed, call)] == []

    def test_a_second_run_after_maintenance_has_nothing_to_do(
        self, line: Proof, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in line.server.environment().items():
            monkeypatch.setenv(name, value)
        config = load_config("emr", [f"lake.path={line.known['Lake']}", "raw.playlists=unused", "s3.path_style=true"])
        store = Store(config, Session(config))
        before = {table.name: data_id(store, table) for table in ALL if table is not JOB_RUNS}
        for name in line.server.environment():
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        # the report was last made with this setting
        asked = {"set": [*SETTINGS, "report.top=7"]}
        assert line.account.run("nightly-2", asked)["status"] == "SUCCEEDED"
        for name, value in line.server.environment().items():
            monkeypatch.setenv(name, value)
        assert {table.name: data_id(store, table) for table in ALL if table is not JOB_RUNS} == before


def data_id(store: Store, table: Table) -> str | None:
    """What changes where rows of a table change; None where it does not exist."""
    state = store.state(table)
    return state.data_id if state else None


def storage(server: S3Server) -> dict[str, str]:
    """How delta-rs finds a server."""
    return {**server.environment(), "AWS_ALLOW_HTTP": "true"}


def objects(server: S3Server, bucket: str) -> str:
    """What all objects of a bucket hold, as text."""
    client = server.client()
    listed = client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return " ".join(
        client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read().decode(errors="replace") for item in listed
    )


def policy(job: str) -> list[dict[str, Any]]:
    """The statements of a job's role, with the buckets of this test."""
    lake, raw, code, logs = (f"arn:aws:s3:::line-{kind}" for kind in ("lake", "raw", "code", "logs"))
    return statements(node(job), Buckets(lake, raw, code, logs), upkeep(job))
