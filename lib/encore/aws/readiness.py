"""Whether an account is ready for the deployment of a stage: findings, each with a remedy if something is missing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from encore.aws.application import STILL
from encore.aws.deployment import ClientFactory, account_finding, client_factory, region_finding, stack_output
from encore.aws.stage import Stage
from encore.errors import EncoreError, InputError
from encore.findings import Finding
from encore.lake.failures import aws_error
from encore.serving.bundle import MANIFEST

BOOTSTRAP = "CDKToolkit"
"""The stack that `cdk bootstrap` makes."""

VCPU_QUOTA = ("emr-serverless", "L-D05C8A75")
"""Service and code of the quota on concurrent vCPUs of EMR Serverless in an account."""


def findings(
    stage: Stage,
    package: Path,
    clients: ClientFactory,
    region: str | None,
    elsewhere: Callable[[str], ClientFactory] = client_factory,
) -> Iterator[Finding]:
    """Check everything that deploying a stage needs, in the order in which a deployment would fail on it.

    `elsewhere`: returns the clients of another region.
    """
    yield _package(package)
    yield from placeholder_findings(stage)
    if region is None:
        yield Finding("AWS region", "not set", "set AWS_REGION, or `region` in the profile")
        return
    yield region_finding(stage, region)
    identity = _call("AWS account", lambda: clients("sts").get_caller_identity())
    if isinstance(identity, Finding):
        yield identity
        return
    account = str(identity["Account"])
    yield account_finding(stage, account, f"{account}, as {identity['Arn'].rsplit(':', 1)[-1]}")
    yield _bootstrap("CDK bootstrap", clients, "run `make cdk ARGS=bootstrap`")
    if stage.replica_region:
        place = f"aws://{account}/{stage.replica_region}"
        yield _bootstrap(
            f"CDK bootstrap in {stage.replica_region}",
            elsewhere(stage.replica_region),
            f"run `make cdk ARGS='bootstrap {place}'`: the copy of the lake is deployed there",
        )
    yield _encryption(stage, clients)
    if stage.mlflow == "fargate":
        if stage.domain:
            host = f"mlflow.{stage.domain}"
            yield _certificate("certificate", "certificate", stage, host, clients, str(identity["Account"]), region)
        else:
            yield Finding("certificate", "none: MLflow speaks HTTP inside the VPC, to the stage's own groups alone")
        yield _docker()
    if stage.serving != "none":
        yield from scorer_findings(stage, clients, str(identity["Account"]), region)
    if stage.connection:
        yield _connection(stage.connection, clients, region)
    else:
        yield Finding("delivery pipeline", "none: the choices connection and repository are empty")
    if stage.budget:
        yield budget_finding(clients)
    yield _quota(stage, clients)
    yield _release(stage.release, clients)
    yield _application(stage, clients)


PLACEHOLDER_DOMAINS = ("example.com", "example.net", "example.org", "example", "test", "invalid", "encore.internal")
"""Domains that examples use. They belong to nobody, so no public authority certifies a name in them."""

PLACEHOLDER_ACCOUNTS = ("111122223333", "444455556666", "123456789012", "000000000000")
"""Accounts that AWS's documentation uses."""


def placeholder_findings(stage: Stage) -> Iterator[Finding]:
    """Each choice that still has the value of an example."""
    for choice in ("domain", "serving_domain"):
        value = getattr(stage, choice)
        if any(value == domain or value.endswith(f".{domain}") for domain in PLACEHOLDER_DOMAINS):
            remedy = f"choose a domain that you own, or leave {choice} and its certificate empty"
            yield Finding(f"choice {choice}", f"{value} is a placeholder", remedy)
    for choice in ("account", "certificate", "serving_certificate", "connection", "analysts"):
        value = getattr(stage, choice)
        account = next((one for one in PLACEHOLDER_ACCOUNTS if one in value.split(":")), None)
        if account:
            what = "the account" if choice == "account" else "the ARN"
            remedy = f"give {what} of your own, or leave {choice} empty"
            yield Finding(f"choice {choice}", f"{account} is a placeholder of an account", remedy)


def _package(folder: Path) -> Finding:
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return Finding("application archive", f"none in {folder}", "run `make package`")
    try:
        content = json.loads(manifest.read_text())
    except ValueError:
        return Finding("application archive", f"{manifest}: not valid JSON, truncated?", "run `make package`")
    commit, dirty = content["commit"][:12], str(content["commit"]).endswith("-dirty")
    return Finding(
        "application archive",
        f"version {content['version']} of commit {commit}{', with uncommitted changes' if dirty else ''}",
        "commit them, and run `make package` again" if dirty else None,
        warning=True,
    )


def _call(what: str, call: Callable[[], Any], missing: Finding | None = None) -> Any:
    """The result of a call to AWS, or a finding that says why it failed: `missing`, if given, where the resource does
    not exist."""
    try:
        return call()
    except (BotoCoreError, ClientError) as error:
        translated = aws_error(what, error)
    except EncoreError as error:
        return _unavailable(what, error)
    return missing if missing is not None and isinstance(translated, InputError) else _unavailable(what, translated)


