"""The scorer: on Fargate behind a load balancer, or as an endpoint of SageMaker."""

from __future__ import annotations

from pathlib import Path

from aws_cdk import CfnOutput, Duration, RemovalPolicy, Stack
from aws_cdk import aws_applicationautoscaling as scaling
from aws_cdk import aws_certificatemanager as acm
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_sagemaker as sagemaker
from aws_cdk import aws_secretsmanager as secrets
from aws_cdk import aws_wafv2 as waf
from constructs import Construct

from encore.aws.serving import INSTANCE, PORT, RULES, TASK_GB, TASK_VCPU, least_tasks
from encore.aws.stage import Stage
from encore_cdk.environment import environment
from encore_cdk.mlflow import MlflowStack
from encore_cdk.nag import acknowledge, acknowledge_wildcards, nag_arn
from encore_cdk.network import NetworkStack
from encore_cdk.orchestration import OrchestrationStack
from encore_cdk.storage import StorageStack, bucket_arn, bucket_name

HOOKS = Path(__file__).resolve().parents[1] / "hooks"
USER = "65532:65532"
"""The image's user, who owns its folders that can be written to."""
CACHE, TEMPORARY, BUNDLE = "/var/cache/encore", "/tmp", "/bundle"
"""Folders of a task, which the image has: of bundles downloaded from the registry, of temporary files, and of the
bundle copied from S3."""
COPIER = "public.ecr.aws/aws-cli/aws-cli:2.31.0"
"""The image that copies a bundle from S3: the scorer's own has no client of S3."""

IDLE_SECONDS = 60
"""After which the load balancer closes a connection to the scorer, which must keep it for longer: the balancer answers
502 to a request that it sends on a connection that is just being closed."""
DRAIN_SECONDS = 30
"""How long the load balancer waits for requests in flight, and ECS for the scorer to end after SIGTERM."""

CANARY_PERCENT, CANARY_MINUTES, BAKE_MINUTES = 10, 10, 10
"""What share of the requests the new tasks get at first, for how long, and how long the old ones remain after all of
the load was shifted."""
LEAST_REQUESTS = 20
"""A minute with fewer requests is not judged: one error among them would be a large share."""
ERROR_SHARE = 0.05
"""The largest share of errors: more than one in LEAST_REQUESTS."""
P99_SECONDS = 0.25
ALARM_MINUTES = 2
"""Minutes in a row that must be bad. A multiple of it has to fit into CANARY_MINUTES."""

REQUESTS_A_MINUTE = 900
"""For each task or instance, on average: 60 % of one core at 40 ms a request."""
CPU_PERCENT = 60

VARIANT = "scorer"


