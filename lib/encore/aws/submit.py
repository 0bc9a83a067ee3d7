"""Start one job on AWS, follow it, and say how it ended: `encore submit JOB --target emr-serverless|emr-ec2`.

What is wrong before a start is said before: credentials, bucket, archive, an application that cannot start. A run that
is interrupted here is cancelled there.
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
from encore.aws.account import aws_error, client, header, region_of, said, status
from encore.aws.states import NEVER_AGAIN, exit_code_in
from encore.config import Config
from encore.errors import ConfigError, EncoreError, EnvironmentMissing, InputError, TransientError
from encore.lake.filesystem import is_s3, s3_client, split_s3
from encore.runtime.outcome import Outcome, read_outcome

TAIL = 4000
"""Characters of a driver's log that are shown when it failed."""

ENDED = ("SUCCESS", "FAILED", "CANCELLED", "COMPLETED", "INTERRUPTED")
"""States of runs and steps after which nothing follows."""

MISSED = 20
"""Looks in a row that may fail by what passes: five minutes and more."""

_TOO_LONG = re.compile(r"\b(job|step|execution|run)\b[^a-z]*(timed out|time-?out)", re.IGNORECASE)
"""What EMR says of a run that took too long. A lost host's heartbeat has a time-out too."""


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
    with said("S3"):
        s3 = s3_client(config.s3)
    return Clients(s3, client(_SERVICES[target], region_of(config.s3.region)))


_SERVICES = {"emr-serverless": "emr-serverless", "emr-ec2": "emr"}


def wanted(config: Config, target: str) -> dict[str, str]:
    """The places that a target takes, by name. ConfigError that names those that are not set, or are not in S3."""
    names = ("application", "role", "code", "logs") if target == "emr-serverless" else ("cluster", "code", "logs")
    found = {name: getattr(config.emr, name) for name in names}
    missing = [f"emr.{name}" for name, value in found.items() if not value]
    if missing:
        ended = ", whose cluster was deployed (CHOICES=ec2=true)" if missing == ["emr.cluster"] else ""
        raise ConfigError(
            f"{target}: {', '.join(missing)} not set",
            remedy=f"give --stage of a deployment that made them{ended}, or --set each of them",
        )
    places = {
        "lake.path": config.lake.path,
        "raw.playlists": config.raw.playlists,
        "raw.features": config.raw.features,
        "emr.code": found["code"],
        "emr.logs": found["logs"],
    }
    for name, value in places.items():
        # a path of this machine would be one of a driver there, and go with it
        if value is not None and not is_s3(value):
            raise ConfigError(f"{name}: {target} takes an s3:// place, {value} found")
    return {name: str(value).rstrip("/") for name, value in found.items()}


def request(
    job: str, config: Config, target: str, run_id: str, *, token: str = "1", force: bool = False
) -> dict[str, Any]:
    """What would be sent: of `startJobRun`, or one step of `AddJobFlowSteps`, as the API names it.

    `token`: of this one start; two starts of a job within one pipeline run leave two outcomes.
    """
    place = wanted(config, target)
    asked = render.submission(job, config, run_id, outcome=_outcome(place, job, run_id, token), force=force)
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


def _outcome(place: dict[str, str], job: str, run_id: str, token: str) -> str:
    return f"{place['logs']}/outcomes/{job}/{run_id}/{token}.json"


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
    token: str | None = None,
) -> None:
    """Start it, wait until it has ended, looking every `seconds`, and return where it ended well.

    Raises JobFailed with the end of the driver's log where it did not, or where it can be seen no more; an EncoreError
    where it could not be started. KeyboardInterrupt cancels the run, and is raised on. `token` names this one start,
    by itself where none is given: a call that is sent again, its answer being lost, starts nothing twice.
    """
    spoken, own = speak or clients(target, config), token or uuid.uuid4().hex
    place, asked = wanted(config, target), request(job, config, target, run_id, token=own, force=force)
    check_places(config, place, spoken.s3)
    kind = _Serverless if target == "emr-serverless" else _Step
    follow = kind(spoken, place, job, run_id, own, asked)
    follow.check()
    try:
        follow.start()
        on_state(f"{follow.name}: started")
        state, detail = _wait(follow, config.emr.minutes * 60, on_state, seconds)
    except KeyboardInterrupt:
        try:
            follow.cancel()
            on_state(f"{follow.name}: cancelled")
        except EncoreError as error:
            on_state(f"{follow.name}: could not be cancelled, and may still run: {error}")
        raise
    if state not in ("SUCCESS", "COMPLETED"):
        raise _failure(job, follow, state, detail)


