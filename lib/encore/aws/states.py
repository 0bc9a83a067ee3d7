"""The AWS Step Functions state machine, generated from what jobs read and write.

    read input ─► select jobs ─► select date ─► acquire lock ─► run pipeline ─► release lock ─► done
                                                   │ held          │ a job failed
                                                   ▼               ▼
                                            notify and fail    release lock and fail

**Run pipeline** is the job `smoke`, which checks whether jobs can run, and then the graph in series and parallel
(`graph.compose`). Each job is one `startJobRun.sync`.

**Input**, all of it optional: `from` (the first job) or `only` (a list of jobs), `set` (a list of a.b=value), `env`
(the environment, conf/<env>.yaml), `date` (YYYY-MM-DD: read only that day's raw data, in the folder `date=<date>/`),
`smoke` (false: skip that job). The name of the execution is the id of the pipeline run.

**Retries.** Errors of the API call itself (throttling, no capacity, an application that is still starting) are retried
by the task's Retry, by error name. A failed job run is reported as the same error whatever the reason, so the outcome
that the job wrote decides (`encore.runtime.outcome`): 75 is transient and retried, any other code is not. Without an
outcome the driver was killed, by a lost host or for lack of memory: the job is retried, unless EMR reports that the
run was cancelled (which is also how it reports a timeout), or reports an exit code that makes a retry pointless
(`ExitCode: 3.` in the state details, where it puts the exit code of the driver process; this is undocumented, so
nothing relies on it alone).

**Warnings.** A job that checks expectations (it writes `checks`) and succeeds has its warnings, if any, in its outcome,
too: they are sent to the topic, and the pipeline goes on.

**Executions never overlap.** The lock is an item in a DynamoDB table that names the execution holding it, put on the
condition that no such item exists. If one exists, its execution is looked up, and the lock is taken over if that
execution no longer runs: it was stopped before it could release the lock, or Step Functions no longer knows it. Another
execution may take over between the lookup and the put, so the put is conditional on the holder being unchanged; if it
changed, the lock is looked up again. Delta's conflict checks at commit remain the last line of defence.

`${Name}` stands for a value that the deployment fills in (`encore_cdk.orchestration`). Paths in it are JSONPath.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from encore.aws.render import launch_settings, serverless_request, settings_of
from encore.config import load_config
from encore.lake.tables import CHECKS
from encore.runtime.graph import Node, Part, Series, compose, order, select
from encore.runtime.registry import SMOKE

State = dict[str, Any]
States = dict[str, State]

SERVICE_ERRORS = (
    "ThrottlingException",
    "InternalServerException",
    "ServiceQuotaExceededException",
    "ConflictException",
    "SdkClientException",
)
"""Transient errors of calls to EMR Serverless: throttling, internal errors, quota, an application that is starting."""

PERMANENT_CODES = (1, 2, 3, 4, 5)
"""Exit codes for which a retry is pointless (encore.errors)."""

TERMINATED_CODE = 143
"""The exit code of a job that was sent SIGTERM: it is retried, as one that was killed, unless it was cancelled."""

TRANSIENT_CODE = 75
"""The exit code for which a retry may succeed."""

_EXIT_CODE = "ExitCode: {}."
"""How EMR Serverless reports the driver's exit code in the state details of a run."""

_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class Limits:
    """Time limits, retries and sizes. All are seconds, except `tries`, the maximum runs of a job in one execution, and
    `spark`, Spark settings that only take effect before the JVM starts. `smoke_seconds`: of the job `smoke`."""

    job_seconds: int = 4 * 3600
    smoke_seconds: int = 900
    queue_seconds: int = 900
    tries: int = 3
    wait_seconds: int = 120
    retry_seconds: int = 20
    spark: tuple[tuple[str, str], ...] = ()

    def seconds_of(self, job: str) -> int:
        """The time limit of a job."""
        return min(self.smoke_seconds, self.job_seconds) if job == SMOKE else self.job_seconds


def exit_code_in(details: str) -> int | None:
    """The driver's exit code in the state details of a run; None if they do not contain it."""
    found = re.search(_EXIT_CODE.format(r"(\d+)").replace(".", r"\."), details)
    return int(found[1]) if found else None


