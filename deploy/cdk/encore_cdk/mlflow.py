"""MLflow: a tracking server on Fargate with PostgreSQL, or one managed by SageMaker; private either way."""

from __future__ import annotations

import json
from pathlib import Path

from aws_cdk import CfnOutput, Duration, RemovalPolicy, SecretValue, Stack
from aws_cdk import aws_certificatemanager as acm
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk import aws_rds as rds
from aws_cdk import aws_route53 as route53
from aws_cdk import aws_route53_targets as targets
from aws_cdk import aws_sagemaker as sagemaker
from aws_cdk import aws_secretsmanager as secrets
from constructs import Construct

from encore.aws.stage import Stage
from encore_cdk.environment import environment
from encore_cdk.migration import Migration
from encore_cdk.monitoring import watch_mlflow
from encore_cdk.nag import acknowledge, acknowledge_wildcards, nag_arn
from encore_cdk.network import NetworkStack
from encore_cdk.storage import StorageStack, bucket_arn, expire_noncurrent, private_bucket

IMAGE = Path(__file__).resolve().parents[1] / "mlflow"
DATABASE_PORT = 5433
"""Not PostgreSQL's default port, which scanners try first."""
POSTGRES = rds.PostgresEngineVersion.VER_17
"""The major version alone: AWS upgrades minor ones, and a template that names one would ask for the old one again."""
MANAGED_VERSION = "3.0"
"""A version that SageMaker offers; unpinned, a new server would get whatever is newest at the time."""
ARTEFACTS = "Artefacts in a dedicated bucket, under names that MLflow generates"
"""Why policies have a wildcard for the artefact folder."""


