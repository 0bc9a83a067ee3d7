"""A deployment as the account shows it: where a stage's buckets and roles are, and whether one can be made."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from encore.aws.account import aws_error, client, said
from encore.aws.stage import Stage, stage_of
from encore.aws.states import camel
from encore.errors import EncoreError, InputError
from encore.findings import Finding

ROLE_OUTPUT = "RoleOf"
"""How the output with the role of a job begins: RoleOfBuildCentroids."""

STACKS = ("storage", "mlflow", "compute")
"""Stacks whose outputs a submission needs."""

Clients = Callable[[str], Any]
"""A client of boto3's by the name of its service."""


def outputs(stage: str, clients: Clients) -> dict[str, str]:
    """Outputs of a stage's stacks, by name. InputError where the stage was not deployed in this account and region."""
    stage_of({"stage": stage})
    found: dict[str, str] = {}
    formation = clients("cloudformation")
    for stack in STACKS:
        name = f"encore-{stage}-{stack}"
        try:
            with said(f"stack {name}"):
                found |= _outputs_of(name, formation)
        except InputError as error:
            raise InputError(
                f"stack {name}: is not in {formation.meta.region_name}",
                remedy=f"call `make deploy STAGE={stage}`, or set AWS_REGION and AWS_PROFILE to where it is",
            ) from error
    return found


def _outputs_of(stack: str, formation: Any) -> dict[str, str]:
    described = formation.describe_stacks(StackName=stack)["Stacks"][0]
    return {item["OutputKey"]: item["OutputValue"] for item in described.get("Outputs", ())}


def settings_of(stage: str, job: str, clients: Clients) -> list[str]:
    """Settings that send a job to what a stage made; those that a caller gives come after them, and win."""
    made = outputs(stage, clients)

    def out(name: str) -> str:
        if name not in made:
            raise InputError(
                f"stage {stage}: none of its stacks has an output {name}",
                remedy=f"it is of an older commit, or its deployment failed: call `make deploy STAGE={stage}`",
            )
        return made[name]

    found = {
        "lake.path": out("LakePath"),
        "raw.playlists": f"s3://{out('RawBucket')}/playlists/",
        "raw.features": f"s3://{out('RawBucket')}/features/",
        "tracking.login": out("TrackingLogin"),
        "emr.application": out("ApplicationId"),
        "emr.role": out(f"{ROLE_OUTPUT}{camel(job)}"),
        "emr.code": out("CodePath"),
        "emr.logs": f"s3://{out('LogBucket')}",
    }
    if "ClusterId" in made:
        found["emr.cluster"] = made["ClusterId"]
    return [f"{name}={value}" for name, value in found.items()]


RELEASE = "emr-spark-8.1.0"
"""Spark 4.1.1, Delta 4.2.0, Python 3.11."""

BOOTSTRAP = "CDKToolkit"
"""The stack that `cdk bootstrap` makes."""

VCPU_QUOTA = ("emr-serverless", "L-D05C8A75")
"""Quota of EMR Serverless: vCPUs of an account at a time."""


def findings(stage: Stage, package: Path, clients: Clients, region: str | None) -> Iterator[Finding]:
    """Is all there that a deployment of a stage needs? In the order in which it would miss it."""
    yield _package(package)
    if region is None:
        yield Finding("AWS region", "none is set", "set AWS_REGION, or region in the profile")
        return
    yield Finding("AWS region", region)
    who = _ask("AWS account", lambda: clients("sts").get_caller_identity())
    if isinstance(who, Finding):
        yield who
        return
    yield Finding("AWS account", f"{who['Account']}, as {who['Arn'].rsplit(':', 1)[-1]}")
    yield _bootstrap(clients)
    if stage.mlflow == "fargate":
        yield _certificate(stage, clients)
        yield _docker()
    yield _there(
        "git connection",
        lambda: _parameter(clients, "/encore/git-connection"),
        "make a connection to your git host (CodeConnections); put its ARN into the parameter /encore/git-connection",
    )
    yield _quota(stage, clients)
    yield _release(clients)
    yield _application(stage, clients)


def _package(folder: Path) -> Finding:
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return Finding("application archive", f"none in {folder}", "call `make package`")
    try:
        made = json.loads(manifest.read_text())
    except ValueError:
        return Finding("application archive", f"{manifest}: not JSON, it was cut", "call `make package`")
    dirty = str(made["commit"]).endswith("-dirty")
    return Finding(
        "application archive",
        f"version {made['version']} of commit {made['commit'][:12]}{' and changes to it' if dirty else ''}",
        "commit, and call `make package` again" if dirty else None,
        warning=True,
    )


def _ask(what: str, call: Callable[[], Any], missing: Finding | None = None) -> Any:
    """What AWS answers, or a finding of why it does not; `missing`, where one is given, if it says that this is not
    there."""
    try:
        return call()
    except (BotoCoreError, ClientError) as error:
        told = aws_error(what, error)
    except EncoreError as error:
        return _told(what, error)
    return missing if missing is not None and isinstance(told, InputError) else _told(what, told)


