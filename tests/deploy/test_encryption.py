"""The choice `customer_key`: what is encrypted by the stage's key, and that each role may use it for all that it does.

What a role needs is derived here from its permissions on each encrypted resource, not from the code that grants it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deploy.choices import PIPELINE
from tests.deploy.serving import ENDPOINT, PRIVATE_SCORER, SCORER_OF_BUNDLE
from tests.deploy.simulator import applies, is_allowed, listed
from tests.deploy.synth import Template, plain, templates, text

KEY = "customer_key=true"
EXPORTED = "encore-dev-key-arn"

DECRYPT, GENERATE = "kms:Decrypt", "kms:GenerateDataKey"
NEEDS: dict[str, dict[str, tuple[str, ...]]] = {
    "AWS::S3::Bucket": {
        "s3:GetObject": (DECRYPT,),
        # also to decrypt: S3 reads the parts of a large upload when it joins them
        "s3:PutObject": (DECRYPT, GENERATE),
        "s3:GetObjectVersionForReplication": (DECRYPT,),
    },
    "AWS::SecretsManager::Secret": {
        "secretsmanager:GetSecretValue": (DECRYPT,),
        "secretsmanager:PutSecretValue": (DECRYPT, GENERATE),
    },
    "AWS::DynamoDB::GlobalTable": {"dynamodb:GetItem": (DECRYPT,), "dynamodb:PutItem": (DECRYPT, "kms:Encrypt")},
    "AWS::SNS::Topic": {"sns:Publish": (DECRYPT, GENERATE)},
    "AWS::SQS::Queue": {"sqs:SendMessage": (DECRYPT, GENERATE), "sqs:ReceiveMessage": (DECRYPT,)},
    "AWS::EMRServerless::Application": {"emr-serverless:StartJobRun": (DECRYPT, GENERATE)},
}
"""By type of resource: what an action on it needs on the key that encrypts it."""

SERVICES = {
    "AWS::S3::Bucket": "s3",
    "AWS::SecretsManager::Secret": "secretsmanager",
    "AWS::DynamoDB::GlobalTable": "dynamodb",
}

UNENCRYPTED = {
    "AWS::CloudWatch::Dashboard": "names of metrics",
    "AWS::CodeBuild::Project": "a project of the pipeline, with the pipeline's own key",
    "AWS::ECR::Repository": "code, not data",
    "AWS::ECS::Cluster": "settings of sessions and of temporary disks",
    "AWS::ECS::Service": "disks that end with a task",
    "AWS::KMS::Key": "a key",
    "AWS::Lambda::Function": "names of resources as environment variables",
    "AWS::StepFunctions::StateMachine": "names of runs, settings and errors, kept for 90 days",
    "AWS::Events::Rule": "a pattern",
    "AWS::Scheduler::Schedule": "the name of a schedule",
    "AWS::EMR::Cluster": "disks that end with the cluster",
    "AWS::SageMaker::Model": "names",
}
"""Types of resources that take a key and get none: why."""

CHOICES = [
    ("dev", KEY, *PIPELINE),
    ("dev", KEY, "ec2=true", "mlflow=sagemaker"),
    (*PRIVATE_SCORER, KEY),
    (*SCORER_OF_BUNDLE, KEY),
    (*ENDPOINT, KEY),
    ("dev", KEY, "replica_region=eu-west-1"),
]


class Deployment:
    """The templates of a stage, with what refers to what resolved across stacks."""

    def __init__(self, *choices: str) -> None:
        made = templates(*choices)
        self.stacks = {name: one for name, one in made.items() if name not in ("delivery", "replica")}
        self.exports = {
            text(one["Export"]["Name"]): text(one["Value"])
            for template in self.stacks.values()
            for one in template.get("Outputs", {}).values()
            if "Export" in one
        }
        self.resources = {name: one for template in self.stacks.values() for name, one in template["Resources"].items()}

    def plain(self, value: Any) -> Any:
        """A value with references resolved to the names of resources, wherever those are."""
        found = plain(value)
        if isinstance(found, str):
            for name, target in self.exports.items():
                found = found.replace(name, target)
            return found
        if isinstance(found, dict):
            return {name: self.plain(inner) for name, inner in found.items()}
        return [self.plain(inner) for inner in found] if isinstance(found, list) else found

    def encrypted(self) -> Iterator[tuple[str, str, list[str], str]]:
        """Name, type, examples of what policies call it, and key of each resource in NEEDS that has a key."""
        for name, one in self.resources.items():
            properties = one.get("Properties", {})
            match one["Type"]:
                case "AWS::S3::Bucket":
                    (rule,) = properties["BucketEncryption"]["ServerSideEncryptionConfiguration"]
                    key = rule["ServerSideEncryptionByDefault"].get("KMSMasterKeyID")
                    arn = self.plain(properties["BucketName"])
                    called = [f"{root}/{inner}" for root in (f"arn:aws:s3:::{arn}", f"{name}|Arn") for inner in OBJECTS]
                case "AWS::SecretsManager::Secret":
                    key = properties.get("KmsKeyId")
                    called = [name, *self.attachments(name)]
                case "AWS::DynamoDB::GlobalTable":
                    key = properties["Replicas"][0].get("SSESpecification", {}).get("KMSMasterKeyId")
                    called = [f"{name}|Arn"]
                case "AWS::SNS::Topic":
                    key, called = properties.get("KmsMasterKeyId"), [name]
                case "AWS::SQS::Queue":
                    key, called = properties.get("KmsMasterKeyId"), [f"{name}|Arn"]
                case "AWS::EMRServerless::Application":
                    logs = properties.get("MonitoringConfiguration", {}).get(
                        "ManagedPersistenceMonitoringConfiguration"
                    )
                    key = (logs or {}).get("EncryptionKeyArn")
                    called = [f"arn:aws:emr-serverless:REGION:ACCOUNT:/applications/{name}|ApplicationId"]
                case _:
                    continue
            if key is not None:
                yield name, one["Type"], called, self.plain(key)

    def attachments(self, secret: str) -> list[str]:
        """The database's attachment of a secret, by which policies call it."""
        return [
            name
            for name, one in self.resources.items()
            if one["Type"] == "AWS::SecretsManager::SecretTargetAttachment"
            and text(one["Properties"]["SecretId"]) == secret
        ]

    def roles(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Each role, with the statements of its own and of attached policies."""
        for role, one in self.resources.items():
            if one["Type"] != "AWS::IAM::Role":
                continue
            documents = [policy["PolicyDocument"] for policy in one["Properties"].get("Policies", ())]
            documents += [
                other["Properties"]["PolicyDocument"]
                for other in self.resources.values()
                if other["Type"] == "AWS::IAM::Policy" and role in map(text, other["Properties"]["Roles"])
            ]
            yield role, [self.plain(statement) for document in documents for statement in document["Statement"]]


OBJECTS = (
    *("lake/tracks/x", "lake/models/x", "lake/_scratch/report-0/x", "lake/_smoke/run/x", "lake/_lock", "readers/x"),
    *("playlists/x", "features/x", "tracks/x", "v1/jobs/x.py", "logs/report/x", "outcomes/report/x", "cluster/x"),
    *("artefacts/x", "artefacts/1/models/m-0123/artifacts/artifacts/bundle/x", "x"),
)
"""Names of objects as they are in one bucket or another, and one that is in none."""


def missing(deployment: Deployment) -> tuple[list[str], int]:
    """What roles need on keys and do not have, and the number of needs that were found."""
    found, n_needs = [], 0
    encrypted = list(deployment.encrypted())
    for role, statements in deployment.roles():
        for name, type_, called, key in encrypted:
            # what the resource's service sends along with the caller's request
            context = {"kms:ViaService": f"{SERVICES[type_]}.REGION.amazonaws.com"} if type_ in SERVICES else {}
            for action, needs in NEEDS[type_].items():
                allowing = [one for one in statements if one["Effect"] == "Allow"]
                if not any(
                    applies({**one, "Condition": {}}, action, target, {}) for one in allowing for target in called
                ):
                    continue
                for need in needs:
                    n_needs += 1
                    if not is_allowed(statements, need, key, context):
                        found.append(f"{role} may {action} on {name}, but not {need} on {key}")
    return found, n_needs


@pytest.mark.slow
@pytest.mark.parametrize("choices", CHOICES, ids=" ".join)
def test_each_role_may_use_the_key_for_all_that_it_may_do(choices: tuple[str, ...]) -> None:
    found, n_needs = missing(Deployment(*choices))
    assert found == []
    assert n_needs > 100


@pytest.mark.slow
def test_a_grant_that_is_forgotten_is_found() -> None:
    """For each kind of resource: the test above would see it."""
    deployment = Deployment("dev", KEY, *PIPELINE)
    assert missing(deployment)[0] == []
    for one in deployment.resources.values():
        documents = [policy["PolicyDocument"] for policy in one.get("Properties", {}).get("Policies", ())]
        if one["Type"] == "AWS::IAM::Policy":
            documents.append(one["Properties"]["PolicyDocument"])
        for document in documents:
            kept = [
                each for each in document["Statement"] if not str(listed(each.get("Action", "-"))[0]).startswith("kms:")
            ]
            document["Statement"] = kept
    found, _ = missing(deployment)
    for kind in ("RoleRecommend", "Machine", "Reader", "TaskRole", "ExecutionRole", "Scheduler", "CDKBucketDeployment"):
        assert any(kind in sentence.split(" may ")[0] for sentence in found), kind


@pytest.mark.slow
def test_everything_that_takes_a_key_has_the_stages_or_its_own() -> None:
    """CloudFormation's own schemas say what takes a key. Whatever gets none is named above, with the reason."""
    from cfnlint.schema import PROVIDER_SCHEMA_MANAGER

    without: dict[str, set[str]] = {}
    for template in Deployment("dev", KEY).stacks.values():
        for name, one in template["Resources"].items():
            if one["Type"].startswith("Custom::"):
                continue
            schema = json.dumps(PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", one["Type"]).schema).lower()
            takes = any(word in schema for word in ("kmskey", "kms_key", "kmsmasterkey", "encryptionkey"))
            has = EXPORTED in json.dumps(one.get("Properties", {})) or '"Fn::GetAtt": ["Key' in json.dumps(one)
            if takes and not has:
                without.setdefault(one["Type"], set()).add(name)
    access_logs = {name for name in without.pop("AWS::S3::Bucket") if "AccessLogs" in name}
    assert len(access_logs) == 1, "neither S3 nor a load balancer can write its log to a bucket with such a key"
    assert set(without) <= set(UNENCRYPTED), without


def test_without_the_choice_there_is_no_key() -> None:
    made = templates("dev")
    assert "key" not in made
    assert EXPORTED not in json.dumps(made)


def test_the_key_rotates_and_admits_the_services_that_write_logs() -> None:
    template: Template = templates("dev", KEY, *PIPELINE)["key"]
    (key,) = [one["Properties"] for one in template["Resources"].values() if one["Type"] == "AWS::KMS::Key"]
    assert key["EnableKeyRotation"]
    statements = plain(key["KeyPolicy"]["Statement"])
    admitted = {
        service: [one for one in statements if one["Principal"].get("Service") == service and one["Effect"] == "Allow"]
        for service in ("logs.REGION.amazonaws.com", "emr-serverless.amazonaws.com")
    }
    arn = "arn:aws:logs:REGION:ACCOUNT:log-group:/aws/vendedlogs/states/encore-dev"
    context = {"kms:EncryptionContext:aws:logs:arn": arn}
    assert is_allowed(admitted["logs.REGION.amazonaws.com"], GENERATE, "KEY", context)
    foreign = {"kms:EncryptionContext:aws:logs:arn": arn.replace("ACCOUNT", "OTHER")}
    assert not is_allowed(admitted["logs.REGION.amazonaws.com"], GENERATE, "KEY", foreign)
    application = {"aws:SourceArn": "arn:aws:emr-serverless:REGION:ACCOUNT:/applications/00a"}
    assert is_allowed(admitted["emr-serverless.amazonaws.com"], GENERATE, "KEY", application)
    assert not is_allowed(admitted["emr-serverless.amazonaws.com"], GENERATE, "KEY", {})
