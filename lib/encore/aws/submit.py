"""Start a job on AWS, wait for it, and report how it ended: `encore submit JOB --target emr-serverless|emr-ec2`.

Credentials, buckets, the application archive and the EMR application or cluster are checked before the job is started.
Interrupting the command cancels the run.
"""

from __future__ import annotations

import re
import time
import uuid
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from encore.aws import render
from encore.aws.account import client, http_status, region_of, response_header, translate_errors
from encore.aws.states import PERMANENT_CODES, TERMINATED_CODE, exit_code_in
from encore.config import Config
from encore.errors import ConfigError, EncoreError, EnvironmentMissing, InputError, TransientError
from encore.lake.failures import aws_error
from encore.lake.filesystem import is_s3, s3_client, split_s3
from encore.runtime.outcome import Outcome, read_outcome

LOG_TAIL = 4000
"""Characters at the end of a driver's log that are shown if the job failed."""

TERMINAL_STATES = ("SUCCESS", "FAILED", "CANCELLED", "COMPLETED", "INTERRUPTED")
"""Final states of job runs and steps."""

MAX_FAILED_POLLS = 20
"""Polls in a row that may fail with a transient error: at least five minutes."""

_TIMED_OUT = re.compile(r"\b(job|step|execution|run)\b[^a-z]*(timed out|time-?out)", re.IGNORECASE)
"""How EMR reports that a run timed out, as distinct from the heartbeat timeout of a lost host."""


class JobFailed(EncoreError):
    """A job failed on AWS. `exit_code` is the job's own, if it recorded one; `log` is the end of the driver's log."""

    def __init__(self, sentence: str, *, code: int = 1, remedy: str | None = None, log: str = "") -> None:
        super().__init__(sentence, remedy=remedy)
        self.exit_code = code
        self.log = log


@dataclass(frozen=True)
class Clients:
    """Clients of the services that a submission uses."""

    s3: Any
    emr: Any


def make_clients(target: str, config: Config) -> Clients:
    """The clients for a target, in the region of the configuration or else of the environment."""
    with translate_errors("S3"):
        s3 = s3_client(config.s3)
    return Clients(s3, client(_SERVICES[target], region_of(config.s3.region)))


_SERVICES = {"emr-serverless": "emr-serverless", "emr-ec2": "emr"}


def required_settings(config: Config, target: str) -> dict[str, str]:
    """The `emr` settings that a target requires, by name. ConfigError if one is not set or a location is not in S3."""
    names = ("application", "role", "code", "logs") if target == "emr-serverless" else ("cluster", "code", "logs")
    found = {name: getattr(config.emr, name) for name in names}
    missing = [f"emr.{name}" for name, value in found.items() if not value]
    if missing:
        hint = " with a cluster (CHOICES=ec2=true)" if missing == ["emr.cluster"] else ""
        raise ConfigError(
            f"{target}: {', '.join(missing)} not set",
            remedy=f"pass --stage of a deployment{hint}, or --set each of them",
        )
    locations = {
        "lake.path": config.lake.path,
        "raw.playlists": config.raw.playlists,
        "raw.features": config.raw.features,
        "raw.tracks": config.raw.tracks,
        "emr.code": found["code"],
        "emr.logs": found["logs"],
    }
    for name, value in locations.items():
        # a local path would be one on the driver's machine, and be lost with it
        if value is not None and not is_s3(value):
            raise ConfigError(f"{name}: {target} needs an s3:// location, {value} found")
    return {name: str(value).rstrip("/") for name, value in found.items()}


def request(
    job: str,
    config: Config,
    target: str,
    run_id: str,
    *,
    token: str = "1",
    force: bool = False,
    take_over: bool = False,
) -> dict[str, Any]:
    """The request that starts the job: parameters of `startJobRun`, or of `AddJobFlowSteps` with one step.

    `token` identifies this submission: two submissions of a job in one pipeline run write two outcomes.
    """
    required = required_settings(config, target)
    outcome = _outcome_url(required, job, run_id, token)
    submission = render.make_submission(job, config, run_id, outcome=outcome, force=force, take_over=take_over)
    if target == "emr-ec2":
        return {"JobFlowId": required["cluster"], "Steps": [render.ec2_step(submission, required["code"])]}
    return render.serverless_request(
        job,
        submission.arguments(),
        application=required["application"],
        role=required["role"],
        code=required["code"],
        log_uri=f"{required['logs']}/logs/{job}/{run_id}/",
        name=f"{job}-{run_id}",
        minutes=config.emr.minutes,
        stage=config.emr.stage,
        spark=submission.spark,
    )