def default_limits() -> Limits:
    """The default limits, with the driver and executor sizes of conf/emr.yaml."""
    unused = ["lake.path=s3://unused", "raw.playlists=s3://unused"]
    return Limits(spark=launch_settings(load_config("emr", unused)))


def camel(job: str) -> str:
    """A job's name as it appears in placeholders and resource names: BuildTrackVectors."""
    return "".join(word.capitalize() for word in job.split("_"))


def definition(nodes: Sequence[Node], *, extra: Sequence[Node] = (), limits: Limits = Limits()) -> State:
    """The state machine for these jobs. `extra` jobs come last, and only run if `only` names them; except `smoke`,
    which comes first, and runs unless the input says that it should not."""
    pipeline = compose(nodes)
    first = [node.name for node in extra if node.name == SMOKE]
    last = [node.name for node in extra if node.name != SMOKE]
    parts = [*first, *(pipeline.parts if isinstance(pipeline, Series) else [pipeline]), *last]
    checking = {node.name for node in nodes if CHECKS in node.writes}
    branch = _branch(Series(tuple(parts)), limits, checking)
    states: States = {
        **_read_input(nodes, first, last),
        **_acquire_lock(),
        "Run pipeline": {
            "Type": "Parallel",
            "Comment": "A single branch, so that the lock is released whatever fails in it",
            "Branches": [branch],
            "ResultPath": None,
            "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": "Release lock after failure"}],
            "Next": "Release lock",
        },
        "Release lock": _release_lock("Done"),
        "Done": {"Type": "Succeed"},
        "Release lock after failure": _release_lock("Pipeline failed"),
        "Pipeline failed": {"Type": "Fail", "Error": "Encore.LineFailed", "CausePath": "$.error.Cause"},
    }
    return {
        "Comment": "Generated by encore.aws.states from what the jobs read and write",
        "QueryLanguage": "JSONPath",
        "StartAt": "Defaults",
        "TimeoutSeconds": 24 * 3600,
        "States": states,
    }


def job_run(job: str, limits: Limits) -> State:
    """The parameters of `startJobRun` for a job. They use `run_id`, `input`, `raw` and `try` from the state's input."""
    settings = {
        "raw.playlists": "$.raw.playlists",
        "raw.features": "$.raw.features",
    }
    arguments = ["'--env'", "$.input.env", "'--run-id'", "$.run_id", "'--set'", "'lake.path=${Lake}'"]
    arguments += ["'--set'", "'tracking.login=${TrackingLogin}'", "'--set'", "'s3.region=${Region}'"]
    for name, path in settings.items():
        arguments += ["'--set'", f"States.Format('{name}={{}}', {path})"]
    arguments += ["'--set-json'", "States.JsonToString($.input.set)", "'--outcome'"]
    arguments += [f"States.Format('s3://${{LogBucket}}/{_outcome_key(job)}', $.run_id, $.try.n)"]
    return _state_parameters(
        serverless_request(
            job,
            f"States.Array({', '.join(arguments)})",
            application="${ApplicationId}",
            role=f"${{Role{camel(job)}}}",
            code="${CodePrefix}",
            log_uri=f"States.Format('s3://${{LogBucket}}/{_log_prefix(job)}', $.run_id)",
            name=f"States.Format('{job}-{{}}', $.run_id)",
            minutes=limits.seconds_of(job) // 60,
            stage="${Stage}",
            spark=settings_of(job, limits.spark),
        )
    )


def _state_parameters(value: Any) -> Any:
    """API parameters in Step Functions' form: capitalized names, with the suffix .$ if the value is an expression."""
    if not isinstance(value, dict):
        return value
    found = {}
    for name, inner in value.items():
        is_expression = isinstance(inner, str) and inner.startswith(("States.", "$."))
        # the keys of tags are data, not parameter names
        own = inner if name == "tags" else _state_parameters(inner)
        found[f"{name[0].upper()}{name[1:]}{'.$' if is_expression else ''}"] = own
    return found


