"""The state machine of AWS Step Functions, generated from what jobs read and write.

    set out ─► which jobs ─► which date ─► take the lock ─► the line ─► let go of the lock ─► done
                                              │ taken          │ a job failed
                                              ▼                ▼
                                        tell, and fail    let go of the lock, and fail

**The line** is the graph's series and parallels (`graph.compose`). Each job is one `startJobRun.sync`.

**Input**, all of it optional: `from` (the first job) or `only` (a list of jobs), `set` (a list of a.b=value), `env`
(the environment, conf/<env>.yaml), `date` (YYYY-MM-DD: the raw data of that day's folder, `date=<date>/`, and not of
all). The name of the execution is the id of the pipeline run.

**Trying again.** What the service answers to the call itself (throttled, out of capacity, starting) is retried by
Retry, by the error's name. That a run failed is one error for all reasons, so what the job wrote down decides
(`encore.runtime.outcome`): 75 passes, and is tried again; any other code is not. Where nothing was written the driver
was killed, a lost host or memory: it is tried again, unless the service says that the run was cancelled (also its
way to say that it took too long), or names an exit code that is not worth it (`ExitCode: 3.` in the details of the run,
which is how it passes on the code of the driver's process; it is not documented, so nothing depends on it alone).

**No two executions overlap.** The lock is an item in a table with the execution that holds it, put there on condition
that none is. Where one is, its execution is looked up, and the lock is taken over if that is not running any more: it
was stopped before it could let go, or is not known any more. Between look and put another may have come first, so the
put is on condition that the holder is still that one; where it is not, all is looked at again. Commits to Delta tables,
which refuse what they did not see, remain the last line.

Texts `${Name}` stand for what the deployment knows (`PLACEHOLDERS`). The definition is in JSONPath.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from encore.aws.render import launch_settings, serverless
from encore.config import load_config
from encore.runtime.graph import Node, Part, Series, compose, order, select

State = dict[str, Any]
States = dict[str, State]

PLACEHOLDERS = {
    "ApplicationId": "id of the EMR Serverless application",
    "Region": "where it runs",
    "CodePrefix": "s3:// folder of the application archive",
    "Lake": "s3:// prefix of the tables",
    "RawPrefix": "s3:// prefix of the raw data, with playlists/ and features/ in it",
    "LogBucket": "bucket of logs and outcomes",
    "TrackingLogin": "ARN of the secret with address and login of MLflow",
    "TopicArn": "the topic that is told of failures",
    "LockTable": "table of the lock, keyed by `line`",
    "Role<Job>": "ARN of the execution role of each job",
}
"""What the deployment puts in."""

SERVICE_ERRORS = (
    "ThrottlingException",
    "InternalServerException",
    "ServiceQuotaExceededException",
    "ConflictException",
    "SdkClientException",
)
"""Of a call to EMR Serverless: too many calls, its own failure, no capacity left, an application that still starts."""

NEVER_AGAIN = (1, 2, 3, 4, 5)
"""Exit codes that a second try does not mend (encore.errors)."""

PASSING = 75
"""The exit code that one may."""

_EXIT_CODE = "ExitCode: {}."
"""How the details of a run pass on the exit code of its driver."""

_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class Limits:
    """How long, how often, and how large: seconds but for `tries`, the most runs of a job within one execution, and
    `spark`, settings that count before a JVM is there."""

    job_seconds: int = 4 * 3600
    queue_seconds: int = 900
    tries: int = 3
    wait_seconds: int = 120
    retry_seconds: int = 20
    spark: tuple[tuple[str, str], ...] = ()


def exit_code_in(details: str) -> int | None:
    """The exit code of the driver, as the details of a run have it; None where they do not."""
    found = re.search(_EXIT_CODE.format(r"(\d+)").replace(".", r"\."), details)
    return int(found[1]) if found else None


def sized() -> Limits:
    """The usual limits, and sizes of drivers and executors as conf/emr.yaml has them."""
    unused = ["lake.path=s3://unused", "raw.playlists=s3://unused"]
    return Limits(spark=launch_settings(load_config("emr", unused)))


def camel(job: str) -> str:
    """The name of a job in names of placeholders and resources: BuildTrackVectors."""
    return "".join(word.capitalize() for word in job.split("_"))


def definition(nodes: Sequence[Node], *, extra: Sequence[Node] = (), limits: Limits = Limits()) -> State:
    """The state machine of these jobs. `extra` jobs come last, and run only where `only` names them."""
    line = compose(nodes)
    parts = [*(line.parts if isinstance(line, Series) else [line]), *(node.name for node in extra)]
    jobs, all_jobs = order(nodes), [*order(nodes), *(node.name for node in extra)]
    work = _branch(Series(tuple(parts)), limits)
    states: States = {
        **_set_out(nodes, jobs, all_jobs),
        **_take_lock(),
        "The line": {
            "Type": "Parallel",
            "Comment": "One branch: whatever fails in it, the lock is let go",
            "Branches": [work],
            "ResultPath": None,
            "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": "Let go after a failure"}],
            "Next": "Let go",
        },
        "Let go": _let_go("Done"),
        "Done": {"Type": "Succeed"},
        "Let go after a failure": _let_go("The line failed"),
        "The line failed": {"Type": "Fail", "Error": "Encore.LineFailed", "CausePath": "$.error.Cause"},
    }
    return {
        "Comment": "Generated by encore.aws.states from what the jobs read and write",
        "QueryLanguage": "JSONPath",
        "StartAt": "Set out",
        "TimeoutSeconds": 24 * 3600,
        "States": states,
    }


def job_run(job: str, limits: Limits) -> State:
    """The parameters of `startJobRun` for a job, from the state's input: `run_id`, `asked`, `raw`, `try`."""
    settings = {
        "raw.playlists": "$.raw.playlists",
        "raw.features": "$.raw.features",
    }
    arguments = ["'--env'", "$.asked.env", "'--run-id'", "$.run_id", "'--set'", "'lake.path=${Lake}'"]
    arguments += ["'--set'", "'tracking.login=${TrackingLogin}'", "'--set'", "'s3.region=${Region}'"]
    for name, path in settings.items():
        arguments += ["'--set'", f"States.Format('{name}={{}}', {path})"]
    arguments += ["'--set-json'", "States.JsonToString($.asked.set)", "'--outcome'"]
    arguments += [f"States.Format('s3://${{LogBucket}}/{_outcome_key(job)}', $.run_id, $.try.n)"]
    return _capitals(
        serverless(
            job,
            f"States.Array({', '.join(arguments)})",
            application="${ApplicationId}",
            role=f"${{Role{camel(job)}}}",
            code="${CodePrefix}",
            log_uri=f"States.Format('s3://${{LogBucket}}/{_log_prefix(job)}', $.run_id)",
            name=f"States.Format('{job}-{{}}', $.run_id)",
            minutes=limits.job_seconds // 60,
            spark=limits.spark,
        )
    )