def _outcome_url(required: dict[str, str], job: str, run_id: str, token: str) -> str:
    return f"{required['logs']}/outcomes/{job}/{run_id}/{token}.json"


def submit(
    job: str,
    config: Config,
    target: str,
    run_id: str,
    *,
    force: bool = False,
    take_over: bool = False,
    on_state: Callable[[str], None] = lambda text: None,
    clients: Clients | None = None,
    poll_seconds: float = 15,
    token: str | None = None,
) -> None:
    """Start a job and wait until it has succeeded, polling its state every `poll_seconds`.

    Raises JobFailed with the end of the driver's log if the job failed or its state can no longer be read, and another
    EncoreError if it could not be started. KeyboardInterrupt cancels the run and is re-raised. `token`, generated if
    not given, identifies this submission: a request sent again because its response was lost starts nothing twice.
    """
    clients, token = clients or make_clients(target, config), token or uuid.uuid4().hex
    required, parameters = (
        required_settings(config, target),
        request(job, config, target, run_id, token=token, force=force, take_over=take_over),
    )
    check_locations(config, required, clients.s3)
    run_type = _Serverless if target == "emr-serverless" else _Step
    run = run_type(clients, required, job, run_id, token, parameters)
    run.check()
    try:
        run.start()
        on_state(f"{run.name}: started")
        state, detail = _wait(run, config.emr.minutes * 60, on_state, poll_seconds)
    except KeyboardInterrupt:
        try:
            run.cancel()
            on_state(f"{run.name}: cancelled")
        except EncoreError as error:
            on_state(f"{run.name}: could not be cancelled, and may still be running: {error}")
        raise
    if state not in ("SUCCESS", "COMPLETED"):
        raise _failure(job, run, state, detail)


def _wait(run: _Run, limit: float, on_state: Callable[[str], None], poll_seconds: float) -> tuple[str, str]:
    """Poll until the run has ended; its final state and details. JobFailed if its state can no longer be read.

    A step that has run for more than `limit` seconds is cancelled.
    """
    last, failed_polls, since = "", 0, None
    while True:
        try:
            state, detail = run.state()
            failed_polls = 0
        except EncoreError as error:
            failed_polls += 1
            if not isinstance(error, TransientError) or failed_polls > MAX_FAILED_POLLS:
                raise JobFailed(
                    f"{run.name} was started, but its state cannot be read: {error}",
                    # not a code that makes schedulers retry: the run may still be going
                    code=EnvironmentMissing.exit_code,
                    remedy=f"it may still be running: check with `{run.status_command}`",
                ) from error
            on_state(f"{run.name}: its state cannot be read at the moment: {error}")
            time.sleep(poll_seconds)
            continue
        if state != last:
            on_state(
                f"{run.name}: {state.lower()}" + (f": {detail}" if detail and state not in TERMINAL_STATES else "")
            )
            last = state
        if state in TERMINAL_STATES:
            return state, detail
        since = time.monotonic() if state == "RUNNING" and since is None else since
        # EMR Serverless enforces the limit for job runs itself; steps have none
        if run.has_no_timeout and since is not None and time.monotonic() - since > limit:
            run.cancel()
            return "CANCELLED", f"it ran for more than {limit / 60:.0f} minutes"
        time.sleep(poll_seconds)


def check_locations(config: Config, required: dict[str, str], s3: Any) -> None:
    """InputError if a bucket is missing or in another region, or the application archive was not uploaded."""
    urls = (config.lake.path, config.raw.playlists, config.raw.features, config.raw.tracks, required["logs"])
    url_by_bucket: dict[str, str] = {}
    for url in urls:
        if url is not None:
            url_by_bucket.setdefault(split_s3(url)[0], url)
    for url in url_by_bucket.values():
        _check_bucket(url, s3)
    for name in (render.ARCHIVE, "manifest.json"):
        url = f"{required['code']}/{name}"
        bucket, key = split_s3(url)
        try:
            s3.head_object(Bucket=bucket, Key=key)
        except (BotoCoreError, ClientError) as error:
            if http_status(error) == 404:
                raise InputError(
                    f"{url}: there is no application archive", remedy="run `make package`, then deploy or upload it"
                ) from error
            raise aws_error(url, error) from error


