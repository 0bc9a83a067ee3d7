"""What the stacks make, read from their templates. That they are made at all means that cdk-nag found nothing."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from encore.aws.access import Buckets, statements
from encore.aws.athena import VIEWS, glue_columns
from encore.aws.deployment import ROLE_OUTPUT, STACKS
from encore.aws.states import camel, definition, placeholders, sized
from encore.job import EXTRA_JOBS, JOBS, extra_nodes, node, nodes, upkeep
from encore.tables import ALL, BY_NAME
from tests.deploy.synth import VERSION, Template, assembly, of_type, plain, templates, text


@pytest.fixture(scope="session")
def prod() -> dict[str, Template]:
    """One synthesis for all tests here: it takes seconds."""
    return templates("prod")


def test_there_is_no_account_and_no_region_in_any_template(prod: dict[str, Template]) -> None:
    assert set(prod) == {"network", "storage", "mlflow", "compute", "orchestration", "delivery"}
    for name, template in prod.items():
        assert re.findall(r"(?<![0-9a-f])\d{12}(?![0-9a-f])", json.dumps(template)) == [], name
        assert (
            re.findall(r"\b(?:us|eu|ap)-(?:east|west|central|south|north|southeast|northeast)-\d\b", str(template))
            == []
        )


def test_buckets_are_versioned_encrypted_private_and_by_tls_alone(prod: dict[str, Template]) -> None:
    buckets = of_type(prod["storage"], "AWS::S3::Bucket") + of_type(prod["mlflow"], "AWS::S3::Bucket")
    assert len(buckets) == 7
    for bucket in buckets:
        assert bucket["PublicAccessBlockConfiguration"] == dict.fromkeys(
            ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"), True
        )
        assert bucket["BucketEncryption"]
    versioned = [bucket for bucket in buckets if bucket.get("VersioningConfiguration") == {"Status": "Enabled"}]
    assert len(versioned) == 6, "all but that of access logs"
    policies = of_type(prod["storage"], "AWS::S3::BucketPolicy") + of_type(prod["mlflow"], "AWS::S3::BucketPolicy")
    denied = [one for policy in policies for one in policy["PolicyDocument"]["Statement"] if one["Effect"] == "Deny"]
    assert len([one for one in denied if one["Condition"].get("Bool") == {"aws:SecureTransport": "false"}]) == 7


def test_nothing_of_the_lake_expires_by_age_but_what_was_set_aside(prod: dict[str, Template]) -> None:
    (lake,) = [one for one in of_type(prod["storage"], "AWS::S3::Bucket") if "-lake-" in text(one["BucketName"])]
    rules = lake["LifecycleConfiguration"]["Rules"]
    assert [rule["Prefix"] for rule in rules if "ExpirationInDays" in rule] == ["lake/_scratch/"]


def test_glue_knows_every_table_with_the_comments_of_its_declaration(prod: dict[str, Template]) -> None:
    made = {one["TableInput"]["Name"]: one["TableInput"] for one in of_type(prod["storage"], "AWS::Glue::Table")}
    assert set(made) == set(BY_NAME) | set(VIEWS)
    for table in ALL:
        columns = made[table.name]["StorageDescriptor"]["Columns"]
        assert [(one["Name"], one["Type"], one["Comment"]) for one in columns] == glue_columns(table)
        assert text(made[table.name]["StorageDescriptor"]["Location"]).endswith(f"/lake/{table.name}/")
        assert made[table.name]["Parameters"]["table_type"] == "DELTA"
    for name in VIEWS:
        shown = made[name]["ViewOriginalText"].removeprefix("/* Presto View: ").removesuffix(" */")
        about = json.loads(base64.b64decode(shown))
        assert about["originalSql"] == " ".join(VIEWS[name].split())
        assert about["schema"] == "encore_prod"


def test_there_is_one_role_a_job_and_it_may_do_what_is_derived(prod: dict[str, Template]) -> None:
    lake, raw, code, logs = (
        f"arn:aws:s3:::encore-prod-{name}-ACCOUNT-REGION" for name in ("lake", "raw", "code", "logs")
    )
    roles = {
        one["Description"].split()[2]: one
        for one in of_type(prod["compute"], "AWS::IAM::Role")
        if one.get("Description", "").startswith("Encore: what ")
    }
    assert set(roles) == {*JOBS, *EXTRA_JOBS}
    for job, role in roles.items():
        (policy,) = role["Policies"]
        expected = statements(node(job), Buckets(lake, raw, code, logs), upkeep(job))
        assert [listed(plain(one)) for one in policy["PolicyDocument"]["Statement"]] == [
            listed(one) for one in expected
        ]
        (trust,) = role["AssumeRolePolicyDocument"]["Statement"]
        assert trust["Principal"] == {"Service": "emr-serverless.amazonaws.com"}
        assert "aws:SourceAccount" in str(trust["Condition"])


def test_each_role_may_read_the_login_of_mlflow_and_no_other_secret(prod: dict[str, Template]) -> None:
    login = plain(prod["mlflow"]["Outputs"]["TrackingLogin"]["Value"])
    allowed: dict[str, list[dict[str, Any]]] = {}
    for policy in of_type(prod["compute"], "AWS::IAM::Policy"):
        for role in policy["Roles"]:
            allowed.setdefault(text(role), []).extend(policy["PolicyDocument"]["Statement"])
    reading = {
        role: [one for one in statements if "secretsmanager:GetSecretValue" in one["Action"]]
        for role, statements in allowed.items()
    }
    with_login = {role for role, found in reading.items() if found}
    assert len(with_login) == len({*JOBS, *EXTRA_JOBS})
    assert all(role.startswith("Role") for role in with_login), "the function that uploads code reads none"
    places = {json.dumps(one["Resource"]) for found in reading.values() for one in found}
    assert len(places) == 1
    assert login in prod["mlflow"]["Resources"]
    assert login in places.pop()


def listed(statement: dict[str, Any]) -> dict[str, Any]:
    """A statement in one form: a list of one and the one itself mean the same."""
    found = {
        name: [statement[name]] if isinstance(statement[name], str) else statement[name]
        for name in ("Action", "Resource")
    }
    conditions = {
        operator: {key: [value] if isinstance(value, str) else value for key, value in wanted.items()}
        for operator, wanted in statement.get("Condition", {}).items()
    }
    return {"Sid": statement["Sid"], "Effect": statement["Effect"], "Condition": conditions} | {
        name: sorted(value) for name, value in found.items()
    }


def test_the_machine_is_the_generated_one_with_every_placeholder_filled(prod: dict[str, Template]) -> None:
    (machine,) = of_type(prod["orchestration"], "AWS::StepFunctions::StateMachine")
    expected = definition(nodes(), extra=extra_nodes(), limits=sized())
    assert json.loads(machine["DefinitionString"]) == expected
    assert "--conf spark.executor.memory=4g" in machine["DefinitionString"], "sizes are those of conf/emr.yaml"
    assert set(machine["DefinitionSubstitutions"]) == placeholders(expected)
    assert machine["LoggingConfiguration"]["Level"] == "ALL"
    (_, role) = next(
        (name, one)
        for name, one in prod["orchestration"]["Resources"].items()
        if one["Type"] == "AWS::IAM::Policy" and name.startswith("Machine")
    )
    passed = [one for one in role["Properties"]["PolicyDocument"]["Statement"] if one["Action"] == "iam:PassRole"]
    assert len(passed[0]["Resource"]) == len({*JOBS, *EXTRA_JOBS})
    assert passed[0]["Condition"] == {"StringEquals": {"iam:PassedToService": "emr-serverless.amazonaws.com"}}


def test_the_schedules_start_it_in_a_time_zone_once_and_with_a_queue_for_what_failed(prod: dict[str, Template]) -> None:
    schedules = {text(one["Name"]): one for one in of_type(prod["orchestration"], "AWS::Scheduler::Schedule")}
    assert set(schedules) == {"encore-prod-nightly", "encore-prod-maintenance"}
    for schedule in schedules.values():
        target = schedule["Target"]
        assert schedule["ScheduleExpressionTimezone"] == "Etc/UTC"
        assert schedule["State"] == "ENABLED"
        assert "<aws.scheduler.execution-id>" in text(target["Input"]), "a start tried again has the same name"
        assert target["DeadLetterConfig"]
    asked = json.loads(text(schedules["encore-prod-maintenance"]["Target"]["Input"]))
    assert json.loads(asked["Input"]) == {"only": list(EXTRA_JOBS)}


def test_code_is_uploaded_into_a_folder_of_its_own_version_and_jobs_start_from_there(
    prod: dict[str, Template],
) -> None:
    (made,) = of_type(prod["compute"], "Custom::CDKBucketDeployment")
    assert (made["DestinationBucketKeyPrefix"], made["Prune"]) == (VERSION, False)
    (machine,) = of_type(prod["orchestration"], "AWS::StepFunctions::StateMachine")
    place = plain(machine["DefinitionSubstitutions"]["CodePrefix"])
    assert place == f"s3://encore-prod-code-ACCOUNT-REGION/{VERSION}"
    assert plain(prod["compute"]["Outputs"]["CodePath"]["Value"]) == place


def test_a_submission_finds_in_the_outputs_all_that_it_needs(prod: dict[str, Template]) -> None:
    """`encore submit --stage` reads them by these names; a cluster is there only where one was asked for."""
    made = {name for stack in STACKS for name in prod[stack].get("Outputs", {})}
    assert {"LakePath", "RawBucket", "LogBucket", "TrackingLogin", "ApplicationId", "CodePath"} <= made
    assert {f"{ROLE_OUTPUT}{camel(job)}" for job in (*JOBS, *EXTRA_JOBS)} <= made
    assert "ClusterId" not in made


def test_someone_is_told_when_it_fails_is_late_does_not_start_or_is_silent(prod: dict[str, Template]) -> None:
    alarms = of_type(prod["orchestration"], "AWS::CloudWatch::Alarm")
    assert {text(one["AlarmName"]).rsplit("-", 1)[1] for one in alarms} == {
        "Failed",
        "TimedOut",
        "NotStartedAtAll",
        "Silent",
    }
    assert all(one["AlarmActions"] for one in alarms)
    silent = next(one for one in alarms if text(one["AlarmName"]).endswith("Silent"))
    assert silent["TreatMissingData"] == "breaching"


def test_the_application_is_of_the_release_stops_when_idle_and_is_bounded(prod: dict[str, Template]) -> None:
    (application,) = of_type(prod["compute"], "AWS::EMRServerless::Application")
    assert application["ReleaseLabel"] == "emr-spark-8.1.0"
    assert application["MaximumCapacity"]["Cpu"] == "200 vCPU"
    assert application["AutoStopConfiguration"] == {"Enabled": True, "IdleTimeoutMinutes": 15}
    assert "InitialCapacity" not in application
    assert len(application["NetworkConfiguration"]["SubnetIds"]) == 2
    assert of_type(prod["compute"], "AWS::EMR::Cluster") == []


def test_mlflow_is_private_speaks_tls_and_keeps_passwords_out_of_its_settings(prod: dict[str, Template]) -> None:
    (balancer,) = of_type(prod["mlflow"], "AWS::ElasticLoadBalancingV2::LoadBalancer")
    assert balancer["Scheme"] == "internal"
    (listener,) = of_type(prod["mlflow"], "AWS::ElasticLoadBalancingV2::Listener")
    assert (listener["Port"], listener["Protocol"]) == (443, "HTTPS")
    (database,) = of_type(prod["mlflow"], "AWS::RDS::DBInstance")
    assert (database["StorageEncrypted"], database["PubliclyAccessible"], database["MultiAZ"]) == (True, False, True)
    (task,) = of_type(prod["mlflow"], "AWS::ECS::TaskDefinition")
    (container,) = task["ContainerDefinitions"]
    login = ("MLFLOW_AUTH_ADMIN_USERNAME", "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY")
    assert {one["Name"] for one in container["Secrets"]} == {"DB_USER", "DB_PASSWORD", *login}
    assert "PASSWORD" not in str(container["Environment"])
    (service,) = of_type(prod["mlflow"], "AWS::ECS::Service")
    assert service["NetworkConfiguration"]["AwsvpcConfiguration"]["AssignPublicIp"] == "DISABLED"


def test_production_waits_for_a_person(prod: dict[str, Template]) -> None:
    (pipeline,) = of_type(prod["delivery"], "AWS::CodePipeline::Pipeline")
    stages = {one["Name"]: one["Actions"] for one in pipeline["Stages"]}
    assert list(stages) == ["Source", "Test", "Package", "Dev", "Staging", "Prod"]
    order = {one["ActionTypeId"]["Category"]: one["RunOrder"] for one in stages["Prod"]}
    assert order["Approval"] < order["Build"]
    assert all(one["ActionTypeId"]["Category"] != "Approval" for name in ("Dev", "Staging") for one in stages[name])


def test_a_stage_or_a_choice_that_there_is_not_is_one_sentence() -> None:
    from encore.aws.stage import UnknownStage, stage_of

    with pytest.raises(UnknownStage, match="no stage 'production'; one of: dev, staging, prod"):
        stage_of({"stage": "production"})
    with pytest.raises(UnknownStage, match="mlflow=none: fargate or sagemaker expected"):
        stage_of({"mlflow": "none"})
    with pytest.raises(UnknownStage, match="max_vcpu=many: a whole number expected"):
        stage_of({"max_vcpu": "many"})
    assert stage_of({"stage": "dev", "ec2": "true", "timezone": "Europe/Berlin"}).ec2 is True


CHOICES = [
    ("dev",),
    ("staging",),
    ("prod",),
    ("dev", "ec2=true", "prewarmed=true", "timezone=Europe/Berlin"),
    ("dev", "mlflow=sagemaker"),
]


@pytest.mark.slow
@pytest.mark.parametrize("choices", CHOICES, ids=" ".join)
def test_every_stage_and_choice_is_made_without_findings_and_passes_cfn_lint(
    choices: tuple[str, ...], proved: Callable[[str], None]
) -> None:
    paths = sorted(assembly(*choices).glob("*.template.json"))
    assert len(paths) == 6
    command = [str(Path(sys.executable).with_name("cfn-lint")), "--format", "parseable"]
    # W3005: dependencies that are written down twice, which the CDK does by itself and which do no harm
    done = subprocess.run(
        [*command, "--ignore-checks", "W3005", "--template", *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
    proved(f"{' '.join(choices)}: {len(paths)} stacks made without credentials; cdk-nag and cfn-lint find nothing")


@pytest.mark.slow
def test_choices_change_what_they_say() -> None:
    made = templates("dev", "ec2=true", "prewarmed=true", "timezone=Europe/Berlin")
    (application,) = of_type(made["compute"], "AWS::EMRServerless::Application")
    assert {one["Key"] for one in application["InitialCapacity"]} == {"Driver", "Executor"}
    (cluster,) = of_type(made["compute"], "AWS::EMR::Cluster")
    assert cluster["ReleaseLabel"] == application["ReleaseLabel"]
    schedules = of_type(made["orchestration"], "AWS::Scheduler::Schedule")
    assert {(one["ScheduleExpressionTimezone"], one["State"]) for one in schedules} == {("Europe/Berlin", "DISABLED")}
    managed = templates("dev", "mlflow=sagemaker")["mlflow"]
    assert len(of_type(managed, "AWS::SageMaker::MlflowTrackingServer")) == 1
    assert of_type(managed, "AWS::RDS::DBInstance") == []


def test_a_finding_of_cdk_nag_fails_the_synthesis() -> None:
    from aws_cdk import App, Stack, Validations
    from aws_cdk import aws_sqs as sqs
    from cdk_nag import AwsSolutionsChecks

    app = App(analytics_reporting=False)
    sqs.Queue(Stack(app, "wanting"), "Queue")
    Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    with pytest.raises(RuntimeError, match="AwsSolutions-SQS4"):
        app.synth()


def test_names_of_placeholders_are_those_of_jobs() -> None:
    assert camel("build_track_vectors") == "BuildTrackVectors"