def _wait(follow: _Run, limit: float, on_state: Callable[[str], None], seconds: float) -> tuple[str, str]:
    """Look until it has ended: its state and what is said of it. JobFailed where it can be seen no more, or where a
    step has run for `limit` seconds, and was cancelled for that."""
    before, missed, since = "", 0, None
    while True:
        try:
            state, detail = follow.state()
            missed = 0
        except EncoreError as error:
            missed += 1
            if not isinstance(error, TransientError) or missed > MISSED:
                raise JobFailed(
                    f"{follow.name} was started, and how it goes cannot be seen: {error}",
                    # not a code to try again by: it may still run
                    code=EnvironmentMissing.exit_code,
                    remedy=f"it may still run: `{follow.look}`",
                ) from error
            on_state(f"{follow.name}: not to be seen for now: {error}")
            time.sleep(seconds)
            continue
        if state != before:
            on_state(f"{follow.name}: {state.lower()}" + (f": {detail}" if detail and state not in ENDED else ""))
            before = state
        if state in ENDED:
            return state, detail
        since = time.monotonic() if state == "RUNNING" and since is None else since
        # a job run has this limit in EMR Serverless itself; a step has none
        if follow.unlimited and since is not None and time.monotonic() - since > limit:
            follow.cancel()
            return "CANCELLED", f"it took more than {limit / 60:.0f} minutes"
        time.sleep(seconds)


def check_places(config: Config, place: dict[str, str], s3: Any) -> None:
    """InputError, before anything is started, for a bucket that is missing or elsewhere, or code that is not there."""
    urls = (config.lake.path, config.raw.playlists, config.raw.features, place["logs"])
    seen: dict[str, str] = {}
    for url in urls:
        if url is not None:
            seen.setdefault(split_s3(url)[0], url)
    for url in seen.values():
        _bucket(url, s3)
    for name in (render.ARCHIVE, "manifest.json"):
        url = f"{place['code']}/{name}"
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


def _failure(job: str, follow: _Run, state: str, detail: str) -> JobFailed:
    """What to say of a run that ended badly: the job's own words, where it left some, else EMR's."""
    try:
        log = follow.log()
    except EncoreError as error:
        log = f"(it cannot be read: {error})"
    unread = ""
    try:
        told = follow.outcome()
    except EncoreError as error:
        told, unread = None, f"; its own word cannot be read: {error}"
    if told is not None:
        return JobFailed(f"{job}: {told.reason}", code=told.code, remedy=told.remedy or None, log=log)
    if state == "CANCELLED" or _TOO_LONG.search(detail):
        return JobFailed(
            f"{job}: {follow.name} was ended before it was done: {detail or state}{unread}",
            code=EnvironmentMissing.exit_code,
            remedy="where it took too long: --set emr.minutes=..., or more executors; the next run goes on from here",
            log=log,
        )
    code = exit_code_in(detail)
    if code in NEVER_AGAIN:
        return JobFailed(
            f"{job}: {follow.name} {state.lower()}: {detail}{unread}", code=code, remedy="look at the log", log=log
        )
    return JobFailed(
        f"{job}: {follow.name} {state.lower()}: {detail or 'EMR gives no reason'}{unread}",
        code=TransientError.exit_code,
        remedy="the driver left no word: a lost host or memory; look at the log, and try again",
        log=log,
    )