class MlflowStack(Stack):
    """The tracking server. `login` is the secret with its address, user name and password, which jobs read.

    `managed` is the ARN of the server if SageMaker manages it: jobs then authenticate by their IAM role, and write
    artefacts directly to the folder with the ARN `artefacts_arn`. On Fargate only jobs reach the server, and whom
    `admit` lets in.
    """

    def __init__(self, scope: Construct, id: str, stage: Stage, network: NetworkStack, storage: StorageStack) -> None:
        super().__init__(scope, id, stack_name=id, env=environment(stage), description="Encore: MLflow")
        self._stage = stage
        self.managed: str | None = None
        self.artefacts_arn = f"{bucket_arn(stage, 'artefacts')}/artefacts"
        self.artefacts = private_bucket(self, stage, "Artefacts", [expire_noncurrent(30)], storage.access_logs)
        self.login = self._managed() if stage.mlflow == "sagemaker" else self._fargate(network, storage)
        CfnOutput(self, "TrackingLogin", value=self.login.secret_arn)

    def _managed(self) -> secrets.Secret:
        """A server managed by SageMaker: IAM authenticates, and its ARN is the URI (plugin sagemaker-mlflow)."""
        role = iam.Role(self, "ServerRole", assumed_by=iam.ServicePrincipal("sagemaker.amazonaws.com"))
        self._grant_artefacts(role)
        server = sagemaker.CfnMlflowTrackingServer(
            self,
            "Server",
            tracking_server_name=f"encore-{self._stage.name}",
            tracking_server_size="Small",
            mlflow_version=MANAGED_VERSION,
            artifact_store_uri=f"s3://{self.artefacts.bucket_name}/artefacts",
            role_arn=role.role_arn,
            automatic_model_registration=False,
        )
        self.managed = server.attr_tracking_server_arn
        CfnOutput(self, "TrackingServer", value=server.attr_tracking_server_arn)
        login = secrets.Secret(
            self,
            "Login",
            description="Encore: address of MLflow, which authenticates by IAM role",
            secret_object_value={"uri": SecretValue.unsafe_plain_text(server.attr_tracking_server_arn)},
        )
        acknowledge(login, {"AwsSolutions-SMG4": "It holds an address, not a password"})
        return login

    def _fargate(self, network: NetworkStack, storage: StorageStack) -> secrets.Secret:
        stage, vpc = self._stage, network.vpc
        # CloudFormation replaces a security group whose description changes: leave these as they are
        balancer_group = self._balancer_group = ec2.SecurityGroup(
            self, "BalancerGroup", vpc=vpc, description="MLflow: named groups alone", allow_all_outbound=False
        )
        server_group = ec2.SecurityGroup(self, "ServerGroup", vpc=vpc, description="MLflow: the balancer alone")
        database_group = ec2.SecurityGroup(
            self, "DatabaseGroup", vpc=vpc, description="MLflow: the server alone", allow_all_outbound=False
        )
        balancer_group.add_ingress_rule(network.jobs, self._port, "from jobs")
        server_group.add_ingress_rule(balancer_group, ec2.Port.tcp(5000), "from the load balancer")
        database_group.add_ingress_rule(server_group, ec2.Port.tcp(DATABASE_PORT), "from the server")
        database = self._database(network, database_group)
        balancer = self._balancer(network, balancer_group)
        host = f"mlflow.{stage.domain}" if stage.domain else balancer.load_balancer_dns_name
        uri = f"https://{host}" if stage.domain else f"http://{host}"

        login = self._user("Login", "encore", "a user without administration, whom jobs and the scorer log in as", uri)
        administrator = self._user("Administrator", "administrator", "its administrator, for people", uri)
        CfnOutput(self, "TrackingAdministrator", value=administrator.secret_arn)
        session_key = secrets.Secret(
            self,
            "Pages",
            description="Encore: session key of MLflow's web pages",
            generate_secret_string=secrets.SecretStringGenerator(exclude_punctuation=True, password_length=48),
        )
        acknowledge(
            session_key, {"AwsSolutions-SMG4": "A new key ends all sessions, so it is changed only when that is wanted"}
        )
        cluster = ecs.Cluster(self, "Cluster", vpc=vpc, container_insights_v2=ecs.ContainerInsights.ENABLED)
        # the image is for the platform that runs it, whatever machine builds it
        platform = ecs.RuntimePlatform(
            cpu_architecture=ecs.CpuArchitecture.X86_64, operating_system_family=ecs.OperatingSystemFamily.LINUX
        )
        task = ecs.FargateTaskDefinition(self, "Task", cpu=1024, memory_limit_mib=3072, runtime_platform=platform)
        self._grant_artefacts(task.task_role)
        acknowledge(
            task, {"AwsSolutions-ECS2": "Names of the bucket and the database; passwords come from Secrets Manager"}
        )
        acknowledge_wildcards(task, "ecr:GetAuthorizationToken and ssmmessages support no resources", "Resource::*")
        assert database.secret is not None
        image = ecs.ContainerImage.from_asset(
            str(IMAGE), platform=ecr_assets.Platform.LINUX_AMD64, build_args={"BASE": stage.base_image}
        )
        log = logs.LogGroup(
            self, "Log", retention=logs.RetentionDays.THREE_MONTHS, removal_policy=RemovalPolicy.DESTROY
        )
        store = {"DB_HOST": database.db_instance_endpoint_address, "DB_PORT": str(DATABASE_PORT)}
        store_secrets = {
            "DB_USER": ecs.Secret.from_secrets_manager(database.secret, "username"),
            "DB_PASSWORD": ecs.Secret.from_secrets_manager(database.secret, "password"),
            "MLFLOW_AUTH_ADMIN_USERNAME": ecs.Secret.from_secrets_manager(administrator, "username"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": ecs.Secret.from_secrets_manager(administrator, "password"),
        }
        task.add_container(
            "mlflow",
            image=image,
            logging=ecs.LogDrivers.aws_logs(stream_prefix="mlflow", log_group=log),
            environment={
                **store,
                "ARTEFACT_BUCKET": self.artefacts.bucket_name,
                # localhost: at the other end of a tunnel
                "ALLOWED_HOSTS": f"{host},localhost:*",
            },
            secrets={**store_secrets, "MLFLOW_FLASK_SERVER_SECRET_KEY": ecs.Secret.from_secrets_manager(session_key)},
            # the agent behind a tunnel leaves processes that somebody has to reap
            linux_parameters=ecs.LinuxParameters(self, "Linux", init_process_enabled=True),
            port_mappings=[ecs.PortMapping(container_port=5000)],
        )
        migrating = ecs.FargateTaskDefinition(
            self, "MigrationTask", cpu=1024, memory_limit_mib=2048, runtime_platform=platform
        )
        acknowledge(migrating, {"AwsSolutions-ECS2": "Names of the database; passwords come from Secrets Manager"})
        acknowledge_wildcards(migrating, "ecr:GetAuthorizationToken does not support resources", "Resource::*")
        migrating.add_container(
            "migration",
            image=image,
            entry_point=["/migrate.sh"],
            logging=ecs.LogDrivers.aws_logs(stream_prefix="migration", log_group=log),
            environment=store,
            secrets={
                **store_secrets,
                "MLFLOW_JOBS_USERNAME": ecs.Secret.from_secrets_manager(login, "username"),
                "MLFLOW_JOBS_PASSWORD": ecs.Secret.from_secrets_manager(login, "password"),
            },
        )
        migration = Migration(
            self,
            "Migration",
            cluster,
            migrating,
            vpc.select_subnets(subnet_type=network.private.subnet_type).subnet_ids,
            server_group,
            log,
            # a secret whose template changes gets a new password
            triggers=[uri],
        )
        migration.node.add_dependency(database, server_group, database_group)
        service = ecs.FargateService(
            self,
            "Service",
            cluster=cluster,
            task_definition=task,
            desired_count=2 if stage.keep else 1,
            min_healthy_percent=100,
            assign_public_ip=False,
            vpc_subnets=network.private,
            security_groups=[server_group],
            circuit_breaker=ecs.DeploymentCircuitBreaker(rollback=True),
            # people open the pages through a port-forward to the task
            enable_execute_command=True,
            # tasks are what is billed
            propagate_tags=ecs.PropagatedTagSource.SERVICE,
        )
        service.node.add_dependency(migration)
        group = self._listen(balancer, service)
        watch_mlflow(self, stage, balancer, group, service, database, memory_gb=2 if stage.keep else 1)
        if stage.domain:
            self._name(host, balancer, network)
        CfnOutput(self, "TrackingCluster", value=cluster.cluster_name)
        CfnOutput(self, "TrackingService", value=service.service_name)
        return login

    @property
    def _port(self) -> ec2.Port:
        return ec2.Port.tcp(443 if self._stage.domain else 80)

    def admit(self, group: ec2.SecurityGroup, whose: str) -> None:
        """Let a security group of another stack reach the server; the rules are made in that stack. `whose`: a name."""
        self._balancer_group.add_ingress_rule(group, self._port, f"from {whose}", remote_rule=True)
        group.add_egress_rule(self._balancer_group, self._port, "MLflow")

    def _balancer(self, network: NetworkStack, group: ec2.SecurityGroup) -> elb.ApplicationLoadBalancer:
        balancer = elb.ApplicationLoadBalancer(
            self,
            "Balancer",
            # its DNS name begins with this; a generated one has capitals, which clients change and MLflow would refuse
            load_balancer_name=f"encore-{self._stage.name}-mlflow",
            vpc=network.vpc,
            internet_facing=False,
            vpc_subnets=network.private,
            security_group=group,
            drop_invalid_header_fields=True,
            deletion_protection=self._stage.keep,
        )
        # access logs need the region's load balancer account, which is unknown to an app without a region
        acknowledge(
            balancer, {"AwsSolutions-ELB2": "Internal to the VPC, whose flow log and MLflow's own log record requests"}
        )
        return balancer

    def _listen(self, balancer: elb.ApplicationLoadBalancer, service: ecs.FargateService) -> elb.ApplicationTargetGroup:
        """HTTPS with the domain's certificate; without a domain HTTP, since no authority certifies AWS's own name."""
        if self._stage.domain:
            certificate = acm.Certificate.from_certificate_arn(self, "Certificate", self._stage.certificate)
            listener = balancer.add_listener(
                "Https",
                port=443,
                protocol=elb.ApplicationProtocol.HTTPS,
                certificates=[certificate],
                ssl_policy=elb.SslPolicy.RECOMMENDED_TLS,
                open=False,
            )
        else:
            listener = balancer.add_listener("Http", port=80, protocol=elb.ApplicationProtocol.HTTP, open=False)
        return listener.add_targets(
            "Mlflow",
            port=5000,
            protocol=elb.ApplicationProtocol.HTTP,
            targets=[service],
            health_check=elb.HealthCheck(path="/health", healthy_http_codes="200"),
            deregistration_delay=Duration.seconds(30),
        )

    def _name(self, host: str, balancer: elb.ApplicationLoadBalancer, network: NetworkStack) -> None:
        """A private zone of one name: one of the whole domain would hide the domain's other names inside the VPC."""
        zone = route53.PrivateHostedZone(self, "Zone", vpc=network.vpc, zone_name=host)
        route53.ARecord(
            self,
            "Address",
            zone=zone,
            target=route53.RecordTarget.from_alias(targets.LoadBalancerTarget(balancer)),
        )

    def _user(self, id: str, username: str, purpose: str, uri: str) -> secrets.Secret:
        """The secret with the address of MLflow, and the name and generated password of one of its users."""
        secret = secrets.Secret(
            self,
            id,
            description=f"Encore: address of MLflow, and {purpose}",
            generate_secret_string=secrets.SecretStringGenerator(
                secret_string_template=json.dumps({"uri": uri, "username": username}),
                generate_string_key="password",
                exclude_punctuation=True,
                password_length=32,
            ),
        )
        acknowledge(
            secret,
            {"AwsSolutions-SMG4": "MLflow stores its users itself, so a password is changed in both places at once"},
        )
        return secret

    def _grant_artefacts(self, role: iam.IRole) -> None:
        role.add_to_principal_policy(
            iam.PolicyStatement(
                actions=["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:PutObject"],
                resources=[f"{self.artefacts_arn}/*"],
            )
        )
        role.add_to_principal_policy(
            iam.PolicyStatement(actions=["s3:ListBucket"], resources=[bucket_arn(self._stage, "artefacts")])
        )
        acknowledge_wildcards(role, ARTEFACTS, f"Resource::{nag_arn(self.artefacts_arn)}/*")

    def _database(self, network: NetworkStack, group: ec2.SecurityGroup) -> rds.DatabaseInstance:
        stage = self._stage
        size = ec2.InstanceSize.SMALL if stage.keep else ec2.InstanceSize.MICRO
        engine = rds.DatabaseInstanceEngine.postgres(version=POSTGRES)
        database = rds.DatabaseInstance(
            self,
            "Database",
            engine=engine,
            instance_type=ec2.InstanceType.of(ec2.InstanceClass.T4G, size),
            credentials=rds.Credentials.from_generated_secret("mlflow"),
            database_name="mlflow",
            port=DATABASE_PORT,
            vpc=network.vpc,
            vpc_subnets=network.data,
            security_groups=[group],
            multi_az=stage.keep,
            storage_encrypted=True,
            allocated_storage=20,
            max_allocated_storage=100,
            backup_retention=Duration.days(30 if stage.keep else 3),
            deletion_protection=stage.keep,
            removal_policy=RemovalPolicy.SNAPSHOT if stage.keep else RemovalPolicy.DESTROY,
            cloudwatch_logs_exports=["postgresql"],
            auto_minor_version_upgrade=True,
            parameters={"rds.force_ssl": "1"},
        )
        # cfn-lint's list has no version without a minor one, which RDS accepts
        instance = database.node.default_child
        assert isinstance(instance, rds.CfnDBInstance)
        instance.add_metadata("cfn-lint", {"config": {"ignore_checks": ["W3691"]}})
        acknowledge(
            database,
            {
                "AwsSolutions-SMG4": "MLflow reads the password at startup: rotation would lock it out until a restart",
                "AwsSolutions-RDS3": "Outside prod an MLflow outage is acceptable: the metrics are in Delta too",
                "AwsSolutions-RDS10": "Outside prod the whole stack may be deleted",
            },
        )
        return database