def _capitals(value: Any) -> Any:
    """Parameters as Step Functions wants them: names with a capital, and .$ at the end where a value is worked out."""
    if not isinstance(value, dict):
        return value
    found = {}
    for name, inner in value.items():
        worked_out = isinstance(inner, str) and inner.startswith(("States.", "$."))
        # tags are names of our own
        own = inner if name == "tags" else _capitals(inner)
        found[f"{name[0].upper()}{name[1:]}{'.$' if worked_out else ''}"] = own
    return found


def _outcome_key(job: str) -> str:
    """Where the outcome of a try stands in the bucket of logs: a template of run and try."""
    return f"outcomes/{job}/{{}}/{{}}.json"


def _log_prefix(job: str) -> str:
    """Where the logs of a job stand in the bucket of logs: a template of the run."""
    return f"logs/{job}/{{}}/"


# what is asked for -------------------------------------------------------------------------------------------------


def _set_out(nodes: Sequence[Node], jobs: Sequence[str], all_jobs: Sequence[str]) -> States:
    """From the input to `run_id`, `asked`, `jobs`, `raw` and `run`, which says of each job whether it is to run."""
    one = "$.asked.only[0]"
    states: States = {
        "Set out": {
            "Type": "Pass",
            "Result": {"env": "emr", "from": "", "only": [], "set": [], "date": ""},
            "ResultPath": "$.defaults",
            "Next": "What is asked",
        },
        "What is asked": {
            "Type": "Pass",
            "Parameters": {
                "asked.$": "States.JsonMerge($.defaults, $$.Execution.Input, false)",
                "run_id.$": "$$.Execution.Name",
            },
            "Next": "Which jobs",
        },
        "Which jobs": {
            "Type": "Choice",
            "Choices": [
                {
                    "And": [
                        {"Variable": one, "IsPresent": True},
                        {"Not": {"Variable": "$.asked.from", "StringEquals": ""}},
                    ],
                    "Next": "Both ways at once",
                },
                {"Variable": one, "IsPresent": True, "Next": "Are they jobs"},
                {"Variable": "$.asked.from", "StringEquals": "", "Next": "All jobs"},
                *({"Variable": "$.asked.from", "StringEquals": job, "Next": f"From {job}"} for job in jobs),
            ],
            "Default": "No such job",
        },
        "Both ways at once": _fail("Encore.Input", "`only` names jobs by themselves, not after `from`: leave out one"),
        "No such job": _fail("Encore.Input", "no such job; the jobs are " + ", ".join(all_jobs)),
        "Are they jobs": {
            "Type": "Map",
            "ItemsPath": "$.asked.only",
            "ItemProcessor": {
                "ProcessorConfig": {"Mode": "INLINE"},
                "StartAt": "Is it a job",
                "States": {
                    "Is it a job": {
                        "Type": "Choice",
                        "Choices": [{"Variable": "$", "StringEquals": job, "Next": "It is"} for job in all_jobs],
                        "Default": "It is not",
                    },
                    "It is": {"Type": "Succeed"},
                    "It is not": _fail("Encore.Input", "no such job"),
                },
            },
            "ResultPath": None,
            "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": "No such job"}],
            "Next": "Only these jobs",
        },
        "Only these jobs": _pass("$.asked.only", "$.jobs", "Which of them"),
        "All jobs": {"Type": "Pass", "Result": list(jobs), "ResultPath": "$.jobs", "Next": "Which of them"},
    }
    for job in jobs:
        after = select(nodes, job, None, ())
        states[f"From {job}"] = {"Type": "Pass", "Result": after, "ResultPath": "$.jobs", "Next": "Which of them"}
    states["Which of them"] = {
        "Type": "Pass",
        "Parameters": {f"{job}.$": f"States.ArrayContains($.jobs, '{job}')" for job in all_jobs},
        "ResultPath": "$.run",
        "Next": "Which date",
    }
    states["Which date"] = {
        "Type": "Choice",
        "Choices": [
            {"Variable": "$.asked.date", "StringEquals": "", "Next": "All raw data"},
            {"Variable": "$.asked.date", "StringMatches": "20*-*-*", "Next": "Raw data of a date"},
        ],
        "Default": "No date",
    }
    states["No date"] = _fail("Encore.Input", "date: YYYY-MM-DD expected")
    states["All raw data"] = {
        "Type": "Pass",
        "Result": {"playlists": "${RawPrefix}/playlists/", "features": "${RawPrefix}/features/"},
        "ResultPath": "$.raw",
        "Next": "Take the lock",
    }
    states["Raw data of a date"] = {
        "Type": "Pass",
        "Parameters": {
            f"{kind}.$": f"States.Format('${{RawPrefix}}/{kind}/date={{}}/', $.asked.date)"
            for kind in ("playlists", "features")
        },
        "ResultPath": "$.raw",
        "Next": "Take the lock",
    }
    return states


