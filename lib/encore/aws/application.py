"""Stops the EMR Serverless application of a stage, which cannot be deleted while it is started.

Nor can it be changed, except for its maximum capacity.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from encore.aws.account import translate_errors
from encore.aws.deployment import ClientFactory, outputs_of
from encore.aws.executions import Machine, machine_of
from encore.errors import InputError, TransientError

ACTIVE = ("SUBMITTED", "PENDING", "SCHEDULED", "RUNNING", "QUEUED", "CANCELLING")
"""States of a job run that has not ended."""

STILL = ("CREATED", "STOPPED", "TERMINATED")
"""States of an application that can be changed and deleted."""

POLL_SECONDS = 5.0
LONGEST_SECONDS = 900.0
"""How long job runs may take to be cancelled, and the application to stop."""

Say = Callable[[str], None]
Sleep = Callable[[float], None]


def stop(
    stage: str, clients: ClientFactory, say: Say, *, cancel: bool = False, sleep: Sleep = time.sleep
) -> str | None:
    """Stop the application of a stage and wait until it is stopped; returns its id, None if there is no application.

    `cancel`: stop executions of the state machine and cancel job runs; without it, TransientError if there are any.
    Also TransientError if it takes longer than LONGEST_SECONDS.
    """
    id_ = _application_of(stage, clients)
    if id_ is None:
        return None
    # executions first: one that is running would submit its next job, and so start the application again
    _end_executions(stage, clients, say, cancel)
    emr = clients("emr-serverless")
    _end_runs(stage, id_, emr, say, cancel, sleep)
    waited, asked = 0.0, False
    while (state := _state(id_, emr)) not in STILL:
        if waited >= LONGEST_SECONDS:
            raise TransientError(
                f"EMR Serverless application {id_}: still {state.lower()} after {waited / 60:.0f} minutes",
                remedy=f"call `encore deploy stop --stage {stage}` again",
            )
        if state == "STARTED" and not asked:
            with translate_errors(f"EMR Serverless application {id_}"):
                emr.stop_application(applicationId=id_)
            asked = True
            say(f"application {id_}: stopping")
        else:
            sleep(POLL_SECONDS)
            waited += POLL_SECONDS
    return id_


def _application_of(stage: str, clients: ClientFactory) -> str | None:
    """The id of a stage's application; None if its stack does not exist, or was rolled back when it was created."""
    try:
        return outputs_of(stage, "compute", clients).get("ApplicationId")
    except InputError:
        return None


def _end_executions(stage: str, clients: ClientFactory, say: Say, cancel: bool) -> None:
    machine: Machine | None
    try:
        machine = machine_of(stage, clients)
    except InputError:
        # deployed without it, or removed already
        machine = None
    running = machine.running() if machine else []
    if running and not cancel:
        raise _busy(stage, "execution", running)
    for name in running:
        assert machine is not None
        machine.stop(name, "`encore deploy stop --cancel`")
        say(f"execution {name}: stopped")


def _end_runs(stage: str, id_: str, emr: Any, say: Say, cancel: bool, sleep: Sleep) -> None:
    """Cancel the job runs that have not ended, and wait until they have."""
    waited = 0.0
    while active := _active_runs(id_, emr):
        if not cancel:
            raise _busy(stage, "job run", [f"{name} ({state.lower()})" for name, state in active.items()])
        for name, state in active.items():
            if state != "CANCELLING":
                with translate_errors(f"job run {name}"):
                    emr.cancel_job_run(applicationId=id_, jobRunId=name)
                say(f"job run {name}: cancelled")
        if waited >= LONGEST_SECONDS:
            raise TransientError(
                f"{len(active)} job run(s) have not ended {waited / 60:.0f} minutes after they were cancelled: "
                f"{', '.join(active)}",
                remedy=f"call `encore deploy stop --stage {stage} --cancel` again",
            )
        sleep(POLL_SECONDS)
        waited += POLL_SECONDS


def _active_runs(id_: str, emr: Any) -> dict[str, str]:
    """The state of each job run that has not ended, by its id."""
    with translate_errors(f"job runs of application {id_}"):
        pages = emr.get_paginator("list_job_runs").paginate(applicationId=id_, states=list(ACTIVE))
        return {str(run["id"]): str(run["state"]) for page in pages for run in page["jobRuns"]}


def _state(id_: str, emr: Any) -> str:
    with translate_errors(f"EMR Serverless application {id_}"):
        return str(emr.get_application(applicationId=id_)["application"]["state"])


def _busy(stage: str, what: str, names: list[str]) -> TransientError:
    return TransientError(
        f"{stage}: {len(names)} {what}(s) in progress: {', '.join(names[:5])}",
        remedy=f"wait until they have ended, or cancel them: `encore deploy stop --stage {stage} --cancel`",
    )