class ServingStack(Stack):
    """The scorer. There is no such stack with the choice serving=none."""

    def __init__(
        self,
        scope: Construct,
        id: str,
        stage: Stage,
        network: NetworkStack,
        storage: StorageStack,
        mlflow: MlflowStack,
        orchestration: OrchestrationStack,
    ) -> None:
        super().__init__(scope, id, stack_name=id, env=environment(stage), description="Encore: scorer")
        self._stage, self._network, self._mlflow = stage, network, mlflow
        self._name = f"encore-{stage.name}"
        self._notify = actions.SnsAction(orchestration.topic)
        self._bundle = f"{bucket_arn(stage, 'artefacts')}/{stage.serving_bundle}" if stage.serving_bundle else None
        repository, _, tag = stage.serving_image.partition("@" if "@" in stage.serving_image else ":")
        self._repository = ecr.Repository.from_repository_name(self, "Repository", repository)
        self._tag = tag
        if stage.serving == "sagemaker":
            self._sagemaker()
        else:
            self._fargate(storage)

    # Fargate

    def _fargate(self, storage: StorageStack) -> None:
        stage, vpc = self._stage, self._network.vpc
        public = stage.serving_access == "public"
        port = 443 if stage.serving_domain else 80
        # CloudFormation replaces a security group whose description changes: leave these as they are
        balancer_group = ec2.SecurityGroup(
            self, "BalancerGroup", vpc=vpc, description="Scorer: load balancer", allow_all_outbound=False
        )
        task_group = ec2.SecurityGroup(
            self, "TaskGroup", vpc=vpc, description="Scorer: the balancer alone", allow_all_outbound=False
        )
        callers = ec2.Peer.any_ipv4() if public else ec2.Peer.ipv4(vpc.vpc_cidr_block)
        balancer_group.add_ingress_rule(callers, ec2.Port.tcp(port), "from callers")
        acknowledge(
            balancer_group,
            {
                "AwsSolutions-EC23": "The choice serving_access=public is to be reached from anywhere, by HTTPS"
                if public
                else "The range is the VPC's own, which cdk-nag cannot resolve before deployment"
            },
        )
        balancer_group.add_egress_rule(task_group, ec2.Port.tcp(PORT), "to the tasks")
        task_group.add_ingress_rule(balancer_group, ec2.Port.tcp(PORT), "from the load balancer")
        task_group.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "ECR, S3, Secrets Manager, logs")
        if self._bundle is None:
            self._mlflow.admit(task_group, "the scorer")

        balancer = self._balancer(storage, balancer_group, public)
        blue, green = (self._target_group(name) for name in ("Blue", "Green"))
        rule = self._listener(balancer, blue, green)
        alarms = [
            *self._target_alarms("Blue", blue),
            *self._target_alarms("Green", green),
            self._balancer_alarm(balancer),
        ]
        cluster = ecs.Cluster(self, "Cluster", vpc=vpc, container_insights_v2=ecs.ContainerInsights.ENABLED)
        service = ecs.FargateService(
            self,
            "Service",
            cluster=cluster,
            task_definition=self._task(),
            assign_public_ip=False,
            vpc_subnets=self._network.private,
            security_groups=[task_group],
            min_healthy_percent=100,
            # a new task downloads and checks its bundle first
            health_check_grace_period=Duration.minutes(10),
            deployment_strategy=ecs.DeploymentStrategy.CANARY,
            canary_configuration=ecs.TrafficShiftConfig(
                step_percent=CANARY_PERCENT, step_bake_time=Duration.minutes(CANARY_MINUTES)
            ),
            bake_time=Duration.minutes(BAKE_MINUTES),
            deployment_alarms=ecs.DeploymentAlarmConfig(
                alarm_names=[alarm.alarm_name for alarm in alarms], behavior=ecs.AlarmBehavior.ROLLBACK_ON_ALARM
            ),
            propagate_tags=ecs.PropagatedTagSource.SERVICE,
        )
        shifter = iam.Role(
            self,
            "Shifter",
            description="Encore: ECS shifts load between the scorer's target groups",
            assumed_by=iam.ServicePrincipal("ecs.amazonaws.com"),
            managed_policies=[
                iam.ManagedPolicy.from_aws_managed_policy_name("AmazonECSInfrastructureRolePolicyForLoadBalancers")
            ],
        )
        managed = "Policy::arn:<AWS::Partition>:iam::aws:policy/AmazonECSInfrastructureRolePolicyForLoadBalancers"
        acknowledge(shifter, {f"AwsSolutions-IAM4[{managed}]": "The policy that ECS names for this role"})
        target = service.load_balancer_target(
            container_name="scorer",
            container_port=PORT,
            alternate_target=ecs.AlternateTarget(
                "Green",
                alternate_target_group=green,
                production_listener=ecs.ListenerRuleConfiguration.application_listener_rule(rule),
                role=shifter,
            ),
        )
        target.attach_to_application_target_group(blue)
        # the service refers to the rule, but not to what its deployment needs of the role
        service.node.add_dependency(rule, shifter)
        if self._bundle is None:
            self._guard(service)
        self._scale(service, blue, green)
        self._firewall(balancer)
        scheme = "https" if stage.serving_domain else "http"
        CfnOutput(self, "ScorerAddress", value=f"{scheme}://{stage.serving_domain or balancer.load_balancer_dns_name}")
        CfnOutput(self, "ScorerBalancer", value=balancer.load_balancer_dns_name)

    def _balancer(self, storage: StorageStack, group: ec2.SecurityGroup, public: bool) -> elb.ApplicationLoadBalancer:
        balancer = elb.ApplicationLoadBalancer(
            self,
            "Balancer",
            vpc=self._network.vpc,
            internet_facing=public,
            vpc_subnets=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PUBLIC) if public else self._network.private,
            security_group=group,
            drop_invalid_header_fields=True,
            deletion_protection=self._stage.keep,
            idle_timeout=Duration.seconds(IDLE_SECONDS),
        )
        # the CDK's own method needs to know the region; the bucket's policy names a service that is the same in all
        prefix = "scorer"
        storage.access_logs.add_to_resource_policy(
            iam.PolicyStatement(
                sid="ScorerAccessLogs",
                principals=[iam.ServicePrincipal("logdelivery.elasticloadbalancing.amazonaws.com")],
                actions=["s3:PutObject"],
                resources=[f"{bucket_arn(self._stage, 'access-logs')}/{prefix}/AWSLogs/{self.account}/*"],
                conditions={
                    "StringEquals": {"aws:SourceAccount": self.account},
                    "ArnLike": {
                        "aws:SourceArn": self.format_arn(
                            service="elasticloadbalancing", resource="loadbalancer", resource_name="*"
                        )
                    },
                },
            )
        )
        balancer.set_attribute("access_logs.s3.enabled", "true")
        balancer.set_attribute("access_logs.s3.bucket", bucket_name(self._stage, "access-logs"))
        balancer.set_attribute("access_logs.s3.prefix", prefix)
        # the load balancer tries to write when it is created
        self.add_stack_dependency(storage)
        return balancer

    def _target_group(self, name: str) -> elb.ApplicationTargetGroup:
        return elb.ApplicationTargetGroup(
            self,
            name,
            vpc=self._network.vpc,
            port=PORT,
            protocol=elb.ApplicationProtocol.HTTP,
            target_type=elb.TargetType.IP,
            deregistration_delay=Duration.seconds(DRAIN_SECONDS),
            health_check=elb.HealthCheck(
                path="/ping",
                healthy_http_codes="200",
                interval=Duration.seconds(10),
                timeout=Duration.seconds(5),
                healthy_threshold_count=2,
                unhealthy_threshold_count=3,
            ),
        )

    def _listener(
        self,
        balancer: elb.ApplicationLoadBalancer,
        blue: elb.ApplicationTargetGroup,
        green: elb.ApplicationTargetGroup,
    ) -> elb.ApplicationListenerRule:
        """The listener, and its rule, whose weights ECS changes.

        Changing the rule in the template would set the weights back to what the template says, while tasks may be
        registered in the other group alone: give a changed rule a new priority during a maintenance window.
        """
        stage = self._stage
        missing = elb.ListenerAction.fixed_response(404, content_type="text/plain", message_body="not found")
        if stage.serving_domain:
            listener = balancer.add_listener(
                "Https",
                port=443,
                protocol=elb.ApplicationProtocol.HTTPS,
                certificates=[acm.Certificate.from_certificate_arn(self, "Certificate", stage.serving_certificate)],
                ssl_policy=elb.SslPolicy.RECOMMENDED_TLS,
                default_action=missing,
                open=False,
            )
        else:
            listener = balancer.add_listener(
                "Http", port=80, protocol=elb.ApplicationProtocol.HTTP, default_action=missing, open=False
            )
        # what Prometheus reads is of the tasks, and not for callers
        elb.ApplicationListenerRule(
            self,
            "Metrics",
            listener=listener,
            priority=1,
            conditions=[elb.ListenerCondition.path_patterns(["/metrics"])],
            action=missing,
        )
        return elb.ApplicationListenerRule(
            self,
            "Production",
            listener=listener,
            priority=10,
            conditions=[elb.ListenerCondition.path_patterns(["/*"])],
            action=elb.ListenerAction.weighted_forward(
                [
                    elb.WeightedTargetGroup(target_group=blue, weight=100),
                    elb.WeightedTargetGroup(target_group=green, weight=0),
                ]
            ),
        )

    def _task(self) -> ecs.FargateTaskDefinition:
        """One scorer with a read-only root file system; it writes to folders of bundles and temporary files only."""
        stage = self._stage
        task = ecs.FargateTaskDefinition(
            self,
            "Task",
            cpu=TASK_VCPU * 1024,
            memory_limit_mib=TASK_GB * 1024,
            runtime_platform=ecs.RuntimePlatform(
                cpu_architecture=ecs.CpuArchitecture.X86_64, operating_system_family=ecs.OperatingSystemFamily.LINUX
            ),
        )
        acknowledge(task, {"AwsSolutions-ECS2": "Settings; token and password come from Secrets Manager"})
        acknowledge_wildcards(task, "ecr:GetAuthorizationToken does not support resources", "Resource::*")
        log = ecs.LogDrivers.aws_logs(
            stream_prefix="scorer",
            # requests do not wait for the log
            mode=ecs.AwsLogDriverMode.NON_BLOCKING,
            log_group=logs.LogGroup(
                self, "Log", retention=logs.RetentionDays.THREE_MONTHS, removal_policy=RemovalPolicy.DESTROY
            ),
        )
        token = secrets.Secret(
            self,
            "Token",
            description="Encore: token that callers of the scorer send",
            generate_secret_string=secrets.SecretStringGenerator(exclude_punctuation=True, password_length=48),
        )
        acknowledge(token, {"AwsSolutions-SMG4": "Callers hold it too, so it changes when they do"})
        CfnOutput(self, "ScorerToken", value=token.secret_arn)
        environment = {"ENCORE_SERVE_HOST": "0.0.0.0", "ENCORE_SERVE_PORT": str(PORT)}
        secret = {"ENCORE_SERVE_TOKEN": ecs.Secret.from_secrets_manager(token)}
        if self._bundle is None:
            environment |= {
                "ENCORE_SERVE_MODEL": f"models:/encore-{stage.serving_model}@champion",
                "ENCORE_SERVE_CACHE": CACHE,
            }
            login = self._mlflow.login
            secret |= {
                # not a value of the stack of MLflow, which could then not change while this stack exists
                "ENCORE_SERVE_REGISTRY": ecs.Secret.from_secrets_manager(login, "uri"),
                "MLFLOW_TRACKING_USERNAME": ecs.Secret.from_secrets_manager(login, "username"),
                "MLFLOW_TRACKING_PASSWORD": ecs.Secret.from_secrets_manager(login, "password"),
            }
        else:
            environment |= {"ENCORE_SERVE_MODEL": BUNDLE}
        container = task.add_container(
            "scorer",
            image=ecs.ContainerImage.from_ecr_repository(self._repository, self._tag),
            user=USER,
            readonly_root_filesystem=True,
            linux_parameters=self._without_capabilities("Scorer"),
            environment=environment,
            secrets=secret,
            logging=log,
            stop_timeout=Duration.seconds(DRAIN_SECONDS),
            port_mappings=[ecs.PortMapping(container_port=PORT)],
        )
        for name, folder in (("cache", CACHE), ("temporary", TEMPORARY)):
            task.add_volume(name=name)
            container.add_mount_points(ecs.MountPoint(source_volume=name, container_path=folder, read_only=False))
        if self._bundle is None:
            return task
        task.add_volume(name="bundle")
        container.add_mount_points(ecs.MountPoint(source_volume="bundle", container_path=BUNDLE, read_only=True))
        copier = task.add_container(
            "bundle",
            image=ecs.ContainerImage.from_registry(COPIER),
            essential=False,
            readonly_root_filesystem=True,
            linux_parameters=self._without_capabilities("Copier"),
            command=["s3", "cp", "--recursive", "--no-progress", self._bundle_url(), BUNDLE],
            logging=log,
        )
        copier.add_mount_points(ecs.MountPoint(source_volume="bundle", container_path=BUNDLE, read_only=False))
        container.add_container_dependencies(
            ecs.ContainerDependency(container=copier, condition=ecs.ContainerDependencyCondition.SUCCESS)
        )
        self._grant_bundle(task.task_role)
        return task

    def _without_capabilities(self, name: str) -> ecs.LinuxParameters:
        parameters = ecs.LinuxParameters(self, f"{name}Linux")
        parameters.drop_capabilities(ecs.Capability.ALL)
        return parameters

    def _guard(self, service: ecs.FargateService) -> None:
        """Let ECS ask, before it starts tasks of a new revision, whether a canary of a model is under way."""
        group = ec2.SecurityGroup(
            self, "GuardGroup", vpc=self._network.vpc, description="Scorer: hook", allow_all_outbound=False
        )
        group.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "Secrets Manager")
        self._mlflow.admit(group, "the scorer's hook")
        function = lambda_.Function(
            self,
            "Guard",
            description="Encore: refuse a deployment of the scorer while a model's canary is under way",
            runtime=lambda_.Runtime.PYTHON_3_14,
            handler="one_canary.handler",
            code=lambda_.Code.from_asset(str(HOOKS), exclude=["__pycache__"]),
            timeout=Duration.seconds(60),
            vpc=self._network.vpc,
            vpc_subnets=self._network.private,
            security_groups=[group],
            environment={
                "LOGIN": self._mlflow.login.secret_arn,
                "MODEL": f"encore-{self._stage.serving_model}",
            },
            log_group=logs.LogGroup(
                self, "GuardLog", retention=logs.RetentionDays.THREE_MONTHS, removal_policy=RemovalPolicy.DESTROY
            ),
        )
        self._mlflow.login.grant_read(function)
        policies = "Policy::arn:<AWS::Partition>:iam::aws:policy/service-role"
        why = "The policies that Lambda names for a function that writes a log and runs in a VPC"
        acknowledge(
            function,
            {
                f"AwsSolutions-IAM4[{policies}/AWSLambdaBasicExecutionRole]": why,
                f"AwsSolutions-IAM4[{policies}/AWSLambdaVPCAccessExecutionRole]": why,
            },
        )
        caller = iam.Role(
            self,
            "GuardCaller",
            description="Encore: ECS calls the hook",
            assumed_by=iam.ServicePrincipal("ecs.amazonaws.com"),
            inline_policies={
                "call": iam.PolicyDocument(
                    statements=[
                        iam.PolicyStatement(actions=["lambda:InvokeFunction"], resources=[function.function_arn])
                    ]
                )
            },
        )
        service.add_lifecycle_hook(
            ecs.DeploymentLifecycleLambdaTarget(
                function, "OneCanary", lifecycle_stages=[ecs.DeploymentLifecycleStage.PRE_SCALE_UP], role=caller
            )
        )

    def _target_alarms(self, name: str, group: elb.ApplicationTargetGroup) -> list[cloudwatch.Alarm]:
        """Alarms for a target group: new tasks are in either, as ECS exchanges them with each deployment."""
        minute = Duration.minutes(1)

        def metric(metric_name: str, statistic: str) -> cloudwatch.Metric:
            return group.metrics.custom(metric_name, statistic=statistic, period=minute)

        requests = metric("RequestCount", "Sum")
        return [
            self._alarm(
                f"Scorer{name}Errors",
                f"IF(requests >= {LEAST_REQUESTS}, errors / requests, 0)",
                {"requests": requests, "errors": metric("HTTPCode_Target_5XX_Count", "Sum")},
                ERROR_SHARE,
                f"more than {ERROR_SHARE:.0%} of the requests to the {name.lower()} tasks failed",
            ),
            self._alarm(
                f"Scorer{name}Slow",
                f"IF(requests >= {LEAST_REQUESTS}, p99, 0)",
                {"requests": requests, "p99": metric("TargetResponseTime", "p99")},
                P99_SECONDS,
                f"the {name.lower()} tasks take more than {P99_SECONDS} s for one in a hundred requests",
            ),
        ]

    def _balancer_alarm(self, balancer: elb.ApplicationLoadBalancer) -> cloudwatch.Alarm:
        """The load balancer answers itself where no task does, or where one closes the connection: no task's error."""
        minute = Duration.minutes(1)
        return self._alarm(
            "ScorerUnanswered",
            f"IF(requests >= {LEAST_REQUESTS}, errors / requests, 0)",
            {
                "requests": balancer.metrics.custom("RequestCount", statistic="Sum", period=minute),
                "errors": balancer.metrics.custom("HTTPCode_ELB_5XX_Count", statistic="Sum", period=minute),
            },
            ERROR_SHARE,
            f"more than {ERROR_SHARE:.0%} of the requests reached no task of the scorer",
        )

    def _alarm(
        self, name: str, expression: str, metrics: dict[str, cloudwatch.IMetric], threshold: float, text: str
    ) -> cloudwatch.Alarm:
        alarm = cloudwatch.Alarm(
            self,
            name,
            alarm_name=f"{self._name}-{name}",
            alarm_description=f"Encore: {text}",
            metric=cloudwatch.MathExpression(
                expression=expression, using_metrics=metrics, period=Duration.minutes(1), label=name
            ),
            threshold=threshold,
            comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_THRESHOLD,
            evaluation_periods=ALARM_MINUTES,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        )
        alarm.add_alarm_action(self._notify)
        return alarm

    def _scale(
        self, service: ecs.FargateService, blue: elb.ApplicationTargetGroup, green: elb.ApplicationTargetGroup
    ) -> None:
        """Follow the CPU, and the requests for each task in whichever target group has the load.

        The CDK's policy for requests follows one group, which is idle after every other deployment.
        """
        count = service.auto_scale_task_count(
            min_capacity=least_tasks("fargate", self._stage.keep), max_capacity=self._stage.serving_max
        )
        calm, quick = Duration.minutes(5), Duration.minutes(1)
        count.scale_on_cpu_utilization(
            "Cpu", target_utilization_percent=CPU_PERCENT, scale_in_cooldown=calm, scale_out_cooldown=quick
        )
        target = count.node.find_child("Target")
        assert isinstance(target, scaling.ScalableTarget)
        policy = scaling.CfnScalingPolicy

        def requests(
            id_: str, group: elb.ApplicationTargetGroup
        ) -> scaling.CfnScalingPolicy.TargetTrackingMetricDataQueryProperty:
            dimensions = {
                "LoadBalancer": group.first_load_balancer_full_name,
                "TargetGroup": group.target_group_full_name,
            }
            return policy.TargetTrackingMetricDataQueryProperty(
                id=id_,
                return_data=False,
                metric_stat=policy.TargetTrackingMetricStatProperty(
                    stat="Sum",
                    metric=policy.TargetTrackingMetricProperty(
                        namespace="AWS/ApplicationELB",
                        metric_name="RequestCountPerTarget",
                        dimensions=[
                            policy.TargetTrackingMetricDimensionProperty(name=name, value=value)
                            for name, value in dimensions.items()
                        ],
                    ),
                ),
            )

        policy(
            self,
            "Requests",
            policy_name=f"{self._name}-scorer-requests",
            policy_type="TargetTrackingScaling",
            scaling_target_id=target.scalable_target_id,
            target_tracking_scaling_policy_configuration=policy.TargetTrackingScalingPolicyConfigurationProperty(
                target_value=REQUESTS_A_MINUTE,
                scale_in_cooldown=int(calm.to_seconds()),
                scale_out_cooldown=int(quick.to_seconds()),
                customized_metric_specification=policy.CustomizedMetricSpecificationProperty(
                    metrics=[
                        requests("blue", blue),
                        requests("green", green),
                        policy.TargetTrackingMetricDataQueryProperty(
                            id="both", expression="FILL(blue, 0) + FILL(green, 0)", return_data=True
                        ),
                    ]
                ),
            ),
        )

    def _firewall(self, balancer: elb.ApplicationLoadBalancer) -> None:
        """Block addresses that send too much, that are known for attacks, and requests that look like one."""

        def visible(name: str) -> waf.CfnWebACL.VisibilityConfigProperty:
            return waf.CfnWebACL.VisibilityConfigProperty(
                cloud_watch_metrics_enabled=True, metric_name=f"{self._name}-{name}", sampled_requests_enabled=False
            )

        def managed(name: str, priority: int) -> waf.CfnWebACL.RuleProperty:
            return waf.CfnWebACL.RuleProperty(
                name=name,
                priority=priority,
                override_action=waf.CfnWebACL.OverrideActionProperty(none={}),
                statement=waf.CfnWebACL.StatementProperty(
                    managed_rule_group_statement=waf.CfnWebACL.ManagedRuleGroupStatementProperty(
                        vendor_name="AWS", name=f"AWSManagedRules{name}"
                    )
                ),
                visibility_config=visible(name),
            )

        rules = [
            waf.CfnWebACL.RuleProperty(
                name="Rate",
                priority=0,
                action=waf.CfnWebACL.RuleActionProperty(
                    block=waf.CfnWebACL.BlockActionProperty(
                        custom_response=waf.CfnWebACL.CustomResponseProperty(response_code=429)
                    )
                ),
                statement=waf.CfnWebACL.StatementProperty(
                    rate_based_statement=waf.CfnWebACL.RateBasedStatementProperty(
                        aggregate_key_type="IP", limit=self._stage.serving_rate, evaluation_window_sec=300
                    )
                ),
                visibility_config=visible("Rate"),
            ),
            # not the common rule set: it refuses bodies above 8 KB, which a long playlist has
            managed("AmazonIpReputationList", 1),
            managed("KnownBadInputsRuleSet", 2),
        ]
        assert len(rules) == RULES
        acl = waf.CfnWebACL(
            self,
            "Firewall",
            name=f"{self._name}-scorer",
            scope="REGIONAL",
            default_action=waf.CfnWebACL.DefaultActionProperty(allow={}),
            rules=rules,
            visibility_config=visible("scorer"),
        )
        waf.CfnWebACLAssociation(
            self, "FirewallOfBalancer", resource_arn=balancer.load_balancer_arn, web_acl_arn=acl.attr_arn
        )

    # a bundle in S3

    def _bundle_url(self) -> str:
        return f"s3://{bucket_name(self._stage, 'artefacts')}/{self._stage.serving_bundle}/"

    def _grant_bundle(self, role: iam.IRole) -> None:
        """Let a role read the bundle, and nothing else in the bucket."""
        folder = f"{self._stage.serving_bundle}/*"
        role.add_to_principal_policy(iam.PolicyStatement(actions=["s3:GetObject"], resources=[f"{self._bundle}/*"]))
        role.add_to_principal_policy(
            iam.PolicyStatement(
                actions=["s3:ListBucket"],
                resources=[bucket_arn(self._stage, "artefacts")],
                conditions={"StringLike": {"s3:prefix": [folder]}},
            )
        )
        acknowledge_wildcards(role, "The files of one bundle", f"Resource::{nag_arn(str(self._bundle))}/*")

    # SageMaker

    def _sagemaker(self) -> None:
        stage, name = self._stage, self._name
        role = iam.Role(
            self,
            "Role",
            description="Encore: what SageMaker does for the scorer",
            assumed_by=iam.ServicePrincipal("sagemaker.amazonaws.com"),
        )
        self._grant_bundle(role)
        self._repository.grant_pull(role)
        # SageMaker would create it, without an end to what it keeps
        log = logs.LogGroup(
            self,
            "Log",
            log_group_name=f"/aws/sagemaker/Endpoints/{name}",
            retention=logs.RetentionDays.THREE_MONTHS,
            removal_policy=RemovalPolicy.DESTROY,
        )
        log.grant_write(role)
        acknowledge_wildcards(role, "ecr:GetAuthorizationToken does not support resources", "Resource::*")
        separator = "@" if "@" in stage.serving_image else ":"
        model = sagemaker.CfnModel(
            self,
            "Model",
            execution_role_arn=role.role_arn,
            # the container reaches nothing: SageMaker brings it the bundle
            enable_network_isolation=True,
            primary_container=sagemaker.CfnModel.ContainerDefinitionProperty(
                image=f"{self._repository.repository_uri}{separator}{self._tag}",
                environment={
                    "ENCORE_SERVE_HOST": "0.0.0.0",
                    "ENCORE_SERVE_PORT": str(PORT),
                    "ENCORE_SERVE_MODEL": "/opt/ml/model",
                },
                model_data_source=sagemaker.CfnModel.ModelDataSourceProperty(
                    s3_data_source=sagemaker.CfnModel.S3DataSourceProperty(
                        s3_uri=self._bundle_url(), s3_data_type="S3Prefix", compression_type="None"
                    )
                ),
            ),
        )
        # the model is created with a check of the role's permissions
        model.node.add_dependency(role)
        configuration = sagemaker.CfnEndpointConfig(
            self,
            "Configuration",
            production_variants=[
                sagemaker.CfnEndpointConfig.ProductionVariantProperty(
                    variant_name=VARIANT,
                    model_name=model.attr_model_name,
                    instance_type=INSTANCE,
                    initial_instance_count=least_tasks("sagemaker", stage.keep),
                    initial_variant_weight=1,
                    container_startup_health_check_timeout_in_seconds=600,
                    model_data_download_timeout_in_seconds=1200,
                )
            ],
        )
        alarms = self._endpoint_alarms()
        routing = sagemaker.CfnEndpoint.TrafficRoutingConfigProperty(
            type="CANARY",
            canary_size=sagemaker.CfnEndpoint.CapacitySizeProperty(type="INSTANCE_COUNT", value=1),
            wait_interval_in_seconds=CANARY_MINUTES * 60,
        )
        endpoint = sagemaker.CfnEndpoint(
            self,
            "Endpoint",
            endpoint_name=name,
            endpoint_config_name=configuration.attr_endpoint_config_name,
            deployment_config=sagemaker.CfnEndpoint.DeploymentConfigProperty(
                auto_rollback_configuration=sagemaker.CfnEndpoint.AutoRollbackConfigProperty(
                    alarms=[sagemaker.CfnEndpoint.AlarmProperty(alarm_name=alarm.alarm_name) for alarm in alarms]
                ),
                blue_green_update_policy=sagemaker.CfnEndpoint.BlueGreenUpdatePolicyProperty(
                    traffic_routing_configuration=routing,
                    termination_wait_in_seconds=BAKE_MINUTES * 60,
                    maximum_execution_timeout_in_seconds=4 * 3600,
                ),
            ),
        )
        endpoint.node.add_dependency(log)
        count = scaling.ScalableTarget(
            self,
            "Count",
            service_namespace=scaling.ServiceNamespace.SAGEMAKER,
            scalable_dimension="sagemaker:variant:DesiredInstanceCount",
            resource_id=f"endpoint/{name}/variant/{VARIANT}",
            min_capacity=least_tasks("sagemaker", stage.keep),
            max_capacity=stage.serving_max,
        )
        count.node.add_dependency(endpoint)
        count.scale_to_track_metric(
            "Requests",
            predefined_metric=scaling.PredefinedMetric.SAGEMAKER_VARIANT_INVOCATIONS_PER_INSTANCE,
            target_value=REQUESTS_A_MINUTE,
            scale_in_cooldown=Duration.minutes(5),
            scale_out_cooldown=Duration.minutes(1),
        )
        CfnOutput(self, "ScorerEndpoint", value=name)

    def _endpoint_alarms(self) -> list[cloudwatch.Alarm]:
        def metric(metric_name: str, statistic: str) -> cloudwatch.Metric:
            return cloudwatch.Metric(
                namespace="AWS/SageMaker",
                metric_name=metric_name,
                dimensions_map={"EndpointName": self._name, "VariantName": VARIANT},
                statistic=statistic,
                period=Duration.minutes(1),
            )

        requests = metric("Invocations", "Sum")
        return [
            self._alarm(
                "ScorerErrors",
                f"IF(requests >= {LEAST_REQUESTS}, errors / requests, 0)",
                {"requests": requests, "errors": metric("Invocation5XXErrors", "Sum")},
                ERROR_SHARE,
                f"more than {ERROR_SHARE:.0%} of the requests failed",
            ),
            self._alarm(
                "ScorerSlow",
                # SageMaker publishes microseconds
                f"IF(requests >= {LEAST_REQUESTS}, p99 / 1000000, 0)",
                {"requests": requests, "p99": metric("ModelLatency", "p99")},
                P99_SECONDS,
                f"the scorer takes more than {P99_SECONDS} s for one in a hundred requests",
            ),
        ]