def _check_bucket(url: str, s3: Any) -> None:
    bucket, _ = split_s3(url)
    try:
        response = s3.head_bucket(Bucket=bucket)
        region, failure = response.get("BucketRegion"), None
    except (BotoCoreError, ClientError) as error:
        region, failure = response_header(error, "x-amz-bucket-region"), error
    if region and region != s3.meta.region_name and s3.meta.region_name != "aws-global":
        raise _wrong_region(url, bucket, region, s3) from failure
    if failure is not None:
        raise aws_error(f"{url}: the bucket {bucket}", failure) from failure


def _wrong_region(url: str, bucket: str, region: str, s3: Any) -> InputError:
    return InputError(
        f"{url}: the bucket {bucket} is in {region}, but jobs would run in {s3.meta.region_name}",
        remedy=f"set AWS_REGION={region}, or use a bucket in the jobs' region: cross-region traffic is slow and costly",
    )


def _failure(job: str, run: _Run, state: str, detail: str) -> JobFailed:
    """The error for a run that failed: the job's own outcome, if it wrote one, else what EMR reports."""
    try:
        log = run.log()
    except EncoreError as error:
        log = f"(the log cannot be read: {error})"
    unread = ""
    try:
        outcome = run.outcome()
    except EncoreError as error:
        outcome, unread = None, f"; its outcome cannot be read: {error}"
    is_cancelled = state == "CANCELLED" or bool(_TIMED_OUT.search(detail))
    # a job that was terminated only knows that it was: why, EMR says
    if outcome is not None and not (is_cancelled and outcome.code == TERMINATED_CODE):
        return JobFailed(f"{job}: {outcome.reason}", code=outcome.code, remedy=outcome.remedy or None, log=log)
    if is_cancelled:
        return JobFailed(
            f"{job}: {run.name} was cancelled before it finished: {detail or state}{unread}",
            code=EnvironmentMissing.exit_code,
            remedy="if it timed out: --set emr.minutes=..., or use more executors; the next run resumes from here",
            log=log,
        )
    code = exit_code_in(detail)
    if code in PERMANENT_CODES:
        return JobFailed(
            f"{job}: {run.name} {state.lower()}: {detail}{unread}", code=code, remedy="see the log", log=log
        )
    return JobFailed(
        f"{job}: {run.name} {state.lower()}: {detail or 'EMR gave no reason'}{unread}",
        code=TransientError.exit_code,
        remedy="the driver left no outcome: a lost host, or out of memory; see the log, and try again",
        log=log,
    )


class _Run(ABC):
    """A job run or step: how to start, poll and cancel it, and where its outcome and log are."""

    has_no_timeout = False
    """Whether EMR itself enforces no time limit."""

    def __init__(
        self, clients: Clients, required: dict[str, str], job: str, run_id: str, token: str, parameters: dict[str, Any]
    ) -> None:
        self._emr, self._s3, self._required, self._parameters = clients.emr, clients.s3, required, parameters
        self._job, self._run_id, self._token = job, run_id, token
        self._id = ""
        self.name = f"{job} of {run_id}"

    @property
    @abstractmethod
    def status_command(self) -> str:
        """The command with which a person can check the run's state."""

    @abstractmethod
    def check(self) -> None:
        """EnvironmentMissing if the application or cluster cannot run it."""

    @abstractmethod
    def start(self) -> None:
        """Start the run. Where EMR supports it, a second start with the same token returns the first run."""

    @abstractmethod
    def state(self) -> tuple[str, str]:
        """The state, and EMR's details about it."""

    @abstractmethod
    def cancel(self) -> None:
        """Cancel the run, even if it is not known whether the request to start it succeeded."""

    @abstractmethod
    def log(self) -> str:
        """The end of its log."""

    def outcome(self) -> Outcome | None:
        """The outcome that the job wrote; None if it is missing or truncated."""
        return read_outcome(self._text(_outcome_url(self._required, self._job, self._run_id, self._token)))

    def _text(self, url: str) -> str:
        """An object as text, as much of it as can be decompressed; empty if it does not exist (yet)."""
        bucket, key = split_s3(url)
        try:
            body = self._s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        except (BotoCoreError, ClientError) as error:
            if http_status(error) == 404:
                return ""
            raise aws_error(url, error) from error
        if key.endswith(".gz"):
            # a log that is still being written may be truncated
            body = zlib.decompressobj(wbits=31).decompress(body)
        text: str = body.decode(errors="replace")
        return text


