"""Encore's stacks on AWS."""

from __future__ import annotations

from pathlib import Path

from aws_cdk import App, CfnResource, Stack, Tags, Validations
from cdk_nag import AwsSolutionsChecks

from encore.aws.stage import Stage
from encore_cdk.compute import ComputeStack
from encore_cdk.delivery import DeliveryStack
from encore_cdk.encryption import KeyStack, encrypt
from encore_cdk.mlflow import MlflowStack
from encore_cdk.network import NetworkStack
from encore_cdk.orchestration import OrchestrationStack
from encore_cdk.replica import ReplicaStack, replicate
from encore_cdk.serving import ServingStack
from encore_cdk.storage import StorageStack

FLAGS = {
    "@aws-cdk/aws-iam:minimizePolicies": True,
    "@aws-cdk/aws-s3:createDefaultLoggingPolicy": True,
    "@aws-cdk/aws-s3:serverAccessLogsUseBucketPolicy": True,
    "@aws-cdk/core:target-partitions": ["aws"],
}
"""Feature flags of the CDK, the same for the command and for tests."""


def build(app: App, stage: Stage, package: Path) -> None:
    """All stacks of a stage, for whatever account and region the caller deploys to, and the delivery pipeline.

    Without the choice `connection` there is no pipeline.
    `package`: the folder with the application archive that the stage will run.
    """
    Validations.of(app).add_plugins(AwsSolutionsChecks(app, verbose=True))
    name = f"encore-{stage.name}"
    network = NetworkStack(app, f"{name}-network", stage)
    storage = StorageStack(app, f"{name}-storage", stage)
    mlflow = MlflowStack(app, f"{name}-mlflow", stage, network, storage)
    compute = ComputeStack(app, f"{name}-compute", stage, network, storage, mlflow, package)
    orchestration = OrchestrationStack(app, f"{name}-orchestration", stage, storage, compute, mlflow)
    stacks: list[Stack] = [network, storage, mlflow, compute, orchestration]
    if stage.serving != "none":
        stacks.append(ServingStack(app, f"{name}-serving", stage, network, storage, mlflow, orchestration))
    if stage.replica_region:
        replica = ReplicaStack(app, f"{name}-replica", stage)
        replicate(storage, replica, stage)
        _tag(replica, stage.name)
    if stage.customer_key:
        key = KeyStack(app, f"{name}-key", stage)
        encrypt(stacks, stage, key)
        _tag(key, stage.name)
    for stack in stacks:
        _tag(stack, stage.name)
    if stage.connection:
        _tag(DeliveryStack(app, "encore-delivery", stage), ALL_STAGES)


ALL_STAGES = "all"
"""The value of the tag for what all stages share."""


def _tag(stack: Stack, stage: str) -> None:
    """Tag all that a stack creates, so that the bill can be split by stage and by part."""
    tags = {"encore:stage": stage, "encore:part": stack.stack_name.rpartition("-")[2]}
    for key, value in tags.items():
        Tags.of(stack).add(key, value)
    # the CDK writes its own function that empties buckets without a place for tags
    emptier = stack.node.try_find_child("Custom::S3AutoDeleteObjectsCustomResourceProvider")
    for resource in emptier.node.children if emptier else ():
        if isinstance(resource, CfnResource) and resource.cfn_resource_type in EMPTIER:
            resource.add_property_override("Tags", [{"Key": key, "Value": value} for key, value in tags.items()])


EMPTIER = ("AWS::IAM::Role", "AWS::Lambda::Function")