def _outcome_key(job: str) -> str:
    """Key of an outcome in the log bucket: a format string for run and try."""
    return f"outcomes/{job}/{{}}/{{}}.json"


def _log_prefix(job: str) -> str:
    """Prefix of a job's logs in the log bucket: a format string for the run."""
    return f"logs/{job}/{{}}/"


# the input ---------------------------------------------------------------------------------------------------------


def _read_input(nodes: Sequence[Node], first: Sequence[str], last: Sequence[str]) -> States:
    """States that derive `run_id`, `input`, `jobs`, `raw` and `run` (a boolean for each job) from the input.

    `first` and `last`: jobs before and after those of the pipeline.
    """
    first_only = "$.input.only[0]"
    jobs = order(nodes)
    all_jobs = [*first, *jobs, *last]
    states: States = {
        "Defaults": {
            "Type": "Pass",
            "Result": {"env": "emr", "from": "", "only": [], "set": [], "date": "", "smoke": True},
            "ResultPath": "$.defaults",
            "Next": "Merge input",
        },
        "Merge input": {
            "Type": "Pass",
            "Parameters": {
                "input.$": "States.JsonMerge($.defaults, $$.Execution.Input, false)",
                "run_id.$": "$$.Execution.Name",
            },
            "Next": "Select jobs",
        },
        "Select jobs": {
            "Type": "Choice",
            "Choices": [
                {
                    "And": [
                        {"Variable": first_only, "IsPresent": True},
                        {"Not": {"Variable": "$.input.from", "StringEquals": ""}},
                    ],
                    "Next": "Both from and only",
                },
                {"Variable": first_only, "IsPresent": True, "Next": "Check job names"},
                {"Variable": "$.input.from", "StringEquals": "", "Next": "All jobs"},
                *({"Variable": "$.input.from", "StringEquals": job, "Next": f"From {job}"} for job in jobs),
            ],
            "Default": "No such job",
        },
        "Both from and only": _fail("Encore.Input", "`from` and `only` exclude each other: leave out one of them"),
        "No such job": _fail("Encore.Input", "no such job; the jobs are " + ", ".join(all_jobs)),
        "Check job names": {
            "Type": "Map",
            "ItemsPath": "$.input.only",
            "ItemProcessor": {
                "ProcessorConfig": {"Mode": "INLINE"},
                "StartAt": "Check job name",
                "States": {
                    "Check job name": {
                        "Type": "Choice",
                        "Choices": [{"Variable": "$", "StringEquals": job, "Next": "Known job"} for job in all_jobs],
                        "Default": "Unknown job",
                    },
                    "Known job": {"Type": "Succeed"},
                    "Unknown job": _fail("Encore.Input", "no such job"),
                },
            },
            "ResultPath": None,
            "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": "No such job"}],
            "Next": "Only these jobs",
        },
        "Only these jobs": _pass("$.input.only", "$.jobs", "Flag jobs"),
        "All jobs": {"Type": "Pass", "Result": [*first, *jobs], "ResultPath": "$.jobs", "Next": "Flag jobs"},
    }
    for job in jobs:
        after = [*first, *select(nodes, job, None, ())]
        states[f"From {job}"] = {"Type": "Pass", "Result": after, "ResultPath": "$.jobs", "Next": "Flag jobs"}
    states["Flag jobs"] = {
        "Type": "Pass",
        "Parameters": {f"{job}.$": f"States.ArrayContains($.jobs, '{job}')" for job in all_jobs},
        "ResultPath": "$.run",
        "Next": "Select date",
    }
    states["Select date"] = {
        "Type": "Choice",
        "Choices": [
            {"Variable": "$.input.date", "StringEquals": "", "Next": "All raw data"},
            {"Variable": "$.input.date", "StringMatches": "20*-*-*", "Next": "Raw data of a date"},
        ],
        "Default": "Invalid date",
    }
    states["Invalid date"] = _fail("Encore.Input", "date: YYYY-MM-DD expected")
    states["All raw data"] = {
        "Type": "Pass",
        "Result": {"playlists": "${RawPrefix}/playlists/", "features": "${RawPrefix}/features/"},
        "ResultPath": "$.raw",
        "Next": "Acquire lock",
    }
    states["Raw data of a date"] = {
        "Type": "Pass",
        "Parameters": {
            f"{kind}.$": f"States.Format('${{RawPrefix}}/{kind}/date={{}}/', $.input.date)"
            for kind in ("playlists", "features")
        },
        "ResultPath": "$.raw",
        "Next": "Acquire lock",
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


def _acquire_lock() -> States:
    item = {"line": {"S": "${Lake}"}, "execution": {"S.$": "$$.Execution.Id"}, "since": {"S.$": "$$.State.EnteredTime"}}
    put = {"Type": "Task", "Resource": "arn:aws:states:::dynamodb:putItem", "ResultPath": None}
    # by another execution, or by this one if the response to an earlier put was lost: the lock itself shows which
    raced = {"ErrorEquals": _LOST_RACE, "ResultPath": "$.error", "Next": "Acquire lock"}
    # Step Functions deletes executions after 90 days
    forgotten = {"ErrorEquals": _FORGOTTEN, "ResultPath": "$.error", "Next": "Take over lock"}
    return {
        "Acquire lock": {
            **put,
            "Parameters": {
                "TableName": "${LockTable}",
                "Item": item,
                # a put that succeeded but whose response was lost is repeated: the lock is ours already
                "ConditionExpression": "attribute_not_exists(#line) OR #execution = :mine",
                "ExpressionAttributeNames": {"#line": "line", "#execution": "execution"},
                "ExpressionAttributeValues": {":mine": {"S.$": "$$.Execution.Id"}},
            },
            "Retry": [_DATABASE_RETRY],
            "Catch": [{"ErrorEquals": _LOST_RACE, "ResultPath": "$.error", "Next": "Look up holder"}],
            "Next": "Run pipeline",
        },
        "Look up holder": {
            "Type": "Task",
            "Resource": "arn:aws:states:::dynamodb:getItem",
            "Parameters": {"TableName": "${LockTable}", "Key": {"line": {"S": "${Lake}"}}, "ConsistentRead": True},
            "ResultPath": "$.lock",
            "Retry": [_DATABASE_RETRY],
            "Next": "Is lock still held",
        },
        "Is lock still held": {
            "Type": "Choice",
            "Choices": [{"Variable": "$.lock.Item", "IsPresent": True, "Next": "Look up execution"}],
            "Default": "Acquire lock",
        },
        "Look up execution": {
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
            "Next": "Is holder running",
        },
        "Is holder running": {
            "Type": "Choice",
            "Choices": [{"Variable": "$.holder.status", "StringEquals": "RUNNING", "Next": "Notify of overlap"}],
            "Default": "Take over lock",
        },
        "Take over lock": {
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
            "Next": "Run pipeline",
        },
        "Notify of overlap": {
            "Type": "Task",
            "Resource": "arn:aws:states:::sns:publish",
            "Parameters": {
                "TopicArn": "${TopicArn}",
                "Subject": "Encore: a run did not start",
                "Message": {"run_id.$": "$.run_id", "reason": "another run is in progress on ${Lake}"},
            },
            "ResultPath": None,
            "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": None, "Next": "Not started"}],
            "Next": "Not started",
        },
        "Not started": _fail("Encore.Overlap", "another run is in progress on ${Lake}"),
    }


