"""The choices that differ between the stages dev, staging and prod, and how a deployment overrides them.

Values come from `conf/deploy/stages.yaml`, which a team commits. The CDK context (`cdk ... -c name=value`) overrides
them for one call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, ValidationError, field_validator

from encore.aws.cost import Workers, worker_sizes
from encore.config import Section, conf_dir, load_config, read_yaml
from encore.errors import ConfigError
from encore.runtime.graph import compose, width
from encore.runtime.registry import nodes


class StageError(ConfigError):
    """An unknown stage or choice, or an invalid value."""


_CERTIFICATE = r"^(arn:aws[a-z-]*:acm:[a-z0-9-]+:[0-9]{12}:certificate/[0-9a-f-]+)?$"


_DOMAIN = r"[a-z0-9-]+(\.[a-z0-9-]+)+"


class Stage(Section):
    """The choices of a deployment. Without an account and a region, those of the caller's credentials are used."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,17}$", description="It is part of the names of buckets and others.")
    account: str = Field(
        pattern=r"^([0-9]{12})?$", description="Account of the stage; without one, that of the caller's credentials."
    )
    region: str = Field(
        pattern=r"^([a-z]{2}(-[a-z]+)+-[0-9])?$", description="Region of the stage; without one, the caller's."
    )
    keep: bool = Field(description="Whether data is kept when the stacks are deleted.")
    max_vcpu: int = Field(
        description="Maximum concurrent vCPUs of the EMR Serverless application: it limits what a mistake can cost."
    )
    nat_gateways: int = Field(
        ge=1, description="NAT gateways, through which jobs in the private subnets reach external services."
    )
    nightly: bool = Field(description="Whether the schedules are enabled.")
    timezone: str = Field(description="Time zone of the schedules.")
    hour: int = Field(ge=0, le=23, description="Hour at which the nightly run starts.")
    prewarmed: bool = Field(
        description="Whether workers are kept started, and billed, so that a job begins within seconds."
    )
    release: Literal["emr-spark-8.1.0", "emr-spark-8.2.0"] = Field(description="Release of EMR.")
    ec2: bool = Field(description="Whether to create an EMR cluster on EC2 as well.")
    mlflow: Literal["fargate", "sagemaker"] = Field(
        description="Where MLflow runs: on Fargate, or managed by SageMaker."
    )
    base_image: str = Field(description="Base image of the MLflow image, with its digest: NAME:TAG@sha256:DIGEST.")
    domain: str = Field(
        description="MLflow is at https://mlflow.<domain>; without one, it speaks HTTP to the stage's own groups alone."
    )
    certificate: str = Field(pattern=_CERTIFICATE, description="ARN of the certificate in ACM for `mlflow.<domain>`.")
    serving: Literal["none", "fargate", "sagemaker"] = Field(
        description="Where the scorer runs: nowhere, on Fargate behind a load balancer, or as an endpoint of SageMaker."
    )
    serving_access: Literal["private", "public"] = Field(
        description="Whether the scorer's load balancer is reached from the VPC alone, or from the internet."
    )
    serving_domain: str = Field(
        description="The scorer's domain name, which needs `serving_certificate`; without one, HTTP in the VPC."
    )
    serving_certificate: str = Field(
        pattern=_CERTIFICATE, description="ARN of the certificate in ACM for `serving_domain`."
    )
    serving_image: str = Field(
        description="The scorer's image in this account's ECR: repository:tag, or repository@sha256:digest."
    )
    serving_model: str = Field(description="The model that is served: the champion of `encore-<model>`.")
    serving_bundle: str = Field(
        description="Folder with a bundle in the artefact bucket, which is served instead of the registry's champion."
    )
    serving_max: int = Field(
        ge=2, le=100, description="Maximum number of tasks or instances: it limits what a mistake can cost."
    )
    serving_rate: int = Field(
        ge=10, description="Requests that one address may send in five minutes before the firewall blocks it."
    )
    customer_key: bool = Field(
        description="Whether buckets, tables and logs are encrypted with a key of the stage, in place of AWS's own."
    )
    replica_region: str = Field(
        pattern=r"^([a-z]{2}(-[a-z]+)+-[0-9])?$",
        description="Region to which the lake's bucket is replicated; without one, it is not.",
    )
    analysts: str = Field(
        pattern=r"^(arn:aws[a-z-]*:iam::[0-9]{12}:[\w+=,.@/-]+)?$",
        description="ARN of the principal that may assume the role of readers; without one, whom IAM allows to.",
    )
    budget: int = Field(ge=0, description="Dollars a month, of which a message is sent at 80 and 100 %; 0 for none.")
    run_hours: int = Field(ge=1, le=24, description="Hours after which a run that is not done raises an alarm.")
    connection: str = Field(
        pattern=r"^(arn:aws[a-z-]*:code(connections|star-connections):[a-z0-9-]+:[0-9]{12}:connection/[0-9a-f-]+)?$",
        description="ARN of the connection to the git host (CodeConnections); without one, there is no pipeline.",
    )
    sandbox_nightly: bool = Field(
        description="Whether the pipeline deploys the stage sandbox each night, runs it and removes it again."
    )
    repository: str = Field(description="Repository that the delivery pipeline deploys, by its name at the git host.")
    branch: str = Field(min_length=1, description="Branch that the delivery pipeline deploys.")

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError("a time zone such as Europe/Berlin expected") from error
        return value

    @field_validator("domain", "serving_domain")
    @classmethod
    def _check_domain(cls, value: str) -> str:
        if value and not re.fullmatch(_DOMAIN, value):
            raise ValueError("nothing, or a domain name such as music.example.com expected")
        return value

    @field_validator("base_image")
    @classmethod
    def _check_base_image(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z0-9][\w.:/-]*@sha256:[0-9a-f]{64}", value):
            raise ValueError("an image with its digest, NAME:TAG@sha256:DIGEST, expected: a tag alone may be moved")
        return value

    @field_validator("serving_image")
    @classmethod
    def _check_serving_image(cls, value: str) -> str:
        if value and not re.fullmatch(r"[a-z0-9]+([._/-][a-z0-9]+)*(:[\w][\w.-]{0,127}|@sha256:[0-9a-f]{64})", value):
            raise ValueError("repository:tag or repository@sha256:digest in this account's ECR expected")
        if value.endswith(":latest"):
            raise ValueError("a tag that stays with its image expected: a task that starts later would run another")
        return value

    @field_validator("serving_model")
    @classmethod
    def _check_serving_model(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", value):
            raise ValueError("the name of a model such as ranker expected")
        return value

    @field_validator("serving_bundle")
    @classmethod
    def _check_serving_bundle(cls, value: str) -> str:
        if value and (not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", value) or ".." in value.split("/")):
            raise ValueError("a folder such as artefacts/1/models/m-1/artifacts/artifacts/bundle expected")
        return value

    @field_validator("repository")
    @classmethod
    def _check_repository(cls, value: str) -> str:
        if value and not re.fullmatch(r"[\w.-]+(/[\w.-]+)+", value):
            raise ValueError("nothing, or owner/name expected")
        return value


CHOICES = tuple(name for name in Stage.model_fields if name != "name")

COMMON = "common"
"""Key of the values that all stages share, in the same file."""

PIPELINE_CHOICES = ("connection", "repository", "branch", "sandbox_nightly")
"""Choices that cannot differ between stages, since all share one delivery pipeline."""


def load_stage(context: Mapping[str, Any]) -> Stage:
    """The stage that the context names, with the context's choices. StageError for an unknown name or invalid value."""
    _reject_unknown(("stage", *CHOICES), context)
    name = "dev" if context.get("stage") is None else str(context["stage"])
    committed, sizes = _committed(), _worker_sizes()
    stages = {stage: _validated(stage, values, sizes, prefix) for stage, (values, prefix) in committed.items()}
    if name not in stages:
        raise StageError(f"no stage {name!r}; one of: {', '.join(stages)}")
    chosen = {key: _typed(key, context[key]) for key in CHOICES if context.get(key) is not None}
    return _validated(name, {**committed[name][0], **chosen}, sizes, "")


def _committed() -> dict[str, tuple[dict[str, Any], str]]:
    """By stage, its values in conf/deploy/stages.yaml and the prefix of messages about them."""
    path: Path = conf_dir() / "deploy" / "stages.yaml"
    found = read_yaml(path)
    for stage, values in found.items():
        if not isinstance(values, dict):
            raise StageError(f"{path}: {stage}: a mapping of choices expected, {values!r} found")
        _reject_unknown(CHOICES, values, f"{path}: {stage}: ")
        own = [name for name in PIPELINE_CHOICES if stage != COMMON and name in values]
        if own:
            raise StageError(f"{path}: {stage}: {own[0]}: all stages share one pipeline; move it to {COMMON}")
    common = found.pop(COMMON, {})
    return {stage: ({**common, **values}, f"{path}: {stage}: ") for stage, values in found.items()}


def _reject_unknown(known: tuple[str, ...], given: Mapping[str, Any], prefix: str = "") -> None:
    """StageError for the first name that is not known; `prefix` begins the message."""
    unknown = [name for name in given if name not in known]
    if unknown:
        raise StageError(f"{prefix}no choice {unknown[0]!r}; one of: {', '.join(CHOICES)}")


PREWARMED = 4
"""Executors that `prewarmed` keeps started, in addition to a driver."""


def _worker_sizes() -> Workers:
    """Sizes of a driver and an executor, as jobs request them."""
    emr = load_config("emr", ["lake.path=s3://unused", "raw.playlists=s3://unused"])
    return worker_sizes(emr.spark.settings, emr.spark.driver_memory)


@cache
def concurrent_jobs() -> int:
    """The maximum number of jobs that the state machine runs at the same time."""
    return width(compose(nodes()))


def _validated(name: str, values: Mapping[str, Any], sizes: Workers, prefix: str) -> Stage:
    """A stage with these values. StageError about the first invalid one."""
    try:
        stage = Stage.model_validate({"name": name, **values})
    except ValidationError as error:
        first = error.errors()[0]
        choice = str(first["loc"][0])
        if first["type"] == "missing":
            raise StageError(f"{prefix}{choice}: missing") from error
        raise StageError(f"{prefix}{choice}={first['input']}: {_expected(first)}") from error
    _check_capacity(stage, sizes, prefix)
    _check_serving(stage, prefix)
    _check_account(stage, prefix)
    _check_certificates(stage, prefix)
    _check_pipeline(stage, prefix)
    _check_place(stage, prefix)
    return stage


def refuse(stage: Stage, prefix: str, choice: str, reason: str, remedy: str) -> NoReturn:
    """Raise the StageError about a choice that cannot be deployed together with the others."""
    raise StageError(f"{prefix}{choice}={getattr(stage, choice)}: {reason}", remedy=remedy)


def _check_account(stage: Stage, prefix: str) -> None:
    """StageError for an account that cannot exist."""
    if stage.account and not stage.account.strip("0"):
        remedy = "give the 12 digits of the stage's account, or leave it empty for that of your credentials"
        refuse(stage, prefix, "account", "no account has it", remedy)


def _check_certificates(stage: Stage, prefix: str) -> None:
    """StageError for a domain without a certificate or the reverse, or a certificate that the stage cannot use."""
    if stage.mlflow == "sagemaker" and stage.domain:
        remedy = "leave domain and certificate empty, or choose mlflow=fargate"
        refuse(stage, prefix, "domain", "SageMaker's server has an address of its own", remedy)
    for choice, domain, certificate, host in (
        ("domain", stage.domain, "certificate", f"mlflow.{stage.domain}"),
        ("serving_domain", stage.serving_domain, "serving_certificate", stage.serving_domain),
    ):
        arn = getattr(stage, certificate)
        if domain and not arn:
            remedy = f"set {certificate} to the ARN of a certificate for {host} in ACM, or leave {choice} empty"
            refuse(stage, prefix, choice, "HTTPS needs a certificate", remedy)
        if arn and not domain:
            refuse(stage, prefix, certificate, "it is for a domain", f"set {choice}, or leave {certificate} empty")
        if not arn:
            continue
        region, account = arn.split(":")[3:5]
        if stage.region and region != stage.region:
            remedy = f"request one in {stage.region}: a load balancer takes those of its own region only"
            refuse(stage, prefix, certificate, f"it is in {region}, and the stage in {stage.region}", remedy)
        if stage.account and account != stage.account:
            remedy = f"request one in account {stage.account}: a load balancer takes those of its own account only"
            refuse(stage, prefix, certificate, f"it is of account {account}, and the stage of {stage.account}", remedy)


def _check_pipeline(stage: Stage, prefix: str) -> None:
    """StageError for a delivery pipeline that lacks its connection or its repository."""
    if stage.repository.partition("/")[0] == "OWNER":
        remedy = "name your repository as owner/name, or leave it and connection empty: then there is no pipeline"
        refuse(stage, prefix, "repository", "a placeholder", remedy)
    if stage.connection and not stage.repository:
        remedy = "set repository to owner/name, or leave connection empty: then there is no pipeline"
        refuse(stage, prefix, "connection", "without a repository, there is nothing to fetch", remedy)
    if stage.repository and not stage.connection:
        remedy = "set connection to its ARN (CodeConnections), or leave repository empty: then there is no pipeline"
        refuse(stage, prefix, "repository", "without a connection, the pipeline cannot fetch it", remedy)
    if stage.sandbox_nightly and not stage.connection:
        remedy = "set connection and repository, or leave it false"
        refuse(stage, prefix, "sandbox_nightly", "there is no pipeline that would do it", remedy)


def _check_capacity(stage: Stage, sizes: Workers, prefix: str) -> None:
    """StageError if the jobs that run at the same time could block each other.

    Each of them needs its driver and at least one executor: if their drivers took up all of the capacity, each would
    wait forever for an executor. Workers that are kept started can only be used as what they were started as.
    """
    jobs = concurrent_jobs()
    executors = max(jobs, PREWARMED) if stage.prewarmed else jobs
    least = jobs * sizes.driver_vcpu + executors * sizes.executor_vcpu
    if stage.max_vcpu < least:
        kept = f", of which {PREWARMED} are kept started" if stage.prewarmed else ""
        refuse(
            stage,
            prefix,
            "max_vcpu",
            f"at least {least} expected: {jobs} jobs run at the same time, so {jobs} drivers of {sizes.driver_vcpu} "
            f"and {executors} executors of {sizes.executor_vcpu} vCPUs{kept}",
            "choose a larger maximum, or smaller workers in conf/emr.yaml",
        )


def _check_place(stage: Stage, prefix: str) -> None:
    """StageError for choices of account and region that cannot be deployed together."""
    if stage.account and not stage.region:
        refuse(
            stage,
            prefix,
            "account",
            "needs a region: it would be whichever the caller's credentials name",
            "set region to the stage's region",
        )
    if stage.replica_region and stage.replica_region == stage.region:
        refuse(
            stage,
            prefix,
            "replica_region",
            "is the region of the stage itself, whose failure the copy is for",
            "choose another region, or leave it empty",
        )
    if stage.replica_region and stage.region and _partition(stage.replica_region) != _partition(stage.region):
        refuse(
            stage,
            prefix,
            "replica_region",
            f"S3 does not replicate from {stage.region}, which is in another partition of AWS",
            "choose a region of the same partition",
        )


def _partition(region: str) -> str:
    """What separates regions that know nothing of each other: China, the GovCloud, and all others."""
    return next((prefix for prefix in ("cn-", "us-gov-", "us-iso") if region.startswith(prefix)), "")


def _check_serving(stage: Stage, prefix: str) -> None:
    """StageError for choices about the scorer that cannot be deployed together."""
    if stage.serving == "none":
        return
    if not stage.serving_image:
        refuse(
            stage,
            prefix,
            "serving_image",
            f"serving={stage.serving} needs an image",
            "push the scorer's image to ECR, and name it here",
        )
    if stage.serving == "sagemaker":
        if stage.serving_access == "public":
            refuse(
                stage,
                prefix,
                "serving_access",
                "callers reach an endpoint of SageMaker through the API of AWS, with their IAM role",
                "leave it private, or choose serving=fargate",
            )
        if stage.serving_domain:
            refuse(
                stage,
                prefix,
                "serving_domain",
                "an endpoint of SageMaker has no domain name of its own",
                "leave it empty, or choose serving=fargate",
            )
    if stage.serving_access == "public" and not stage.serving_domain:
        refuse(
            stage,
            prefix,
            "serving_access",
            "bearer tokens would cross the internet unencrypted",
            "set serving_domain and serving_certificate",
        )
    # the scorer talks to MLflow by user name and password; SageMaker's server wants requests signed
    unreachable = stage.serving == "sagemaker" or stage.mlflow == "sagemaker"
    if unreachable and not stage.serving_bundle:
        where = "an endpoint of SageMaker" if stage.serving == "sagemaker" else "the scorer with mlflow=sagemaker"
        refuse(
            stage,
            prefix,
            "serving_bundle",
            f"{where} does not reach the registry",
            "name the folder of a model version's bundle in the artefact bucket",
        )


def _typed(name: str, value: Any) -> Any:
    """A value from the command line converted to the type of its field, if it can be; else unchanged."""
    expected = Stage.model_fields[name].annotation
    if expected is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    if expected is int and re.fullmatch(r"-?[0-9]+", str(value)):
        return int(value)
    return value


_FORMS = {
    "name": "at most 18 lower-case letters, digits and hyphens, beginning with a letter",
    "account": "nothing, or 12 digits",
    "region": "nothing, or a region such as eu-west-1",
    "replica_region": "nothing, or a region such as eu-west-1",
    "certificate": "arn:aws:acm:REGION:ACCOUNT:certificate/ID",
    "serving_certificate": "arn:aws:acm:REGION:ACCOUNT:certificate/ID",
    "connection": "arn:aws:codeconnections:REGION:ACCOUNT:connection/ID",
    "analysts": "arn:aws:iam::ACCOUNT:role/NAME, or that of a user",
}
"""What a choice with a pattern looks like."""

_EXPECTED = {
    "string_pattern_mismatch": "another form expected",
    "bool_type": "true or false expected",
    "int_type": "a whole number expected",
    "string_type": "non-empty text expected",
    "string_too_short": "non-empty text expected",
}


def _expected(error: Mapping[str, Any]) -> str:
    """What pydantic expected, in words."""
    context = error.get("ctx", {})
    if error["type"] == "greater_than_equal":
        return f"at least {context['ge']} expected"
    if error["type"] == "less_than_equal":
        return f"at most {context['le']} expected"
    if error["type"] == "literal_error":
        return f"{context['expected'].replace(chr(39), '')} expected"
    if error["type"] == "string_pattern_mismatch" and str(error["loc"][0]) in _FORMS:
        return f"{_FORMS[str(error['loc'][0])]} expected"
    if error["type"] == "value_error":
        return str(context["error"])
    return _EXPECTED.get(error["type"], str(error["msg"]).lower())