def _unavailable(what: str, error: EncoreError) -> Finding:
    return Finding(what, str(error).removeprefix(f"{what}: "), error.remedy or "see the message")


def _exists(what: str, call: Callable[[], str], remedy: str) -> Finding:
    """A finding with the result of a call to AWS; with `remedy` if the resource does not exist."""
    found = _call(what, call, Finding(what, "not found", remedy))
    return found if isinstance(found, Finding) else Finding(what, found)


def _encryption(stage: Stage, clients: ClientFactory) -> Finding:
    """Whether the choice of a key can take effect: what is stored cannot be encrypted again by a deployment."""
    what, stack = "encryption", f"encore-{stage.name}-key"
    key = _call(what, lambda: stack_output(stack, "", clients) or stack, Finding(what, "by AWS's own keys"))
    exists = not isinstance(key, Finding)
    if not stage.customer_key:
        if not exists:
            return key
        fact = f"what is stored needs the key of {stack}, which jobs could not use any more"
        return Finding(what, fact, "set customer_key=true")
    if exists:
        return Finding(what, f"by the key of {stack}")
    database = f"encore-{stage.name}-mlflow"
    none = Finding(what, f"by a key that {stack} will create")
    if key.remedy or stage.mlflow != "fargate":
        return key if key.remedy else none
    deployed = _call(what, lambda: stack_output(database, "", clients) or database, none)
    if isinstance(deployed, Finding):
        return deployed
    fact = f"CloudFormation would replace the database of {database} by an empty one with the key"
    return Finding(what, fact, "set customer_key=false, or remove the stage first: a key is chosen before that")


def _bootstrap(what: str, clients: ClientFactory, remedy: str) -> Finding:
    found = _exists(
        what,
        lambda: clients("cloudformation").describe_stacks(StackName=BOOTSTRAP)["Stacks"][0]["StackStatus"],
        remedy,
    )
    complete = found.fact in ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE")
    return found if found.remedy or complete else Finding(what, f"the stack {BOOTSTRAP} is {found.fact}", remedy)


def _docker() -> Finding:
    program = os.environ.get("CDK_DOCKER", "docker")
    path = shutil.which(program)
    return Finding(
        "Docker",
        path or f"{program} is not on the PATH",
        None if path else "install it, or set CDK_DOCKER to finch or podman: it builds MLflow's image",
    )


def _certificate(
    what: str, choice: str, stage: Stage, host: str, clients: ClientFactory, account: str, region: str
) -> Finding:
    """Whether a choice names a certificate that a load balancer of the stage can present for the host."""
    arn = getattr(stage, choice)
    remedy = f"request a certificate for {host} in ACM in {region}, and set {choice} to its ARN"
    if arn.split(":")[3:5] != [region, account]:
        return Finding(what, f"{arn} is not of {region} and account {account}, as a load balancer requires", remedy)
    found = _call(
        what,
        lambda: clients("acm").describe_certificate(CertificateArn=arn)["Certificate"],
        Finding(what, f"{arn} does not exist", remedy),
    )
    if isinstance(found, Finding):
        return found
    issued, names = found["Status"] == "ISSUED", [found["DomainName"], *found.get("SubjectAlternativeNames", ())]
    covers = host in names or f"*.{host.partition('.')[2]}" in names
    fact = f"{found['Status'].lower()}, for {', '.join(dict.fromkeys(names))}"
    if issued and covers and found.get("Type") == "PRIVATE":
        remedy = "jobs trust the authorities in certifi: give them the private one's bundle in REQUESTS_CA_BUNDLE"
        return Finding(what, f"{fact}, by a private authority", remedy, warning=True)
    return Finding(what, fact, None if issued and covers else remedy)


def _connection(arn: str, clients: ClientFactory, region: str) -> Finding:
    """Whether the pipeline can fetch through a connection: a new one is pending until a person has authorised it."""
    what, (_, _, service, of_region, _) = "git connection", arn.split(":", 4)
    if of_region != region:
        remedy = f"check its status: `aws {service} get-connection --connection-arn {arn} --region {of_region}`"
        return Finding(what, f"in {of_region}, not checked from {region}", remedy, warning=True)
    found = _call(
        what,
        lambda: clients(service).get_connection(ConnectionArn=arn)["Connection"],
        Finding(what, f"{arn} does not exist", "create one (CodeConnections), and set connection to its ARN"),
    )
    if isinstance(found, Finding):
        return found
    status = str(found["ConnectionStatus"])
    remedy = "open it in the console, under Developer Tools, Settings, Connections, and authorise it at the git host"
    fact = f"{found['ConnectionName']} ({found['ProviderType']}), {status.lower()}"
    return Finding(what, fact, None if status == "AVAILABLE" else remedy)


