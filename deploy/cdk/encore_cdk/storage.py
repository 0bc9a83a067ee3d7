"""Buckets, the Glue database with the Delta tables, and Athena with the views."""

from __future__ import annotations

from typing import Any

from aws_cdk import Aws, CfnOutput, Duration, RemovalPolicy, Stack
from aws_cdk import aws_athena as athena
from aws_cdk import aws_glue as glue
from aws_cdk import aws_s3 as s3
from constructs import Construct

from encore.aws.athena import (
    DATABASE,
    INPUT_FORMAT,
    OUTPUT_FORMAT,
    SERDE,
    VIEWS,
    athena_view,
    glue_columns,
    glue_parameters,
    serde_parameters,
)
from encore.aws.stage import Stage
from encore.lake.tables import ALL
from encore_cdk.nag import argued

PREFIX = "lake"


def bucket_name(stage: Stage, name: str) -> str:
    """Names are made of stage, account and region, so that roles name a bucket and not another stack's output."""
    return f"encore-{stage.name}-{name}-{Aws.ACCOUNT_ID}-{Aws.REGION}"


def bucket_arn(stage: Stage, name: str) -> str:
    """Of the bucket of that name."""
    return f"arn:{Aws.PARTITION}:s3:::{bucket_name(stage, name)}"


def private_bucket(
    scope: Construct, stage: Stage, name: str, rules: list[s3.LifecycleRule], access_logs: s3.IBucket | None
) -> s3.Bucket:
    """A bucket of a stage: encrypted, by TLS alone, for nobody outside. Without `access_logs` it takes those of the
    others.

    Where the stage's data do not outlive it, the bucket is emptied when its stack is removed: one that holds something
    would stay, and its stack with it.
    """
    is_log = access_logs is None
    abort = s3.LifecycleRule(id="abort", abort_incomplete_multipart_upload_after=Duration.days(3))
    return s3.Bucket(
        scope,
        name,
        bucket_name=bucket_name(stage, "access-logs" if is_log else name.lower()),
        versioned=not is_log,
        encryption=s3.BucketEncryption.S3_MANAGED,
        enforce_ssl=True,
        minimum_tls_version=1.2,
        block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
        object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
        server_access_logs_bucket=access_logs,
        server_access_logs_prefix=None if is_log else f"{name.lower()}/",
        lifecycle_rules=[*rules, abort],
        removal_policy=RemovalPolicy.RETAIN if stage.keep else RemovalPolicy.DESTROY,
        auto_delete_objects=not stage.keep,
    )


def superseded(days: int) -> s3.LifecycleRule:
    """What has been deleted or replaced already goes so long after."""
    return s3.LifecycleRule(
        id="superseded", noncurrent_version_expiration=Duration.days(days), expired_object_delete_marker=True
    )


class StorageStack(Stack):
    """What is kept."""

    def __init__(self, scope: Construct, id: str, stage: Stage) -> None:
        super().__init__(scope, id, stack_name=id, description="Encore: buckets, tables, Athena")
        self._stage = stage
        expire = s3.LifecycleRule(id="expire", expiration=Duration.days(90))
        self.access_logs = private_bucket(self, stage, "AccessLogs", [expire], None)
        argued(self.access_logs, {"AwsSolutions-S1": "It takes the access logs of the others; its own would grow it"})
        # Delta says itself which files are dead (VACUUM), and its log needs every file that it still names: nothing
        # of the lake expires by age. Only what has been deleted or replaced already does.
        self.lake = self._bucket("Lake", [superseded(30), _scratch()])
        self.raw = self._bucket("Raw", [superseded(30), _cold()])
        self.code = self._bucket("Code", [superseded(90)])
        self.logs = self._bucket("Logs", [superseded(7), s3.LifecycleRule(id="expire", expiration=Duration.days(180))])
        self.results = self._bucket(
            "Results", [superseded(1), s3.LifecycleRule(id="expire", expiration=Duration.days(14))]
        )
        self.lake_path = f"s3://{bucket_name(stage, 'lake')}/{PREFIX}"
        self._catalogue()
        CfnOutput(self, "LakePath", value=self.lake_path)
        CfnOutput(self, "RawBucket", value=self.raw.bucket_name)
        CfnOutput(self, "LogBucket", value=self.logs.bucket_name)

    def _bucket(self, name: str, rules: list[s3.LifecycleRule]) -> s3.Bucket:
        return private_bucket(self, self._stage, name, rules, self.access_logs)

    def _catalogue(self) -> None:
        """The tables as Athena finds them. Their schema is declared once, in encore.lake.tables."""
        self.database = glue.CfnDatabase(
            self,
            "Database",
            catalog_id=self.account,
            database_input=glue.CfnDatabase.DatabaseInputProperty(
                name=f"{DATABASE}_{self._stage.name}", description="Encore: Delta tables, and views that unfold them"
            ),
        )
        for table in ALL:
            location = f"{self.lake_path}/{table.name}/"
            self._entry(
                f"Table-{table.name}",
                name=table.name,
                description=f"A row is {table.grain}",
                table_type="EXTERNAL_TABLE",
                parameters=glue_parameters(),
                storage_descriptor=glue.CfnTable.StorageDescriptorProperty(
                    columns=[
                        glue.CfnTable.ColumnProperty(name=column, type=type_, comment=comment)
                        for column, type_, comment in glue_columns(table)
                    ],
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
            self._entry(
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
        self.workgroup = athena.CfnWorkGroup(
            self,
            "Workgroup",
            name=f"encore-{self._stage.name}",
            description="Queries on the tables of Encore",
            recursive_delete_option=not self._stage.keep,
            work_group_configuration=athena.CfnWorkGroup.WorkGroupConfigurationProperty(
                enforce_work_group_configuration=True,
                publish_cloud_watch_metrics_enabled=True,
                # a query that reads more than 50 GB is a mistake here: the whole lake is smaller
                bytes_scanned_cutoff_per_query=50 * 1024**3,
                engine_version=athena.CfnWorkGroup.EngineVersionProperty(
                    selected_engine_version="Athena engine version 3"
                ),
                result_configuration=athena.CfnWorkGroup.ResultConfigurationProperty(
                    output_location=f"s3://{self.results.bucket_name}/",
                    encryption_configuration=athena.CfnWorkGroup.EncryptionConfigurationProperty(
                        encryption_option="SSE_S3"
                    ),
                ),
            ),
        )

    def _entry(self, id: str, **about: Any) -> None:
        """A table or view of the database, of what TableInputProperty takes."""
        glue.CfnTable(
            self,
            id,
            catalog_id=self.account,
            database_name=self.database.ref,
            table_input=glue.CfnTable.TableInputProperty(**about),
        )


def _scratch() -> s3.LifecycleRule:
    return s3.LifecycleRule(id="scratch", prefix=f"{PREFIX}/_scratch/", expiration=Duration.days(7))


def _cold() -> s3.LifecycleRule:
    return s3.LifecycleRule(
        id="cold",
        transitions=[
            s3.Transition(storage_class=s3.StorageClass.INTELLIGENT_TIERING, transition_after=Duration.days(30))
        ],
    )
