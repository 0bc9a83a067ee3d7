"""What is watched, and who hears of it: runs that take long, cost, MLflow and its database. All goes to one topic."""

from __future__ import annotations

import json
from collections.abc import Sequence

from aws_cdk import ArnFormat, Aws, Duration, RemovalPolicy, Stack
from aws_cdk import aws_budgets as budgets
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from aws_cdk import aws_rds as rds
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sqs as sqs
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from encore.aws.readiness import STAGE_TAG
from encore.aws.stage import Stage
from encore.aws.watch import watch
from encore_cdk.nag import acknowledge_wildcards, nag_arn

LEAST_STORAGE_GB = 1.0
"""RDS enlarges the storage at a tenth of it, 2 GB at first: below this, that has not helped."""

MOST_CPU_PERCENT = 90


MLFLOW_ALARMS = (
    "MlflowUnhealthy",
    "MlflowTasks",
    "MlflowErrors",
    "MlflowUnreachable",
    "DatabaseStorage",
    "DatabaseCpu",
    "DatabaseConnections",
)
"""Names of the alarms on MLflow, which the dashboard of the stage shows too."""


def mlflow_alarms(scope: Stack, stage: Stage) -> list[cloudwatch.IAlarm]:
    """The alarms of MLflow's stack, by their names alone."""
    if stage.mlflow != "fargate":
        return []
    arns = [
        scope.format_arn(
            service="cloudwatch",
            resource="alarm",
            resource_name=f"encore-{stage.name}-{name}",
            arn_format=ArnFormat.COLON_RESOURCE_NAME,
        )
        for name in MLFLOW_ALARMS
    ]
    return [
        cloudwatch.Alarm.from_alarm_arn(scope, f"Of{name}", arn) for name, arn in zip(MLFLOW_ALARMS, arns, strict=True)
    ]


def topic_name(stage: Stage) -> str:
    """Built from the stage, so that alarms of stacks that are deployed earlier can name the topic."""
    return f"encore-{stage.name}-failures"


def admit(topic: sns.Topic, key: kms.IKey, service: str, conditions: dict[str, dict[str, str]]) -> None:
    """Let a service of AWS publish to the topic, and use its key for that."""
    principal = iam.ServicePrincipal(service)
    topic.add_to_resource_policy(
        iam.PolicyStatement(
            principals=[principal], actions=["sns:Publish"], resources=[topic.topic_arn], conditions=conditions
        )
    )
    key.add_to_resource_policy(
        iam.PolicyStatement(
            principals=[principal],
            actions=["kms:Decrypt", "kms:GenerateDataKey*"],
            resources=["*"],
            conditions=conditions,
        )
    )


def add_budget(scope: Stack, stage: Stage, topic: sns.Topic, key: kms.IKey) -> None:
    """A monthly budget of the stage, found by its tag: a message at 80 and 100 %, and if a forecast passes it."""
    account = scope.account
    admit(
        topic,
        key,
        "budgets.amazonaws.com",
        {
            "StringEquals": {"aws:SourceAccount": account},
            "ArnLike": {"aws:SourceArn": f"arn:{scope.partition}:budgets::{account}:*"},
        },
    )
    subscriber = budgets.CfnBudget.SubscriberProperty(address=topic.topic_arn, subscription_type="SNS")

    def at(percent: int, kind: str) -> budgets.CfnBudget.NotificationWithSubscribersProperty:
        return budgets.CfnBudget.NotificationWithSubscribersProperty(
            notification=budgets.CfnBudget.NotificationProperty(
                comparison_operator="GREATER_THAN",
                notification_type=kind,
                threshold=percent,
                threshold_type="PERCENTAGE",
            ),
            subscribers=[subscriber],
        )

    budget = budgets.CfnBudget(
        scope,
        "Budget",
        budget=budgets.CfnBudget.BudgetDataProperty(
            budget_name=f"encore-{stage.name}",
            budget_type="COST",
            time_unit="MONTHLY",
            budget_limit=budgets.CfnBudget.SpendProperty(amount=stage.budget, unit="USD"),
            cost_filters={"TagKeyValue": [f"user:{STAGE_TAG}${stage.name}"]},
        ),
        notifications_with_subscribers=[at(80, "ACTUAL"), at(100, "ACTUAL"), at(100, "FORECASTED")],
    )
    # creating it checks that the topic takes its messages
    budget.node.add_dependency(topic)


