"""What differs between dev, staging and prod, and what a deployment may choose by context (`cdk ... -c name=value`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from encore.errors import ConfigError


class UnknownStage(ConfigError):
    """A stage or a choice that there is not."""


@dataclass(frozen=True)
class Stage:
    """The choices of a deployment. No account number and no region: these are whoever deploys."""

    name: str
    keep: bool
    """Whether data outlives the stack."""
    max_vcpu: int
    """Most that the Serverless application takes at a time: a limit on what a mistake can cost."""
    nat_gateways: int
    nightly: bool
    """Whether the schedules are on."""
    timezone: str = "Etc/UTC"
    hour: int = 2
    prewarmed: bool = False
    """Whether workers wait, started and paid for, so that a job begins in seconds."""
    ec2: bool = False
    """Whether there is an EMR cluster on EC2 too."""
    mlflow: Literal["fargate", "sagemaker"] = "fargate"
    domain: str = "encore.internal"
    """Private zone in which MLflow is `mlflow.<domain>`; a certificate for it is to be in ACM."""
    repository: str = "OWNER/encore"
    """Of the delivery pipeline, as the connection to the host of its git knows it."""
    branch: str = "main"


STAGES = {
    "dev": Stage("dev", keep=False, max_vcpu=32, nat_gateways=1, nightly=False),
    "staging": Stage("staging", keep=False, max_vcpu=64, nat_gateways=1, nightly=True),
    "prod": Stage("prod", keep=True, max_vcpu=200, nat_gateways=2, nightly=True),
}

CHOICES = tuple(field.name for field in fields(Stage) if field.name != "name")


def stage_of(context: Mapping[str, Any]) -> Stage:
    """The stage that the context names, with what else it chooses. Raises UnknownStage for what there is not."""
    unknown = [name for name in context if name not in ("stage", *CHOICES)]
    if unknown:
        raise UnknownStage(f"no choice {unknown[0]!r}; one of: {', '.join(CHOICES)}")
    name = context.get("stage") or "dev"
    if name not in STAGES:
        raise UnknownStage(f"no stage {name!r}; one of: {', '.join(STAGES)}")
    stage = STAGES[name]
    chosen = {key: _typed(key, getattr(stage, key), context[key]) for key in CHOICES if context.get(key) is not None}
    return replace(stage, **chosen)


def _typed(name: str, default: Any, value: Any) -> Any:
    """A choice, which the command line gives as text, in the type of its default."""
    if name == "mlflow" and value not in ("fargate", "sagemaker"):
        raise UnknownStage(f"mlflow={value}: fargate or sagemaker expected")
    if isinstance(default, bool):
        if str(value).lower() not in ("true", "false"):
            raise UnknownStage(f"{name}={value}: true or false expected")
        return str(value).lower() == "true"
    if isinstance(default, int):
        if not str(value).isdigit():
            raise UnknownStage(f"{name}={value}: a whole number expected")
        return int(value)
    return str(value)
