"""The choice `replica_region`: a copy of the lake's bucket in another region, which S3 keeps up to date."""

from __future__ import annotations

from aws_cdk import ArnFormat, Aws, CfnOutput, Duration, Environment, RemovalPolicy, Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as alarms
from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sns as sns
from constructs import Construct

from encore.aws.stage import Stage
from encore_cdk.encryption import stage_key
from encore_cdk.monitoring import topic_name
from encore_cdk.nag import acknowledge, acknowledge_wildcards, nag_arn
from encore_cdk.storage import PREFIX, StorageStack, bucket_arn, bucket_name, lake_rules

RULE = "lake"
STORAGE_CLASS = "STANDARD_IA"
"""Half the price. It bills 30 days for each object, which no version of one falls short of, see `lake_rules`."""


class ReplicaStack(Stack):
    """The bucket with the copy, and the key that encrypts it with the choice `customer_key`."""

    def __init__(self, scope: Construct, id: str, stage: Stage) -> None:
        place = Environment(account=stage.account or None, region=stage.replica_region)
        super().__init__(scope, id, stack_name=id, env=place, description="Encore: copy of the lake")
        # S3 finds the key by its alias, which is the same before and after the key exists
        key = stage_key(self, stage, key_alias(stage)) if stage.customer_key else None
        self.bucket = s3.Bucket(
            self,
            "Lake",
            bucket_name=replica_name(stage),
            versioned=True,
            encryption=s3.BucketEncryption.KMS if key else s3.BucketEncryption.S3_MANAGED,
            encryption_key=key,
            bucket_key_enabled=True if key else None,
            enforce_ssl=True,
            minimum_tls_version=1.2,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            lifecycle_rules=lake_rules(),
            removal_policy=RemovalPolicy.RETAIN if stage.keep else RemovalPolicy.DESTROY,
            auto_delete_objects=not stage.keep,
        )
        acknowledge(
            self.bucket,
            {"AwsSolutions-S1": "Nobody but S3 writes it, and nobody reads it but to restore; CloudTrail records that"},
        )
        CfnOutput(self, "ReplicaPath", value=f"s3://{replica_name(stage)}/{PREFIX}")


def replica_name(stage: Stage) -> str:
    """Name of the bucket with the copy."""
    return f"encore-{stage.name}-lake-replica-{Aws.ACCOUNT_ID}-{stage.replica_region}"


def key_alias(stage: Stage) -> str:
    """Alias of the key in the region of the copy."""
    return f"encore-{stage.name}-replica"


def replicate(storage: StorageStack, replica: ReplicaStack, stage: Stage) -> None:
    """Let S3 copy each new object of the lake's bucket, and each deletion.

    Deletions are copied as markers, above versions that remain for as long as in the lake itself: without them the copy
    would grow forever. S3 never copies the deletion of a version, so nobody who empties the lake empties the copy.
    """
    target = f"arn:{Aws.PARTITION}:s3:::{replica_name(stage)}"
    # by name: a reference to the bucket, which needs the role first, would be circular
    lake = bucket_arn(stage, "lake")
    role = iam.Role(
        storage,
        "Replication",
        description="Encore: S3 copies the lake to another region",
        assumed_by=iam.ServicePrincipal("s3.amazonaws.com"),
    )
    for actions, resource in (
        (["s3:GetReplicationConfiguration", "s3:ListBucket"], lake),
        (
            ["s3:GetObjectVersionAcl", "s3:GetObjectVersionForReplication", "s3:GetObjectVersionTagging"],
            f"{lake}/*",
        ),
        (["s3:ReplicateDelete", "s3:ReplicateObject", "s3:ReplicateTags"], f"{target}/*"),
    ):
        role.add_to_policy(iam.PolicyStatement(actions=actions, resources=[resource]))
    acknowledge_wildcards(
        role,
        "All objects of the lake",
        f"Resource::{nag_arn(lake)}/*",
        f"Resource::{nag_arn(target)}/*",
    )
    encryption, selection = None, None
    if stage.customer_key:
        alias, keys = f"alias/{key_alias(stage)}", f"arn:{Aws.PARTITION}:kms:{stage.replica_region}:{Aws.ACCOUNT_ID}"
        role.add_to_policy(
            iam.PolicyStatement(
                actions=["kms:Encrypt", "kms:GenerateDataKey"],
                resources=[f"{keys}:key/*"],
                conditions={
                    "ForAnyValue:StringEquals": {"kms:ResourceAliases": alias},
                    "StringEquals": {"kms:ViaService": f"s3.{stage.replica_region}.amazonaws.com"},
                },
            )
        )
        acknowledge_wildcards(role, "The key with one alias, by a condition", f"Resource::{nag_arn(keys)}:key/*")
        encryption = s3.CfnBucket.EncryptionConfigurationProperty(replica_kms_key_id=f"{keys}:{alias}")
        selection = s3.CfnBucket.SourceSelectionCriteriaProperty(
            sse_kms_encrypted_objects=s3.CfnBucket.SseKmsEncryptedObjectsProperty(status="Enabled")
        )
    bucket = storage.lake.node.default_child
    assert isinstance(bucket, s3.CfnBucket)
    bucket.replication_configuration = s3.CfnBucket.ReplicationConfigurationProperty(
        role=role.role_arn,
        rules=[
            s3.CfnBucket.ReplicationRuleProperty(
                id=RULE,
                priority=0,
                status="Enabled",
                filter=s3.CfnBucket.ReplicationRuleFilterProperty(prefix=""),
                delete_marker_replication=s3.CfnBucket.DeleteMarkerReplicationProperty(status="Enabled"),
                source_selection_criteria=selection,
                destination=s3.CfnBucket.ReplicationDestinationProperty(
                    bucket=target,
                    storage_class=STORAGE_CLASS,
                    encryption_configuration=encryption,
                    metrics=s3.CfnBucket.MetricsProperty(status="Enabled"),
                ),
            )
        ],
    )
    bucket.node.add_dependency(role)
    failed = cloudwatch.Metric(
        namespace="AWS/S3",
        metric_name="OperationsFailedReplication",
        dimensions_map={
            "SourceBucket": bucket_name(stage, "lake"),
            "DestinationBucket": replica_name(stage),
            "RuleId": RULE,
        },
        statistic="Sum",
        period=Duration.hours(1),
    ).create_alarm(
        storage,
        "NotCopied",
        alarm_name=f"encore-{stage.name}-NotCopied",
        alarm_description="Encore: S3 could not copy objects of the lake to the other region",
        threshold=1,
        evaluation_periods=1,
        treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
    )
    topic = storage.format_arn(service="sns", resource=topic_name(stage), arn_format=ArnFormat.NO_RESOURCE_NAME)
    failed.add_alarm_action(alarms.SnsAction(sns.Topic.from_topic_arn(storage, "Failures", topic)))
    # S3 refuses a rule whose bucket does not exist
    storage.add_stack_dependency(replica)
