"""Start one job on AWS, follow it, and say how it ended: `encore submit JOB --target emr-serverless|emr-ec2`.

What is wrong before a start is said before: credentials, bucket, archive, an application that cannot start. A run that
is interrupted here is cancelled there.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from encore.aws import render
from encore.aws.account import aws_error, client, header, region_of, said, status
from encore.config import Config
from encore.errors import ConfigError, EncoreError, EnvironmentMissing, InputError, PassingFailure
from encore.files import is_s3, split_s3

TAIL = 4000
"""Characters of a driver's log that are shown when it failed."""

ENDED = ("SUCCESS", "FAILED", "CANCELLED", "COMPLETED", "INTERRUPTED")
"""States of runs and steps after which nothing follows."""


class JobFailed(EncoreError):
    """A job ended badly on AWS. Its exit code is the job's own, where it told it."""

    def __init__(self, sentence: str, *, code: int = 1, remedy: str | None = None, log: str = "") -> None:
        super().__init__(sentence, remedy=remedy)
        self.exit_code = code
        self.log = log


@dataclass(frozen=True)
class Clients:
    """What is spoken to."""

    s3: Any
    emr: Any


def clients(target: str, config: Config) -> Clients:
    """The clients of a target, in the region of the configuration or of the environment."""
    region = region_of(config.s3.region)
    return Clients(client("s3", region, config.s3.endpoint), client(_SERVICES[target], region))


_SERVICES = {"emr-serverless": "emr-serverless", "emr-ec2": "emr"}


def wanted(config: Config, target: str) -> dict[str, str]:
    """The places that a target takes, by name. ConfigError that names those that are not set."""
    names = ("application", "role", "code", "logs") if target == "emr-serverless" else ("cluster", "code", "logs")
    found = {name: getattr(config.emr, name) for name in names}
    missing = [f"emr.{name}" for name, value in found.items() if not value]
    if missing:
        raise ConfigError(
            f"{target}: {', '.join(missing)} not set",
            remedy="give --stage of a deployment that made them, or --set each of them",
        )
    return {name: str(value).rstrip("/") for name, value in found.items()}


def request(job: str, config: Config, target: str, run_id: str, *, force: bool = False) -> dict[str, Any]:
    """What would be sent: of `startJobRun`, or one step of `AddJobFlowSteps`, as the API names it."""
    place = wanted(config, target)
    outcome = f"{place['logs']}/outcomes/{job}/{run_id}/1.json"
    asked = render.submission(job, config, run_id, outcome=outcome, force=force)
    if target == "emr-ec2":
        return {"JobFlowId": place["cluster"], "Steps": [render.ec2_step(asked, place["code"])]}
    return render.serverless(
        job,
        asked.arguments(),
        application=place["application"],
        role=place["role"],
        code=place["code"],
        log_uri=f"{place['logs']}/logs/{job}/{run_id}/",
        name=f"{job}-{run_id}",
        minutes=config.emr.minutes,
        spark=asked.spark,
    )


def submit(
    job: str,
    config: Config,
    target: str,
    run_id: str,
    *,
    force: bool = False,
    on_state: Callable[[str], None] = lambda text: None,
    speak: Clients | None = None,
    seconds: float = 15,
) -> None:
    """Start it, wait until it has ended, looking every `seconds`, and return where it ended well.

    Raises JobFailed with the end of the driver's log where it did not, an EncoreError where it could not be started.
    KeyboardInterrupt cancels the run, and is raised on.
    """
    spoken = speak or clients(target, config)
    place, asked = wanted(config, target), request(job, config, target, run_id, force=force)
    check_places(config, place, spoken.s3)
    follow = (
        _Serverless(spoken, place, job, run_id) if target == "emr-serverless" else _Step(spoken, place, job, run_id)
    )
    follow.check()
    follow.start(asked)
    on_state(f"{follow.name}: started")
    before = ""
    try:
        while True:
            state, detail = follow.state()
            if state != before:
                on_state(f"{follow.name}: {state.lower()}" + (f": {detail}" if detail and state not in ENDED else ""))
                before = state
            if state in ENDED:
                break
            time.sleep(seconds)
    except KeyboardInterrupt:
        follow.cancel()
        on_state(f"{follow.name}: cancelled")
        raise
    if state not in ("SUCCESS", "COMPLETED"):
        raise _failure(job, follow, state, detail, spoken.s3)