def _told(what: str, error: EncoreError) -> Finding:
    return Finding(what, str(error).removeprefix(f"{what}: "), error.remedy or "look at the message")


def _there(what: str, call: Callable[[], str], remedy: str) -> Finding:
    """What AWS answers; with a remedy where it says that this is not there, else with that of its own words."""
    found = _ask(what, call, Finding(what, "not there", remedy))
    return found if isinstance(found, Finding) else Finding(what, found)


def _bootstrap(clients: Clients) -> Finding:
    what, remedy = "CDK bootstrap", "call `make cdk ARGS=bootstrap`"
    found = _there(
        what,
        lambda: clients("cloudformation").describe_stacks(StackName=BOOTSTRAP)["Stacks"][0]["StackStatus"],
        remedy,
    )
    whole = found.fact in ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE")
    return found if found.remedy or whole else Finding(what, f"the stack {BOOTSTRAP} is {found.fact}", remedy)


def _docker() -> Finding:
    program = os.environ.get("CDK_DOCKER", "docker")
    path = shutil.which(program)
    return Finding(
        "Docker",
        path or f"no program {program}",
        None if path else "install it, or name another by CDK_DOCKER (finch, podman): MLflow's image is built by it",
    )


def _parameter(clients: Clients, name: str) -> str:
    value: str = clients("ssm").get_parameter(Name=name)["Parameter"]["Value"]
    return value


def _certificate(stage: Stage, clients: Clients) -> Finding:
    what, name = "certificate", f"/encore/{stage.name}/mlflow-certificate"
    remedy = f"put the ARN of a certificate for mlflow.{stage.domain} into the parameter {name} (SSM, String)"
    parameter = _there(what, lambda: _parameter(clients, name), remedy)
    if parameter.remedy:
        return Finding(what, f"parameter {name}: {parameter.fact}", parameter.remedy)
    arn = parameter.fact
    found = _ask(what, lambda: clients("acm").describe_certificate(CertificateArn=arn)["Certificate"])
    if isinstance(found, Finding):
        return found
    issued, names = found["Status"] == "ISSUED", [found["DomainName"], *found.get("SubjectAlternativeNames", ())]
    fits = f"mlflow.{stage.domain}" in names or f"*.{stage.domain}" in names
    return Finding(
        what, f"{found['Status'].lower()}, for {', '.join(dict.fromkeys(names))}", None if issued and fits else remedy
    )


def _quota(stage: Stage, clients: Clients) -> Finding:
    service, code = VCPU_QUOTA
    what = "quota of vCPUs"
    found = _ask(
        what, lambda: clients("service-quotas").get_service_quota(ServiceCode=service, QuotaCode=code)["Quota"]["Value"]
    )
    if isinstance(found, Finding):
        return Finding(what, f"not known: {found.fact}", "look at it in Service Quotas", warning=True)
    enough = found >= stage.max_vcpu
    return Finding(
        what,
        f"{found:.0f} at a time, {stage.max_vcpu} are allowed to the stage",
        None if enough else "ask for more in Service Quotas, or deploy with a lower max_vcpu",
        warning=True,
    )


def _release(clients: Clients) -> Finding:
    found = _ask(
        "EMR release", lambda: clients("emr").list_release_labels(Filters={"Prefix": RELEASE})["ReleaseLabels"]
    )
    if isinstance(found, Finding):
        return Finding(
            "EMR release", f"not known: {found.fact}", "let whoever deploys list release labels", warning=True
        )
    return Finding(
        "EMR release",
        RELEASE if RELEASE in found else f"{RELEASE} is not listed in this region",
        None if RELEASE in found else "deploy to a region that has it",
    )


def _application(stage: Stage, clients: Clients) -> Finding:
    """Of an earlier deployment: EMR Serverless takes changes to one that is created or stopped, and no others."""
    what = "EMR Serverless application"
    none, stack = Finding(what, "none yet"), f"encore-{stage.name}-compute"
    id_ = _ask(what, lambda: _outputs_of(stack, clients("cloudformation")).get("ApplicationId"), none) or none
    if isinstance(id_, Finding):
        return id_
    state = _ask(what, lambda: clients("emr-serverless").get_application(applicationId=id_)["application"]["state"])
    if isinstance(state, Finding):
        return state
    still = state in ("CREATED", "STOPPED", "TERMINATED")
    remedy = f"before a deployment that changes it: `aws emr-serverless stop-application --application-id {id_}`"
    return Finding(what, f"{id_} is {state.lower()}", None if still else remedy, warning=True)


def clients_of(region: str | None) -> Clients:
    """Clients of one region."""
    return lambda service: client(service, region)
