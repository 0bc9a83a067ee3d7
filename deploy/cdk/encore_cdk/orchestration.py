"""When jobs run and who is notified: the state machine, its schedules, alarms and a dashboard."""

from __future__ import annotations

import json

from aws_cdk import ArnFormat, CfnOutput, Duration, RemovalPolicy, Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from aws_cdk import aws_scheduler as scheduler
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sqs as sqs
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from encore.aws.stage import Stage
from encore.aws.states import camel, default_limits, definition
from encore.runtime.registry import MAINTENANCE_JOBS, extra_nodes, nodes
from encore_cdk.compute import ComputeStack
from encore_cdk.environment import environment
from encore_cdk.mlflow import MlflowStack
from encore_cdk.monitoring import add_budget, add_delivery_role, add_watch, admit, mlflow_alarms, topic_name
from encore_cdk.nag import SHARED_KEY, acknowledge, acknowledge_wildcards, nag_arn
from encore_cdk.storage import StorageStack, bucket_arn, bucket_name

_JOB_RUN_ACTIONS = ("GetJobRun", "CancelJobRun", "TagResource")
"""What the state machine does with a job run: read its state, cancel it, and tag it with its job."""


EMR_METRICS = "AWS/EMRServerless"
"""CloudWatch namespace of EMR Serverless, which publishes each metric under one full set of dimensions."""