def add_watch(
    scope: Stack, stage: Stage, machine: sfn.StateMachine, topic: sns.Topic, key: kms.IKey, dead: sqs.Queue
) -> None:
    """Report executions of a machine that are not done after `run_hours`."""
    name = f"encore-{stage.name}-watch"
    role = iam.Role(
        scope,
        "WatchRole",
        assumed_by=iam.ServicePrincipal(
            "states.amazonaws.com", conditions={"StringEquals": {"aws:SourceAccount": scope.account}}
        ),
    )
    executions = scope.format_arn(
        service="states",
        resource="execution",
        resource_name=f"encore-{stage.name}:*",
        arn_format=ArnFormat.COLON_RESOURCE_NAME,
    )
    role.add_to_policy(iam.PolicyStatement(actions=["states:DescribeExecution"], resources=[executions]))
    role.add_to_policy(iam.PolicyStatement(actions=["sns:Publish"], resources=[topic.topic_arn]))
    role.add_to_policy(iam.PolicyStatement(actions=["kms:Decrypt", "kms:GenerateDataKey"], resources=[key.key_arn]))
    watcher = sfn.StateMachine(
        scope,
        "Watch",
        state_machine_name=name,
        definition_body=sfn.DefinitionBody.from_string(json.dumps(watch(stage.run_hours * 3600, stage.run_hours))),
        definition_substitutions={"TopicArn": topic.topic_arn},
        role=role,
        logs=sfn.LogOptions(
            destination=logs.LogGroup(
                scope,
                "WatchLog",
                log_group_name=f"/aws/vendedlogs/states/{name}",
                retention=logs.RetentionDays.ONE_MONTH,
                removal_policy=RemovalPolicy.DESTROY,
            ),
            level=sfn.LogLevel.ALL,
        ),
        tracing_enabled=True,
    )
    acknowledge_wildcards(
        role,
        "Executions get their names when they start; delivery of logs and traces does not support resources",
        "Resource::*",
        f"Resource::arn:<AWS::Partition>:states:<AWS::Region>:<AWS::AccountId>:execution:encore-{stage.name}:*",
    )
    starter = iam.Role(scope, "WatchStarter", assumed_by=iam.ServicePrincipal("events.amazonaws.com"))
    events.Rule(
        scope,
        "Started",
        description="Encore: a run has started",
        event_pattern=events.EventPattern(
            source=["aws.states"],
            detail_type=["Step Functions Execution Status Change"],
            detail={"status": ["RUNNING"], "stateMachineArn": [machine.state_machine_arn]},
        ),
        targets=[targets.SfnStateMachine(watcher, role=starter, dead_letter_queue=dead)],
    )
    # the queue is encrypted: EventBridge needs its key, for which it documents no condition
    key.add_to_resource_policy(
        iam.PolicyStatement(
            principals=[iam.ServicePrincipal("events.amazonaws.com")],
            actions=["kms:Decrypt", "kms:GenerateDataKey*"],
            resources=["*"],
        )
    )


def watch_mlflow(
    scope: Stack,
    stage: Stage,
    balancer: elb.ApplicationLoadBalancer,
    group: elb.ApplicationTargetGroup,
    service: ecs.FargateService,
    database: rds.DatabaseInstance,
    memory_gb: int,
) -> None:
    """Alarms on MLflow's load balancer, tasks and database, and a dashboard of what they watch.

    `memory_gb`: of the database's instance. The alarms are in MLflow's own stack: in another one, they would import
    names of resources that could then not be replaced any more.
    """
    topic = scope.format_arn(service="sns", resource=topic_name(stage), arn_format=ArnFormat.NO_RESOURCE_NAME)
    notify = actions.SnsAction(sns.Topic.from_topic_arn(scope, "Failures", topic))
    minutes = Duration.minutes(5)
    tasks = 2 if stage.keep else 1
    running = cloudwatch.Metric(
        namespace="ECS/ContainerInsights",
        metric_name="RunningTaskCount",
        dimensions_map={"ClusterName": service.cluster.cluster_name, "ServiceName": service.service_name},
        statistic="Minimum",
        period=minutes,
    )
    healthy = group.metrics.healthy_host_count(statistic="Minimum", period=minutes)
    failed = group.metrics.http_code_target(elb.HttpCodeTarget.TARGET_5XX_COUNT, statistic="Sum", period=minutes)
    refused = balancer.metrics.http_code_elb(elb.HttpCodeElb.ELB_5XX_COUNT, statistic="Sum", period=minutes)
    storage = database.metric_free_storage_space(statistic="Minimum", period=minutes)
    cpu = database.metric_cpu_utilization(statistic="Average", period=minutes)
    connections = database.metric_database_connections(statistic="Maximum", period=minutes)
    below, above = (
        cloudwatch.ComparisonOperator.LESS_THAN_THRESHOLD,
        cloudwatch.ComparisonOperator.GREATER_THAN_THRESHOLD,
    )
    present, absent = cloudwatch.TreatMissingData.BREACHING, cloudwatch.TreatMissingData.NOT_BREACHING
    for name, metric, threshold, compare, missing, periods, text in (
        ("MlflowUnhealthy", healthy, 1, below, present, 3, "no task of MLflow is healthy: jobs do not log their runs"),
        ("MlflowTasks", running, tasks, below, present, 3, "fewer tasks of MLflow run than should"),
        ("MlflowErrors", failed, 10, above, absent, 2, "MLflow answers requests with errors of its own"),
        ("MlflowUnreachable", refused, 10, above, absent, 2, "MLflow's load balancer answers in place of MLflow"),
        (
            "DatabaseStorage",
            storage,
            LEAST_STORAGE_GB * 1e9,
            below,
            absent,
            3,
            "the storage of MLflow's database is almost full",
        ),
        ("DatabaseCpu", cpu, MOST_CPU_PERCENT, above, absent, 6, "MLflow's database is busy all the time"),
        (
            "DatabaseConnections",
            connections,
            most_connections(memory_gb) // 2,
            above,
            absent,
            3,
            "MLflow's database has half as many connections as it takes",
        ),
    ):
        alarm = cloudwatch.Alarm(
            scope,
            name,
            alarm_name=f"encore-{stage.name}-{name}",
            alarm_description=f"Encore: {text}",
            metric=metric,
            threshold=threshold,
            evaluation_periods=periods,
            comparison_operator=compare,
            treat_missing_data=missing,
        )
        alarm.add_alarm_action(notify)
        # before that, it has no tasks
        alarm.node.add_dependency(service)
    _dashboard(
        scope,
        stage,
        {
            "Tasks": [running, healthy],
            "Requests": [balancer.metrics.request_count(statistic="Sum", period=minutes), failed, refused],
            "Seconds to answer": [group.metrics.target_response_time(statistic="p95", period=minutes)],
            "Database: CPU": [cpu],
            "Database: connections": [connections],
            "Database: free storage": [storage],
        },
    )


