"""The migration of MLflow's database: a task that CloudFormation runs once, before it changes the service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aws_cdk import Aws, CfnResource, CustomResource, Duration, RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import custom_resources as custom
from constructs import Construct, IConstruct

from encore_cdk.nag import acknowledge, acknowledge_wildcards, nag_arn

HOOKS = Path(__file__).resolve().parents[1] / "hooks"
MINUTES = 55
"""How long a migration may take: CloudFormation waits for an hour at most."""


class Migration(Construct):
    """Runs a task once for each change of its definition, and fails the deployment if the task fails.

    What is to change only after it, depends on this construct. `triggers`: further texts, of which a change runs the
    task again; `task`: its definition, with one container.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,
        cluster: ecs.ICluster,
        task: ecs.FargateTaskDefinition,
        subnets: Sequence[str],
        group: ec2.ISecurityGroup,
        log: logs.ILogGroup,
        triggers: Sequence[str],
    ) -> None:
        super().__init__(scope, id)
        start, is_complete = (self._function(name, log) for name in ("start", "is_complete"))
        tasks = f"arn:{Aws.PARTITION}:ecs:{Aws.REGION}:{Aws.ACCOUNT_ID}:task/{cluster.cluster_name}/*"
        task.grant_run(start)
        stack = f"arn:{Aws.PARTITION}:cloudformation:{Aws.REGION}:{Aws.ACCOUNT_ID}:stack/{Aws.STACK_NAME}/*"
        for function, action, resource in (
            (start, "cloudformation:DescribeStacks", stack),
            (is_complete, "ecs:DescribeTasks", tasks),
        ):
            function.add_to_role_policy(iam.PolicyStatement(actions=[action], resources=[resource]))
        provider = custom.Provider(
            self,
            "Provider",
            on_event_handler=start,
            is_complete_handler=is_complete,
            query_interval=Duration.seconds(15),
            total_timeout=Duration.minutes(MINUTES),
            log_group=logs.LogGroup(
                self, "ProviderLog", retention=logs.RetentionDays.THREE_MONTHS, removal_policy=RemovalPolicy.DESTROY
            ),
        )
        resource = CustomResource(
            self,
            "Run",
            service_token=provider.service_token,
            resource_type="Custom::MlflowMigration",
            properties={
                "Cluster": cluster.cluster_name,
                # its ARN changes with its image, and with all else in it
                "TaskDefinition": task.task_definition_arn,
                "Subnets": list(subnets),
                "SecurityGroup": group.security_group_id,
                "Triggers": list(triggers),
            },
        )
        resource.node.add_dependency(start, is_complete)
        self._acknowledge(provider, (start, is_complete), cluster, tasks, stack)

    def _acknowledge(
        self,
        provider: custom.Provider,
        functions: Sequence[lambda_.Function],
        cluster: ecs.ICluster,
        tasks: str,
        stack: str,
    ) -> None:
        managed = "Policy::arn:<AWS::Partition>:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole"
        acknowledge(self, {f"AwsSolutions-IAM4[{managed}]": "The policy that Lambda names for writing a log"})
        acknowledge_wildcards(
            self,
            "ids of tasks and stacks are generated",
            f"Resource::{nag_arn(stack)}",
            f"Resource::{nag_arn(tasks).replace(cluster.cluster_name, f'<{self._id_of(cluster)}>')}",
        )
        called = [*functions, *(provider.node.find_child(f"framework-{name}") for name in ("isComplete", "onTimeout"))]
        acknowledge_wildcards(
            self, "all versions of one function", *(f"Resource::<{self._id_of(one)}.Arn>:*" for one in called)
        )
        why = "The CDK's own: it polls a function, whose log says what it found"
        acknowledge(provider, {"AwsSolutions-SF1": why, "AwsSolutions-SF2": why})

    def _id_of(self, construct: IConstruct) -> str:
        """The name of a construct's resource in the template."""
        resource = construct.node.default_child
        assert isinstance(resource, CfnResource)
        return str(Stack.of(self).resolve(resource.logical_id))

    def _function(self, name: str, log: logs.ILogGroup) -> lambda_.Function:
        camel = name.title().replace("_", "")
        return lambda_.Function(
            self,
            camel,
            description=f"Encore: MLflow's migration task, {name.replace('_', ' ')}",
            runtime=lambda_.Runtime.PYTHON_3_14,
            handler=f"migrate_database.{name}",
            code=lambda_.Code.from_asset(str(HOOKS), exclude=["__pycache__"]),
            timeout=Duration.seconds(60),
            environment={"LOG": log.log_group_name},
            log_group=logs.LogGroup(
                self, f"{camel}Log", retention=logs.RetentionDays.THREE_MONTHS, removal_policy=RemovalPolicy.DESTROY
            ),
        )
