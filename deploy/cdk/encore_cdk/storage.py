"""Buckets, the Glue database with the Delta tables, and Athena with the views."""

from __future__ import annotations

from typing import Any

from aws_cdk import Aws, CfnOutput, Duration, RemovalPolicy, Stack
from aws_cdk import aws_athena as athena
from aws_cdk import aws_glue as glue
from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3 as s3
from constructs import Construct

from encore.aws.access import READ_ONLY, READERS, Buckets, reader_statements
from encore.aws.athena import (
    DATABASE,
    INPUT_FORMAT,
    OUTPUT_FORMAT,
    SERDE,
    VIEWS,
    athena_view,
    glue_columns,
    glue_parameters,
    glue_partition_keys,
    serde_parameters,
)
from encore.aws.stage import Stage
from encore.lake.tables import ALL
from encore_cdk.environment import environment
from encore_cdk.nag import acknowledge, acknowledge_wildcards, nag_arn

PREFIX = "lake"


def bucket_name(stage: Stage, name: str) -> str:
    """Built from stage, account and region, so that policies can name a bucket without importing a stack's output."""
    return f"encore-{stage.name}-{name}-{Aws.ACCOUNT_ID}-{Aws.REGION}"


def bucket_arn(stage: Stage, name: str) -> str:
    """The ARN of the bucket `bucket_name(stage, name)`."""
    return f"arn:{Aws.PARTITION}:s3:::{bucket_name(stage, name)}"


def private_bucket(
    scope: Construct, stage: Stage, name: str, rules: list[s3.LifecycleRule], access_logs: s3.IBucket | None
) -> s3.Bucket:
    """A bucket of a stage: encrypted, TLS only, no public access.

    `access_logs`: the bucket for access logs; None for that bucket itself. If the stage does not keep its data, the
    bucket is emptied when its stack is deleted, since CloudFormation cannot delete a bucket that holds objects.
    """
    takes_logs = access_logs is None
    abort = s3.LifecycleRule(id="abort", abort_incomplete_multipart_upload_after=Duration.days(3))
    return s3.Bucket(
        scope,
        name,
        bucket_name=bucket_name(stage, "access-logs" if takes_logs else name.lower()),
        versioned=not takes_logs,
        encryption=s3.BucketEncryption.S3_MANAGED,
        enforce_ssl=True,
        minimum_tls_version=1.2,
        block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
        object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
        server_access_logs_bucket=access_logs,
        server_access_logs_prefix=None if takes_logs else f"{name.lower()}/",
        lifecycle_rules=[*rules, abort],
        removal_policy=RemovalPolicy.RETAIN if stage.keep else RemovalPolicy.DESTROY,
        auto_delete_objects=not stage.keep,
    )


def expire_noncurrent(days: int) -> s3.LifecycleRule:
    """Delete object versions `days` after they were deleted or replaced."""
    return s3.LifecycleRule(
        id="superseded", noncurrent_version_expiration=Duration.days(days), expired_object_delete_marker=True
    )


def lake_rules() -> list[s3.LifecycleRule]:
    """The rules of the lake's bucket, and of its copy.

    Nothing in the lake expires by age: only Delta (VACUUM) knows which files its log no longer refers to. Object
    versions that were deleted or replaced do expire.
    """
    return [expire_noncurrent(30), _scratch()]