def check_places(config: Config, place: dict[str, str], s3: Any) -> None:
    """InputError, before anything is started, for a bucket that is missing or elsewhere, or code that is not there."""
    for url in (config.lake.path, config.raw.playlists, place["logs"]):
        if is_s3(url):
            _bucket(url, s3)
    for name in (render.ARCHIVE, "manifest.json"):
        url = f"{place['code']}/{name}"
        if not is_s3(url):
            raise ConfigError(f"emr.code: an s3:// folder expected, {place['code']} found")
        bucket, key = split_s3(url)
        try:
            s3.head_object(Bucket=bucket, Key=key)
        except (BotoCoreError, ClientError) as error:
            if status(error) == 404:
                raise InputError(
                    f"{url}: there is no application archive", remedy="call `make package`, and deploy or upload it"
                ) from error
            raise aws_error(url, error) from error


def _bucket(url: str, s3: Any) -> None:
    bucket, _ = split_s3(url)
    try:
        answer = s3.head_bucket(Bucket=bucket)
        found, refused = answer.get("BucketRegion"), None
    except (BotoCoreError, ClientError) as error:
        found, refused = header(error, "x-amz-bucket-region"), error
    if found and found != s3.meta.region_name and s3.meta.region_name != "aws-global":
        raise _elsewhere(url, bucket, found, s3) from refused
    if refused is not None:
        raise aws_error(f"{url}: the bucket {bucket}", refused) from refused


def _elsewhere(url: str, bucket: str, found: str, s3: Any) -> InputError:
    return InputError(
        f"{url}: the bucket {bucket} is in {found}, jobs would run in {s3.meta.region_name}",
        remedy=f"set AWS_REGION={found}, or take a bucket of that region: traffic between regions costs time and money",
    )


def _failure(job: str, follow: _Serverless | _Step, state: str, detail: str, s3: Any) -> JobFailed:
    """What to say of a run that ended badly: the job's own words, where it left some, else EMR's."""
    log = follow.log()
    told = follow.outcome()
    if told is not None:
        return JobFailed(f"{job}: {told['reason']}", code=int(told["code"]), remedy=told.get("remedy") or None, log=log)
    if state == "CANCELLED" or "timed out" in detail.lower() or "timeout" in detail.lower():
        return JobFailed(
            f"{job}: {follow.name} was ended before it was done: {detail or state}",
            code=EnvironmentMissing.exit_code,
            remedy="where it took too long: --set emr.minutes=..., or more executors; the next run goes on from here",
            log=log,
        )
    return JobFailed(
        f"{job}: {follow.name} {state.lower()}: {detail or 'EMR gives no reason'}",
        code=PassingFailure.exit_code,
        remedy="the driver left no word: a lost host or memory; look at the log, and try again",
        log=log,
    )


class _Run:
    """A run that is followed: where its words are."""

    def __init__(self, speak: Clients, place: dict[str, str], job: str, run_id: str) -> None:
        self._emr, self._s3, self._place = speak.emr, speak.s3, place
        self._job, self._run_id = job, run_id
        self.name = ""

    def outcome(self) -> dict[str, Any] | None:
        """What the job wrote down of its end."""
        text = self._text(f"{self._place['logs']}/outcomes/{self._job}/{self._run_id}/1.json")
        found: dict[str, Any] | None = json.loads(text) if text else None
        return found

    def _text(self, url: str) -> str:
        """An object as text; nothing where it is not there, or not yet."""
        bucket, key = split_s3(url)
        try:
            body = self._s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        except (BotoCoreError, ClientError):
            return ""
        return (gzip.decompress(body) if key.endswith(".gz") else body).decode(errors="replace")


