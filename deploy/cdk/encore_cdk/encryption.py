"""The choice `customer_key`: one key of the stage encrypts all that the stage stores, in place of AWS's own keys."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from aws_cdk import Aws, CfnResource, Fn, RemovalPolicy, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from constructs import Construct

from encore.aws.stage import Stage
from encore_cdk.environment import environment

UNENCRYPTED = ("access-logs",)
"""Buckets that stay with S3's own key: neither S3 nor load balancers write access logs to others."""

READ, WRITE = ("kms:Decrypt",), ("kms:Decrypt", "kms:GenerateDataKey")
"""What a caller needs on the key to read and to write. S3 decrypts while it joins the parts of an upload."""
TABLE = (*WRITE, "kms:DescribeKey", "kms:Encrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo")
"""What DynamoDB asks for, on behalf of the caller."""

NEEDED: dict[str, tuple[str, tuple[str, ...]]] = {
    "s3:GetObject": ("s3", READ),
    "s3:PutObject": ("s3", WRITE),
    "s3:GetObjectVersionForReplication": ("s3", READ),
    "secretsmanager:GetSecretValue": ("secretsmanager", READ),
    "secretsmanager:PutSecretValue": ("secretsmanager", WRITE),
    "dynamodb:GetItem": ("dynamodb", TABLE),
    "dynamodb:PutItem": ("dynamodb", TABLE),
    # of the logs that EMR keeps; it checks the permission of whoever starts a job
    "emr-serverless:StartJobRun": ("", WRITE),
}
"""By what a role may do: the service through which it uses the key, and what it needs on it."""


class KeyStack(Stack):
    """The key of a stage. Its stack stays when the choice is taken back: what the key has encrypted needs it."""

    def __init__(self, scope: Construct, id: str, stage: Stage) -> None:
        super().__init__(scope, id, stack_name=id, env=environment(stage), description="Encore: key")
        key = stage_key(self, stage, f"encore-{stage.name}")
        here = f"{Aws.REGION}:{Aws.ACCOUNT_ID}"
        _admit(
            key,
            f"logs.{Aws.REGION}.amazonaws.com",
            ["kms:Decrypt*", "kms:Describe*", "kms:Encrypt*", "kms:GenerateDataKey*", "kms:ReEncrypt*"],
            {"kms:EncryptionContext:aws:logs:arn": f"arn:{Aws.PARTITION}:logs:{here}:log-group:*"},
        )
        _admit(
            key,
            "emr-serverless.amazonaws.com",
            ["kms:Decrypt", "kms:GenerateDataKey"],
            {"aws:SourceArn": f"arn:{Aws.PARTITION}:emr-serverless:{here}:/applications/*"},
        )
        # by a fixed name, so that a stack that uses it needs no reference to this one
        self.export_value(key.key_arn, name=_export(stage))


def stage_key(scope: Construct, stage: Stage, alias: str) -> kms.Key:
    """A key that rotates, with an alias; kept if the stage keeps its data."""
    return kms.Key(
        scope,
        "Key",
        alias=alias,
        description="Encore: all that the stage stores",
        enable_key_rotation=True,
        removal_policy=RemovalPolicy.RETAIN if stage.keep else RemovalPolicy.DESTROY,
    )


def _admit(key: kms.Key, service: str, actions: list[str], source: dict[str, str]) -> None:
    key.add_to_resource_policy(
        iam.PolicyStatement(
            principals=[iam.ServicePrincipal(service)],
            actions=actions,
            resources=["*"],
            conditions={"ArnLike": source},
        )
    )


def _export(stage: Stage) -> str:
    return f"encore-{stage.name}-key-arn"


def encrypt(stacks: Iterable[Stack], stage: Stage, key: KeyStack) -> None:
    """Encrypt what the stacks store with the stage's key, and let each role use it as far as its other rights go.

    Called when the stacks are complete. It finds resources and roles itself, so that none can be forgotten.
    """
    arn = Fn.import_value(_export(stage))
    for stack in stacks:
        stack.add_stack_dependency(key)
        for construct in stack.node.find_all():
            if isinstance(construct, CfnResource):
                for path, value in _properties(construct, arn).items():
                    construct.add_property_override(path, value)
            elif isinstance(construct, iam.Role):
                for statement in _grants(construct, arn):
                    construct.add_to_principal_policy(statement)


def bucket_encryption(key_arn: str) -> dict[str, Any]:
    """Encrypt by default with a key, asked for once per bucket and not per object."""
    by_default = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key_arn}
    return {
        "ServerSideEncryptionConfiguration": [{"BucketKeyEnabled": True, "ServerSideEncryptionByDefault": by_default}]
    }


def _properties(resource: CfnResource, key_arn: str) -> dict[str, Any]:
    """The properties by which a resource is encrypted with the key, by their paths; none if it stores nothing."""
    match resource.cfn_resource_type:
        case (
            "AWS::Logs::LogGroup"
            | "AWS::RDS::DBInstance"
            | "AWS::SageMaker::EndpointConfig"
            | "AWS::SecretsManager::Secret"
        ):
            return {"KmsKeyId": key_arn}
        case "AWS::S3::Bucket":
            name = str(Stack.of(resource).resolve(getattr(resource, "bucket_name", "")))
            return {} if any(kind in name for kind in UNENCRYPTED) else {"BucketEncryption": bucket_encryption(key_arn)}
        case "AWS::DynamoDB::GlobalTable":
            return {
                "SSESpecification": {"SSEEnabled": True, "SSEType": "KMS"},
                "Replicas.0.SSESpecification": {"KMSMasterKeyId": key_arn},
            }
        case "AWS::Athena::WorkGroup":
            results = "WorkGroupConfiguration.ResultConfiguration.EncryptionConfiguration"
            return {results: {"EncryptionOption": "SSE_KMS", "KmsKey": key_arn}}
        case "AWS::EMRServerless::Application":
            kept = "MonitoringConfiguration.ManagedPersistenceMonitoringConfiguration"
            return {kept: {"Enabled": True, "EncryptionKeyArn": key_arn}}
        case _:
            return {}


def _grants(role: iam.Role, key_arn: str) -> list[iam.PolicyStatement]:
    """What a role needs on the key for all that it may do, a statement for each service."""
    allowed = _actions(role)
    found: dict[str, set[str]] = {}
    for action, (service, on_key) in NEEDED.items():
        if any(fnmatchcase(action, pattern) for pattern in allowed):
            found.setdefault(service, set()).update(on_key)
    return [
        iam.PolicyStatement(
            actions=sorted(actions),
            resources=[key_arn],
            conditions={"StringEquals": {"kms:ViaService": f"{service}.{Aws.REGION}.amazonaws.com"}} if service else {},
        )
        for service, actions in sorted(found.items())
    ]


def _actions(role: iam.Role) -> set[str]:
    """All actions that a role's own policies allow, with wildcards as they are."""
    stack, found = Stack.of(role), set()
    for construct in role.node.find_all():
        documents: list[Any] = []
        if isinstance(construct, iam.CfnRole):
            documents = [one["policyDocument"] for one in stack.resolve(construct.policies) or ()]
        elif isinstance(construct, iam.CfnPolicy):
            documents = [stack.resolve(construct.policy_document)]
        for document in documents:
            for statement in document["Statement"]:
                actions = statement["Action"] if statement["Effect"] == "Allow" else []
                found |= {actions} if isinstance(actions, str) else set(actions)
    return found