class _Serverless(_Run):
    @property
    def status_command(self) -> str:
        return (
            f"aws emr-serverless get-job-run --application-id {self._required['application']} --job-run-id {self._id}"
        )

    def check(self) -> None:
        """EnvironmentMissing if the application does not accept job runs."""
        id_ = self._required["application"]
        with translate_errors(f"EMR Serverless application {id_}"):
            application = self._emr.get_application(applicationId=id_)["application"]
        state = application["state"]
        auto_start = application.get("autoStartConfiguration", {}).get("enabled", True)
        if state == "TERMINATED" or (state in ("STOPPED", "STOPPING", "CREATED") and not auto_start):
            remedy = "deploy it again" if state == "TERMINATED" else "start it: `aws emr-serverless start-application`"
            raise EnvironmentMissing(
                f"EMR Serverless application {id_}: {state.lower()}"
                + ("" if state == "TERMINATED" else ", and automatic start is disabled"),
                remedy=remedy,
            )

    def start(self) -> None:
        with translate_errors(f"EMR Serverless application {self._required['application']}"):
            response = self._emr.start_job_run(clientToken=self._token, **self._parameters)
        self._id = response["jobRunId"]
        self.name = f"job run {self._id}"

    def state(self) -> tuple[str, str]:
        with translate_errors(self.name):
            found = self._emr.get_job_run(applicationId=self._required["application"], jobRunId=self._id)["jobRun"]
        return found["state"], " ".join(found.get("stateDetails", "").split())[:500]

    def cancel(self) -> None:
        if not self._id:
            # requested again with the same token, EMR returns the id of the run
            self.start()
        with translate_errors(self.name):
            self._emr.cancel_job_run(applicationId=self._required["application"], jobRunId=self._id)

    def log(self) -> str:
        """The end of the driver's log: the JVM's stderr, then Python's output, which Spark forwards to stdout."""
        root = f"{self._required['logs']}/logs/{self._job}/{self._run_id}"
        run = f"{root}/applications/{self._required['application']}/jobs/{self._id}/SPARK_DRIVER"
        return "".join(self._text(f"{run}/{name}.gz")[-LOG_TAIL // 2 :] for name in ("stderr", "stdout"))


class _Step(_Run):
    has_no_timeout = True

    @property
    def status_command(self) -> str:
        return f"aws emr describe-step --cluster-id {self._required['cluster']} --step-id {self._id}"

    def check(self) -> None:
        """EnvironmentMissing if the cluster does not accept steps."""
        cluster = self._required["cluster"]
        with translate_errors(f"EMR cluster {cluster}"):
            description = self._emr.describe_cluster(ClusterId=cluster)["Cluster"]
        state = description["Status"]["State"]
        self._logs = str(description.get("LogUri", "")).replace("s3n://", "s3://").rstrip("/")
        if state in ("TERMINATING", "TERMINATED", "TERMINATED_WITH_ERRORS"):
            raise EnvironmentMissing(
                f"EMR cluster {cluster}: {state.lower()}",
                remedy="it terminates itself when idle: deploy with CHOICES=ec2=false, then with ec2=true, or set "
                "emr.cluster to another",
            )

    def start(self) -> None:
        with translate_errors(f"EMR cluster {self._required['cluster']}"):
            self._id = self._emr.add_job_flow_steps(**self._parameters)["StepIds"][0]
        self.name = f"step {self._id}"

    def state(self) -> tuple[str, str]:
        with translate_errors(self.name):
            found = self._emr.describe_step(ClusterId=self._required["cluster"], StepId=self._id)["Step"]["Status"]
        why = found.get("FailureDetails", {}) or found.get("StateChangeReason", {})
        return found["State"], " ".join(str(why.get("Message") or why.get("Reason") or "").split())[:500]

    def cancel(self) -> None:
        cluster = self._required["cluster"]
        with translate_errors(self.name):
            steps = [self._id] if self._id else self._unacknowledged_steps(cluster)
            if steps:
                self._emr.cancel_steps(ClusterId=cluster, StepIds=steps, StepCancellationOption="SEND_INTERRUPT")

    def _unacknowledged_steps(self, cluster: str) -> list[str]:
        """Ids of steps that a start whose response was lost may have added: those with this run's outcome URL."""
        steps = self._emr.list_steps(ClusterId=cluster, StepStates=["PENDING", "RUNNING"])["Steps"]
        url = _outcome_url(self._required, self._job, self._run_id, self._token)
        return [step["Id"] for step in steps if url in step["Config"]["Args"]]

    def log(self) -> str:
        """The end of the step's log; the driver's own log is in that of its YARN container."""
        return (
            self._text(f"{self._logs}/{self._required['cluster']}/steps/{self._id}/stderr.gz")[-LOG_TAIL:]
            if self._logs
            else ""
        )
