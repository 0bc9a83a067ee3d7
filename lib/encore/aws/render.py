"""How a job is started: on this machine, on EMR Serverless, or as a step on an EMR cluster. Only this module knows.

All three run the same entry point, `jobs/<job>.py`, with the same arguments. On EMR, Python and every package that EMR
lacks come from the application archive (`make package`), which Spark unpacks as `environment` in the working directory
of drivers and executors; Spark and Delta are EMR's own. A submission carries its complete configuration, so nothing
depends on earlier submissions, application defaults or files on a cluster. It carries no secrets: a job reads MLflow's
login from Secrets Manager (`tracking.login`).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from encore.config import Config
from encore.errors import ConfigError
from encore.log import redact
from encore.runtime.registry import SMOKE
from encore.spark.session import DELTA_SETTINGS

ARCHIVE = "environment.tar.gz"
"""File name of the application archive in the code folder."""

PYTHON = "./environment/bin/python"
"""The archive's Python, relative to the working directory of a driver or an executor."""

SERVERLESS_JARS = "/usr/share/aws/delta/lib/delta-spark.jar,/usr/share/aws/delta/lib/delta-storage.jar"
"""Delta on EMR Serverless. On a cluster, the classification `delta-defaults` puts it on the class path."""

TARGETS = ("local", "emr-serverless", "emr-ec2")


@dataclass(frozen=True)
class Submission:
    """One start of a job: its name, `--env`, settings (a.b=value) and the pipeline run that it is part of.

    `outcome`: where the job writes how it failed (`encore.runtime.outcome`). `spark`: Spark settings that only take
    effect before the JVM starts, such as executor sizes.
    """

    job: str
    env: str
    settings: tuple[str, ...]
    run_id: str
    spark: tuple[tuple[str, str], ...] = ()
    outcome: str | None = None
    force: bool = False
    take_over: bool = False

    def arguments(self) -> list[str]:
        """The arguments of the entry point."""
        found = ["--env", self.env, "--run-id", self.run_id, "--set-json", json.dumps(list(self.settings))]
        found += ["--outcome", self.outcome] if self.outcome else []
        found += ["--force"] if self.force else []
        return found + (["--take-over"] if self.take_over else [])


def make_submission(
    job: str,
    config: Config,
    run_id: str,
    *,
    outcome: str | None = None,
    force: bool = False,
    take_over: bool = False,
) -> Submission:
    """A submission with a complete configuration. ConfigError if that would expose a login."""
    settings = []
    for section, values in config.model_dump(mode="json").items():
        if section in ("env", "emr"):
            continue
        for name, value in values.items():
            if (section, name) == ("tracking", "uri") and config.tracking.login:
                # the job reads it from the secret
                continue
            if redact(value) != value:
                raise ConfigError(
                    f"{section}.{name} holds a login, which would appear on a command line and in logs",
                    remedy="store it in AWS Secrets Manager and set tracking.login to the secret",
                )
            # JSON is valid YAML, so values are parsed back unchanged
            settings.append(f"{section}.{name}={json.dumps(value)}")
    spark = settings_of(job, launch_settings(config))
    return Submission(job, config.env, tuple(settings), run_id, spark, outcome, force, take_over)


def launch_settings(config: Config) -> tuple[tuple[str, str], ...]:
    """The Spark settings of a configuration, sorted. Sizes only take effect before the JVM starts."""
    memory = config.spark.driver_memory
    driver = {"spark.driver.memory": memory} if memory else {}
    return tuple(sorted({**config.spark.settings, **driver}.items()))


_EXECUTORS = ("spark.dynamicAllocation.initialExecutors", "spark.dynamicAllocation.maxExecutors")


def settings_of(job: str, spark: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The Spark settings of a job: the smoke job has a single task, so it gets a single executor."""
    if job != SMOKE:
        return tuple(spark)
    return tuple((name, "1" if name in _EXECUTORS else value) for name, value in spark)


def local_command(
    submission: Submission, master: str | None, program: str = "spark-submit", jobs: str = "jobs"
) -> list[str]:
    """The command that runs a job on this machine. `program`: spark-submit; `jobs`: the folder of the entry points."""
    command = [program, *(["--master", master] if master else []), *_conf_options(dict(submission.spark))]
    return [*command, f"{jobs}/{submission.job}.py", *submission.arguments()]


def _serverless_settings(code: str) -> dict[str, str]:
    return {
        **DELTA_SETTINGS,
        "spark.archives": f"{code}/{ARCHIVE}#environment",
        "spark.emr-serverless.driverEnv.PYSPARK_DRIVER_PYTHON": PYTHON,
        "spark.emr-serverless.driverEnv.PYSPARK_PYTHON": PYTHON,
        "spark.executorEnv.PYSPARK_PYTHON": PYTHON,
        "spark.jars": SERVERLESS_JARS,
    }


def serverless_request(
    job: str,
    arguments: Any,
    *,
    application: str,
    role: str,
    code: str,
    log_uri: str,
    name: str,
    minutes: int,
    stage: str | None,
    spark: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    """The parameters of `startJobRun`, by the names of the API.

    `arguments`: a list, or an intrinsic function that makes one in a state machine; `code`: s3:// folder of the
    application archive and the entry points; `log_uri`: s3:// folder of the logs; `stage`: who pays for the run, by
    its tags.
    """
    options = _conf_options({**dict(spark), **_serverless_settings(code)})
    return {
        "applicationId": application,
        "executionRoleArn": role,
        "name": name,
        "executionTimeoutMinutes": minutes,
        "tags": {"encore:job": job, "encore:part": "jobs"} | ({"encore:stage": stage} if stage else {}),
        "jobDriver": {
            "sparkSubmit": {
                "entryPoint": f"{code}/jobs/{job}.py",
                "entryPointArguments": arguments,
                # quote only where necessary: AWS's own examples quote nothing
                "sparkSubmitParameters": " ".join(shlex.quote(word) if " " in word else word for word in options),
            }
        },
        "configurationOverrides": {"monitoringConfiguration": {"s3MonitoringConfiguration": {"logUri": log_uri}}},
    }


def ec2_step(submission: Submission, code: str) -> dict[str, Any]:
    """A step for an EMR cluster. The driver runs on a node too, and gets the archive just as executors do."""
    settings = {
        **dict(submission.spark),
        **DELTA_SETTINGS,
        "spark.archives": f"{code}/{ARCHIVE}#environment",
        "spark.executorEnv.PYSPARK_PYTHON": PYTHON,
        "spark.yarn.appMasterEnv.PYSPARK_DRIVER_PYTHON": PYTHON,
        "spark.yarn.appMasterEnv.PYSPARK_PYTHON": PYTHON,
        # a second attempt of the driver would overwrite the outcome of the first
        "spark.yarn.maxAppAttempts": "1",
    }
    command = ["spark-submit", "--master", "yarn", "--deploy-mode", "cluster", *_conf_options(settings)]
    return {
        "Name": f"{submission.job} {submission.run_id}",
        "ActionOnFailure": "CONTINUE",
        "HadoopJarStep": {
            "Jar": "command-runner.jar",
            "Args": [*command, f"{code}/jobs/{submission.job}.py", *submission.arguments()],
        },
    }


def _conf_options(settings: dict[str, str]) -> list[str]:
    return [part for name, value in sorted(settings.items()) for part in ("--conf", f"{name}={value}")]
