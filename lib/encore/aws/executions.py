"""Executions of a stage's state machine: start one, follow it to its end, and report why it failed; backfill dates.

The name of an execution is the id of its pipeline run, and Step Functions keeps a name for 90 days. Backfill builds on
that: the executions for a date are named after it, so that a second call finds out what the first one has done.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from encore.aws.account import translate_errors
from encore.aws.deployment import ClientFactory, outputs_of
from encore.errors import ConfigError, EncoreError, InputError, TransientError
from encore.lake.filesystem import split_s3
from encore.runtime.outcome import Outcome
from encore.runtime.registry import EXTRA_JOBS, JOBS

POLL_SECONDS = 15.0
MAX_FAILED_POLLS = 20
"""Polls in a row that may fail with a transient error: five minutes."""

OVERLAP = "Encore.Overlap"
"""Error of an execution that found the lake's lock taken."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,80}")

Say = Callable[[str], None]
Sleep = Callable[[float], None]


class ExecutionFailed(EncoreError):
    """An execution did not succeed. `exit_code` is that of the job that failed, if there is one and it left it."""

    def __init__(self, sentence: str, *, code: int = 1, error: str = "", remedy: str | None = None) -> None:
        super().__init__(sentence, remedy=remedy)
        self.exit_code = code
        self.error = error


@dataclass(frozen=True)
class Machine:
    """The state machine of a stage, and the client that talks to Step Functions."""

    stage: str
    arn: str
    states: Any

    def execution_arn(self, name: str) -> str:
        """The ARN of the execution with this name."""
        return f"{self.arn.replace(':stateMachine:', ':execution:')}:{name}"

    def status(self, name: str) -> str | None:
        """RUNNING, SUCCEEDED, FAILED, TIMED_OUT or ABORTED; None if there is no such execution."""
        try:
            return str(self._describe(name)["status"])
        except InputError:
            return None

    def running(self) -> list[str]:
        """Names of the executions that are running, the latest first."""
        with translate_errors(f"executions of {self.stage}"):
            found = self.states.list_executions(stateMachineArn=self.arn, statusFilter="RUNNING", maxResults=100)
        return [str(one["name"]) for one in found["executions"]]

    def start(self, name: str, machine_input: dict[str, Any]) -> None:
        """Start an execution. ConfigError for a name that was used before or is not valid."""
        if not _NAME.fullmatch(name):
            raise ConfigError(f"--name {name}: at most 80 letters, digits, dots, dashes and underscores expected")
        if self.status(name) is not None:
            raise ConfigError(
                f"an execution named {name} exists already in {self.stage}", remedy="choose another --name"
            )
        with translate_errors(f"execution {name}"):
            self.states.start_execution(stateMachineArn=self.arn, name=name, input=json.dumps(machine_input))

    def stop(self, name: str, cause: str) -> None:
        """Stop an execution; Step Functions then cancels the job that it waits for."""
        with translate_errors(f"execution {name}"):
            self.states.stop_execution(executionArn=self.execution_arn(name), error="Encore.Stopped", cause=cause)

    def follow(self, name: str, say: Say, *, sleep: Sleep = time.sleep) -> float:
        """Wait for the end of an execution; `say` is told which jobs start. Returns its duration in seconds.

        ExecutionFailed if it does not succeed. Interrupting the wait stops the execution.
        """
        shown: set[str] = set()
        failed = 0
        try:
            while True:
                try:
                    found = self._describe(name)
                    for job in self._jobs(name):
                        if job not in shown:
                            shown.add(job)
                            say(f"{job}: started")
                except TransientError:
                    failed += 1
                    if failed > MAX_FAILED_POLLS:
                        raise
                else:
                    failed = 0
                    if found["status"] != "RUNNING":
                        break
                sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            self.stop(name, "the command that followed it was interrupted")
            raise
        if found["status"] != "SUCCEEDED":
            raise self._failure(name, found)
        return float((found["stopDate"] - found["startDate"]).total_seconds())

    def _describe(self, name: str) -> dict[str, Any]:
        with translate_errors(f"execution {name}"):
            found: dict[str, Any] = self.states.describe_execution(executionArn=self.execution_arn(name))
            return found

    def _entered(self, name: str, *, latest_first: bool = False) -> Iterator[dict[str, Any]]:
        """Details of each state that an execution entered."""
        request = {"executionArn": self.execution_arn(name), "maxResults": 1000, "reverseOrder": latest_first}
        while True:
            with translate_errors(f"execution {name}"):
                found = self.states.get_execution_history(**request)
            yield from (
                event["stateEnteredEventDetails"] for event in found["events"] if "stateEnteredEventDetails" in event
            )
            if not found.get("nextToken"):
                return
            request["nextToken"] = found["nextToken"]

    def _jobs(self, name: str) -> list[str]:
        return [state["name"] for state in self._entered(name) if state["name"] in (*JOBS, *EXTRA_JOBS)]

    def _failure(self, name: str, found: dict[str, Any]) -> ExecutionFailed:
        """Why an execution did not succeed: the job that failed with its outcome, else the machine's own error."""
        status, error = str(found["status"]), str(found.get("error", ""))
        what = f"execution {name} in {self.stage}"
        if status == "ABORTED":
            return ExecutionFailed(
                f"{what} was stopped: {found.get('cause', 'no reason given')}", remedy="start another one", error=error
            )
        if status == "TIMED_OUT":
            return ExecutionFailed(f"{what} took longer than the state machine allows", error=error)
        for state in self._entered(name, latest_first=True):
            job, _, step = str(state["name"]).partition(": ")
            if step == "notify":
                outcome = _outcome(state.get("input", ""))
                if outcome is not None:
                    return ExecutionFailed(
                        f"{what}: {job} failed: {outcome.reason}",
                        code=max(1, outcome.code),
                        error=error,
                        remedy=outcome.remedy or None,
                    )
        cause = str(found.get("cause", "")) or "no cause given"
        code = TransientError.exit_code if error == OVERLAP else 1
        remedy = "wait until the other run has ended" if error == OVERLAP else None
        return ExecutionFailed(f"{what} failed: {error or status}: {cause}", code=code, error=error, remedy=remedy)


