"""Removal of a stage: its stacks, the last first, and the logs that services made outside of them.

It needs no templates and no application archive, so that it also works after a deployment that failed halfway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from encore.aws.account import translate_errors
from encore.aws.deployment import ClientFactory, check_credentials
from encore.aws.stage import load_stage
from encore.errors import ConfigError, EncoreError, EnvironmentMissing, InputError, TransientError

ORDER = ("serving", "orchestration", "compute", "mlflow", "storage", "network", "key")
"""Stacks of a stage, each before those that it uses."""

POLL_SECONDS = 15.0
LONGEST_SECONDS = 3600.0
"""How long the removal of one stack may take; a database with its last backup takes a quarter of an hour."""

Say = Callable[[str], None]
Sleep = Callable[[float], None]


class NotRemoved(EncoreError):
    """Something of a stage is left, and is billed."""

    exit_code = 4


def vacant(stage: str, clients: ClientFactory) -> None:
    """InputError if anything of a stage is deployed; ConfigError if the stage keeps its data, and is not for trials."""
    formation = _formation_of_trial(stage, clients)
    found = [name for stack in ORDER if _status(name := f"encore-{stage}-{stack}", formation) is not None]
    if found:
        raise InputError(
            f"{stage} is deployed already: {', '.join(found)}",
            remedy=f"if it holds nothing of value, remove it: `encore deploy remove --stage {stage}`",
        )


def is_deployed(stage: str, clients: ClientFactory) -> bool:
    """Whether the stack with a stage's state machine, which is deployed after all that it uses, exists."""
    formation = clients("cloudformation")
    check_credentials(load_stage({"stage": stage}), clients, formation.meta.region_name)
    return _status(f"encore-{stage}-orchestration", formation) is not None


def _formation_of_trial(name: str, clients: ClientFactory) -> Any:
    """The client of CloudFormation where a stage is. ConfigError if the stage is not one that may be removed."""
    stage = load_stage({"stage": name})
    if stage.keep:
        raise ConfigError(
            f"{name} keeps its data (keep: true): it is not removed by a command",
            remedy=f"see `make cdk STAGE={name} ARGS='destroy ...'` in the docs",
        )
    if stage.replica_region:
        raise ConfigError(
            f"{name} has a replica in {stage.replica_region}, which this command would leave behind",
            remedy="remove the stage with `make cdk`, as the docs say, or try a stage without replica_region",
        )
    formation = clients("cloudformation")
    check_credentials(stage, clients, formation.meta.region_name)
    return formation


def remove(stage: str, clients: ClientFactory, say: Say, *, sleep: Sleep = time.sleep) -> list[str]:
    """Delete what there is of a stage, and return the names of the stacks that were deleted.

    Stacks that cannot be deleted do not keep the others; NotRemoved in the end says why, as CloudFormation reports it.
    ConfigError for a stage that keeps its data.
    """
    formation = _formation_of_trial(stage, clients)
    removed, problems = [], []
    for stack in ORDER:
        name = f"encore-{stage}-{stack}"
        if _status(name, formation) is None:
            continue
        say(f"{name}: deleting")
        problem = _delete(name, formation, sleep)
        if problem is None:
            removed.append(name)
            say(f"{name}: deleted")
        else:
            problems.append(f"{name}: {problem}")
            say(f"{name}: not deleted: {problem}")
    problems += _remove_logs(stage, clients, say)
    if problems:
        raise NotRemoved(
            "; ".join(problems),
            remedy=f"fix the cause, and call `encore deploy remove --stage {stage}` again: what is left is billed",
        )
    return removed


def _status(stack: str, formation: Any) -> str | None:
    """The status of a stack; None if it does not exist."""
    try:
        with translate_errors(f"stack {stack}"):
            return str(formation.describe_stacks(StackName=stack)["Stacks"][0]["StackStatus"])
    except InputError:
        return None


def _delete(stack: str, formation: Any, sleep: Sleep) -> str | None:
    """Delete a stack and wait until it is gone; the reason if it is not."""
    try:
        # by its id, since a stack that is gone has no name
        with translate_errors(f"stack {stack}"):
            id_ = formation.describe_stacks(StackName=stack)["Stacks"][0]["StackId"]
            formation.delete_stack(StackName=stack)
        waited = 0.0
        while (status := _status(id_, formation)) not in (None, "DELETE_COMPLETE"):
            if status == "DELETE_FAILED":
                return _reason(id_, formation)
            if waited >= LONGEST_SECONDS:
                return f"still {status} after {waited / 60:.0f} minutes"
            sleep(POLL_SECONDS)
            waited += POLL_SECONDS
    except EncoreError as error:
        return str(error)
    return None


def _reason(stack: str, formation: Any) -> str:
    """What CloudFormation says about the resources that it could not delete."""
    with translate_errors(f"stack {stack}"):
        events = formation.describe_stack_events(StackName=stack)["StackEvents"]
    found = {
        event["LogicalResourceId"]: str(event.get("ResourceStatusReason", "no reason given"))
        for event in reversed(events)
        if event["ResourceStatus"] == "DELETE_FAILED" and event["ResourceType"] != "AWS::CloudFormation::Stack"
    }
    return "; ".join(f"{name}: {reason}" for name, reason in found.items()) or "CloudFormation gives no reason"


def _prefixes(stage: str) -> tuple[str, ...]:
    """Names of log groups that services create for resources of a stage."""
    return tuple(
        f"{service}/encore-{stage}-"
        for service in ("/aws/lambda", "/aws/rds/instance", "/aws/ecs/containerinsights", "/aws/codebuild")
    )


def _remove_logs(stage: str, clients: ClientFactory, say: Say) -> Iterator[str]:
    """Delete the log groups that services created for a stage; a sentence about each problem."""
    logs = clients("logs")
    for prefix in _prefixes(stage):
        try:
            with translate_errors(f"log groups {prefix}*"):
                pages = logs.get_paginator("describe_log_groups").paginate(logGroupNamePrefix=prefix)
                names = [group["logGroupName"] for page in pages for group in page["logGroups"]]
                for name in names:
                    logs.delete_log_group(logGroupName=name)
                    say(f"{name}: deleted")
        except EnvironmentMissing as error:
            # the role of `cdk bootstrap` that deletes stacks may not delete logs, which cost next to nothing
            say(f"{prefix}*: not deleted: {error}")
        except (InputError, TransientError) as error:
            yield str(error)