# the lock ----------------------------------------------------------------------------------------------------------

_LOST_RACE = ["DynamoDB.ConditionalCheckFailedException"]
_FORGOTTEN = ["Sfn.ExecutionDoesNotExistException"]
_DATABASE_RETRY = {
    "ErrorEquals": [
        "DynamoDB.ProvisionedThroughputExceededException",
        "DynamoDB.ThrottlingException",
        "DynamoDB.InternalServerErrorException",
        "DynamoDB.SdkClientException",
    ],
    "IntervalSeconds": 2,
    "MaxAttempts": 5,
    "BackoffRate": 2.0,
}


def _take_lock() -> States:
    item = {"line": {"S": "${Lake}"}, "execution": {"S.$": "$$.Execution.Id"}, "since": {"S.$": "$$.State.EnteredTime"}}
    put = {"Type": "Task", "Resource": "arn:aws:states:::dynamodb:putItem", "ResultPath": None}
    # by another, or by this one in a try whose answer was lost: the lock itself tells
    raced = {"ErrorEquals": _LOST_RACE, "ResultPath": "$.error", "Next": "Take the lock"}
    # Step Functions forgets executions after 90 days
    forgotten = {"ErrorEquals": _FORGOTTEN, "ResultPath": "$.error", "Next": "Take the lock over"}
    return {
        "Take the lock": {
            **put,
            "Parameters": {
                "TableName": "${LockTable}",
                "Item": item,
                # a put that was done but whose answer was lost is done again: it is ours already
                "ConditionExpression": "attribute_not_exists(#line) OR #execution = :mine",
                "ExpressionAttributeNames": {"#line": "line", "#execution": "execution"},
                "ExpressionAttributeValues": {":mine": {"S.$": "$$.Execution.Id"}},
            },
            "Retry": [_DATABASE_RETRY],
            "Catch": [{"ErrorEquals": _LOST_RACE, "ResultPath": "$.error", "Next": "Who has it"}],
            "Next": "The line",
        },
        "Who has it": {
            "Type": "Task",
            "Resource": "arn:aws:states:::dynamodb:getItem",
            "Parameters": {"TableName": "${LockTable}", "Key": {"line": {"S": "${Lake}"}}, "ConsistentRead": True},
            "ResultPath": "$.lock",
            "Retry": [_DATABASE_RETRY],
            "Next": "Was it let go",
        },
        "Was it let go": {
            "Type": "Choice",
            "Choices": [{"Variable": "$.lock.Item", "IsPresent": True, "Next": "Is that still running"}],
            "Default": "Take the lock",
        },
        "Is that still running": {
            "Type": "Task",
            "Resource": "arn:aws:states:::aws-sdk:sfn:describeExecution",
            "Parameters": {"ExecutionArn.$": "$.lock.Item.execution.S"},
            "ResultSelector": {"status.$": "$.Status"},
            "ResultPath": "$.holder",
            "Retry": [
                {"ErrorEquals": _FORGOTTEN, "MaxAttempts": 0},
                {"ErrorEquals": ["States.TaskFailed"], "IntervalSeconds": 2, "MaxAttempts": 3, "BackoffRate": 2.0},
            ],
            "Catch": [forgotten],
            "Next": "Or was it stopped",
        },
        "Or was it stopped": {
            "Type": "Choice",
            "Choices": [{"Variable": "$.holder.status", "StringEquals": "RUNNING", "Next": "Another run is at work"}],
            "Default": "Take the lock over",
        },
        "Take the lock over": {
            **put,
            "Parameters": {
                "TableName": "${LockTable}",
                "Item": item,
                "ConditionExpression": "#execution = :holder",
                "ExpressionAttributeNames": {"#execution": "execution"},
                "ExpressionAttributeValues": {":holder": {"S.$": "$.lock.Item.execution.S"}},
            },
            "Retry": [_DATABASE_RETRY],
            "Catch": [raced],
            "Next": "The line",
        },
        "Another run is at work": {
            "Type": "Task",
            "Resource": "arn:aws:states:::sns:publish",
            "Parameters": {
                "TopicArn": "${TopicArn}",
                "Subject": "Encore: a run was not started",
                "Message": {"run_id.$": "$.run_id", "reason": "another run is at work on ${Lake}"},
            },
            "ResultPath": None,
            "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": None, "Next": "Not started"}],
            "Next": "Not started",
        },
        "Not started": _fail("Encore.Overlap", "another run is at work on ${Lake}"),
    }