def _outcome(text: str) -> Outcome | None:
    """The outcome in the input of a state that notifies of a failed job; None if the history holds no such input."""
    try:
        found = json.loads(text)["outcome"]
        return Outcome(int(found["code"]), str(found["reason"]), str(found["remedy"]))
    except (ValueError, KeyError, TypeError):
        return None


def machine_of(stage: str, clients: ClientFactory) -> Machine:
    """The state machine of a deployed stage. InputError if it is not deployed."""
    outputs = outputs_of(stage, "orchestration", clients)
    if "StateMachineArn" not in outputs:
        raise InputError(
            f"stack encore-{stage}-orchestration: no output StateMachineArn",
            remedy=f"its deployment failed: run `make deploy STAGE={stage}`",
        )
    return Machine(stage, outputs["StateMachineArn"], clients("stepfunctions"))


def run(machine: Machine, name: str, machine_input: dict[str, Any], say: Say, *, sleep: Sleep = time.sleep) -> float:
    """Start an execution and follow it. Returns its duration in seconds; ExecutionFailed if it does not succeed."""
    machine.start(name, machine_input)
    say(f"{name}: started in {machine.stage}")
    return machine.follow(name, say, sleep=sleep)


# a range of dates -----------------------------------------------------------------------------------------------------


def dates(first: str, last: str) -> list[date]:
    """All days from `first` to `last`, both YYYY-MM-DD and included. ConfigError if that is not a range."""
    found = []
    for name, text in (("--from", first), ("--to", last)):
        try:
            found.append(date.fromisoformat(text))
        except ValueError as error:
            raise ConfigError(f"{name} {text}: a date such as 2026-01-31 expected") from error
    start, end = found
    if end < start:
        raise ConfigError(f"--from {first} --to {last}: the range ends before it begins")
    return [start + timedelta(days=day) for day in range((end - start).days + 1)]


def check_raw_data(days: Sequence[date], raw: str, s3: Any) -> None:
    """InputError if a day has no slices below `raw`, an s3:// location: checked before anything is run."""
    bucket, prefix = split_s3(raw)
    missing = []
    for day in days:
        with translate_errors(f"s3://{bucket}"):
            key = f"{prefix.rstrip('/')}/date={day}/".lstrip("/")
            if not s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("KeyCount"):
                missing.append(str(day))
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise InputError(
            f"no raw data for {len(missing)} of {len(days)} days: {shown}",
            remedy=f"upload it to {raw.rstrip('/')}/date=YYYY-MM-DD/, or choose another range",
        )


def backfill(
    machine: Machine,
    days: Sequence[date],
    settings: Sequence[str],
    say: Say,
    *,
    redo: bool = False,
    sleep: Sleep = time.sleep,
) -> int:
    """Run one execution for each day, in order, and return for how many days one was needed.

    Days with an execution that succeeded are skipped (unless `redo`), and one that is running is followed, so that the
    same call continues after a failure or an interruption. ExecutionFailed at the first execution that fails.
    """
    needed = 0
    for day in days:
        names = _attempts(machine, day)
        last, status = names[-1] if names else ("", None)
        if status == "SUCCEEDED" and not redo:
            say(f"{day}: done before, by {last}")
            continue
        needed += 1
        if status == "RUNNING":
            say(f"{day}: {last} is running")
            machine.follow(last, say, sleep=sleep)
        else:
            last = _run_day(machine, day, len(names) + 1, settings, say, sleep)
        say(f"{day}: done, by {last}")
    return needed


def _run_day(machine: Machine, day: date, attempt: int, settings: Sequence[str], say: Say, sleep: Sleep) -> str:
    """Run an execution for a day, once no other is running; the name of the one that succeeded."""
    while True:
        waits = False
        while others := machine.running():
            if not waits:
                say(f"{day}: waiting for {', '.join(others)}")
            waits = True
            sleep(POLL_SECONDS)
        name = _attempt(day, attempt)
        try:
            run(machine, name, {"date": str(day), "set": list(settings)}, say, sleep=sleep)
        except ExecutionFailed as error:
            if error.error != OVERLAP:
                raise
            # a schedule has started another one in the meantime
            attempt += 1
        else:
            return name


def _attempt(day: date, number: int) -> str:
    return f"backfill-{day}" if number == 1 else f"backfill-{day}-{number}"


def _attempts(machine: Machine, day: date) -> list[tuple[str, str]]:
    """Name and status of each execution that a backfill started for a day."""
    found: list[tuple[str, str]] = []
    while (status := machine.status(name := _attempt(day, len(found) + 1))) is not None:
        found.append((name, status))
    return found
