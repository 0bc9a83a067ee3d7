"""From a commit to production: test, package, deploy to dev and staging, wait for approval, deploy to prod."""

from __future__ import annotations

from aws_cdk import CfnElement, Duration, RemovalPolicy, Stack
from aws_cdk import aws_codebuild as build
from aws_cdk import aws_codepipeline as pipeline
from aws_cdk import aws_codepipeline_actions as actions
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

from encore.aws.stage import Stage
from encore_cdk.nag import SHARED_BUCKET, SHARED_BUCKET_WRITE, SHARED_KEY, acknowledge, acknowledge_wildcards


class DeliveryStack(Stack):
    """The delivery pipeline, one for all stages. There is no such stack without the choice `connection`."""

    def __init__(self, scope: Construct, id: str, stage: Stage) -> None:
        super().__init__(scope, id, stack_name=id, description="Encore: delivery")
        self._key = kms.Key(
            self,
            "Key",
            enable_key_rotation=True,
            description="Encore: build artifacts",
            removal_policy=RemovalPolicy.DESTROY,
        )
        bucket = self._bucket = s3.Bucket(
            self,
            "Built",
            encryption=s3.BucketEncryption.KMS,
            encryption_key=self._key,
            enforce_ssl=True,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            lifecycle_rules=[s3.LifecycleRule(id="expire", expiration=Duration.days(30))],
            removal_policy=RemovalPolicy.DESTROY,
            auto_delete_objects=True,
        )
        acknowledge(
            bucket,
            {"AwsSolutions-S1": "Artifacts passed between actions, kept for 30 days; CloudTrail records access"},
        )
        source, packed = pipeline.Artifact("Source"), pipeline.Artifact("Package")
        owner, _, repository = stage.repository.partition("/")
        fetch = actions.CodeStarConnectionsSourceAction(
            action_name="Fetch",
            connection_arn=stage.connection,
            owner=owner,
            repo=repository,
            branch=stage.branch,
            output=source,
        )
        test = self._project("Test", ["make test", "make deploy-check"])
        # the source artifact has no .git folder, so pass on the commit that the pipeline fetched
        commit = "export ENCORE_GIT_COMMIT=$CODEBUILD_RESOLVED_SOURCE_VERSION"
        package = self._project("Package", [f"{commit} && make package"], files=["**/*"])
        deployer = self._deployer()
        delivery = pipeline.Pipeline(
            self,
            "Pipeline",
            pipeline_name="encore",
            pipeline_type=pipeline.PipelineType.V2,
            execution_mode=pipeline.ExecutionMode.QUEUED,
            artifact_bucket=bucket,
            stages=[
                pipeline.StageProps(stage_name="Source", actions=[fetch]),
                pipeline.StageProps(
                    stage_name="Test",
                    actions=[actions.CodeBuildAction(action_name="Test", project=test, input=source)],
                ),
                pipeline.StageProps(
                    stage_name="Package",
                    actions=[
                        actions.CodeBuildAction(action_name="Package", project=package, input=source, outputs=[packed])
                    ],
                ),
                pipeline.StageProps(stage_name="Dev", actions=[self._deploy("dev", deployer, packed)]),
                pipeline.StageProps(stage_name="Staging", actions=[self._deploy("staging", deployer, packed)]),
                pipeline.StageProps(
                    stage_name="Prod",
                    actions=[
                        actions.ManualApprovalAction(
                            action_name="Approve",
                            run_order=1,
                            additional_information="Did the run in staging succeed, with the expected metrics?",
                        ),
                        self._deploy("prod", deployer, packed),
                    ],
                ),
            ],
        )
        # the CDK only grants the action under the service's former name; IAM checks the name in the connection's ARN
        source_role = (
            delivery.node.find_child("Source").node.find_child("Fetch").node.find_child("CodePipelineActionRole")
        )
        assert isinstance(source_role, iam.Role)
        source_role.add_to_policy(
            iam.PolicyStatement(actions=["codeconnections:UseConnection"], resources=[stage.connection])
        )
        self._acknowledge(delivery, *SHARED_BUCKET_WRITE)

    def _project(
        self, name: str, commands: list[str], files: list[str] | None = None, *, docker: bool = False
    ) -> build.PipelineProject:
        steps: dict[str, object] = {
            "version": "0.2",
            "phases": {
                "install": {"runtime-versions": {"python": "3.11", "java": "corretto17"}},
                "build": {"commands": commands},
            },
        }
        if files:
            # what later actions recreate or do not need
            unwanted = [f"{folder}/**/*" for folder in (".venv", ".cache", "build/cdk.out", "data")]
            steps["artifacts"] = {"files": files, "exclude-paths": unwanted}
        project = build.PipelineProject(
            self,
            name,
            project_name=f"encore-{name.lower()}",
            build_spec=build.BuildSpec.from_object(steps),
            encryption_key=self._key,
            grant_report_group_permissions=False,
            timeout=Duration.hours(2),
            environment=build.BuildEnvironment(
                build_image=build.LinuxBuildImage.STANDARD_7_0,
                compute_type=build.ComputeType.LARGE,
                # the Docker daemon needs it: only for the project that builds MLflow's image
                privileged=docker,
            ),
        )
        group = f"/aws/codebuild/<{_logical(project)}>:*"
        logs = f"Resource::arn:<AWS::Partition>:logs:<AWS::Region>:<AWS::AccountId>:log-group:{group}"
        self._acknowledge(project, *(SHARED_BUCKET_WRITE if files else ()), logs)
        return project

    def _acknowledge(self, construct: Construct, *more: str) -> None:
        built = f"Resource::<{_logical(self._bucket)}.Arn>/*"
        why = "Artifacts and log streams get their names while the pipeline runs"
        acknowledge_wildcards(construct, why, *SHARED_BUCKET, *SHARED_KEY, built, *more)

    def _deployer(self) -> build.PipelineProject:
        """The project that deploys. It may only assume the roles created by `cdk bootstrap`, which then deploy."""
        # the stage's stacks but not this one: a pipeline that updates itself stops halfway
        commands = [
            'test -n "$STAGE"',
            "make setup",
            'make deploy STAGE="$STAGE" STACKS="encore-$STAGE-*" PACKAGED=yes',
        ]
        project = self._project("Deploy", commands, docker=True)
        acknowledge_wildcards(
            project,
            "Roles of `cdk bootstrap`, whose names contain its qualifier; a condition restricts the grant to them",
            "Resource::arn:<AWS::Partition>:iam::<AWS::AccountId>:role/cdk-*",
        )
        project.add_to_role_policy(
            iam.PolicyStatement(
                actions=["sts:AssumeRole"],
                resources=[self.format_arn(service="iam", region="", resource="role", resource_name="cdk-*")],
                conditions={
                    "StringEquals": {
                        "iam:ResourceTag/aws-cdk:bootstrap-role": ["deploy", "file-publishing", "image-publishing"]
                    }
                },
            )
        )
        return project

    def _deploy(self, stage: str, project: build.PipelineProject, packed: pipeline.Artifact) -> actions.CodeBuildAction:
        return actions.CodeBuildAction(
            action_name="Deploy",
            run_order=2,
            project=project,
            input=packed,
            environment_variables={"STAGE": build.BuildEnvironmentVariable(value=stage)},
        )


def _logical(construct: Construct) -> str:
    """The logical id of a construct's resource in the template."""
    child = construct.node.default_child
    assert isinstance(child, CfnElement)
    name: str = Stack.of(construct).resolve(child.logical_id)
    return name