def scorer_findings(stage: Stage, clients: ClientFactory, account: str, region: str) -> Iterator[Finding]:
    """What the stack of the scorer needs in addition."""
    yield _image(stage, clients)
    if stage.serving_domain:
        host = stage.serving_domain
        yield _certificate("scorer certificate", "serving_certificate", stage, host, clients, account, region)
    if not stage.serving_bundle:
        model = f"encore-{stage.serving_model}"
        yield Finding("scorer model", f"the champion of {model}; register one first: tasks without a model never start")
        return
    bucket, key = f"encore-{stage.name}-artefacts-{account}-{region}", f"{stage.serving_bundle}/{MANIFEST}"

    def size() -> str:
        return f"s3://{bucket}/{key}, {clients('s3').head_object(Bucket=bucket, Key=key)['ContentLength']:,} bytes"

    yield _exists(
        "scorer bundle",
        size,
        f"register a model, and name the folder of its bundle: s3://{bucket}/{key} does not exist",
    )


def _image(stage: Stage, clients: ClientFactory) -> Finding:
    """Whether the scorer's image is in ECR, under a name that stays with it."""
    what, image = "scorer image", stage.serving_image
    repository, separator, version = image.partition("@" if "@" in image else ":")
    id_ = {"imageDigest" if separator == "@" else "imageTag": version}
    found = _call(
        what,
        lambda: clients("ecr").describe_images(repositoryName=repository, imageIds=[id_])["imageDetails"][0],
        Finding(what, f"{image} not found", f"push it to the repository {repository} in this account's ECR"),
    )
    if isinstance(found, Finding):
        return found
    fact = f"{image}, {found.get('imageSizeInBytes', 0) / 1e6:,.0f} MB"
    if separator == "@":
        return Finding(what, fact)
    about = _call(what, lambda: clients("ecr").describe_repositories(repositoryNames=[repository])["repositories"][0])
    if isinstance(about, Finding):
        return about
    fixed = str(about.get("imageTagMutability", "MUTABLE")).startswith("IMMUTABLE")
    return Finding(
        what,
        fact if fixed else f"{fact}; its tag may be moved to another image",
        None if fixed else f"make tags of {repository} immutable, or name the image by its digest",
        warning=True,
    )


STAGE_TAG = "encore:stage"
"""The tag of all resources of a stage, by which its budget finds them on the bill."""


def budget_finding(clients: ClientFactory) -> Finding:
    """Whether the tag by which a budget is filtered is one of those by which the account's costs are split."""
    what = "budget"
    found = _call(
        what,
        lambda: clients("ce").list_cost_allocation_tags(TagKeys=[STAGE_TAG], Type="UserDefined")["CostAllocationTags"],
    )
    remedy = f"activate the tag {STAGE_TAG} in the billing console of the paying account, a day after the deployment"
    if isinstance(found, Finding):
        return Finding(what, f"unknown whether the tag {STAGE_TAG} is activated: {found.fact}", remedy, warning=True)
    active = [one for one in found if one["Status"] == "Active"]
    if active:
        return Finding(what, f"the tag {STAGE_TAG} is activated for the bill")
    return Finding(what, f"the tag {STAGE_TAG} is not activated: the budget would count nothing", remedy, warning=True)


def _quota(stage: Stage, clients: ClientFactory) -> Finding:
    service, code = VCPU_QUOTA
    what = "vCPU quota"
    found = _call(
        what, lambda: clients("service-quotas").get_service_quota(ServiceCode=service, QuotaCode=code)["Quota"]["Value"]
    )
    if isinstance(found, Finding):
        return Finding(what, f"unknown: {found.fact}", "look it up in Service Quotas", warning=True)
    enough = found >= stage.max_vcpu
    return Finding(
        what,
        f"{found:.0f} vCPUs in the account, the stage may use {stage.max_vcpu}",
        None if enough else "request an increase in Service Quotas, or deploy with a lower max_vcpu",
        warning=True,
    )


def _release(label: str, clients: ClientFactory) -> Finding:
    found = _call("EMR release", lambda: clients("emr").list_release_labels(Filters={"Prefix": label})["ReleaseLabels"])
    if isinstance(found, Finding):
        return Finding(
            "EMR release",
            f"unknown: {found.fact}",
            "grant the deploying user elasticmapreduce:ListReleaseLabels",
            warning=True,
        )
    return Finding(
        "EMR release",
        label if label in found else f"{label} is not offered in this region",
        None if label in found else "deploy to a region that has it, or choose another release",
    )


def _application(stage: Stage, clients: ClientFactory) -> Finding:
    """The application of an earlier deployment: EMR Serverless accepts changes only while it is created or stopped."""
    what = "EMR Serverless application"
    none, stack = Finding(what, "none yet"), f"encore-{stage.name}-compute"
    id_ = _call(what, lambda: stack_output(stack, "ApplicationId", clients), none) or none
    if isinstance(id_, Finding):
        return id_
    state = _call(what, lambda: clients("emr-serverless").get_application(applicationId=id_)["application"]["state"])
    if isinstance(state, Finding):
        return state
    remedy = f"`make deploy` stops it first; before `cdk deploy`, run `encore deploy stop --stage {stage.name}`"
    return Finding(what, f"{id_} is {state.lower()}", None if state in STILL else remedy, warning=True)