class StorageStack(Stack):
    """Buckets and the data catalog."""

    def __init__(self, scope: Construct, id: str, stage: Stage) -> None:
        super().__init__(
            scope, id, stack_name=id, env=environment(stage), description="Encore: buckets, tables, Athena"
        )
        self._stage = stage
        expire = s3.LifecycleRule(id="expire", expiration=Duration.days(90))
        self.access_logs = private_bucket(self, stage, "AccessLogs", [expire], None)
        acknowledge(
            self.access_logs,
            {"AwsSolutions-S1": "It receives the access logs of the other buckets; logging to itself would never end"},
        )
        self.lake = self._bucket("Lake", lake_rules())
        self.raw = self._bucket("Raw", [expire_noncurrent(30), _cold()])
        self.code = self._bucket("Code", [expire_noncurrent(90)])
        self.logs = self._bucket(
            "Logs", [expire_noncurrent(7), s3.LifecycleRule(id="expire", expiration=Duration.days(180))]
        )
        self.results = self._bucket(
            "Results", [expire_noncurrent(1), s3.LifecycleRule(id="expire", expiration=Duration.days(14))]
        )
        self.lake_path = f"s3://{bucket_name(stage, 'lake')}/{PREFIX}"
        self._catalog()
        self._workgroup("Workgroup", f"encore-{stage.name}", "Queries on Encore's tables", "")
        self._readers()
        CfnOutput(self, "LakePath", value=self.lake_path)
        CfnOutput(self, "RawBucket", value=self.raw.bucket_name)
        CfnOutput(self, "LogBucket", value=self.logs.bucket_name)

    def _bucket(self, name: str, rules: list[s3.LifecycleRule]) -> s3.Bucket:
        return private_bucket(self, self._stage, name, rules, self.access_logs)

    def _catalog(self) -> None:
        """The Glue catalog. Schemas are declared once, in encore.lake.tables."""
        self.database = glue.CfnDatabase(
            self,
            "Database",
            catalog_id=self.account,
            database_input=glue.CfnDatabase.DatabaseInputProperty(
                name=f"{DATABASE}_{self._stage.name}", description="Encore: Delta tables, and views that unnest them"
            ),
        )
        for table in ALL:
            location = f"{self.lake_path}/{table.name}/"
            self._glue_table(
                f"Table-{table.name}",
                name=table.name,
                description=f"A row is {table.grain}",
                table_type="EXTERNAL_TABLE",
                parameters=glue_parameters(),
                partition_keys=_columns(glue_partition_keys(table)),
                storage_descriptor=glue.CfnTable.StorageDescriptorProperty(
                    columns=_columns(glue_columns(table)),
                    location=location,
                    input_format=INPUT_FORMAT,
                    output_format=OUTPUT_FORMAT,
                    serde_info=glue.CfnTable.SerdeInfoProperty(
                        serialization_library=SERDE, parameters=serde_parameters(location)
                    ),
                ),
            )
        for view in VIEWS:
            parameters, text, columns = athena_view(view, f"{DATABASE}_{self._stage.name}")
            self._glue_table(
                f"View-{view}",
                name=view,
                table_type="VIRTUAL_VIEW",
                parameters=parameters,
                view_original_text=text,
                view_expanded_text="/* Presto View */",
                partition_keys=[],
                storage_descriptor=glue.CfnTable.StorageDescriptorProperty(
                    columns=[glue.CfnTable.ColumnProperty(name=column, type=type_) for column, type_ in columns],
                    serde_info=glue.CfnTable.SerdeInfoProperty(serialization_library=SERDE),
                ),
            )

    def _workgroup(self, id: str, name: str, description: str, folder: str) -> None:
        """A workgroup of Athena. `folder`: where its results are in the bucket of results, `folder/` or nothing."""
        athena.CfnWorkGroup(
            self,
            id,
            name=name,
            description=description,
            recursive_delete_option=not self._stage.keep,
            work_group_configuration=athena.CfnWorkGroup.WorkGroupConfigurationProperty(
                enforce_work_group_configuration=True,
                publish_cloud_watch_metrics_enabled=True,
                # a query that reads more than 50 GB is a mistake, since the whole lake is smaller
                bytes_scanned_cutoff_per_query=50 * 1024**3,
                engine_version=athena.CfnWorkGroup.EngineVersionProperty(
                    selected_engine_version="Athena engine version 3"
                ),
                result_configuration=athena.CfnWorkGroup.ResultConfigurationProperty(
                    output_location=f"s3://{self.results.bucket_name}/{folder}",
                    encryption_configuration=athena.CfnWorkGroup.EncryptionConfigurationProperty(
                        encryption_option="SSE_S3"
                    ),
                ),
            ),
        )

    def _readers(self) -> None:
        """The role and the workgroup of people who analyse the tables, and may write nothing but results of queries."""
        stage, database = self._stage, f"{DATABASE}_{self._stage.name}"
        self._workgroup(
            "ReadersWorkgroup", f"encore-{stage.name}-{READERS}", "Queries of people who only read", f"{READERS}/"
        )
        principal = iam.ArnPrincipal(stage.analysts) if stage.analysts else iam.AccountRootPrincipal()
        lake, raw, code, logs, results = (
            bucket_arn(stage, name) for name in ("lake", "raw", "code", "logs", "results")
        )
        allowed = reader_statements(
            Buckets(lake, raw, code, logs, PREFIX),
            results,
            athena=f"arn:{Aws.PARTITION}:athena:{Aws.REGION}:{Aws.ACCOUNT_ID}",
            glue=f"arn:{Aws.PARTITION}:glue:{Aws.REGION}:{Aws.ACCOUNT_ID}",
            database=database,
        )
        role = iam.Role(
            self,
            "Reader",
            description="Encore: people who analyse the tables",
            assumed_by=principal,
            inline_policies={
                "tables": iam.PolicyDocument(statements=[iam.PolicyStatement.from_json(one) for one in allowed])
            },
        )
        acknowledge_wildcards(
            role,
            "Objects of tables and of results, entries of tables in Glue; lists of workgroups do not support resources",
            *(f"Resource::{nag_arn(one)}" for found in allowed for one in found["Resource"] if "*" in one),
        )
        # whatever is attached to the role later
        self.lake.add_to_resource_policy(
            iam.PolicyStatement(
                sid="ReadersOnlyRead",
                effect=iam.Effect.DENY,
                principals=[iam.AnyPrincipal()],
                not_actions=[*READ_ONLY],
                resources=[self.lake.bucket_arn, f"{self.lake.bucket_arn}/*"],
                conditions={"ArnEquals": {"aws:PrincipalArn": role.role_arn}},
            )
        )
        CfnOutput(self, "ReaderRole", value=role.role_arn)

    def _glue_table(self, id: str, **properties: Any) -> None:
        """A table or view in the database; `properties` are those of TableInputProperty."""
        glue.CfnTable(
            self,
            id,
            catalog_id=self.account,
            database_name=self.database.ref,
            table_input=glue.CfnTable.TableInputProperty(**properties),
        )


def _columns(columns: list[tuple[str, str, str]]) -> list[glue.CfnTable.ColumnProperty]:
    """Columns of a table in Glue, from their names, Hive types and comments."""
    return [glue.CfnTable.ColumnProperty(name=name, type=type_, comment=comment) for name, type_, comment in columns]


def _scratch() -> s3.LifecycleRule:
    return s3.LifecycleRule(id="scratch", prefix=f"{PREFIX}/_scratch/", expiration=Duration.days(7))


def _cold() -> s3.LifecycleRule:
    return s3.LifecycleRule(
        id="cold",
        transitions=[
            s3.Transition(storage_class=s3.StorageClass.INTELLIGENT_TIERING, transition_after=Duration.days(30))
        ],
    )
