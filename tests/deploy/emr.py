"""EMR Serverless for moto's state machine interpreter: `startJobRun.sync` runs the job with a real spark-submit."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from moto.stepfunctions.parser.api import HistoryEventType, TaskFailedEventDetails
from moto.stepfunctions.parser.asl.component.common.error_name.custom_error_name import CustomErrorName
from moto.stepfunctions.parser.asl.component.common.error_name.failure_event import (
    FailureEvent,
    FailureEventException,
)
from moto.stepfunctions.parser.asl.component.common.error_name.states_error_name import StatesErrorName
from moto.stepfunctions.parser.asl.component.common.error_name.states_error_name_type import StatesErrorNameType
from moto.stepfunctions.parser.asl.component.state.exec.state_task import state_task_factory
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service.resource import ResourceCondition
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service.state_task_service_aws_sdk import (
    StateTaskServiceAwsSdk,
)
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service.state_task_service_callback import (
    StateTaskServiceCallback,
)
from moto.stepfunctions.parser.asl.eval.event.event_detail import EventDetails

from tests.conftest import FAST_JVM, ROOT

ON_EMR = ("spark.archives", "spark.jars", "spark.emr-serverless.", "spark.executorEnv.PYSPARK_PYTHON")
"""Settings with paths on EMR, not needed here: on this machine pyspark and its jars are installed."""

_TASK_FAILED = StatesErrorName(StatesErrorNameType.StatesTaskFailed)

DRIVER = "spark.emr-serverless.driverEnv."


class ServiceError(Exception):
    """An error of the API call itself, such as ThrottlingException."""


@dataclass(frozen=True)
class RunResult:
    """How a job run ended: the driver's exit code, the end of its log, and its full output with its arguments."""

    code: int
    log: str = ""
    output: str = ""


Runner = Callable[[str, dict[str, Any]], RunResult]
"""Runs the named job with the parameters of startJobRun."""


class _StartJobRun(StateTaskServiceCallback):
    runner: Runner

    def __init__(self) -> None:
        super().__init__(supported_integration_patterns={ResourceCondition.Sync})

    def _get_supported_parameters(self) -> set[str] | None:
        if self.resource.api_action != "startJobRun":
            return None
        names = "ApplicationId ExecutionRoleArn Name ExecutionTimeoutMinutes Tags JobDriver ConfigurationOverrides"
        return set(names.split())

    def _eval_service_task(self, env: Any, *_: Any, normalised_parameters: Any, **__: Any) -> None:
        self._parameters = normalised_parameters
        env.stack.append({"ApplicationId": self._parameters["ApplicationId"], "JobRunId": uuid.uuid4().hex[:16]})

    def _eval_integration_pattern(self, env: Any, *_: Any, **__: Any) -> None:
        started = env.stack.pop()
        job = Path(self._parameters["JobDriver"]["SparkSubmit"]["EntryPoint"]).stem
        try:
            ended = type(self).runner(job, self._parameters)
        except ServiceError as error:
            self._fail(env, f"EMRServerless.{error}", "the service's response to the call")
            return
        if ended.code:
            details = f"Job failed, please check complete logs. ExitCode: {ended.code}. Last few exceptions: none"
            self._fail(env, "States.TaskFailed", json.dumps({**started, "State": "FAILED", "StateDetails": details}))
        env.stack.append({**started, "State": "SUCCESS"})

    def _fail(self, env: Any, error: str, cause: str) -> None:
        details = TaskFailedEventDetails(
            resource=self._get_sfn_resource(), resourceType=self._get_sfn_resource_type(), error=error, cause=cause
        )
        raise FailureEventException(
            FailureEvent(
                env=env,
                error_name=_TASK_FAILED if error == "States.TaskFailed" else CustomErrorName(error),
                event_type=HistoryEventType.TaskFailed,
                event_details=EventDetails(taskFailedEventDetails=details),
            )
        )


class _AwsSdk(StateTaskServiceAwsSdk):
    """moto's own, plus what Step Functions does but moto does not: objects are passed on as text, and the names of
    response fields are capitalized whatever the service calls them."""

    def _eval_service_task(self, env: Any, *arguments: Any, normalised_parameters: Any, **named: Any) -> None:
        given = normalised_parameters
        if self.resource.api_name == "sfn":
            given = {name[0].lower() + name[1:]: value for name, value in normalised_parameters.items()}
        super()._eval_service_task(env, *arguments, normalised_parameters=given, **named)
        answer = {name[0].upper() + name[1:]: value for name, value in env.stack.pop().items()}
        if hasattr(answer.get("Body"), "read"):
            answer["Body"] = answer["Body"].read().decode()
        env.stack.append({name: value for name, value in answer.items() if not hasattr(value, "isoformat")})


@contextmanager
def emr_serverless(runner: Runner) -> Iterator[None]:
    """While the block runs, moto's interpreter runs jobs with `runner`."""
    known = state_task_factory.state_task_service_for

    class Task(_StartJobRun):
        pass

    Task.runner = staticmethod(runner)  # type: ignore[assignment]

    def service_for(service_name: str) -> Any:
        own = {"emr-serverless": Task, "aws-sdk": _AwsSdk}
        return own[service_name]() if service_name in own else known(service_name)

    with mock.patch.object(state_task_factory, "state_task_service_for", service_for):
        yield


def spark_submit(job: str, parameters: dict[str, Any], environment: dict[str, str], folder: Path) -> RunResult:
    """Run the requested job with this machine's spark-submit, in a folder of its own, and wait for it."""
    submit = parameters["JobDriver"]["SparkSubmit"]
    settings = [item for item in shlex.split(submit["SparkSubmitParameters"]) if item != "--conf"]
    driver = dict(item.removeprefix(DRIVER).split("=", 1) for item in settings if item.startswith(DRIVER))
    own = [item for item in settings if not item.startswith(ON_EMR)]
    own += ["spark.ui.enabled=false", f"spark.driver.extraJavaOptions={FAST_JVM}", "spark.driver.memory=1g"]
    own += ["spark.driver.host=127.0.0.1", "spark.driver.bindAddress=127.0.0.1", "spark.default.parallelism=2"]
    command = [str(Path(sys.executable).with_name("spark-submit")), "--master", "local[2]"]
    command += [part for item in own for part in ("--conf", item)]
    command += [str(ROOT / "jobs" / f"{job}.py"), *submit["EntryPointArguments"]]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))}
    python = {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
    wanted = {name: value for name, value in driver.items() if not name.startswith("PYSPARK")}
    done = subprocess.run(
        command,
        env={**inherited, **python, **wanted, **environment},
        # not the checkout: jobs must not depend on their working directory
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return RunResult(
        done.returncode,
        done.stderr[-1000:] + done.stdout[-3000:],
        f"{json.dumps(parameters)} {done.args} {done.stdout} {done.stderr}",
    )