def _release_lock(after: str) -> State:
    """Release the lock if it is still ours; a lock that is left behind is taken over by the next execution."""
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


# the pipeline ------------------------------------------------------------------------------------------------------


def _branch(part: Part, limits: Limits, checking: Collection[str]) -> State:
    """A part as a branch of its own: its states in sequence, and an end state. `checking`: jobs that may warn."""
    parts = part.parts if isinstance(part, Series) else (part,)
    names, states = [_name(inner) for inner in parts], {}
    end = f"After {names[-1].rstrip('?')}"
    for inner, own, after in zip(parts, names, [*names[1:], end], strict=True):
        if isinstance(inner, str):
            states.update(_job(inner, after, limits))
            if inner in checking:
                states[inner]["Next"] = f"{inner}: read warnings"
                states.update(_warnings(inner, after))
        else:
            states[own] = {
                "Type": "Parallel",
                "Branches": [_branch(branch, limits, checking) for branch in inner.parts],
                "ResultPath": None,
                "Next": after,
            }
    return {"StartAt": names[0], "States": {**states, end: {"Type": "Succeed"}}}


def _name(part: Part) -> str:
    """Name of a part's first state."""
    if isinstance(part, str):
        return f"{part}?"
    return " | ".join(_range(_members(branch)) for branch in part.parts)


