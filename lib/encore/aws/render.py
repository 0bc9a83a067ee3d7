"""How a job is started: on this machine, by EMR Serverless, or as a step of an EMR cluster on EC2. Nothing else knows.

All three run the same entry point, `jobs/<job>.py`, with the same arguments. On EMR, Python and all that EMR lacks come
out of the application archive (`make package`), which Spark unpacks as `environment` where a driver or an executor
works; Spark and Delta are EMR's own. A submission carries its whole configuration: nothing depends on what an earlier
one, an application's defaults or a cluster's files say. What is secret is not part of it (`tracking.login`).
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
from encore.spark.session import DELTA_SETTINGS

ARCHIVE = "environment.tar.gz"
"""Of the application archive, within the folder of the code."""

PYTHON = "./environment/bin/python"
"""Where the archive's Python is, seen from the working folder of a driver or an executor."""

SERVERLESS_JARS = "/usr/share/aws/delta/lib/delta-spark.jar,/usr/share/aws/delta/lib/delta-storage.jar"
"""Delta on EMR Serverless. A cluster has it on its class path by the classification `delta-defaults`."""

TARGETS = ("local", "emr-serverless", "emr-ec2")


@dataclass(frozen=True)
class Submission:
    """One start of a job: its name, `--env`, settings (a.b=value) and the pipeline run that it is part of.

    `outcome`: where it is to write how it failed (`encore.runtime.outcome`). `spark`: settings of Spark that count
    only before a JVM is there, such as sizes of executors.
    """

    job: str
    env: str
    settings: tuple[str, ...]
    run_id: str
    spark: tuple[tuple[str, str], ...] = ()
    outcome: str | None = None
    force: bool = False

    def arguments(self) -> list[str]:
        """What the entry point is given."""
        found = ["--env", self.env, "--run-id", self.run_id, "--set-json", json.dumps(list(self.settings))]
        found += ["--outcome", self.outcome] if self.outcome else []
        return found + (["--force"] if self.force else [])


def submission(job: str, config: Config, run_id: str, *, outcome: str | None = None, force: bool = False) -> Submission:
    """The start of a job with the whole of a configuration. ConfigError where that would carry a login in the open."""
    settings = []
    for section, values in config.model_dump(mode="json").items():
        if section in ("env", "emr"):
            continue
        for name, value in values.items():
            if (section, name) == ("tracking", "uri") and config.tracking.login:
                # the job finds it in the secret
                continue
            if redact(value) != value:
                raise ConfigError(
                    f"{section}.{name} holds a login, and would stand in a command line and a log",
                    remedy="put it into AWS Secrets Manager and name it by tracking.login",
                )
            # JSON is YAML: what is sent is read as it was
            settings.append(f"{section}.{name}={json.dumps(value)}")
    return Submission(job, config.env, tuple(settings), run_id, launch_settings(config), outcome, force)


def launch_settings(config: Config) -> tuple[tuple[str, str], ...]:
    """Settings of Spark that a configuration names, sorted: those of sizes count only before a JVM is there."""
    memory = config.spark.driver_memory
    driver = {"spark.driver.memory": memory} if memory else {}
    return tuple(sorted({**config.spark.settings, **driver}.items()))


def local(asked: Submission, master: str | None, program: str = "spark-submit", jobs: str = "jobs") -> list[str]:
    """A command of this machine. `program`: spark-submit; `jobs`: the folder of the entry points."""
    command = [program, *(["--master", master] if master else []), *_conf(dict(asked.spark))]
    return [*command, f"{jobs}/{asked.job}.py", *asked.arguments()]


def _serverless_settings(code: str) -> dict[str, str]:
    return {
        **DELTA_SETTINGS,
        "spark.archives": f"{code}/{ARCHIVE}#environment",
        "spark.emr-serverless.driverEnv.PYSPARK_DRIVER_PYTHON": PYTHON,
        "spark.emr-serverless.driverEnv.PYSPARK_PYTHON": PYTHON,
        "spark.executorEnv.PYSPARK_PYTHON": PYTHON,
        "spark.jars": SERVERLESS_JARS,
    }


def serverless(
    job: str,
    arguments: Any,
    *,
    application: str,
    role: str,
    code: str,
    log_uri: str,
    name: str,
    minutes: int,
    spark: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    """The parameters of `startJobRun`, as the API names them.

    `arguments`: a list, or what makes one in a state machine; `code`: s3:// folder of the application archive and the
    entry points; `log_uri`: s3:// folder of the logs.
    """
    options = _conf({**dict(spark), **_serverless_settings(code)})
    return {
        "applicationId": application,
        "executionRoleArn": role,
        "name": name,
        "executionTimeoutMinutes": minutes,
        "tags": {"encore:job": job},
        "jobDriver": {
            "sparkSubmit": {
                "entryPoint": f"{code}/jobs/{job}.py",
                "entryPointArguments": arguments,
                # a word is quoted only where it must be: AWS's own examples quote none
                "sparkSubmitParameters": " ".join(shlex.quote(word) if " " in word else word for word in options),
            }
        },
        "configurationOverrides": {"monitoringConfiguration": {"s3MonitoringConfiguration": {"logUri": log_uri}}},
    }


def ec2_step(asked: Submission, code: str) -> dict[str, Any]:
    """A step of a cluster: the driver runs on a node as well, which the archive reaches as it does the executors."""
    settings = {
        **dict(asked.spark),
        **DELTA_SETTINGS,
        "spark.archives": f"{code}/{ARCHIVE}#environment",
        "spark.executorEnv.PYSPARK_PYTHON": PYTHON,
        "spark.yarn.appMasterEnv.PYSPARK_DRIVER_PYTHON": PYTHON,
        "spark.yarn.appMasterEnv.PYSPARK_PYTHON": PYTHON,
        # a second try of the driver would write over what the first one said
        "spark.yarn.maxAppAttempts": "1",
    }
    command = ["spark-submit", "--master", "yarn", "--deploy-mode", "cluster", *_conf(settings)]
    return {
        "Name": f"{asked.job} {asked.run_id}",
        "ActionOnFailure": "CONTINUE",
        "HadoopJarStep": {
            "Jar": "command-runner.jar",
            "Args": [*command, f"{code}/jobs/{asked.job}.py", *asked.arguments()],
        },
    }


def _conf(settings: dict[str, str]) -> list[str]:
    return [part for name, value in sorted(settings.items()) for part in ("--conf", f"{name}={value}")]
