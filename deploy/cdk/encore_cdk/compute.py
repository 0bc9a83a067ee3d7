"""Where jobs run: EMR Serverless and, optionally, an EMR cluster on EC2. Each job has its own role."""

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
from encore.aws.deployment import ROLE_OUTPUT
from encore.aws.stage import PREWARMED, Stage, concurrent_jobs
from encore.aws.states import Limits, camel
from encore.runtime.registry import extra_nodes, nodes, upkeep
from encore_cdk.environment import environment
from encore_cdk.mlflow import ARTEFACTS, MlflowStack
from encore_cdk.nag import SHARED_BUCKET, SHARED_BUCKET_WRITE, acknowledge, acknowledge_wildcards, nag_arn
from encore_cdk.network import NetworkStack
from encore_cdk.storage import PREFIX, StorageStack, bucket_arn, bucket_name

EMR_TAG = "for-use-with-amazon-emr-managed-policies"
"""The tag to which EMR's managed policies for clusters restrict access."""


class ComputeStack(Stack):
    """What jobs run on, their code, and the role of each. `package`: the folder that `make package` builds."""

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
        super().__init__(
            scope, id, stack_name=id, env=environment(stage), description="Encore: EMR, and the application archive"
        )
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
            release_label=stage.release,
            type="SPARK",
            architecture="X86_64",
            maximum_capacity=limit,
            # jobs beyond these wait in a queue, where they hold no driver that would keep others from an executor
            scheduler_configuration=serverless.CfnApplication.SchedulerConfigurationProperty(
                max_concurrent_runs=concurrent_jobs(), queue_timeout_minutes=Limits().queue_seconds // 60
            ),
            initial_capacity=_prewarmed_workers() if stage.prewarmed else None,
            auto_start_configuration=serverless.CfnApplication.AutoStartConfigurationProperty(enabled=True),
            auto_stop_configuration=serverless.CfnApplication.AutoStopConfigurationProperty(
                enabled=True, idle_timeout_minutes=15
            ),
            network_configuration=serverless.CfnApplication.NetworkConfigurationProperty(
                security_group_ids=[network.jobs.security_group_id], subnet_ids=subnets
            ),
        )
        # exported under a readable name, since it appears in the policy of the state machine
        self.application_id = self.export_value(
            self.application.attr_application_id, name=f"encore-{stage.name}-application-id"
        )
        lake, raw, code, logs = (bucket_arn(stage, name) for name in ("lake", "raw", "code", "logs"))
        buckets = Buckets(lake, raw, code, logs, PREFIX)
        self.roles: dict[str, iam.Role] = {}
        for job in [*nodes(), *extra_nodes()]:
            self.roles[job.name] = self._role(job.name, statements(job, buckets, upkeep(job.name)))
            # the job reads the login itself, so that it appears on no command line
            _grant_tracking(self.roles[job.name], mlflow, job.name)
            CfnOutput(self, f"{ROLE_OUTPUT}{camel(job.name)}", value=self.roles[job.name].role_arn)
        CfnOutput(self, "ApplicationId", value=self.application.attr_application_id)
        if stage.ec2:
            self._cluster(stage, network, storage, mlflow, buckets)

    def _code(self, stage: Stage, package: Path) -> str:
        """Upload the application archive to a folder named after its content, and return that folder's s3:// URL.

        Folders of earlier versions are kept: a run that has started with a version ends with it, and deploying an older
        commit finds its version in place.
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
            # the upload runs in a Lambda function of its own, which holds the archive packed and unpacked
            memory_limit=1024,
            ephemeral_storage_size=Size.gibibytes(2),
            log_group=logs_.LogGroup(
                self, "Uploads", retention=logs_.RetentionDays.ONE_MONTH, removal_policy=RemovalPolicy.DESTROY
            ),
        )
        function = self.node.find_child(_uploader(self))
        basic = "Policy::arn:<AWS::Partition>:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole"
        acknowledge(
            function,
            {
                f"AwsSolutions-IAM4[{basic}]": "For the CDK's own upload function, which writes its log",
                "AwsSolutions-L1": "The CDK chooses the runtime of its own function, and updates it",
            },
        )
        acknowledge_wildcards(
            function,
            "For the CDK's own function: it reads the deployment's assets and writes to the code bucket",
            *SHARED_BUCKET,
            *SHARED_BUCKET_WRITE,
            "Resource::arn:<AWS::Partition>:s3:::cdk-hnb659fds-assets-<AWS::AccountId>-<AWS::Region>/*",
            f"Resource::{nag_arn(bucket_arn(stage, 'code'))}/*",
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
            description=f"Encore: what {job} may access",
            assumed_by=iam.ServicePrincipal("emr-serverless.amazonaws.com", conditions=source),
            inline_policies={
                "tables": iam.PolicyDocument(
                    statements=[iam.PolicyStatement.from_json(statement) for statement in allowed]
                )
            },
        )
        why = "Objects in the job's own folders and of the tables that it declares; listing is restricted to these"
        acknowledge_wildcards(role, why, *_wildcards_of(allowed))
        return role

    def _cluster(
        self, stage: Stage, network: NetworkStack, storage: StorageStack, mlflow: MlflowStack, buckets: Buckets
    ) -> None:
        """A small cluster that terminates itself when idle, for steps from `encore submit --target emr-ec2`."""
        service = iam.Role(
            self,
            "ClusterService",
            assumed_by=iam.ServicePrincipal("elasticmapreduce.amazonaws.com"),
            managed_policies=[iam.ManagedPolicy.from_aws_managed_policy_name("service-role/AmazonEMRServicePolicy_v2")],
        )
        managed = "Policy::arn:<AWS::Partition>:iam::aws:policy/service-role/AmazonEMRServicePolicy_v2"
        why = "The policy that EMR requires; it is restricted to resources with EMR's tag"
        acknowledge(service, {f"AwsSolutions-IAM4[{managed}]": why})
        Tags.of(network.vpc).add(EMR_TAG, "true")
        Tags.of(network.jobs).add(EMR_TAG, "true")
        node_role = iam.Role(
            self,
            "ClusterNodes",
            assumed_by=iam.ServicePrincipal(f"ec2.{Stack.of(self).url_suffix}"),
            # for sessions on a node: its agent registers with Systems Manager
            managed_policies=[iam.ManagedPolicy.from_aws_managed_policy_name("AmazonSSMManagedInstanceCore")],
        )
        managed = "Policy::arn:<AWS::Partition>:iam::aws:policy/AmazonSSMManagedInstanceCore"
        why = "The policy that Systems Manager requires of a node; it allows nothing on any data of Encore"
        acknowledge(node_role, {f"AwsSolutions-IAM4[{managed}]": why})
        allowed = cluster_statements(buckets)
        for statement in allowed:
            node_role.add_to_policy(iam.PolicyStatement.from_json(statement))
        _grant_tracking(node_role, mlflow)
        why = (
            "All jobs share the cluster's nodes, and thus one role, the union of theirs. On Serverless each has its own"
        )
        acknowledge_wildcards(node_role, why, *_wildcards_of(allowed))
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
            # EMR requires the profile to have the name of its role
            instance_profile_name=node_role.role_name,
            roles=[node_role.role_name],
        )
        self.cluster = emr.CfnCluster(
            self,
            "Cluster",
            name=f"encore-{stage.name}",
            release_label=stage.release,
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
                # MLflow admits the group of jobs; EMR's own groups do not exist yet
                additional_master_security_groups=[network.jobs.security_group_id],
                additional_slave_security_groups=[network.jobs.security_group_id],
                keep_job_flow_alive_when_no_steps=True,
                master_instance_fleet=_fleet(1, "m7i.xlarge", "m6i.xlarge", spot=False),
                core_instance_fleet=_fleet(2, "r7i.xlarge", "r6i.xlarge", spot=not stage.keep),
            ),
            # with containers of 14 GB, two nodes hold one driver and one executor
            step_concurrency_level=1,
            visible_to_all_users=True,
            tags=[CfnTag(key=EMR_TAG, value="true")],
        )
        CfnOutput(self, "ClusterId", value=self.cluster.ref)
        acknowledge(
            self.cluster,
            {
                "AwsSolutions-EMR2": "Logs go to S3 (log_uri)",
                "AwsSolutions-EMR4": "Data is stored in S3, encrypted; nothing is kept on the cluster's disks",
                "AwsSolutions-EMR5": "No client connects to the cluster: steps are added through EMR's API",
                "AwsSolutions-EMR6": "There is no SSH access: no key is set and no port is open; sessions use SSM",
            },
        )


def _wildcards_of(allowed: list[dict[str, Any]]) -> list[str]:
    """Resources with a wildcard in the statements, as cdk-nag writes them."""
    found = {resource for statement in allowed for resource in statement["Resource"] if "*" in resource}
    return [f"Resource::{nag_arn(resource)}" for resource in sorted(found)]


def _grant_tracking(role: iam.Role, mlflow: MlflowStack, job: str | None = None) -> None:
    """Let a role read the secret with MLflow's address and login and, if SageMaker manages MLflow, call the server.

    `job`: whose role it is; None: of all jobs.
    """
    mlflow.login.grant_read(role)
    if mlflow.managed is None:
        return
    for statement in tracking_statements(mlflow.managed, mlflow.artefacts_arn, job):
        role.add_to_policy(iam.PolicyStatement.from_json(statement))
    acknowledge_wildcards(role, ARTEFACTS, f"Resource::{nag_arn(mlflow.artefacts_arn)}/*")


def _uploader(stack: Stack) -> str:
    """Id of the CDK's own upload function: it creates one for each stack and memory size."""
    (found,) = (
        child.node.id for child in stack.node.children if child.node.id.startswith("Custom::CDKBucketDeployment")
    )
    return found


def _prewarmed_workers() -> list[serverless.CfnApplication.InitialCapacityConfigKeyValuePairProperty]:
    """Workers that are kept ready while the application is started: a driver and its executors."""
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