class _Serverless(_Run):
    def check(self) -> None:
        """EnvironmentMissing for an application that takes no runs."""
        application = self._place["application"]
        with said(f"EMR Serverless application {application}"):
            found = self._emr.get_application(applicationId=application)["application"]
        state, starts = found["state"], found.get("autoStartConfiguration", {}).get("enabled", True)
        if state == "TERMINATED" or (state in ("STOPPED", "STOPPING", "CREATED") and not starts):
            remedy = "deploy it again" if state == "TERMINATED" else "start it: `aws emr-serverless start-application`"
            raise EnvironmentMissing(
                f"EMR Serverless application {application}: {state.lower()}"
                + ("" if state == "TERMINATED" else ", and it does not start by itself"),
                remedy=remedy,
            )

    def start(self, asked: dict[str, Any]) -> None:
        with said(f"EMR Serverless application {self._place['application']}"):
            # a token of the run: a start whose answer was lost is not done twice
            answer = self._emr.start_job_run(clientToken=f"{self._job}-{self._run_id}"[:64], **asked)
        self._id = answer["jobRunId"]
        self.name = f"job run {self._id}"

    def state(self) -> tuple[str, str]:
        with said(self.name):
            found = self._emr.get_job_run(applicationId=self._place["application"], jobRunId=self._id)["jobRun"]
        return found["state"], " ".join(found.get("stateDetails", "").split())[:500]

    def cancel(self) -> None:
        with said(self.name):
            self._emr.cancel_job_run(applicationId=self._place["application"], jobRunId=self._id)

    def log(self) -> str:
        """The end of what the driver wrote: the JVM's part, then Python's, which Spark hands on by standard output."""
        root = f"{self._place['logs']}/logs/{self._job}/{self._run_id}"
        run = f"{root}/applications/{self._place['application']}/jobs/{self._id}/SPARK_DRIVER"
        return "".join(self._text(f"{run}/{name}.gz")[-TAIL // 2 :] for name in ("stderr", "stdout"))


class _Step(_Run):
    def check(self) -> None:
        """EnvironmentMissing for a cluster that takes no steps."""
        cluster = self._place["cluster"]
        with said(f"EMR cluster {cluster}"):
            found = self._emr.describe_cluster(ClusterId=cluster)["Cluster"]
        state = found["Status"]["State"]
        self._logs = str(found.get("LogUri", "")).replace("s3n://", "s3://").rstrip("/")
        if state in ("TERMINATING", "TERMINATED", "TERMINATED_WITH_ERRORS"):
            raise EnvironmentMissing(
                f"EMR cluster {cluster}: {state.lower()}",
                remedy="it ends itself when idle: deploy it again with -c ec2=true, or name another by emr.cluster",
            )

    def start(self, asked: dict[str, Any]) -> None:
        with said(f"EMR cluster {self._place['cluster']}"):
            self._id = self._emr.add_job_flow_steps(**asked)["StepIds"][0]
        self.name = f"step {self._id}"

    def state(self) -> tuple[str, str]:
        with said(self.name):
            found = self._emr.describe_step(ClusterId=self._place["cluster"], StepId=self._id)["Step"]["Status"]
        why = found.get("FailureDetails", {}) or found.get("StateChangeReason", {})
        return found["State"], " ".join(str(why.get("Message") or why.get("Reason") or "").split())[:500]

    def cancel(self) -> None:
        with said(self.name):
            self._emr.cancel_steps(
                ClusterId=self._place["cluster"], StepIds=[self._id], StepCancellationOption="SEND_INTERRUPT"
            )

    def log(self) -> str:
        """The end of what the step wrote; the driver's own log is in that of its container."""
        return (
            self._text(f"{self._logs}/{self._place['cluster']}/steps/{self._id}/stderr.gz")[-TAIL:]
            if self._logs
            else ""
        )