def most_connections(memory_gb: int) -> int:
    """What PostgreSQL on RDS takes by default, by its formula: memory in bytes / 9531392. A part of the memory is
    taken by the system, so that it really takes fewer."""
    return int(memory_gb * 1024**3) // 9531392


def _dashboard(scope: Construct, stage: Stage, widgets: dict[str, Sequence[cloudwatch.IMetric]]) -> None:
    graphs: list[cloudwatch.IWidget] = [
        cloudwatch.GraphWidget(title=title, left=list(metrics), width=8) for title, metrics in widgets.items()
    ]
    cloudwatch.Dashboard(
        scope, "Dashboard", dashboard_name=f"encore-{stage.name}-mlflow", widgets=[graphs[:3], graphs[3:]]
    )


def add_delivery_role(scope: Stack, stage: Stage, machine: sfn.StateMachine, application_id: str) -> None:
    """The role with which the delivery pipeline runs a stage that it has deployed, and reads what came of it.

    It trusts the account of the git connection, which is that of the pipeline, and there the pipeline's projects only.
    """
    account = stage.connection.split(":")[4]
    role = iam.Role(
        scope,
        "Delivery",
        role_name=delivery_role(stage.name),
        description="Encore: what the delivery pipeline does in the stage",
        assumed_by=iam.PrincipalWithConditions(
            iam.AccountPrincipal(account),
            {"ArnLike": {"aws:PrincipalArn": f"arn:{Aws.PARTITION}:iam::{account}:role/encore-delivery-*"}},
        ),
    )
    here = f"{Aws.REGION}:{Aws.ACCOUNT_ID}"
    executions = f"arn:{Aws.PARTITION}:states:{here}:execution:encore-{stage.name}:*"
    stacks = f"arn:{Aws.PARTITION}:cloudformation:{here}:stack/encore-{stage.name}-*/*"
    application = f"arn:{Aws.PARTITION}:emr-serverless:{here}:/applications/{application_id}"
    lake, raw = (
        f"arn:{Aws.PARTITION}:s3:::encore-{stage.name}-{name}-{Aws.ACCOUNT_ID}-{Aws.REGION}" for name in ("lake", "raw")
    )
    read = [f"{lake}/lake/{path}/*" for path in ("*/_delta_log", "job_runs", "model_metrics")]
    statements = [
        (["states:StartExecution", "states:ListExecutions"], [machine.state_machine_arn]),
        (["states:DescribeExecution", "states:GetExecutionHistory", "states:StopExecution"], [executions]),
        (["cloudformation:DescribeStacks"], [stacks]),
        (
            ["emr-serverless:GetApplication", "emr-serverless:ListJobRuns", "emr-serverless:StopApplication"],
            [application],
        ),
        (["emr-serverless:CancelJobRun", "emr-serverless:GetJobRun"], [f"{application}/jobruns/*"]),
        (["s3:ListBucket"], [lake]),
        (["s3:GetObject"], read),
    ]
    wild = [executions, stacks, f"{application}/jobruns/*", *read]
    if not stage.keep:
        # generated data, in a stage that is removed again
        put = [f"{raw}/{name}/*" for name in ("playlists", "features")]
        statements += [(["s3:ListBucket"], [raw]), (["s3:AbortMultipartUpload", "s3:PutObject"], put)]
        wild += put
    for allowed, resources in statements:
        role.add_to_policy(iam.PolicyStatement(actions=allowed, resources=resources))
    acknowledge_wildcards(
        role,
        "Executions, runs and files get their names when they are made; the names of a stage's stacks begin with it",
        # cdk-nag writes an imported value by the name of its export
        *(f"Resource::{nag_arn(one).replace(application_id, f'encore-{stage.name}-application-id')}" for one in wild),
    )


def delivery_role(stage: str) -> str:
    """Name of the role with which the pipeline runs a stage."""
    return f"encore-{stage}-delivery"
