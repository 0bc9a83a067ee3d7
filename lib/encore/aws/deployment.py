"""A deployed stage: the outputs of its stacks, and the settings with which jobs run on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from encore.aws.account import client, translate_errors
from encore.aws.stage import Stage, load_stage
from encore.aws.states import camel
from encore.errors import EnvironmentMissing, InputError
from encore.findings import Finding

ROLE_OUTPUT = "RoleOf"
"""Prefix of the output with a job's role: RoleOfBuildCentroids."""

STACKS = ("storage", "mlflow", "compute")
"""Stacks whose outputs a submission needs."""

ClientFactory = Callable[[str], Any]
"""Returns the boto3 client of a service, by the name of the service."""


def stack_outputs(stage: str, clients: ClientFactory) -> dict[str, str]:
    """Outputs of a stage's stacks, by name. InputError if the stage is not deployed in this account and region."""
    found: dict[str, str] = {}
    for stack in STACKS:
        found |= outputs_of(stage, stack, clients)
    return found


def outputs_of(stage: str, stack: str, clients: ClientFactory) -> dict[str, str]:
    """Outputs of one stack of a stage, by name. InputError if it is not deployed in this account and region."""
    formation, name = clients("cloudformation"), f"encore-{stage}-{stack}"
    check_credentials(load_stage({"stage": stage}), clients, formation.meta.region_name)
    try:
        with translate_errors(f"stack {name}"):
            return _outputs(name, formation)
    except InputError as error:
        raise InputError(
            f"stack {name}: does not exist in {formation.meta.region_name}",
            remedy=f"run `make deploy STAGE={stage}`, or set AWS_REGION and AWS_PROFILE to where it is deployed",
        ) from error


def check_credentials(stage: Stage, clients: ClientFactory, region: str) -> None:
    """EnvironmentMissing if the caller's account or region is not the stage's own."""
    if not stage.region:
        return
    account = ""
    if stage.account:
        with translate_errors("AWS account"):
            account = str(clients("sts").get_caller_identity()["Account"])
    for finding in (region_finding(stage, region), account_finding(stage, account, account)):
        if finding.remedy:
            raise EnvironmentMissing(f"{finding.what}: {finding.fact}", remedy=finding.remedy)


def region_finding(stage: Stage, region: str) -> Finding:
    """Whether the region is the stage's own. With a region of its own the CDK deploys there, whatever is set."""
    what = "AWS region"
    if stage.region and region != stage.region:
        return Finding(what, f"{region}, but {stage.name} is in {stage.region}", f"set AWS_REGION={stage.region}")
    if region == stage.replica_region:
        return Finding(
            what, f"{region}, to which the lake would be replicated as well", "choose another replica_region"
        )
    return Finding(what, region)


def account_finding(stage: Stage, account: str, identity: str) -> Finding:
    """Whether the account is the stage's own. `identity`: what to say of the caller."""
    if stage.account and account != stage.account:
        return Finding(
            "AWS account",
            f"{identity}, but {stage.name} is in {stage.account}",
            f"set AWS_PROFILE to a profile of the account {stage.account}",
        )
    return Finding("AWS account", identity)


def _outputs(stack: str, formation: Any) -> dict[str, str]:
    described = formation.describe_stacks(StackName=stack)["Stacks"][0]
    return {item["OutputKey"]: item["OutputValue"] for item in described.get("Outputs", ())}


def stack_output(stack: str, name: str, clients: ClientFactory) -> str | None:
    """One output of a stack; None if the stack has no such output. Raises boto's error if there is no such stack."""
    return _outputs(stack, clients("cloudformation")).get(name)


def stage_settings(stage: str, job: str, clients: ClientFactory) -> list[str]:
    """Settings that run a job on a stage's resources. The caller's own settings come after them and take precedence."""
    outputs = stack_outputs(stage, clients)

    def output(name: str) -> str:
        if name not in outputs:
            raise InputError(
                f"stage {stage}: none of its stacks has the output {name}",
                remedy=f"its deployment failed, or was of an older commit: run `make deploy STAGE={stage}`",
            )
        return outputs[name]

    found = {
        "lake.path": output("LakePath"),
        "raw.playlists": f"s3://{output('RawBucket')}/playlists/",
        "raw.features": f"s3://{output('RawBucket')}/features/",
        "tracking.login": output("TrackingLogin"),
        "emr.application": output("ApplicationId"),
        "emr.role": output(f"{ROLE_OUTPUT}{camel(job)}"),
        "emr.code": output("CodePath"),
        "emr.logs": f"s3://{output('LogBucket')}",
        "emr.stage": stage,
    }
    if "ClusterId" in outputs:
        found["emr.cluster"] = outputs["ClusterId"]
    return [f"{name}={value}" for name, value in found.items()]


def client_factory(region: str | None) -> ClientFactory:
    """A factory of clients for one region."""
    return lambda service: client(service, region)
