"""From a commit to production: test, package, deploy to dev, then staging, a person's word, then prod."""

from __future__ import annotations

from aws_cdk import CfnElement, Duration, RemovalPolicy, Stack
from aws_cdk import aws_codebuild as build
from aws_cdk import aws_codepipeline as pipeline
from aws_cdk import aws_codepipeline_actions as actions
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from encore.aws.stage import Stage
from encore_cdk.nag import SHARED_BUCKET, SHARED_BUCKET_WRITE, SHARED_KEY, argued, wildcards


class DeliveryStack(Stack):
    """One pipeline for all stages of an account."""

    def __init__(self, scope: Construct, id: str, stage: Stage) -> None:
        super().__init__(scope, id, stack_name=id, description="Encore: delivery")
        self._key = kms.Key(
            self,
            "Key",
            enable_key_rotation=True,
            description="Encore: what is built",
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
        argued(bucket, {"AwsSolutions-S1": "What pipelines pass from step to step, for 30 days; CloudTrail has who"})
        source, packed = pipeline.Artifact("Source"), pipeline.Artifact("Package")
        owner, _, repository = stage.repository.partition("/")
        connection = ssm.StringParameter.value_for_string_parameter(self, "/encore/git-connection")
        fetch = actions.CodeStarConnectionsSourceAction(
            action_name="Fetch",
            connection_arn=connection,
            owner=owner,
            repo=repository,
            branch=stage.branch,
            output=source,
        )
        test = self._project("Test", ["make test", "make deploy-check"])
        # what is built has no .git: the commit is what the pipeline fetched
        commit = "export ENCORE_GIT_COMMIT=$CODEBUILD_RESOLVED_SOURCE_VERSION"
        package = self._project("Package", [f"{commit} && make package"], files=["**/*"])
        deployer = self._deployer()
        made = pipeline.Pipeline(
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
                            additional_information="Did the run of staging end well, with metrics as expected?",
                        ),
                        self._deploy("prod", deployer, packed),
                    ],
                ),
            ],
        )
        # the CDK allows it by the service's former name alone; what counts is the name in the connection's ARN
        fetcher = made.node.find_child("Source").node.find_child("Fetch").node.find_child("CodePipelineActionRole")
        assert isinstance(fetcher, iam.Role)
        fetcher.add_to_policy(iam.PolicyStatement(actions=["codeconnections:UseConnection"], resources=[connection]))
        self._argue(made, *SHARED_BUCKET_WRITE)

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
            # what the next step makes anew, or has no use for
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
                # Docker's daemon wants it: for the project that builds MLflow's image, and for no other
                privileged=docker,
            ),
        )
        group = f"/aws/codebuild/<{_logical(project)}>:*"
        logs = f"Resource::arn:<AWS::Partition>:logs:<AWS::Region>:<AWS::AccountId>:log-group:{group}"
        self._argue(project, *(SHARED_BUCKET_WRITE if files else ()), logs)
        return project

    def _argue(self, construct: Construct, *more: str) -> None:
        built = f"Resource::<{_logical(self._bucket)}.Arn>/*"
        why = "What a pipeline passes on, and streams of logs, have names that are made as it runs"
        wildcards(construct, why, *SHARED_BUCKET, *SHARED_KEY, built, *more)

    def _deployer(self) -> build.PipelineProject:
        """It may do nothing itself but take on the roles that `cdk bootstrap` made, which deploy."""
        # the stage's stacks and not this one: a pipeline that changes itself stops on its way
        commands = [
            'test -n "$STAGE"',
            "make setup",
            'make deploy STAGE="$STAGE" STACKS="encore-$STAGE-*" PACKAGED=yes',
        ]
        project = self._project("Deploy", commands, docker=True)
        wildcards(
            project,
            "Roles of `cdk bootstrap`, whose names carry its qualifier; the condition holds them to these",
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
    """The name by which the template knows what a construct makes."""
    child = construct.node.default_child
    assert isinstance(child, CfnElement)
    name: str = Stack.of(construct).resolve(child.logical_id)
    return name