def _let_go(after: str) -> State:
    """Give the lock back, if it is still ours; a lock that stays is taken over by the next execution."""
    return {
        "Type": "Task",
        "Resource": "arn:aws:states:::dynamodb:deleteItem",
        "Parameters": {
            "TableName": "${LockTable}",
            "Key": {"line": {"S": "${Lake}"}},
            "ConditionExpression": "#execution = :mine",
            "ExpressionAttributeNames": {"#execution": "execution"},
            "ExpressionAttributeValues": {":mine": {"S.$": "$$.Execution.Id"}},
        },
        "ResultPath": None,
        "Retry": [_DATABASE_RETRY],
        "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": None, "Next": after}],
        "Next": after,
    }


# the line ----------------------------------------------------------------------------------------------------------


def _branch(part: Part, limits: Limits) -> State:
    """A part as a branch of its own: its states, one after the other, and an end."""
    parts = part.parts if isinstance(part, Series) else (part,)
    names, states = [_name(inner) for inner in parts], {}
    end = f"After {names[-1].rstrip('?')}"
    for inner, own, after in zip(parts, names, [*names[1:], end], strict=True):
        if isinstance(inner, str):
            states.update(_job(inner, after, limits))
        else:
            states[own] = {
                "Type": "Parallel",
                "Branches": [_branch(branch, limits) for branch in inner.parts],
                "ResultPath": None,
                "Next": after,
            }
    return {"StartAt": names[0], "States": {**states, end: {"Type": "Succeed"}}}