def _range(jobs: list[str]) -> str:
    """A branch by its first and last job: Step Functions takes names of 80 characters, and a job is in one branch."""
    return " > ".join(jobs if len(jobs) < 3 else [jobs[0], "...", jobs[-1]])


def _members(part: Part) -> list[str]:
    return [part] if isinstance(part, str) else [name for inner in part.parts for name in _members(inner)]


def _job(job: str, after: str, limits: Limits) -> States:
    """States that run a job if it is selected, retry it if that may help, and send a notification if it failed."""
    service = [f"{prefix}.{name}" for prefix in ("EMRServerless", "EmrServerless") for name in SERVICE_ERRORS]
    # without an outcome, or terminated by a signal: EMR takes a host back, or someone has cancelled the run
    killed = {"Or": [{"Variable": "$.outcome.code", "NumericEquals": code} for code in (-1, TERMINATED_CODE)]}
    cause = "$.error.Cause"
    permanent = [
        {"Variable": cause, "StringMatches": '*"CANCELLED"*'},
        {"Variable": "$.error.Error", "StringEquals": "States.Timeout"},
        {"Variable": "$.error.Error", "StringMatches": "E*erverless.*Exception"},
        *({"Variable": cause, "StringMatches": f"*{_EXIT_CODE.format(code)}*"} for code in PERMANENT_CODES),
    ]
    notify = f"{job}: notify"
    selected: State = {"Variable": f"$.run.{job}", "BooleanEquals": True}
    if job == SMOKE:
        selected = {"And": [selected, {"Variable": "$.input.smoke", "BooleanEquals": True}]}
    return {
        f"{job}?": {
            "Type": "Choice",
            "Choices": [{**selected, "Next": f"{job}: first try"}],
            "Default": after,
        },
        f"{job}: first try": {"Type": "Pass", "Result": {"n": 1}, "ResultPath": "$.try", "Next": job},
        job: {
            "Type": "Task",
            "Resource": "arn:aws:states:::emr-serverless:startJobRun.sync",
            "Parameters": job_run(job, limits),
            # EMR's own limit is reached first, so that the run has ended by the time this one is
            "TimeoutSeconds": limits.seconds_of(job) + limits.queue_seconds,
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
            "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": f"{job}: read outcome"}],
            "Next": after,
        },
        f"{job}: read outcome": _read_outcome(
            job,
            "The exit code that the job itself recorded decides",
            after=f"{job}: use outcome",
            unread=f"{job}: no outcome",
        ),
        f"{job}: use outcome": _pass("$.found.outcome", "$.outcome", f"{job}: retry?"),
        f"{job}: no outcome": {
            "Type": "Pass",
            "Result": {
                "code": -1,
                "reason": "the driver left no outcome: it was killed or cancelled, or never started",
                "remedy": "see the error and the log",
            },
            "ResultPath": "$.outcome",
            "Next": f"{job}: retry?",
        },
        f"{job}: retry?": {
            "Type": "Choice",
            "Choices": [
                {"Variable": "$.try.n", "NumericGreaterThanEquals": limits.tries, "Next": notify},
                {"Variable": "$.outcome.code", "NumericEquals": TRANSIENT_CODE, "Next": f"{job}: wait"},
                *({"And": [killed, sign], "Next": notify} for sign in permanent),
                {**killed, "Next": f"{job}: wait"},
            ],
            "Default": notify,
        },
        f"{job}: wait": {"Type": "Wait", "Seconds": limits.wait_seconds, "Next": f"{job}: next try"},
        f"{job}: next try": {
            "Type": "Pass",
            "Parameters": {"n.$": "States.MathAdd($.try.n, 1)"},
            "ResultPath": "$.try",
            "Next": job,
        },
        notify: {
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
                    "log.$": _log_page(job),
                },
            },
            "ResultPath": None,
            "Retry": [_PUBLISH_RETRY],
            "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": None, "Next": f"{job}: failed"}],
            "Next": f"{job}: failed",
        },
        f"{job}: failed": {"Type": "Fail", "Error": "Encore.JobFailed", "CausePath": "$.outcome.reason"},
    }