class OrchestrationStack(Stack):
    """The pipeline as a whole."""

    def __init__(
        self,
        scope: Construct,
        id: str,
        stage: Stage,
        storage: StorageStack,
        compute: ComputeStack,
        mlflow: MlflowStack,
    ) -> None:
        super().__init__(
            scope, id, stack_name=id, env=environment(stage), description="Encore: state machine, schedules, alarms"
        )
        self._stage, self._name = stage, f"encore-{stage.name}"
        key = kms.Key(
            self,
            "Key",
            description="Encore: messages and the lock",
            enable_key_rotation=True,
            removal_policy=RemovalPolicy.RETAIN if stage.keep else RemovalPolicy.DESTROY,
        )
        self.topic = sns.Topic(
            self,
            "Failures",
            topic_name=topic_name(stage),
            master_key=key,
            enforce_ssl=True,
            display_name="Encore: failures",
        )
        # the topic policy that enforce_ssl creates replaces the default one, which admits the account's alarms
        admit(self.topic, key, "cloudwatch.amazonaws.com", {"StringEquals": {"aws:SourceAccount": self.account}})
        if stage.budget:
            add_budget(self, stage, self.topic, key)
        self.lock = dynamodb.TableV2(
            self,
            "Lock",
            partition_key=dynamodb.Attribute(name="line", type=dynamodb.AttributeType.STRING),
            billing=dynamodb.Billing.on_demand(),
            encryption=dynamodb.TableEncryptionV2.aws_managed_key(),
            removal_policy=RemovalPolicy.DESTROY,
        )
        acknowledge(self.lock, {"AwsSolutions-DDB3": "A single item, the lock, of which a backup is useless"})
        self.machine = self._machine(storage, compute, mlflow, key)
        self.dead = sqs.Queue(
            self, "NotStarted", encryption=sqs.QueueEncryption.KMS, encryption_master_key=key,
            enforce_ssl=True, retention_period=Duration.days(14),
        )  # fmt: skip
        acknowledge(self.dead, {"AwsSolutions-SQS3": "It is itself a dead-letter queue"})
        role = iam.Role(
            self,
            "Scheduler",
            assumed_by=iam.ServicePrincipal(
                "scheduler.amazonaws.com", conditions={"StringEquals": {"aws:SourceAccount": self.account}}
            ),
        )
        self.machine.grant_start_execution(role)
        self.dead.grant_send_messages(role)
        acknowledge_wildcards(role, "Sending to an encrypted queue needs these on its key", *SHARED_KEY)
        self._schedule("Nightly", f"cron(0 {stage.hour} * * ? *)", {}, role)
        # maintenance is a separate execution of the same machine, so it never overlaps with the pipeline
        weekly: dict[str, object] = {"only": list(MAINTENANCE_JOBS)}
        self._schedule("Maintenance", f"cron(0 {(stage.hour + 10) % 24} ? * SUN *)", weekly, role)
        add_watch(self, stage, self.machine, self.topic, key, self.dead)
        if stage.connection:
            add_delivery_role(self, stage, self.machine, compute.application_id)
        self._monitor(compute)
        CfnOutput(self, "StateMachineArn", value=self.machine.state_machine_arn)
        CfnOutput(self, "FailuresTopicArn", value=self.topic.topic_arn)

    def _machine(
        self, storage: StorageStack, compute: ComputeStack, mlflow: MlflowStack, key: kms.Key
    ) -> sfn.StateMachine:
        stage = self._stage
        known = {
            "ApplicationId": compute.application_id,
            "Region": self.region,
            "Stage": stage.name,
            "CodePrefix": compute.code_path,
            "Lake": storage.lake_path,
            "RawPrefix": f"s3://{bucket_name(stage, 'raw')}",
            "LogBucket": bucket_name(stage, "logs"),
            "TrackingLogin": mlflow.login.secret_arn,
            "TopicArn": self.topic.topic_arn,
            "LockTable": self.lock.table_name,
            **{f"Role{camel(job)}": role.role_arn for job, role in compute.roles.items()},
        }
        role = iam.Role(
            self,
            "Machine",
            assumed_by=iam.ServicePrincipal(
                "states.amazonaws.com", conditions={"StringEquals": {"aws:SourceAccount": self.account}}
            ),
        )
        application = self.format_arn(
            service="emr-serverless",
            resource="/applications",
            resource_name=compute.application_id,
            arn_format=ArnFormat.SLASH_RESOURCE_NAME,
        )
        for statement in (
            _allow(["emr-serverless:StartJobRun"], [application]),
            _allow([f"emr-serverless:{name}" for name in _JOB_RUN_ACTIONS], [f"{application}/jobruns/*"]),
            _allow(
                ["iam:PassRole"],
                [job.role_arn for job in compute.roles.values()],
                {"StringEquals": {"iam:PassedToService": "emr-serverless.amazonaws.com"}},
            ),
            # how Step Functions learns that a `.sync` job run has ended
            _allow(
                ["events:DescribeRule", "events:PutRule", "events:PutTargets"],
                [
                    self.format_arn(
                        service="events",
                        resource="rule",
                        resource_name="StepFunctionsGetEventsForEMRServerlessJobRule",
                    )
                ],
            ),
            _allow(["s3:GetObject"], [f"{bucket_arn(stage, 'logs')}/outcomes/*"]),
            # without it, S3 answers 403 rather than 404 for an outcome that does not exist
            _allow(["s3:ListBucket"], [bucket_arn(stage, "logs")], {"StringLike": {"s3:prefix": ["outcomes/*"]}}),
            _allow(["sns:Publish"], [self.topic.topic_arn]),
            _allow(["kms:Decrypt", "kms:GenerateDataKey"], [key.key_arn]),
            _allow(["dynamodb:PutItem", "dynamodb:GetItem", "dynamodb:DeleteItem"], [self.lock.table_arn]),
            _allow(
                ["states:DescribeExecution"],
                [
                    self.format_arn(
                        service="states",
                        resource="execution",
                        resource_name=f"{self._name}:*",
                        arn_format=ArnFormat.COLON_RESOURCE_NAME,
                    )
                ],
            ),
        ):
            role.add_to_policy(statement)
        machine_definition = definition(nodes(), extra=extra_nodes(), limits=default_limits())
        machine = sfn.StateMachine(
            self,
            "Line",
            state_machine_name=self._name,
            definition_body=sfn.DefinitionBody.from_string(json.dumps(machine_definition)),
            definition_substitutions=known,
            role=role,
            logs=sfn.LogOptions(
                destination=logs.LogGroup(
                    self,
                    "Log",
                    log_group_name=f"/aws/vendedlogs/states/{self._name}",
                    retention=logs.RetentionDays.THREE_MONTHS,
                    removal_policy=RemovalPolicy.DESTROY,
                ),
                level=sfn.LogLevel.ALL,
                # inputs are settings without secrets, which the jobs log anyway
                include_execution_data=True,
            ),
            tracing_enabled=True,
        )
        why = (
            "Runs of one application, executions of this machine and outcomes of jobs get their names when they start; "
            "delivery of logs and traces (logs:*Delivery*, xray:Put*) does not support resources"
        )
        acknowledge_wildcards(
            role,
            why,
            "Resource::*",
            f"Resource::{nag_arn(bucket_arn(stage, 'logs'))}/outcomes/*",
            "Resource::arn:<AWS::Partition>:emr-serverless:<AWS::Region>:<AWS::AccountId>:/applications/"
            f"{self._name}-application-id/jobruns/*",
            f"Resource::arn:<AWS::Partition>:states:<AWS::Region>:<AWS::AccountId>:execution:{self._name}:*",
        )
        return machine

    def _schedule(self, name: str, expression: str, machine_input: dict[str, object], role: iam.Role) -> None:
        # the execution is named after the schedule's invocation id, so that a retried invocation starts nothing twice
        target = {
            "StateMachineArn": self.machine.state_machine_arn,
            "Name": f"{name.lower()}-<aws.scheduler.execution-id>",
            "Input": json.dumps(machine_input),
        }
        scheduler.CfnSchedule(
            self,
            name,
            name=f"{self._name}-{name.lower()}",
            description=f"Encore: {name.lower()}",
            schedule_expression=expression,
            schedule_expression_timezone=self._stage.timezone,
            state="ENABLED" if self._stage.nightly else "DISABLED",
            flexible_time_window=scheduler.CfnSchedule.FlexibleTimeWindowProperty(mode="OFF"),
            target=scheduler.CfnSchedule.TargetProperty(
                arn=f"arn:{self.partition}:scheduler:::aws-sdk:sfn:startExecution",
                role_arn=role.role_arn,
                input=self.to_json_string(target),
                dead_letter_config=scheduler.CfnSchedule.DeadLetterConfigProperty(arn=self.dead.queue_arn),
                retry_policy=scheduler.CfnSchedule.RetryPolicyProperty(
                    maximum_event_age_in_seconds=3600, maximum_retry_attempts=10
                ),
            ),
        )

    def _monitor(self, compute: ComputeStack) -> None:
        notify = actions.SnsAction(self.topic)
        alarms: list[cloudwatch.IAlarm] = []
        hour, day = Duration.hours(1), Duration.days(1)
        failed = self.machine.metric_failed(period=hour, statistic="Sum")
        late = self.machine.metric_timed_out(period=hour, statistic="Sum")
        done = self.machine.metric_succeeded(period=day, statistic="Sum")
        waiting = self.dead.metric_approximate_number_of_messages_visible(period=Duration.minutes(5))
        for name, metric, text in (
            ("Failed", failed, "An execution failed; if a job caused it, a separate message names the job"),
            ("TimedOut", late, "An execution took more than a day"),
            (
                "NotStartedAtAll",
                waiting,
                "A schedule, or the rule that watches runs, started nothing; the dead-letter queue holds the reason",
            ),
        ):
            alarm = metric.create_alarm(
                self,
                name,
                alarm_name=f"{self._name}-{name}",
                alarm_description=f"Encore: {text}",
                threshold=1,
                evaluation_periods=1,
                treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
            )
            alarm.add_alarm_action(notify)
            alarms.append(alarm)
        if self._stage.nightly:
            silent = done.create_alarm(
                self,
                "Silent",
                alarm_name=f"{self._name}-Silent",
                alarm_description="Encore: no execution has succeeded for a day",
                threshold=1,
                evaluation_periods=1,
                comparison_operator=cloudwatch.ComparisonOperator.LESS_THAN_THRESHOLD,
                treat_missing_data=cloudwatch.TreatMissingData.BREACHING,
            )
            silent.add_alarm_action(notify)
            alarms.append(silent)
        alarms += mlflow_alarms(self, self._stage)
        application = {"ApplicationId": compute.application_id, "ApplicationName": self._name}

        def job_run_metric(name: str) -> cloudwatch.Metric:
            return cloudwatch.Metric(
                namespace=EMR_METRICS, metric_name=name, dimensions_map=application, statistic="Sum"
            )

        def worker_metric(name: str) -> cloudwatch.SearchExpression:
            # one line for each combination of drivers or executors with on-demand or prewarmed capacity that exists
            dimensions = ",".join((EMR_METRICS, *sorted([*application, "CapacityAllocationType", "WorkerType"])))
            wanted = " ".join(f'{key}="{value}"' for key, value in application.items())
            return cloudwatch.SearchExpression(
                # one value is published per minute: a sum over a longer period would be a multiple of the allocation
                expression=f"SEARCH('{{{dimensions}}} MetricName=\"{name}\" {wanted}', 'Sum', 60)",
                label="${PROP('Dim.WorkerType')}, ${PROP('Dim.CapacityAllocationType')}",
                period=Duration.minutes(1),
            )

        cloudwatch.Dashboard(
            self,
            "Dashboard",
            dashboard_name=self._name,
            widgets=[
                [cloudwatch.AlarmStatusWidget(title="Alarms", alarms=alarms, width=24)],
                [
                    cloudwatch.GraphWidget(title="Executions per day", left=[done, failed, late], width=12),
                    cloudwatch.GraphWidget(
                        title="Duration of the pipeline", left=[self.machine.metric_time(statistic="Maximum")], width=12
                    ),
                ],
                [
                    cloudwatch.GraphWidget(title="CPUs", left=[worker_metric("CPUAllocated")], width=8),
                    cloudwatch.GraphWidget(title="Memory", left=[worker_metric("MemoryAllocated")], width=8),
                    cloudwatch.GraphWidget(
                        title="Runs", left=[job_run_metric("SuccessJobs"), job_run_metric("FailedJobs")], width=8
                    ),
                ],
            ],
        )


def _allow(
    actions: list[str], resources: list[str], conditions: dict[str, dict[str, object]] | None = None
) -> iam.PolicyStatement:
    return iam.PolicyStatement(actions=actions, resources=resources, conditions=conditions)