def _name(part: Part) -> str:
    """The state with which a part begins."""
    if isinstance(part, str):
        return f"{part}?"
    return " | ".join(" > ".join(_members(branch)) for branch in part.parts)


def _members(part: Part) -> list[str]:
    return [part] if isinstance(part, str) else [name for inner in part.parts for name in _members(inner)]


def _job(job: str, after: str, limits: Limits) -> States:
    """A job, if it is to run; again, if that is worth it; and who is told if it failed."""
    service = [f"{prefix}.{name}" for prefix in ("EMRServerless", "EmrServerless") for name in SERVICE_ERRORS]
    killed = {"Variable": "$.outcome.code", "NumericEquals": -1}
    cause = "$.error.Cause"
    hopeless = [
        {"Variable": cause, "StringMatches": '*"CANCELLED"*'},
        {"Variable": "$.error.Error", "StringEquals": "States.Timeout"},
        {"Variable": "$.error.Error", "StringMatches": "E*erverless.*Exception"},
        *({"Variable": cause, "StringMatches": f"*{_EXIT_CODE.format(code)}*"} for code in NEVER_AGAIN),
    ]
    tell = f"{job}: tell"
    return {
        f"{job}?": {
            "Type": "Choice",
            "Choices": [{"Variable": f"$.run.{job}", "BooleanEquals": True, "Next": f"{job}: first try"}],
            "Default": after,
        },
        f"{job}: first try": {"Type": "Pass", "Result": {"n": 1}, "ResultPath": "$.try", "Next": job},
        job: {
            "Type": "Task",
            "Resource": "arn:aws:states:::emr-serverless:startJobRun.sync",
            "Parameters": job_run(job, limits),
            # the service's own limit comes first, so that the run has ended when this one is reached
            "TimeoutSeconds": limits.job_seconds + limits.queue_seconds,
            "ResultPath": None,
            "Retry": [
                {
                    "ErrorEquals": service,
                    "IntervalSeconds": limits.retry_seconds,
                    "MaxAttempts": 6,
                    "BackoffRate": 2.0,
                    "MaxDelaySeconds": 600,
                    "JitterStrategy": "FULL",
                }
            ],
            "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": f"{job}: why"}],
            "Next": after,
        },
        f"{job}: why": {
            "Type": "Task",
            "Comment": "What the job itself wrote down: its exit code decides",
            "Resource": "arn:aws:states:::aws-sdk:s3:getObject",
            "Parameters": {
                "Bucket": "${LogBucket}",
                "Key.$": f"States.Format('{_outcome_key(job)}', $.run_id, $.try.n)",
            },
            "ResultSelector": {"told.$": "States.StringToJson($.Body)"},
            "ResultPath": "$.found",
            "TimeoutSeconds": 60,
            "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": None, "Next": f"{job}: no word"}],
            "Next": f"{job}: its word",
        },
        f"{job}: its word": _pass("$.found.told", "$.outcome", f"{job}: again?"),
        f"{job}: no word": {
            "Type": "Pass",
            "Result": {
                "code": -1,
                "reason": "the driver left no word: killed, cancelled, or never started",
                "remedy": "look at the error and the log",
            },
            "ResultPath": "$.outcome",
            "Next": f"{job}: again?",
        },
        f"{job}: again?": {
            "Type": "Choice",
            "Choices": [
                {"Variable": "$.try.n", "NumericGreaterThanEquals": limits.tries, "Next": tell},
                {"Variable": "$.outcome.code", "NumericEquals": PASSING, "Next": f"{job}: wait"},
                *({"And": [killed, sign], "Next": tell} for sign in hopeless),
                {**killed, "Next": f"{job}: wait"},
            ],
            "Default": tell,
        },
        f"{job}: wait": {"Type": "Wait", "Seconds": limits.wait_seconds, "Next": f"{job}: next try"},
        f"{job}: next try": {
            "Type": "Pass",
            "Parameters": {"n.$": "States.MathAdd($.try.n, 1)"},
            "ResultPath": "$.try",
            "Next": job,
        },
        tell: {
            "Type": "Task",
            "Resource": "arn:aws:states:::sns:publish",
            "Parameters": {
                "TopicArn": "${TopicArn}",
                "Subject": f"Encore: {job} failed",
                "Message": {
                    "job": job,
                    "run_id.$": "$.run_id",
                    "exit_code.$": "$.outcome.code",
                    "reason.$": "$.outcome.reason",
                    "remedy.$": "$.outcome.remedy",
                    "tries.$": "$.try.n",
                    "error.$": "$.error.Error",
                    "cause.$": "$.error.Cause",
                    "log.$": "States.Format('https://${Region}.console.aws.amazon.com/s3/buckets/${LogBucket}?prefix="
                    f"{_log_prefix(job)}', $.run_id)",
                },
            },
            "ResultPath": None,
            "Retry": [
                {"ErrorEquals": ["States.TaskFailed"], "IntervalSeconds": 5, "MaxAttempts": 3, "BackoffRate": 2.0}
            ],
            "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": None, "Next": f"{job}: failed"}],
            "Next": f"{job}: failed",
        },
        f"{job}: failed": {"Type": "Fail", "Error": "Encore.JobFailed", "CausePath": "$.outcome.reason"},
    }


def _pass(source: str, target: str, after: str) -> State:
    return {"Type": "Pass", "InputPath": source, "ResultPath": target, "Next": after}


def _fail(error: str, cause: str) -> State:
    return {"Type": "Fail", "Error": error, "Cause": cause}


def filled(value: Any, known: dict[str, str]) -> Any:
    """A definition with placeholders replaced. KeyError for one that is not known."""
    if isinstance(value, dict):
        return {name: filled(inner, known) for name, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, known) for inner in value]
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda found: known[found[1]], value)
    return value


def placeholders(value: Any) -> set[str]:
    """The names of all placeholders in a definition."""
    if isinstance(value, dict):
        return {name for inner in value.values() for name in placeholders(inner)}
    if isinstance(value, list):
        return {name for inner in value for name in placeholders(inner)}
    return set(_PLACEHOLDER.findall(value)) if isinstance(value, str) else set()