class _Run(ABC):
    """A run that is followed: where its words are, and how EMR is asked about it."""

    unlimited = False
    """Whether EMR lets it run however long it takes."""

    def __init__(
        self, speak: Clients, place: dict[str, str], job: str, run_id: str, token: str, asked: dict[str, Any]
    ) -> None:
        self._emr, self._s3, self._place, self._asked = speak.emr, speak.s3, place, asked
        self._job, self._run_id, self._token = job, run_id, token
        self._id = ""
        self.name = f"{job} of {run_id}"

    @property
    @abstractmethod
    def look(self) -> str:
        """The command by which a person looks after it."""

    @abstractmethod
    def check(self) -> None:
        """EnvironmentMissing where it cannot be started there."""

    @abstractmethod
    def start(self) -> None:
        """Start it, once: a start of the same token that has been sent before is that one."""

    @abstractmethod
    def state(self) -> tuple[str, str]:
        """The state, and what EMR says of it."""

    @abstractmethod
    def cancel(self) -> None:
        """End it, also where it is not known yet whether the start came through."""

    @abstractmethod
    def log(self) -> str:
        """The end of what it wrote."""

    def outcome(self) -> Outcome | None:
        """What the job wrote down of its end; None where it is not there, or was cut."""
        return read_outcome(self._text(_outcome(self._place, self._job, self._run_id, self._token)))

    def _text(self, url: str) -> str:
        """An object as text, as far as it goes; nothing where it is not there, or not yet."""
        bucket, key = split_s3(url)
        try:
            body = self._s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        except (BotoCoreError, ClientError) as error:
            if status(error) == 404:
                return ""
            raise aws_error(url, error) from error
        if key.endswith(".gz"):
            # a log that is still being written ends in the middle
            body = zlib.decompressobj(wbits=31).decompress(body)
        text: str = body.decode(errors="replace")
        return text


class _Serverless(_Run):
    @property
    def look(self) -> str:
        return f"aws emr-serverless get-job-run --application-id {self._place['application']} --job-run-id {self._id}"

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

    def start(self) -> None:
        with said(f"EMR Serverless application {self._place['application']}"):
            answer = self._emr.start_job_run(clientToken=self._token, **self._asked)
        self._id = answer["jobRunId"]
        self.name = f"job run {self._id}"

    def state(self) -> tuple[str, str]:
        with said(self.name):
            found = self._emr.get_job_run(applicationId=self._place["application"], jobRunId=self._id)["jobRun"]
        return found["state"], " ".join(found.get("stateDetails", "").split())[:500]

    def cancel(self) -> None:
        if not self._id:
            # asked for again by the same token, it says its id
            self.start()
        with said(self.name):
            self._emr.cancel_job_run(applicationId=self._place["application"], jobRunId=self._id)

    def log(self) -> str:
        """The end of what the driver wrote: the JVM's part, then Python's, which Spark hands on by standard output."""
        root = f"{self._place['logs']}/logs/{self._job}/{self._run_id}"
        run = f"{root}/applications/{self._place['application']}/jobs/{self._id}/SPARK_DRIVER"
        return "".join(self._text(f"{run}/{name}.gz")[-TAIL // 2 :] for name in ("stderr", "stdout"))


class _Step(_Run):
    unlimited = True

    @property
    def look(self) -> str:
        return f"aws emr describe-step --cluster-id {self._place['cluster']} --step-id {self._id}"

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
                remedy="it ends itself when idle: deploy with CHOICES=ec2=false, then ec2=true, or name another by "
                "emr.cluster",
            )

    def start(self) -> None:
        with said(f"EMR cluster {self._place['cluster']}"):
            self._id = self._emr.add_job_flow_steps(**self._asked)["StepIds"][0]
        self.name = f"step {self._id}"

    def state(self) -> tuple[str, str]:
        with said(self.name):
            found = self._emr.describe_step(ClusterId=self._place["cluster"], StepId=self._id)["Step"]["Status"]
        why = found.get("FailureDetails", {}) or found.get("StateChangeReason", {})
        return found["State"], " ".join(str(why.get("Message") or why.get("Reason") or "").split())[:500]

    def cancel(self) -> None:
        cluster = self._place["cluster"]
        with said(self.name):
            found = [self._id] if self._id else self._unknown(cluster)
            if found:
                self._emr.cancel_steps(ClusterId=cluster, StepIds=found, StepCancellationOption="SEND_INTERRUPT")

    def _unknown(self, cluster: str) -> list[str]:
        """Ids of steps that a start whose answer did not come may have made: those with this outcome."""
        steps = self._emr.list_steps(ClusterId=cluster, StepStates=["PENDING", "RUNNING"])["Steps"]
        own = _outcome(self._place, self._job, self._run_id, self._token)
        return [step["Id"] for step in steps if own in step["Config"]["Args"]]

    def log(self) -> str:
        """The end of what the step wrote; the driver's own log is in that of its container."""
        return (
            self._text(f"{self._logs}/{self._place['cluster']}/steps/{self._id}/stderr.gz")[-TAIL:]
            if self._logs
            else ""
        )
