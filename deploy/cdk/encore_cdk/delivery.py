"""From a commit to production: test, package, deploy to dev and staging, run in staging, compare, deploy to prod.

A second pipeline deploys the sandbox each night, runs it and removes it again, if the choice `sandbox_nightly` is set.
Stages may be in other accounts: builds act in a stage only by roles that exist there.
"""

from __future__ import annotations

from aws_cdk import CfnElement, CfnOutput, DefaultStackSynthesizer, Duration, RemovalPolicy, Stack
from aws_cdk import aws_codebuild as build
from aws_cdk import aws_codepipeline as pipeline
from aws_cdk import aws_codepipeline_actions as actions
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_scheduler as scheduler
from aws_cdk import aws_sns as sns
from constructs import Construct

from encore.aws.stage import Stage, load_stage
from encore_cdk.environment import pipeline_environment
from encore_cdk.monitoring import delivery_role
from encore_cdk.nag import SHARED_BUCKET, SHARED_BUCKET_WRITE, SHARED_KEY, acknowledge, acknowledge_wildcards

SANDBOX = "sandbox"
"""The stage that is deployed each night, tried and removed."""


class DeliveryStack(Stack):
    """The delivery pipeline, one for all stages. There is no such stack without the choice `connection`."""

    def __init__(self, scope: Construct, id: str, stage: Stage) -> None:
        super().__init__(scope, id, stack_name=id, env=pipeline_environment(stage), description="Encore: delivery")
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
        fetch = self._fetch(stage, source, on_push=True)
        test = self._project("Test", ["make test", "make deploy-check"])
        # the source artifact has no .git folder, so pass on the commit that the pipeline fetched
        commit = "export ENCORE_GIT_COMMIT=$CODEBUILD_RESOLVED_SOURCE_VERSION"
        package = self._project("Package", [f"{commit} && make package"], files=["**/*"])
        self._stages = {name: load_stage({"stage": name}) for name in ("dev", "staging", "prod", SANDBOX)}
        deployer = self._deployer()
        delivery = self._pipeline(
            "Pipeline",
            "encore",
            {
                "Source": [fetch],
                "Test": [actions.CodeBuildAction(action_name="Test", project=test, input=source)],
                "Package": [
                    actions.CodeBuildAction(action_name="Package", project=package, input=source, outputs=[packed])
                ],
                "Dev": [self._deploy("dev", deployer, packed)],
                "Staging": [self._deploy("staging", deployer, packed), self._run("staging", packed)],
                "Prod": [self._gate("staging", "prod", packed), self._deploy("prod", deployer, packed)],
            },
            stage,
        )
        pipelines = [delivery]
        if stage.sandbox_nightly:
            pipelines.append(self._nightly(stage, package))
        self._tell_failures(pipelines)

    def _fetch(self, stage: Stage, source: pipeline.Artifact, *, on_push: bool) -> actions.Action:
        owner, _, repository = stage.repository.partition("/")
        return actions.CodeStarConnectionsSourceAction(
            action_name="Fetch",
            connection_arn=stage.connection,
            owner=owner,
            repo=repository,
            branch=stage.branch,
            output=source,
            trigger_on_push=on_push,
        )

    def _pipeline(self, id: str, name: str, stages: dict[str, list[actions.Action]], stage: Stage) -> pipeline.Pipeline:
        made = pipeline.Pipeline(
            self,
            id,
            pipeline_name=name,
            pipeline_type=pipeline.PipelineType.V2,
            execution_mode=pipeline.ExecutionMode.QUEUED,
            artifact_bucket=self._bucket,
            stages=[pipeline.StageProps(stage_name=title, actions=list(found)) for title, found in stages.items()],
        )
        # the CDK only grants the action under the service's former name; IAM checks the name in the connection's ARN
        source_role = made.node.find_child("Source").node.find_child("Fetch").node.find_child("CodePipelineActionRole")
        assert isinstance(source_role, iam.Role)
        source_role.add_to_policy(
            iam.PolicyStatement(actions=["codeconnections:UseConnection"], resources=[stage.connection])
        )
        self._acknowledge(made, *SHARED_BUCKET_WRITE)
        return made

    def _nightly(self, stage: Stage, package: build.PipelineProject) -> pipeline.Pipeline:
        """Each night: package, deploy the sandbox, run it, verify, remove it."""
        source, packed = pipeline.Artifact("NightlySource"), pipeline.Artifact("NightlyPackage")
        remove = f"AWS_PROFILE=remove .venv/bin/encore deploy remove --stage {SANDBOX}"
        project = self._project(
            "Smoke",
            [
                "make setup",
                'bash deploy/profiles.sh run="$RUN_ROLE" remove="$REMOVE_ROLE"',
                # what a build that was stopped has left
                remove,
                f"make smoke-deploy STAGE={SANDBOX} PACKAGED=yes RUN_PROFILE=run REMOVE_PROFILE=remove",
            ],
            # runs whatever fails before, also if the script itself is killed
            afterwards=[remove],
            hours=4,
            docker=True,
        )
        self._may_deploy(project)
        self._may_assume(project, [self._run_role(SANDBOX)])
        smoke = actions.CodeBuildAction(
            action_name="Smoke",
            project=project,
            input=packed,
            environment_variables=self._environment(
                SANDBOX, RUN_ROLE=self._run_role(SANDBOX), REMOVE_ROLE=self._bootstrap_role(SANDBOX, "deploy")
            ),
        )
        made = self._pipeline(
            "Nightly",
            "encore-nightly",
            {
                "Source": [self._fetch(stage, source, on_push=False)],
                "Package": [
                    actions.CodeBuildAction(action_name="Package", project=package, input=source, outputs=[packed])
                ],
                "Sandbox": [smoke],
            },
            stage,
        )
        role = iam.Role(
            self,
            "Scheduler",
            assumed_by=iam.ServicePrincipal(
                "scheduler.amazonaws.com", conditions={"StringEquals": {"aws:SourceAccount": self.account}}
            ),
        )
        role.add_to_policy(
            iam.PolicyStatement(actions=["codepipeline:StartPipelineExecution"], resources=[made.pipeline_arn])
        )
        scheduler.CfnSchedule(
            self,
            "EachNight",
            name="encore-sandbox-nightly",
            description="Encore: deploy the sandbox, run it, and remove it",
            schedule_expression=f"cron(0 {(stage.hour + 1) % 24} * * ? *)",
            schedule_expression_timezone=stage.timezone,
            flexible_time_window=scheduler.CfnSchedule.FlexibleTimeWindowProperty(mode="OFF"),
            target=scheduler.CfnSchedule.TargetProperty(
                arn=f"arn:{self.partition}:scheduler:::aws-sdk:codepipeline:startPipelineExecution",
                role_arn=role.role_arn,
                input=self.to_json_string({"Name": made.pipeline_name}),
            ),
        )
        return made

    def _tell_failures(self, pipelines: list[pipeline.Pipeline]) -> None:
        """Publish to a topic when a pipeline fails, since nobody looks at one that runs at night."""
        topic = sns.Topic(
            self, "Failures", master_key=self._key, enforce_ssl=True, display_name="Encore: delivery failed"
        )
        events.Rule(
            self,
            "Failed",
            description="Encore: a delivery pipeline has failed",
            event_pattern=events.EventPattern(
                source=["aws.codepipeline"],
                detail_type=["CodePipeline Pipeline Execution State Change"],
                detail={"state": ["FAILED"], "pipeline": [one.pipeline_name for one in pipelines]},
            ),
            targets=[targets.SnsTopic(topic)],
        )
        self._key.add_to_resource_policy(
            iam.PolicyStatement(
                principals=[iam.ServicePrincipal("events.amazonaws.com")],
                actions=["kms:Decrypt", "kms:GenerateDataKey*"],
                resources=["*"],
            )
        )
        CfnOutput(self, "DeliveryTopicArn", value=topic.topic_arn)

    def _project(
        self,
        name: str,
        commands: list[str],
        files: list[str] | None = None,
        *,
        afterwards: list[str] | None = None,
        hours: int = 2,
        docker: bool = False,
    ) -> build.PipelineProject:
        steps: dict[str, object] = {
            "version": "0.2",
            "phases": {
                "install": {"runtime-versions": {"python": "3.11", "java": "corretto17"}},
                "build": {"commands": commands},
                **({"post_build": {"commands": afterwards}} if afterwards else {}),
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
            timeout=Duration.hours(hours),
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
            'bash deploy/profiles.sh run="$RUN_ROLE"',
            'make deploy STAGE="$STAGE" STACKS="encore-$STAGE-*" PACKAGED=yes RUN_PROFILE=run',
        ]
        project = self._project("Deploy", commands, docker=True)
        self._may_deploy(project)
        self._may_assume(project, [self._run_role(name) for name in ("dev", "staging", "prod")])
        return project

    def _accounts(self) -> list[str]:
        """The accounts of the stages, this one included."""
        return sorted({self.account, *(stage.account for stage in self._stages.values() if stage.account)})

    def _may_deploy(self, project: build.PipelineProject) -> None:
        """Let a project assume the roles of `cdk bootstrap`, which then deploy, in the account of each stage."""
        acknowledge_wildcards(
            project,
            "Roles of `cdk bootstrap`, whose names contain its qualifier; a condition restricts the grant to them",
            *(
                f"Resource::arn:<AWS::Partition>:iam::{nag_account}:role/cdk-*"
                for nag_account in (one if one.isdigit() else "<AWS::AccountId>" for one in self._accounts())
            ),
        )
        project.add_to_role_policy(
            iam.PolicyStatement(
                actions=["sts:AssumeRole"],
                resources=[f"arn:{self.partition}:iam::{account}:role/cdk-*" for account in self._accounts()],
                conditions={
                    "StringEquals": {
                        "iam:ResourceTag/aws-cdk:bootstrap-role": ["deploy", "file-publishing", "image-publishing"]
                    }
                },
            )
        )

    def _may_assume(self, project: build.PipelineProject, roles: list[str]) -> None:
        project.add_to_role_policy(iam.PolicyStatement(actions=["sts:AssumeRole"], resources=roles))

    def _run_role(self, stage: str) -> str:
        """The role that a stage's own stack makes for the pipeline."""
        account = self._stages[stage].account or self.account
        return f"arn:{self.partition}:iam::{account}:role/{delivery_role(stage)}"

    def _bootstrap_role(self, stage: str, kind: str) -> str:
        """A role of `cdk bootstrap` in the account and region of a stage."""
        account, region = self._stages[stage].account or self.account, self._stages[stage].region or self.region
        qualifier = DefaultStackSynthesizer.DEFAULT_QUALIFIER
        return f"arn:{self.partition}:iam::{account}:role/cdk-{qualifier}-{kind}-role-{account}-{region}"

    def _environment(self, stage: str, **more: str) -> dict[str, build.BuildEnvironmentVariable]:
        region = self._stages[stage].region
        found = {"STAGE": stage, **({"AWS_REGION": region} if region else {}), **more}
        return {name: build.BuildEnvironmentVariable(value=value) for name, value in found.items()}

    def _deploy(self, stage: str, project: build.PipelineProject, packed: pipeline.Artifact) -> actions.CodeBuildAction:
        return actions.CodeBuildAction(
            action_name="Deploy",
            run_order=2,
            project=project,
            input=packed,
            environment_variables=self._environment(stage, RUN_ROLE=self._run_role(stage)),
        )

    def _run(self, stage: str, packed: pipeline.Artifact) -> actions.CodeBuildAction:
        """Run the pipeline in a stage with the code that was just deployed, and check what it left."""
        project = self._project(
            "Run",
            [
                "make setup",
                'bash deploy/profiles.sh run="$RUN_ROLE"',
                "export AWS_PROFILE=run",
                '.venv/bin/encore deploy run --stage "$STAGE" --name "release-$CODEBUILD_BUILD_NUMBER-$(date +%s)"',
                '.venv/bin/encore deploy verify --stage "$STAGE"',
            ],
            hours=self._stages[stage].run_hours + 1,
        )
        self._may_assume(project, [self._run_role(stage)])
        return actions.CodeBuildAction(
            action_name="Run",
            run_order=3,
            project=project,
            input=packed,
            environment_variables=self._environment(stage, RUN_ROLE=self._run_role(stage)),
        )

    def _gate(self, candidate: str, production: str, packed: pipeline.Artifact) -> actions.CodeBuildAction:
        """Compare the metrics of two stages; the stage of the pipeline ends here if those of the first are worse."""
        roles = {
            f"run-{candidate}": self._run_role(candidate),
            f"run-{production}": self._run_role(production),
            f"lookup-{production}": self._bootstrap_role(production, "lookup"),
        }
        profiles = " ".join(f'{name}="${_variable(name)}"' for name in roles)
        project = self._project(
            "Gate",
            [
                "make setup",
                f"bash deploy/profiles.sh {profiles}",
                f'PATH="$PWD/.venv/bin:$PATH" bash deploy/gate.sh {candidate} {production}',
            ],
        )
        self._may_assume(project, list(roles.values()))
        return actions.CodeBuildAction(
            action_name="Gate",
            run_order=1,
            project=project,
            input=packed,
            environment_variables=self._environment(
                candidate,
                PRODUCTION_REGION=self._stages[production].region or self.region,
                **{_variable(name): role for name, role in roles.items()},
            ),
        )


def _variable(profile: str) -> str:
    """The environment variable with the role of a profile."""
    return f"ROLE_{profile.upper().replace('-', '_')}"


def _logical(construct: Construct) -> str:
    """The logical id of a construct's resource in the template."""
    child = construct.node.default_child
    assert isinstance(child, CfnElement)
    name: str = Stack.of(construct).resolve(child.logical_id)
    return name