def _warnings(job: str, after: str) -> States:
    """States after a successful job that send its warnings, if its outcome has any. They never fail the pipeline: what
    cannot be read is reported, too."""
    return {
        f"{job}: read warnings": _read_outcome(
            job, "A job that succeeded may have warnings", after=f"{job}: warnings?", unread=f"{job}: warnings unknown"
        ),
        f"{job}: warnings?": {
            "Type": "Choice",
            "Choices": [{"Variable": "$.found.outcome.reason", "StringEquals": "", "Next": after}],
            "Default": f"{job}: warn",
        },
        f"{job}: warnings unknown": {
            "Type": "Pass",
            "Result": {
                "outcome": {
                    "reason": "its outcome could not be read, so its warnings are unknown",
                    "remedy": "see the log",
                }
            },
            "ResultPath": "$.found",
            "Next": f"{job}: warn",
        },
        f"{job}: warn": {
            "Type": "Task",
            "Resource": "arn:aws:states:::sns:publish",
            "Parameters": {
                "TopicArn": "${TopicArn}",
                "Subject": f"Encore: {job} warns",
                "Message": {
                    "job": job,
                    "run_id.$": "$.run_id",
                    "warning.$": "$.found.outcome.reason",
                    "remedy.$": "$.found.outcome.remedy",
                    "log.$": _log_page(job),
                },
            },
            "ResultPath": None,
            "Retry": [_PUBLISH_RETRY],
            "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": None, "Next": after}],
            "Next": after,
        },
    }


_PUBLISH_RETRY = {"ErrorEquals": ["States.TaskFailed"], "IntervalSeconds": 5, "MaxAttempts": 3, "BackoffRate": 2.0}


def _read_outcome(job: str, comment: str, *, after: str, unread: str) -> State:
    """Read the outcome of a job's try into `$.found.outcome`; `unread` is the next state if that fails."""
    return {
        "Type": "Task",
        "Comment": comment,
        "Resource": "arn:aws:states:::aws-sdk:s3:getObject",
        "Parameters": {
            "Bucket": "${LogBucket}",
            "Key.$": f"States.Format('{_outcome_key(job)}', $.run_id, $.try.n)",
        },
        "ResultSelector": {"outcome.$": "States.StringToJson($.Body)"},
        "ResultPath": "$.found",
        "TimeoutSeconds": 60,
        "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": None, "Next": unread}],
        "Next": after,
    }


def _log_page(job: str) -> str:
    """The console's page of a job's logs, as an expression."""
    page = "https://${Region}.console.aws.amazon.com/s3/buckets/${LogBucket}?prefix="
    return f"States.Format('{page}{_log_prefix(job)}', $.run_id)"


def _pass(source: str, target: str, after: str) -> State:
    return {"Type": "Pass", "InputPath": source, "ResultPath": target, "Next": after}


def _fail(error: str, cause: str) -> State:
    return {"Type": "Fail", "Error": error, "Cause": cause}


def substitute(value: Any, values: dict[str, str]) -> Any:
    """A definition with its placeholders replaced. KeyError for one without a value."""
    if isinstance(value, dict):
        return {name: substitute(inner, values) for name, inner in value.items()}
    if isinstance(value, list):
        return [substitute(inner, values) for inner in value]
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda found: values[found[1]], value)
    return value


def placeholders(value: Any) -> set[str]:
    """The names of all placeholders in a definition."""
    if isinstance(value, dict):
        return {name for inner in value.values() for name in placeholders(inner)}
    if isinstance(value, list):
        return {name for inner in value for name in placeholders(inner)}
    return set(_PLACEHOLDER.findall(value)) if isinstance(value, str) else set()
