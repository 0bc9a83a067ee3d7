"""What differs between dev, staging and prod, and what a deployment may choose by context (`cdk ... -c name=value`).

The values are those of `conf/deploy/stages.yaml`, which a team commits; those of a context win over them, for one call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, ValidationError, field_validator

from encore.aws.cost import Workers, workers_of
from encore.config import Section, conf_dir, load_config, read_yaml
from encore.errors import ConfigError


class UnknownStage(ConfigError):
    """A stage or a choice that there is not, or a value that a choice cannot have."""


class Stage(Section):
    """The choices of a deployment. No account number and no region: these are whoever deploys."""

    name: str
    keep: bool = Field(description="Whether data outlives the stack.")
    max_vcpu: int = Field(
        description="Most that the Serverless application takes at a time: a limit on what a mistake can cost."
    )
    nat_gateways: int = Field(ge=1, description="Ways out of the private network: jobs ask services through them.")
    nightly: bool = Field(description="Whether the schedules are on.")
    timezone: str = Field(description="Of the schedules.")
    hour: int = Field(ge=0, le=23, description="At which the nightly run starts.")
    prewarmed: bool = Field(description="Whether workers wait, started and paid for, so that a job begins in seconds.")
    ec2: bool = Field(description="Whether there is an EMR cluster on EC2 too.")
    mlflow: Literal["fargate", "sagemaker"] = Field(description="Who runs MLflow: we, or SageMaker.")
    base_image: str = Field(min_length=1, description="That MLflow's image is built on.")
    domain: str = Field(
        description="Private zone in which MLflow is `mlflow.<domain>`; a certificate for it is to be in ACM."
    )
    repository: str = Field(description="Of the delivery pipeline, as the connection to the host of its git knows it.")
    branch: str = Field(min_length=1, description="That the pipeline delivers.")

    @field_validator("timezone")
    @classmethod
    def _is_a_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError("a time zone such as Europe/Berlin expected") from error
        return value

    @field_validator("domain")
    @classmethod
    def _is_a_domain(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", value):
            raise ValueError("a domain such as encore.internal expected")
        return value

    @field_validator("repository")
    @classmethod
    def _is_a_repository(cls, value: str) -> str:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)+", value):
            raise ValueError("owner/name expected")
        return value


CHOICES = tuple(name for name in Stage.model_fields if name != "name")

COMMON = "common"
"""What the stages share, in the file beside them."""

OF_THE_PIPELINE = ("repository", "branch")
"""Choices that no stage has for itself: there is one pipeline for all."""


def stage_of(context: Mapping[str, Any]) -> Stage:
    """The stage that the context names, with what else it chooses. UnknownStage for what there is not or cannot be."""
    _only(("stage", *CHOICES), context)
    name = "dev" if context.get("stage") is None else str(context["stage"])
    committed, sizes = _committed(), _sizes()
    stages = {stage: _checked(stage, values, sizes, where) for stage, (values, where) in committed.items()}
    if name not in stages:
        raise UnknownStage(f"no stage {name!r}; one of: {', '.join(stages)}")
    chosen = {key: _typed(key, context[key]) for key in CHOICES if context.get(key) is not None}
    return _checked(name, {**committed[name][0], **chosen}, sizes, "")


def _committed() -> dict[str, tuple[dict[str, Any], str]]:
    """By the name of a stage its values in conf/deploy/stages.yaml, and how a message begins that is about them."""
    path: Path = conf_dir() / "deploy" / "stages.yaml"
    found = read_yaml(path)
    for stage, values in found.items():
        if not isinstance(values, dict):
            raise UnknownStage(f"{path}: {stage}: a mapping of choices expected, {values!r} found")
        _only(CHOICES, values, f"{path}: {stage}: ")
        own = [name for name in OF_THE_PIPELINE if stage != COMMON and name in values]
        if own:
            raise UnknownStage(f"{path}: {stage}: {own[0]}: there is one pipeline for all stages; move it to {COMMON}")
    common = found.pop(COMMON, {})
    return {stage: ({**common, **values}, f"{path}: {stage}: ") for stage, values in found.items()}


def _only(known: tuple[str, ...], given: Mapping[str, Any], where: str = "") -> None:
    """UnknownStage for the first name that is none of those that are known."""
    unknown = [name for name in given if name not in known]
    if unknown:
        raise UnknownStage(f"{where}no choice {unknown[0]!r}; one of: {', '.join(CHOICES)}")


PREWARMED = 4
"""Executors that wait beside a driver where `prewarmed` is chosen."""


def _sizes() -> Workers:
    """Of a driver and an executor, as jobs ask for them."""
    emr = load_config("emr", ["lake.path=s3://unused", "raw.playlists=s3://unused"])
    return workers_of(emr.spark.settings, emr.spark.driver_memory, executors=1)


def _checked(name: str, values: Mapping[str, Any], sizes: Workers, where: str) -> Stage:
    """A stage of these values. UnknownStage, one sentence about the first that is wrong."""
    try:
        stage = Stage.model_validate({"name": name, **values})
    except ValidationError as error:
        wrong = error.errors()[0]
        choice = str(wrong["loc"][0])
        if wrong["type"] == "missing":
            raise UnknownStage(f"{where}{choice}: missing") from error
        raise UnknownStage(f"{where}{choice}={wrong['input']}: {_expected(wrong)}") from error
    executors = PREWARMED if stage.prewarmed else 1
    # with fewer no job ever begins
    least = sizes.driver_vcpu + executors * sizes.executor_vcpu
    if stage.max_vcpu < least:
        raise UnknownStage(
            f"{where}max_vcpu={stage.max_vcpu}: at least {least} expected, for a driver and {executors} executor(s)"
        )
    return stage


def _typed(name: str, value: Any) -> Any:
    """A choice, which the command line gives as text, in the type of its field where it can be read as one."""
    expected = Stage.model_fields[name].annotation
    if expected is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    if expected is int and re.fullmatch(r"-?[0-9]+", str(value)):
        return int(value)
    return value


_EXPECTED = {
    "bool_type": "true or false expected",
    "int_type": "a whole number expected",
    "string_type": "a text expected",
    "string_too_short": "a text expected",
}


def _expected(wrong: Mapping[str, Any]) -> str:
    """What pydantic misses, in words."""
    about = wrong.get("ctx", {})
    if wrong["type"] == "greater_than_equal":
        return f"at least {about['ge']} expected"
    if wrong["type"] == "less_than_equal":
        return f"at most {about['le']} expected"
    if wrong["type"] == "literal_error":
        return f"{about['expected'].replace(chr(39), '')} expected"
    if wrong["type"] == "value_error":
        return str(about["error"])
    return _EXPECTED.get(wrong["type"], str(wrong["msg"]).lower())
