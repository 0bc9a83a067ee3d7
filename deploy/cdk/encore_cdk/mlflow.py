"""MLflow: a tracking server on Fargate with PostgreSQL, or one that SageMaker manages. Private either way."""

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
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from encore.aws.stage import Stage
from encore_cdk.nag import argued, shown, wildcards
from encore_cdk.network import NetworkStack
from encore_cdk.storage import StorageStack, bucket_arn, private_bucket, superseded

IMAGE = Path(__file__).resolve().parents[1] / "mlflow"
DATABASE_PORT = 5433
"""Not PostgreSQL's own: scans look there first."""
MANAGED_VERSION = "3.0"
"""One that SageMaker offers; without it a new server would be of whatever is newest that day."""
ARTEFACTS = "Artefacts of a bucket that is for nothing else, whose names MLflow makes"
"""Why there is a wildcard behind their folder."""


class MlflowStack(Stack):
    """The tracking server. `login` is the secret with its address, user and password, which jobs read.

    `managed` is the ARN of the server where SageMaker manages it: a job's role is its sign-on then, and the job itself
    puts artefacts into the folder `kept`, an ARN too.
    """

    def __init__(self, scope: Construct, id: str, stage: Stage, network: NetworkStack, storage: StorageStack) -> None:
        super().__init__(scope, id, stack_name=id, description="Encore: MLflow")
        self._stage = stage
        self.managed: str | None = None
        self.kept = f"{bucket_arn(stage, 'artefacts')}/artefacts"
        self.artefacts = private_bucket(self, stage, "Artefacts", [superseded(30)], storage.access_logs)
        self.login = self._managed() if stage.mlflow == "sagemaker" else self._fargate(network, storage)
        CfnOutput(self, "TrackingLogin", value=self.login.secret_arn)

    def _managed(self) -> secrets.Secret:
        """A server of SageMaker's: sign-on is IAM's, and the URI is the server's ARN (plugin sagemaker-mlflow)."""
        role = iam.Role(self, "ServerRole", assumed_by=iam.ServicePrincipal("sagemaker.amazonaws.com"))
        self._may_keep_artefacts(role)
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
        login = secrets.Secret(
            self,
            "Login",
            description="Encore: the address of MLflow; sign-on is by role",
            secret_object_value={"uri": SecretValue.unsafe_plain_text(server.attr_tracking_server_arn)},
        )
        argued(login, {"AwsSolutions-SMG4": "It holds an address and no password"})
        return login

    def _fargate(self, network: NetworkStack, storage: StorageStack) -> secrets.Secret:
        stage, vpc, name = self._stage, network.vpc, f"mlflow.{self._stage.domain}"
        balancer_group = ec2.SecurityGroup(self, "BalancerGroup", vpc=vpc, description="MLflow: HTTPS from the VPC")
        server_group = ec2.SecurityGroup(self, "ServerGroup", vpc=vpc, description="MLflow: the balancer alone")
        database_group = ec2.SecurityGroup(
            self, "DatabaseGroup", vpc=vpc, description="MLflow: the server alone", allow_all_outbound=False
        )
        balancer_group.add_ingress_rule(ec2.Peer.ipv4(vpc.vpc_cidr_block), ec2.Port.tcp(443), "HTTPS from the VPC")
        argued(
            balancer_group,
            {"AwsSolutions-EC23": "The range is the VPC's, which cdk-nag cannot read: it is made with it"},
        )
        server_group.add_ingress_rule(balancer_group, ec2.Port.tcp(5000), "from the balancer")
        database_group.add_ingress_rule(server_group, ec2.Port.tcp(DATABASE_PORT), "from the server")
        database = self._database(network, database_group)

        login = secrets.Secret(
            self,
            "Login",
            description="Encore: address of MLflow; its first user, which is that of the jobs",
            generate_secret_string=secrets.SecretStringGenerator(
                secret_string_template=json.dumps({"uri": f"https://{name}", "username": "encore"}),
                generate_string_key="password",
                exclude_punctuation=True,
                password_length=32,
            ),
        )
        argued(login, {"AwsSolutions-SMG4": "MLflow keeps its users itself: changed there and here by one command"})
        pages = secrets.Secret(
            self,
            "Pages",
            description="Encore: key of the sessions of MLflow's pages",
            generate_secret_string=secrets.SecretStringGenerator(exclude_punctuation=True, password_length=48),
        )
        argued(pages, {"AwsSolutions-SMG4": "A new key ends all sessions; it is changed when that is wanted"})
        cluster = ecs.Cluster(self, "Cluster", vpc=vpc, container_insights_v2=ecs.ContainerInsights.ENABLED)
        # the image is built for the machine that runs it, whatever the machine that builds it
        platform = ecs.RuntimePlatform(
            cpu_architecture=ecs.CpuArchitecture.X86_64, operating_system_family=ecs.OperatingSystemFamily.LINUX
        )
        task = ecs.FargateTaskDefinition(self, "Task", cpu=1024, memory_limit_mib=3072, runtime_platform=platform)
        self._may_keep_artefacts(task.task_role)
        argued(task, {"AwsSolutions-ECS2": "Names of bucket and database; passwords come from the secrets store"})
        wildcards(task, "Asking for the token with which images are fetched knows no resource", "Resource::*")
        assert database.secret is not None
        task.add_container(
            "mlflow",
            image=ecs.ContainerImage.from_asset(
                str(IMAGE), platform=ecr_assets.Platform.LINUX_AMD64, build_args={"BASE": stage.base_image}
            ),
            logging=ecs.LogDrivers.aws_logs(
                stream_prefix="mlflow",
                log_group=logs.LogGroup(
                    self,
                    "Log",
                    retention=logs.RetentionDays.THREE_MONTHS,
                    removal_policy=RemovalPolicy.DESTROY,
                ),
            ),
            environment={
                "ARTEFACT_BUCKET": self.artefacts.bucket_name,
                "DB_HOST": database.db_instance_endpoint_address,
                "DB_PORT": str(DATABASE_PORT),
                "ALLOWED_HOSTS": f"{name},localhost",
            },
            secrets={
                "DB_USER": ecs.Secret.from_secrets_manager(database.secret, "username"),
                "DB_PASSWORD": ecs.Secret.from_secrets_manager(database.secret, "password"),
                "MLFLOW_AUTH_ADMIN_USERNAME": ecs.Secret.from_secrets_manager(login, "username"),
                "MLFLOW_AUTH_ADMIN_PASSWORD": ecs.Secret.from_secrets_manager(login, "password"),
                "MLFLOW_FLASK_SERVER_SECRET_KEY": ecs.Secret.from_secrets_manager(pages),
            },
            port_mappings=[ecs.PortMapping(container_port=5000)],
        )
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
        )
        balancer = elb.ApplicationLoadBalancer(
            self,
            "Balancer",
            vpc=vpc,
            internet_facing=False,
            vpc_subnets=network.private,
            security_group=balancer_group,
            drop_invalid_header_fields=True,
            deletion_protection=stage.keep,
        )
        # delivery of these logs wants the region's account of the balancers, which an app without a region cannot name
        argued(
            balancer, {"AwsSolutions-ELB2": "Inside the VPC alone; its flow log and MLflow's own log say who called"}
        )
        certificate = ssm.StringParameter.value_for_string_parameter(self, f"/encore/{stage.name}/mlflow-certificate")
        listener = balancer.add_listener(
            "Https",
            port=443,
            protocol=elb.ApplicationProtocol.HTTPS,
            certificates=[acm.Certificate.from_certificate_arn(self, "Certificate", certificate)],
            ssl_policy=elb.SslPolicy.RECOMMENDED_TLS,
            open=False,
        )
        listener.add_targets(
            "Mlflow",
            port=5000,
            protocol=elb.ApplicationProtocol.HTTP,
            targets=[service],
            health_check=elb.HealthCheck(path="/health", healthy_http_codes="200"),
            deregistration_delay=Duration.seconds(30),
        )
        zone = route53.PrivateHostedZone(self, "Zone", vpc=vpc, zone_name=stage.domain)
        route53.ARecord(
            self,
            "Address",
            zone=zone,
            record_name="mlflow",
            target=route53.RecordTarget.from_alias(targets.LoadBalancerTarget(balancer)),
        )
        return login

    def _may_keep_artefacts(self, role: iam.IRole) -> None:
        role.add_to_principal_policy(
            iam.PolicyStatement(
                actions=["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:PutObject"],
                resources=[f"{self.kept}/*"],
            )
        )
        role.add_to_principal_policy(
            iam.PolicyStatement(actions=["s3:ListBucket"], resources=[bucket_arn(self._stage, "artefacts")])
        )
        wildcards(role, ARTEFACTS, f"Resource::{shown(self.kept)}/*")

    def _database(self, network: NetworkStack, group: ec2.SecurityGroup) -> rds.DatabaseInstance:
        stage = self._stage
        size = ec2.InstanceSize.SMALL if stage.keep else ec2.InstanceSize.MICRO
        engine = rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.VER_17_9)
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
        argued(
            database,
            {
                "AwsSolutions-SMG4": "MLflow reads the password as it starts: a rotation would lock it out until then",
                "AwsSolutions-RDS3": "Outside of prod a day without MLflow is a warning: the metrics are in Delta too",
                "AwsSolutions-RDS10": "Outside of prod a stack may be thrown away as a whole",
            },
        )
        return database
