"""Where jobs run: EMR Serverless, and an EMR cluster on EC2 where that is asked for. One role a job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aws_cdk import ArnFormat, CfnOutput, CfnTag, RemovalPolicy, Size, Stack, Tags
from aws_cdk import aws_emr as emr
from aws_cdk import aws_emrserverless as serverless
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs_
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_s3_deployment as upload
from constructs import Construct

from encore.aws.access import Buckets, cluster_statements, statements, tracking_statements
from encore.aws.deployment import RELEASE, ROLE_OUTPUT
from encore.aws.stage import PREWARMED, Stage
from encore.aws.states import camel
from encore.runtime.registry import extra_nodes, nodes, upkeep
from encore_cdk.mlflow import ARTEFACTS, MlflowStack
from encore_cdk.nag import SHARED_BUCKET, SHARED_BUCKET_WRITE, argued, shown, wildcards
from encore_cdk.network import NetworkStack
from encore_cdk.storage import PREFIX, StorageStack, bucket_arn, bucket_name

EMR_TAG = "for-use-with-amazon-emr-managed-policies"
"""What EMR's own policy for clusters is held to."""


class ComputeStack(Stack):
    """What jobs run on, their code, and what each may touch. `package`: the folder that `make package` makes."""

    def __init__(
        self,
        scope: Construct,
        id: str,
        stage: Stage,
        network: NetworkStack,
        storage: StorageStack,
        mlflow: MlflowStack,
        package: Path,
    ) -> None:
        super().__init__(scope, id, stack_name=id, description="Encore: EMR, and the application archive")
        self.add_stack_dependency(storage)
        self.code_path = self._code(stage, package)
        subnets = network.vpc.select_subnets(subnet_type=network.private.subnet_type).subnet_ids
        limit = serverless.CfnApplication.MaximumAllowedResourcesProperty(
            cpu=f"{stage.max_vcpu} vCPU", memory=f"{4 * stage.max_vcpu} GB", disk=f"{20 * stage.max_vcpu} GB"
        )
        self.application = serverless.CfnApplication(
            self,
            "Application",
            name=f"encore-{stage.name}",
            release_label=RELEASE,
            type="SPARK",
            architecture="X86_64",
            maximum_capacity=limit,
            initial_capacity=_waiting() if stage.prewarmed else None,
            auto_start_configuration=serverless.CfnApplication.AutoStartConfigurationProperty(enabled=True),
            auto_stop_configuration=serverless.CfnApplication.AutoStopConfigurationProperty(
                enabled=True, idle_timeout_minutes=15
            ),
            network_configuration=serverless.CfnApplication.NetworkConfigurationProperty(
                security_group_ids=[network.jobs.security_group_id], subnet_ids=subnets
            ),
        )
        # by a name that says what it is: it stands in the policy of the state machine
        self.application_id = self.export_value(
            self.application.attr_application_id, name=f"encore-{stage.name}-application-id"
        )
        lake, raw, code, logs = (bucket_arn(stage, name) for name in ("lake", "raw", "code", "logs"))
        buckets = Buckets(lake, raw, code, logs, PREFIX)
        self.roles: dict[str, iam.Role] = {}
        for job in [*nodes(), *extra_nodes()]:
            self.roles[job.name] = self._role(job.name, statements(job, buckets, upkeep(job.name)))
            # the job reads the login itself: it stands in no command line
            _may_track(self.roles[job.name], mlflow)
            CfnOutput(self, f"{ROLE_OUTPUT}{camel(job.name)}", value=self.roles[job.name].role_arn)
        CfnOutput(self, "ApplicationId", value=self.application.attr_application_id)
        if stage.ec2:
            self._cluster(stage, network, storage, mlflow, buckets)

    def _code(self, stage: Stage, package: Path) -> str:
        """Upload the application archive into a folder named by its content, and return that folder's s3:// address.

        Folders of earlier versions stay: a run that has begun with one ends with it, and a deployment of an older
        commit finds its own.
        """
        version = json.loads((package / "manifest.json").read_text())["version"]
        bucket = s3.Bucket.from_bucket_name(self, "CodeBucket", bucket_name(stage, "code"))
        upload.BucketDeployment(
            self,
            "Code",
            sources=[upload.Source.asset(str(package))],
            destination_bucket=bucket,
            destination_key_prefix=version,
            prune=False,
            # the archive twice, packed and unpacked, in a function of its own
            memory_limit=1024,
            ephemeral_storage_size=Size.gibibytes(2),
            log_group=logs_.LogGroup(
                self, "Uploads", retention=logs_.RetentionDays.ONE_MONTH, removal_policy=RemovalPolicy.DESTROY
            ),
        )
        function = self.node.find_child(_uploader(self))
        basic = "Policy::arn:<AWS::Partition>:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole"
        argued(
            function,
            {
                f"AwsSolutions-IAM4[{basic}]": "Of the CDK's own function for uploads: it writes its log",
                "AwsSolutions-L1": "The runtime of the CDK's own function is the CDK's choice, and follows it",
            },
        )
        wildcards(
            function,
            "Of the CDK's own function: it reads what the deployment uploaded, and writes into the bucket of the code",
            *SHARED_BUCKET,
            *SHARED_BUCKET_WRITE,
            "Resource::arn:<AWS::Partition>:s3:::cdk-hnb659fds-assets-<AWS::AccountId>-<AWS::Region>/*",
            f"Resource::{shown(bucket_arn(stage, 'code'))}/*",
        )
        path = f"s3://{bucket.bucket_name}/{version}"
        CfnOutput(self, "CodePath", value=path)
        return path

    def _role(self, job: str, allowed: list[dict[str, Any]]) -> iam.Role:
        source = {
            "StringEquals": {"aws:SourceAccount": self.account},
            "ArnLike": {
                "aws:SourceArn": self.format_arn(
                    service="emr-serverless",
                    resource="/applications",
                    resource_name="*",
                    arn_format=ArnFormat.SLASH_RESOURCE_NAME,
                )
            },
        }
        role = iam.Role(
            self,
            f"Role{camel(job)}",
            description=f"Encore: what {job} may touch",
            assumed_by=iam.ServicePrincipal("emr-serverless.amazonaws.com", conditions=source),
            inline_policies={
                "tables": iam.PolicyDocument(
                    statements=[iam.PolicyStatement.from_json(statement) for statement in allowed]
                )
            },
        )
        why = "Objects in a folder that is the job's own, or of a table that it declares; listing is held to these"
        wildcards(role, why, *_wildcards_of(allowed))
        return role

    def _cluster(
        self, stage: Stage, network: NetworkStack, storage: StorageStack, mlflow: MlflowStack, buckets: Buckets
    ) -> None:
        """A small cluster that ends itself when idle, for steps of `encore submit --target emr-ec2`."""
        service = iam.Role(
            self,
            "ClusterService",
            assumed_by=iam.ServicePrincipal("elasticmapreduce.amazonaws.com"),
            managed_policies=[iam.ManagedPolicy.from_aws_managed_policy_name("service-role/AmazonEMRServicePolicy_v2")],
        )
        managed = "Policy::arn:<AWS::Partition>:iam::aws:policy/service-role/AmazonEMRServicePolicy_v2"
        why = "The policy that EMR requires; it is held to resources with EMR's tag"
        argued(service, {f"AwsSolutions-IAM4[{managed}]": why})
        Tags.of(network.vpc).add(EMR_TAG, "true")
        node_role = iam.Role(self, "ClusterNodes", assumed_by=iam.ServicePrincipal(f"ec2.{Stack.of(self).url_suffix}"))
        allowed = cluster_statements(buckets)
        for statement in allowed:
            node_role.add_to_policy(iam.PolicyStatement.from_json(statement))
        _may_track(node_role, mlflow)
        why = "All jobs share the nodes of a cluster, and so one role: the union of theirs. Serverless parts them"
        wildcards(node_role, why, *_wildcards_of(allowed))
        service.add_to_policy(
            iam.PolicyStatement(
                actions=["iam:PassRole"],
                resources=[node_role.role_arn],
                conditions={"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}},
            )
        )
        profile = iam.CfnInstanceProfile(
            self,
            "ClusterProfile",
            # EMR takes no profile whose name is not its role's
            instance_profile_name=node_role.role_name,
            roles=[node_role.role_name],
        )
        self.cluster = emr.CfnCluster(
            self,
            "Cluster",
            name=f"encore-{stage.name}",
            release_label=RELEASE,
            applications=[emr.CfnCluster.ApplicationProperty(name="Spark")],
            service_role=service.role_arn,
            job_flow_role=profile.ref,
            log_uri=f"s3://{storage.logs.bucket_name}/cluster/",
            auto_termination_policy=emr.CfnCluster.AutoTerminationPolicyProperty(idle_timeout=900),
            configurations=[
                emr.CfnCluster.ConfigurationProperty(
                    classification="delta-defaults", configuration_properties={"delta.enabled": "true"}
                )
            ],
            instances=emr.CfnCluster.JobFlowInstancesConfigProperty(
                ec2_subnet_ids=network.vpc.select_subnets(subnet_type=network.private.subnet_type).subnet_ids,
                keep_job_flow_alive_when_no_steps=True,
                master_instance_fleet=_fleet(1, "m7i.xlarge", "m6i.xlarge", spot=False),
                core_instance_fleet=_fleet(2, "r7i.xlarge", "r6i.xlarge", spot=not stage.keep),
            ),
            # containers of 14 GB: two nodes hold one driver and one executor
            step_concurrency_level=1,
            visible_to_all_users=True,
            tags=[CfnTag(key=EMR_TAG, value="true")],
        )
        CfnOutput(self, "ClusterId", value=self.cluster.ref)
        argued(
            self.cluster,
            {
                "AwsSolutions-EMR2": "Logs go to S3 (log_uri)",
                "AwsSolutions-EMR4": "Data are in S3, encrypted there; nothing stays on a cluster's disks",
                "AwsSolutions-EMR5": "No client speaks to the cluster: steps come by EMR's API",
                "AwsSolutions-EMR6": "There is no SSH: no key is given, and no port is open; sessions go by SSM",
            },
        )


def _wildcards_of(allowed: list[dict[str, Any]]) -> list[str]:
    """Resources with a wildcard in statements, as cdk-nag writes them."""
    found = {resource for statement in allowed for resource in statement["Resource"] if "*" in resource}
    return [f"Resource::{shown(resource)}" for resource in sorted(found)]


def _may_track(role: iam.Role, mlflow: MlflowStack) -> None:
    """Let a role read where MLflow is, and its login; where the role is the login, let it in."""
    mlflow.login.grant_read(role)
    if mlflow.managed is None:
        return
    for statement in tracking_statements(mlflow.managed, mlflow.kept):
        role.add_to_policy(iam.PolicyStatement.from_json(statement))
    wildcards(role, ARTEFACTS, f"Resource::{shown(mlflow.kept)}/*")


def _uploader(stack: Stack) -> str:
    """The name of the construct that the CDK makes for its function that uploads: one a stack and size of it."""
    (found,) = (
        child.node.id for child in stack.node.children if child.node.id.startswith("Custom::CDKBucketDeployment")
    )
    return found


def _waiting() -> list[serverless.CfnApplication.InitialCapacityConfigKeyValuePairProperty]:
    """Workers that wait while the application is started: a driver, and its executors."""
    worker = serverless.CfnApplication.WorkerConfigurationProperty(cpu="4 vCPU", memory="16 GB", disk="20 GB")
    return [
        serverless.CfnApplication.InitialCapacityConfigKeyValuePairProperty(
            key=key,
            value=serverless.CfnApplication.InitialCapacityConfigProperty(
                worker_count=count, worker_configuration=worker
            ),
        )
        for key, count in (("Driver", 1), ("Executor", PREWARMED))
    ]


def _fleet(count: int, *types: str, spot: bool) -> emr.CfnCluster.InstanceFleetConfigProperty:
    return emr.CfnCluster.InstanceFleetConfigProperty(
        target_on_demand_capacity=0 if spot else count,
        target_spot_capacity=count if spot else 0,
        instance_type_configs=[
            emr.CfnCluster.InstanceTypeConfigProperty(instance_type=name, weighted_capacity=1) for name in types
        ],
    )
