"""The stacks' templates. That they are synthesized at all means that cdk-nag found nothing."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.server.security_utils import is_allowed_host_header

from encore.aws.access import Buckets, cluster_statements, statements, tracking_statements
from encore.aws.athena import VIEWS
from encore.aws.deployment import ROLE_OUTPUT, STACKS
from encore.aws.readiness import placeholder_findings
from encore.aws.stage import StageError, load_stage
from encore.aws.states import camel, default_limits, definition, placeholders
from encore.lake.tables import ALL, BY_NAME
from encore.runtime.registry import EXTRA_JOBS, JOBS, extra_nodes, node, nodes, upkeep
from tests.conftest import ROOT
from tests.deploy.choices import (
    ACCOUNT,
    CERTIFICATE,
    CONNECTION,
    DOMAIN,
    OF_ITS_OWN,
    PIPELINE,
    REGION,
    SCORER_CERTIFICATE,
    SCORER_DOMAIN,
)
from tests.deploy.serving import ENDPOINT, PRIVATE_SCORER, PUBLIC_SCORER, SCORER_OF_BUNDLE
from tests.deploy.synth import VERSION, Template, admitted, assembly, of_type, plain, templates, text


@pytest.fixture(scope="session")
def prod() -> dict[str, Template]:
    """Synthesized once for all tests here, since it takes seconds."""
    return templates("prod", *PIPELINE)


def test_there_is_no_account_and_no_region_in_any_template(prod: dict[str, Template]) -> None:
    assert set(prod) == {"network", "storage", "mlflow", "compute", "orchestration", "delivery"}
    for name, template in prod.items():
        # the pipeline is where its connection is, and its role in a stage is trusted to that account
        made = json.dumps(template).replace(CONNECTION, "").replace(ACCOUNT, "")
        made = made.replace(REGION, "") if name == "delivery" else made
        assert re.findall(r"(?<![0-9a-f])\d{12}(?![0-9a-f])", made) == [], name
        regions = r"\b(?:us|eu|ap)-(?:east|west|central|south|north|southeast|northeast)-\d\b"
        assert re.findall(regions, made) == [], name


def test_buckets_are_versioned_encrypted_private_and_tls_only(prod: dict[str, Template]) -> None:
    buckets = of_type(prod["storage"], "AWS::S3::Bucket") + of_type(prod["mlflow"], "AWS::S3::Bucket")
    assert len(buckets) == 7
    for bucket in buckets:
        assert bucket["PublicAccessBlockConfiguration"] == dict.fromkeys(
            ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"), True
        )
        assert bucket["BucketEncryption"]
    versioned = [bucket for bucket in buckets if bucket.get("VersioningConfiguration") == {"Status": "Enabled"}]
    assert len(versioned) == 6, "all but the access log bucket"
    policies = of_type(prod["storage"], "AWS::S3::BucketPolicy") + of_type(prod["mlflow"], "AWS::S3::BucketPolicy")
    denied = [one for policy in policies for one in policy["PolicyDocument"]["Statement"] if one["Effect"] == "Deny"]
    assert len([one for one in denied if one["Condition"].get("Bool") == {"aws:SecureTransport": "false"}]) == 7


def test_nothing_empties_buckets_that_are_kept(prod: dict[str, Template]) -> None:
    for stack in ("storage", "mlflow"):
        assert of_type(prod[stack], "Custom::S3AutoDeleteObjects") == []
        kept = [one for one in prod[stack]["Resources"].values() if one["Type"] == "AWS::S3::Bucket"]
        assert {one["DeletionPolicy"] for one in kept} == {"Retain"}


def test_only_scratch_files_in_the_lake_expire_by_age(prod: dict[str, Template]) -> None:
    (lake,) = [one for one in of_type(prod["storage"], "AWS::S3::Bucket") if "-lake-" in text(one["BucketName"])]
    rules = lake["LifecycleConfiguration"]["Rules"]
    assert [rule["Prefix"] for rule in rules if "ExpirationInDays" in rule] == ["lake/_scratch/"]


def test_glue_has_every_table_with_the_comments_of_its_declaration(prod: dict[str, Template]) -> None:
    made = {one["TableInput"]["Name"]: one["TableInput"] for one in of_type(prod["storage"], "AWS::Glue::Table")}
    assert set(made) == set(BY_NAME) | set(VIEWS)
    for table in ALL:
        columns, keys = made[table.name]["StorageDescriptor"]["Columns"], made[table.name]["PartitionKeys"]
        assert tuple(one["Name"] for one in keys) == table.partition_by
        declared = {column.name: (column.type, column.comment) for column in table.columns}
        assert len(columns) + len(keys) == len(declared), f"{table.name}: Glue refuses a column in both lists"
        assert {one["Name"]: (one["Type"], one["Comment"]) for one in [*columns, *keys]} == declared
        assert text(made[table.name]["StorageDescriptor"]["Location"]).endswith(f"/lake/{table.name}/")
        assert made[table.name]["Parameters"]["table_type"] == "DELTA"
        assert formats(made[table.name]) == (
            "org.apache.hadoop.mapred.SequenceFileInputFormat",
            "org.apache.hadoop.hive.ql.io.HiveSequenceFileOutputFormat",
            "org.apache.hadoop.hive.serde2.lazy.LazySimpleSerDe",
        )
        parameters = made[table.name]["StorageDescriptor"]["SerdeInfo"]["Parameters"]
        assert parameters == {"serialization.format": "1", "path": made[table.name]["StorageDescriptor"]["Location"]}
    for name in VIEWS:
        shown = made[name]["ViewOriginalText"].removeprefix("/* Presto View: ").removesuffix(" */")
        about = json.loads(base64.b64decode(shown))
        assert about["originalSql"] == " ".join(VIEWS[name].split())
        assert about["schema"] == "encore_prod"
        assert formats(made[name]) == (None, None, "org.apache.hadoop.hive.serde2.lazy.LazySimpleSerDe")
        assert made[name]["PartitionKeys"] == []


def formats(entry: dict[str, Any]) -> tuple[str | None, str | None, str]:
    """The Hive formats and SerDe of a Glue table or view."""
    descriptor = entry["StorageDescriptor"]
    return (
        descriptor.get("InputFormat"),
        descriptor.get("OutputFormat"),
        descriptor["SerdeInfo"]["SerializationLibrary"],
    )


def test_each_job_has_a_role_with_the_derived_permissions(prod: dict[str, Template]) -> None:
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


def test_each_role_may_read_mlflows_login_and_no_other_secret(prod: dict[str, Template]) -> None:
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
    assert all(role.startswith("Role") for role in with_login), "the upload function reads no secret"
    resources = {json.dumps(one["Resource"]) for found in reading.values() for one in found}
    assert len(resources) == 1
    assert login in prod["mlflow"]["Resources"]
    assert login in resources.pop()


def listed(statement: dict[str, Any]) -> dict[str, Any]:
    """A normalized statement: a single value and a list of one mean the same."""
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


def line_of(template: Template) -> dict[str, Any]:
    """The state machine that runs the pipeline; another one watches how long it takes."""
    (found,) = [
        one
        for one in of_type(template, "AWS::StepFunctions::StateMachine")
        if not one["StateMachineName"].endswith("-watch")
    ]
    return found


def test_the_state_machine_is_the_generated_one_with_every_placeholder_substituted(prod: dict[str, Template]) -> None:
    machine = line_of(prod["orchestration"])
    expected = definition(nodes(), extra=extra_nodes(), limits=default_limits())
    assert json.loads(machine["DefinitionString"]) == expected
    assert "--conf spark.executor.memory=4g" in machine["DefinitionString"], "sizes come from conf/emr.yaml"
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


def test_schedules_have_a_time_zone_a_unique_execution_name_and_a_dead_letter_queue(prod: dict[str, Template]) -> None:
    schedules = {text(one["Name"]): one for one in of_type(prod["orchestration"], "AWS::Scheduler::Schedule")}
    assert set(schedules) == {"encore-prod-nightly", "encore-prod-maintenance"}
    for schedule in schedules.values():
        target = schedule["Target"]
        assert schedule["ScheduleExpressionTimezone"] == "Etc/UTC"
        assert schedule["State"] == "ENABLED"
        assert "<aws.scheduler.execution-id>" in text(target["Input"]), "a retried start has the same name"
        assert target["DeadLetterConfig"]
    target_input = json.loads(text(schedules["encore-prod-maintenance"]["Target"]["Input"]))
    assert json.loads(target_input["Input"]) == {"only": ["maintain", "record_canary"]}


def test_code_is_uploaded_to_a_folder_per_version_from_which_jobs_start(
    prod: dict[str, Template],
) -> None:
    (made,) = of_type(prod["compute"], "Custom::CDKBucketDeployment")
    assert (made["DestinationBucketKeyPrefix"], made["Prune"]) == (VERSION, False)
    machine = line_of(prod["orchestration"])
    location = plain(machine["DefinitionSubstitutions"]["CodePrefix"])
    assert location == f"s3://encore-prod-code-ACCOUNT-REGION/{VERSION}"
    assert plain(prod["compute"]["Outputs"]["CodePath"]["Value"]) == location


def test_the_outputs_contain_all_that_a_submission_needs(prod: dict[str, Template]) -> None:
    """`encore submit --stage` reads them by these names; there is only a cluster if the choice `ec2` is set."""
    made = {name for stack in STACKS for name in prod[stack].get("Outputs", {})}
    assert {"LakePath", "RawBucket", "LogBucket", "TrackingLogin", "ApplicationId", "CodePath"} <= made
    assert {f"{ROLE_OUTPUT}{camel(job)}" for job in (*JOBS, *EXTRA_JOBS)} <= made
    assert "ClusterId" not in made


def test_alarms_cover_failed_late_unstarted_and_missing_executions(prod: dict[str, Template]) -> None:
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


def test_the_dashboard_queries_metrics_with_all_their_dimensions(prod: dict[str, Template]) -> None:
    """A query with other dimensions than those it was published under names a different metric, which is empty."""
    (dashboard,) = of_type(prod["orchestration"], "AWS::CloudWatch::Dashboard")
    widgets = {
        one["properties"]["title"]: one["properties"] for one in json.loads(text(dashboard["DashboardBody"]))["widgets"]
    }
    runs = [metric[:6] for metric in widgets["Runs"]["metrics"]]
    application = ["ApplicationId", "encore-prod-application-id", "ApplicationName", "encore-prod"]
    assert runs == [["AWS/EMRServerless", name, *application] for name in ("SuccessJobs", "FailedJobs")]
    dimensions = "{AWS/EMRServerless,ApplicationId,ApplicationName,CapacityAllocationType,WorkerType}"
    wanted = 'ApplicationId="encore-prod-application-id" ApplicationName="encore-prod"'
    for title, name in (("CPUs", "CPUAllocated"), ("Memory", "MemoryAllocated")):
        ((search,),) = widgets[title]["metrics"]
        assert search["expression"] == f"SEARCH('{dimensions} MetricName=\"{name}\" {wanted}', 'Sum', 60)"


def test_the_outputs_name_the_state_machine_and_the_topic(prod: dict[str, Template]) -> None:
    outputs = {name: text(one["Value"]) for name, one in prod["orchestration"]["Outputs"].items()}
    resources = prod["orchestration"]["Resources"]
    found = {name: resources[outputs[name]]["Type"] for name in ("StateMachineArn", "FailuresTopicArn")}
    assert found == {"StateMachineArn": "AWS::StepFunctions::StateMachine", "FailuresTopicArn": "AWS::SNS::Topic"}


COST_TAGS = {"encore:stage", "encore:part"}


@pytest.mark.slow
def test_every_taggable_resource_of_every_choice_has_the_tags_for_the_bill() -> None:
    """CloudFormation's own schemas say which resources can be tagged."""
    from cfnlint.schema import PROVIDER_SCHEMA_MANAGER

    stacks = {f"{' '.join(one)}: {name}": template for one in CHOICES for name, template in templates(*one).items()}
    for stack, template in stacks.items():
        tagged = 0
        for name, resource in template["Resources"].items():
            if resource["Type"].startswith("Custom::"):
                continue
            schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", resource["Type"]).schema
            taggable = schema.get("tagging", {}).get("taggable", "Tags" in schema["properties"])
            properties = json.dumps(resource.get("Properties"))
            missing = {tag for tag in COST_TAGS if tag not in properties}
            assert not missing or not taggable, f"{stack}: {name}: {missing}"
            tagged += not missing
        assert tagged, stack


def test_running_tasks_and_job_runs_have_the_tags_for_the_bill(prod: dict[str, Template]) -> None:
    """Both are billed, and neither is a resource of a stack."""
    for choices in (("prod",), PUBLIC_SCORER):
        for stack, template in templates(*choices).items():
            for service in of_type(template, "AWS::ECS::Service"):
                assert service["PropagateTags"] == "SERVICE", stack
    machine = line_of(prod["orchestration"])
    runs = re.findall(r'"Tags": ({[^}]*})', machine["DefinitionString"].replace("${Stage}", "STAGE"))
    assert len(runs) >= len({*JOBS, *EXTRA_JOBS})
    assert all(set(json.loads(tags)) > COST_TAGS for tags in runs)
    assert {json.loads(tags)["encore:stage"] for tags in runs} == {"STAGE"}
    assert machine["DefinitionSubstitutions"]["Stage"] == "prod"


def test_the_application_has_the_release_an_idle_timeout_and_a_maximum_capacity(prod: dict[str, Template]) -> None:
    (application,) = of_type(prod["compute"], "AWS::EMRServerless::Application")
    assert application["ReleaseLabel"] == "emr-spark-8.1.0"
    assert application["MaximumCapacity"]["Cpu"] == "200 vCPU"
    assert application["AutoStopConfiguration"] == {"Enabled": True, "IdleTimeoutMinutes": 15}
    assert "InitialCapacity" not in application
    assert len(application["NetworkConfiguration"]["SubnetIds"]) == 2
    # two jobs at the same time, and room for the driver and an executor of each
    assert application["SchedulerConfiguration"] == {"MaxConcurrentRuns": 2, "QueueTimeoutMinutes": 15}
    assert of_type(prod["compute"], "AWS::EMR::Cluster") == []


def test_mlflow_without_a_domain_speaks_http_to_the_groups_of_jobs_alone(prod: dict[str, Template]) -> None:
    template = prod["mlflow"]
    (balancer,) = of_type(template, "AWS::ElasticLoadBalancingV2::LoadBalancer")
    assert balancer["Scheme"] == "internal"
    (listener,) = of_type(template, "AWS::ElasticLoadBalancingV2::Listener")
    assert (listener["Port"], listener["Protocol"]) == (80, "HTTP")
    assert of_type(template, "AWS::Route53::HostedZone") == []
    assert admitted(prod, "mlflow/BalancerGroup") == {80: {"network/Jobs"}}
    assert admitted(prod, "mlflow/ServerGroup") == {5000: {"mlflow/BalancerGroup"}}
    # clients lower the case of a host name, and MLflow compares it with case
    assert balancer["Name"] == balancer["Name"].lower() == "encore-prod-mlflow"
    assert len(balancer["Name"]) <= 32
    assert_mlflow_answers(template, f"http://{logical_id(template, 'Balancer', 'LoadBalancer')}|DNSName")


@pytest.mark.slow
def test_mlflow_with_a_domain_speaks_https_and_owns_one_name_of_it() -> None:
    stacks = templates(*PUBLIC_SCORER)
    template = stacks["mlflow"]
    (listener,) = of_type(template, "AWS::ElasticLoadBalancingV2::Listener")
    assert (listener["Port"], listener["Protocol"]) == (443, "HTTPS")
    assert listener["Certificates"] == [{"CertificateArn": CERTIFICATE}]
    (zone,) = of_type(template, "AWS::Route53::HostedZone")
    (record,) = of_type(template, "AWS::Route53::RecordSet")
    assert zone["Name"] == "mlflow.music.example.com.", "a zone of the domain would hide its other names in the VPC"
    assert record["Name"] == zone["Name"]
    admits = {"network/Jobs", "serving/TaskGroup", "serving/GuardGroup"}
    assert admitted(stacks, "mlflow/BalancerGroup") == {443: admits}
    assert_mlflow_answers(template, "https://mlflow.music.example.com")


def assert_mlflow_answers(template: Template, address: str) -> None:
    """Assert that secrets name this address, and that MLflow accepts requests for it and through a tunnel."""
    logins = [
        json.loads(text(one["GenerateSecretString"]["SecretStringTemplate"]))
        for one in of_type(template, "AWS::SecretsManager::Secret")
        if "SecretStringTemplate" in one.get("GenerateSecretString", {})
    ]
    addresses = [login["uri"] for login in logins if "uri" in login]
    assert addresses
    assert set(addresses) == {address}
    allowed = [
        text(one["Value"]).split(",")
        for task in of_type(template, "AWS::ECS::TaskDefinition")
        for container in task["ContainerDefinitions"]
        for one in container["Environment"]
        if one["Name"] == "ALLOWED_HOSTS"
    ]
    assert allowed
    for hosts in allowed:
        for host in (address.partition("://")[2], "localhost:5000", "localhost:15000"):
            assert is_allowed_host_header(hosts, host), host
        assert not is_allowed_host_header(hosts, "elsewhere.example.org")


def logical_id(template: Template, name: str, type_: str = "SecurityGroup") -> str:
    """The logical id of the resource of a type whose id begins with a name."""
    found = [
        key
        for key, one in template["Resources"].items()
        if key.startswith(name) and one["Type"].rsplit("::", 1)[1] == type_
    ]
    (id_,) = found
    return id_


def test_people_reach_mlflow_through_its_own_task(prod: dict[str, Template]) -> None:
    (service,) = of_type(prod["mlflow"], "AWS::ECS::Service")
    assert service["EnableExecuteCommand"] is True
    (task,) = [
        one
        for one in of_type(prod["mlflow"], "AWS::ECS::TaskDefinition")
        if one["ContainerDefinitions"][0]["Name"] == "mlflow"
    ]
    (container,) = task["ContainerDefinitions"]
    assert container["LinuxParameters"]["InitProcessEnabled"] is True, "somebody has to reap the agent's processes"
    assert not container.get("ReadonlyRootFilesystem"), "the agent writes to it"
    role, _ = text(task["TaskRoleArn"]).split("|")
    channels = {
        action
        for policy in of_type(prod["mlflow"], "AWS::IAM::Policy")
        if [text(name) for name in policy["Roles"]] == [role]
        for one in policy["PolicyDocument"]["Statement"]
        for action in one["Action"]
        if action.startswith("ssmmessages:")
    }
    assert channels == {
        f"ssmmessages:{verb}{kind}Channel" for verb in ("Create", "Open") for kind in ("Control", "Data")
    }
    assert {"TrackingCluster", "TrackingService"} <= set(prod["mlflow"]["Outputs"])


def test_nothing_has_to_be_stored_in_parameters_before_a_deployment(prod: dict[str, Template]) -> None:
    for name, template in prod.items():
        read = {one.get("Default", "") for one in template.get("Parameters", {}).values()}
        assert [one for one in read if str(one).startswith("/encore/")] == [], name


@pytest.mark.slow
def test_there_is_no_pipeline_without_a_connection() -> None:
    assert set(templates("dev")) == {"network", "storage", "mlflow", "compute", "orchestration"}


@pytest.mark.slow
def test_nodes_of_a_cluster_are_in_the_group_that_mlflow_admits() -> None:
    stacks = templates("dev", "ec2=true", "prewarmed=true", "timezone=Europe/Berlin")
    (cluster,) = of_type(stacks["compute"], "AWS::EMR::Cluster")
    jobs = logical_id(stacks["network"], "Jobs")
    for nodes_ in ("Master", "Slave"):
        (group,) = cluster["Instances"][f"Additional{nodes_}SecurityGroups"]
        assert f"FnGetAtt{jobs}GroupId" in text(group)
    tags = stacks["network"]["Resources"][jobs]["Properties"]["Tags"]
    wanted = {"Key": "for-use-with-amazon-emr-managed-policies", "Value": "true"}
    assert wanted in tags, "EMR's service policy starts nodes only in tagged groups"


def test_mlflow_is_private_and_gets_passwords_from_secrets(prod: dict[str, Template]) -> None:
    (database,) = of_type(prod["mlflow"], "AWS::RDS::DBInstance")
    assert (database["StorageEncrypted"], database["PubliclyAccessible"], database["MultiAZ"]) == (True, False, True)
    tasks = {one["ContainerDefinitions"][0]["Name"]: one for one in of_type(prod["mlflow"], "AWS::ECS::TaskDefinition")}
    assert set(tasks) == {"mlflow", "migration"}
    task = tasks["mlflow"]
    (container,) = task["ContainerDefinitions"]
    login = ("MLFLOW_AUTH_ADMIN_USERNAME", "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY")
    assert {one["Name"] for one in container["Secrets"]} == {"DB_USER", "DB_PASSWORD", *login}
    for one in tasks.values():
        assert "PASSWORD" not in str(one["ContainerDefinitions"][0]["Environment"])
    (service,) = of_type(prod["mlflow"], "AWS::ECS::Service")
    assert service["NetworkConfiguration"]["AwsvpcConfiguration"]["AssignPublicIp"] == "DISABLED"
    assert task["RuntimePlatform"] == {"CpuArchitecture": "X86_64", "OperatingSystemFamily": "LINUX"}
    images = json.loads((assembly("prod", *PIPELINE) / "encore-prod-mlflow.assets.json").read_text())["dockerImages"]
    (source,) = (one["source"] for one in images.values())
    assert source["platform"] == "linux/amd64", "whatever machine builds it"
    assert re.fullmatch(r"[a-z./]+/python:3\.11-slim@sha256:[0-9a-f]{64}", source["dockerBuildArgs"]["BASE"])
    assert "FROM ${BASE}" in (ROOT / "deploy" / "cdk" / "mlflow" / "Dockerfile").read_text()


def test_jobs_log_in_as_another_user_than_mlflows_administrator(prod: dict[str, Template]) -> None:
    """The server knows only the administrator's password, and jobs read only the other one."""
    outputs = {name: plain(one["Value"]) for name, one in prod["mlflow"]["Outputs"].items()}
    login, administrator = outputs["TrackingLogin"], outputs["TrackingAdministrator"]
    assert login != administrator
    given: dict[str, dict[str, str]] = {}
    for task in of_type(prod["mlflow"], "AWS::ECS::TaskDefinition"):
        (container,) = task["ContainerDefinitions"]
        given[container["Name"]] = {one["Name"]: text(one["ValueFrom"]) for one in container["Secrets"]}
    for name in given:
        assert administrator in given[name]["MLFLOW_AUTH_ADMIN_PASSWORD"], name
    assert login in given["migration"]["MLFLOW_JOBS_PASSWORD"]
    assert login not in str(given["mlflow"])
    users = [
        json.loads(
            text(prod["mlflow"]["Resources"][name]["Properties"]["GenerateSecretString"]["SecretStringTemplate"])
        )
        for name in (login, administrator)
    ]
    assert users[0]["username"] != users[1]["username"]
    assert users[0]["uri"] == users[1]["uri"]


def test_the_database_is_migrated_before_the_service_changes(prod: dict[str, Template]) -> None:
    template = prod["mlflow"]
    (run,) = [name for name, one in template["Resources"].items() if one["Type"] == "Custom::MlflowMigration"]
    (service,) = [one for one in template["Resources"].values() if one["Type"] == "AWS::ECS::Service"]
    assert run in service["DependsOn"]
    properties = template["Resources"][run]["Properties"]
    task = template["Resources"][text(properties["TaskDefinition"])]["Properties"]
    (container,) = task["ContainerDefinitions"]
    (serving,) = [
        one["ContainerDefinitions"][0]
        for one in of_type(template, "AWS::ECS::TaskDefinition")
        if one["ContainerDefinitions"][0]["Name"] == "mlflow"
    ]
    assert container["Image"] == serving["Image"], "a new image runs it again"
    assert container["EntryPoint"] == ["/migrate.sh"]
    # the database admits the group of the task
    (database,) = of_type(template, "AWS::RDS::DBInstance")
    group = text(properties["SecurityGroup"])
    sources = [
        text(one["SourceSecurityGroupId"])
        for one in of_type(template, "AWS::EC2::SecurityGroupIngress")
        if one["FromPort"] == int(database["Port"])
    ]
    assert sources == [group]


def test_minor_upgrades_of_the_database_are_left_to_aws(prod: dict[str, Template]) -> None:
    """A template with a minor version would ask for the old one after AWS has upgraded it, and fail."""
    (database,) = of_type(prod["mlflow"], "AWS::RDS::DBInstance")
    assert database["AutoMinorVersionUpgrade"] is True
    assert database["EngineVersion"].isdigit()


def test_the_artefact_bucket_is_configured_like_the_lake(prod: dict[str, Template]) -> None:
    (bucket,) = of_type(prod["mlflow"], "AWS::S3::Bucket")
    (lake,) = [one for one in of_type(prod["storage"], "AWS::S3::Bucket") if "-lake-" in text(one["BucketName"])]
    rules = [
        {rule["Id"]: rule for rule in one["LifecycleConfiguration"]["Rules"] if rule["Id"] != "scratch"}
        for one in (bucket, lake)
    ]
    assert rules[0] == rules[1]
    assert rules[0]["superseded"]["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}
    same = ("BucketEncryption", "OwnershipControls", "PublicAccessBlockConfiguration", "VersioningConfiguration")
    assert {name: bucket[name] for name in same} == {name: lake[name] for name in same}


def test_production_waits_for_staging_and_its_metrics_and_for_no_person(prod: dict[str, Template]) -> None:
    (pipeline,) = of_type(prod["delivery"], "AWS::CodePipeline::Pipeline")
    stages = {
        one["Name"]: {action["Name"]: action["RunOrder"] for action in one["Actions"]} for one in pipeline["Stages"]
    }
    assert list(stages) == ["Source", "Test", "Package", "Dev", "Staging", "Prod"]
    assert stages["Staging"]["Deploy"] < stages["Staging"]["Run"]
    assert stages["Prod"]["Gate"] < stages["Prod"]["Deploy"]
    categories = {action["ActionTypeId"]["Category"] for one in pipeline["Stages"] for action in one["Actions"]}
    assert categories == {"Source", "Build"}


def test_the_pipeline_may_use_a_connection_under_either_service_name(prod: dict[str, Template]) -> None:
    """Connections created since July 2024 have the service's new name in their ARN, and need the action under it."""
    (fetch,) = next(
        stage["Actions"]
        for stage in of_type(prod["delivery"], "AWS::CodePipeline::Pipeline")[0]["Stages"]
        if stage["Name"] == "Source"
    )
    role, _ = text(fetch["RoleArn"]).split("|")
    (uses,) = [
        one
        for policy in of_type(prod["delivery"], "AWS::IAM::Policy")
        if [text(name) for name in policy["Roles"]] == [role]
        for one in policy["PolicyDocument"]["Statement"]
        if "UseConnection" in str(one["Action"])
    ]
    assert sorted(uses["Action"]) == ["codeconnections:UseConnection", "codestar-connections:UseConnection"]
    assert text(uses["Resource"]) == text(fetch["Configuration"]["ConnectionArn"])


def test_the_pipeline_deploys_committed_choices_and_never_itself(prod: dict[str, Template]) -> None:
    projects = {one["Name"]: one for one in of_type(prod["delivery"], "AWS::CodeBuild::Project")}
    steps = {name: json.loads(one["Source"]["BuildSpec"]) for name, one in projects.items()}
    (deploy,) = [one for one in steps["encore-deploy"]["phases"]["build"]["commands"] if one.startswith("make deploy")]
    assert "CHOICES" not in deploy
    # how a shell expands it, in a folder with a file that the pattern would match
    expanded = subprocess.run(
        [
            "bash",
            "-c",
            f"cd $(mktemp -d) && touch STACKS=encore-dev-x && make() {{ printf '%s\\n' \"$@\"; }} && {deploy}",
        ],
        env={"STAGE": "dev", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    arguments = expanded.stdout.split()
    assert arguments == ["deploy", "STAGE=dev", "STACKS=encore-dev-*", "PACKAGED=yes", "RUN_PROFILE=run"]
    for stacks, expected in ((arguments[2:], "deploy 'encore-dev-*' --require"), ([], "deploy '--all' --require")):
        dry_run = subprocess.run(
            ["make", "--no-print-directory", "-n", "deploy", "PACKAGED=yes", *stacks],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert expected in dry_run.stdout
    assert steps["encore-package"]["artifacts"] == {
        "files": ["**/*"],
        "exclude-paths": [".venv/**/*", ".cache/**/*", "build/cdk.out/**/*", "data/**/*"],
    }


def test_only_the_project_that_builds_an_image_is_privileged(prod: dict[str, Template]) -> None:
    projects = of_type(prod["delivery"], "AWS::CodeBuild::Project")
    assert {one["Name"]: one["Environment"]["PrivilegedMode"] for one in projects} == {
        "encore-test": False,
        "encore-package": False,
        "encore-deploy": True,
        "encore-run": False,
        "encore-gate": False,
    }


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"stage": "production"}, "no stage 'production'; one of: dev, staging, prod, sandbox"),
        ({"stage": "common"}, "no stage 'common'; one of: dev, staging, prod, sandbox"),
        ({"stage": ""}, "no stage ''; one of: dev, staging, prod, sandbox"),
        ({"nightli": "true"}, "no choice 'nightli'; one of: account, region, keep, max_vcpu, "),
        ({"name": "mine"}, "no choice 'name'; one of: account, region, keep, max_vcpu, "),
        ({"mlflow": "none"}, "mlflow=none: fargate or sagemaker expected"),
        ({"max_vcpu": "many"}, "max_vcpu=many: a whole number expected"),
        (
            {"max_vcpu": "15"},
            "max_vcpu=15: at least 16 expected: 2 jobs run at the same time, so 2 drivers of 4 and 2 executors of 4 ",
        ),
        (
            {"max_vcpu": "23", "prewarmed": "true"},
            "max_vcpu=23: at least 24 expected: 2 jobs run at the same time, so 2 drivers of 4 and 4 executors of 4 "
            "vCPUs, of which 4 are kept started",
        ),
        ({"release": "emr-7.13.0"}, "release=emr-7.13.0: emr-spark-8.1.0 or emr-spark-8.2.0 expected"),
        ({"nat_gateways": "0"}, "nat_gateways=0: at least 1 expected"),
        ({"hour": "24"}, "hour=24: at most 23 expected"),
        ({"hour": "-1"}, "hour=-1: at least 0 expected"),
        ({"ec2": "yes"}, "ec2=yes: true or false expected"),
        ({"timezone": "Europe/Bern"}, "timezone=Europe/Bern: a time zone such as Europe/Berlin expected"),
        ({"base_image": "python:3.11-slim"}, "base_image=python:3.11-slim: an image with its digest, NAME:TAG@sha256:"),
        ({"domain": "here"}, "domain=here: nothing, or a domain name such as music.example.com expected"),
        ({"certificate": "mine"}, "certificate=mine: arn:aws:acm:REGION:ACCOUNT:certificate/ID expected"),
        ({"connection": "mine"}, "connection=mine: arn:aws:codeconnections:REGION:ACCOUNT:connection/ID expected"),
        ({"repository": "encore"}, "repository=encore: nothing, or owner/name expected"),
        ({"serving": "lambda"}, "serving=lambda: none, fargate or sagemaker expected"),
        ({"serving_access": "all"}, "serving_access=all: private or public expected"),
        ({"serving_domain": "here"}, "serving_domain=here: nothing, or a domain name such as "),
        ({"serving_image": "encore scorer"}, "serving_image=encore scorer: repository:tag or repository@sha256:digest"),
        ({"serving_image": "scorer:latest"}, "serving_image=scorer:latest: a tag that stays with its image expected"),
        ({"serving_model": "Ranker"}, "serving_model=Ranker: the name of a model such as ranker expected"),
        ({"serving_bundle": "a/../b"}, "serving_bundle=a/../b: a folder such as artefacts/1/models/"),
        ({"serving_max": "1"}, "serving_max=1: at least 2 expected"),
        ({"serving_rate": "9"}, "serving_rate=9: at least 10 expected"),
        ({"branch": ""}, "branch=: non-empty text expected"),
    ],
)
def test_an_unknown_stage_or_choice_is_a_one_line_error(choices: dict[str, str], expected: str) -> None:
    with pytest.raises(StageError) as caught:
        load_stage(choices)
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("choices", "expected", "remedy"),
    [
        (DOMAIN[:1], "domain=music.example.com: HTTPS needs a certificate", "mlflow.music.example.com"),
        (DOMAIN[1:], f"certificate={CERTIFICATE}: it is for a domain", "set domain"),
        (
            (*DOMAIN, "mlflow=sagemaker"),
            "domain=music.example.com: SageMaker's server has an address",
            "mlflow=fargate",
        ),
        (SCORER_DOMAIN[:1], "serving_domain=playlists.example.com: HTTPS needs a certificate", "playlists.example.com"),
        (SCORER_DOMAIN[1:], f"serving_certificate={SCORER_CERTIFICATE}: it is for a domain", "set serving_domain"),
        (PIPELINE[:1], f"connection={CONNECTION}: without a repository", "set repository"),
        (PIPELINE[1:], "repository=team/encore: without a connection", "set connection"),
        ((PIPELINE[0], "repository=OWNER/encore"), "repository=OWNER/encore: a placeholder", "your repository"),
        (("sandbox_nightly=true",), "sandbox_nightly=True: there is no pipeline", "set connection and repository"),
        ((*DOMAIN, "region=us-east-1"), f"certificate={CERTIFICATE}: it is in eu-central-1", "in us-east-1"),
        ((*SCORER_DOMAIN, "region=us-east-1"), f"serving_certificate={SCORER_CERTIFICATE}: it is in eu-", "us-east-1"),
        ((*DOMAIN, "account=444455556666"), f"certificate={CERTIFICATE}: it is of account 1111", "444455556666"),
        (("account=000000000000",), "account=000000000000: no account has it", "12 digits"),
    ],
)
def test_choices_that_cannot_work_together_are_refused(choices: tuple[str, ...], expected: str, remedy: str) -> None:
    with pytest.raises(StageError) as caught:
        load_stage(dict(choice.split("=", 1) for choice in choices))
    assert str(caught.value).startswith(expected)
    assert remedy in str(caught.value.remedy)


def test_the_committed_stages_have_no_placeholders(tmp_path: Path) -> None:
    for stage in ("dev", "staging", "prod"):
        chosen = load_stage({"stage": stage})
        assert (chosen.domain, chosen.certificate, chosen.connection, chosen.repository) == ("", "", "", "")
        assert list(placeholder_findings(chosen)) == []


def test_a_stage_whose_name_fits_no_load_balancer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own_stages(tmp_path, monkeypatch)
    path.write_text(path.read_text().replace("\nprod:\n", "\nproduction-of-the-year:\n"))
    with pytest.raises(StageError, match="name=production-of-the-year: at most 18 lower-case letters"):
        load_stage({"stage": "staging"})


def test_the_context_overrides_the_file_and_a_stage_overrides_common_values() -> None:
    assert load_stage({}).name == "dev"
    chosen = load_stage({"stage": "prod", "ec2": "true", "timezone": "Europe/Berlin", "hour": "23", "max_vcpu": 16})
    assert (chosen.ec2, chosen.timezone, chosen.hour, chosen.max_vcpu) == (True, "Europe/Berlin", 23, 16)
    assert (chosen.keep, chosen.nightly, chosen.mlflow) == (True, True, "fargate"), "other choices come from the file"


def own_stages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stages file in a private copy of conf/."""
    shutil.copytree(ROOT / "conf", folder / "conf")
    monkeypatch.setenv("ENCORE_CONF_DIR", str(folder / "conf"))
    return folder / "conf" / "deploy" / "stages.yaml"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  keep: true", "  keep: 1", "prod: keep=1: true or false expected"),
        ("  keep: true", '  keep: "true"', "prod: keep=true: true or false expected"),
        (
            "  nightly: true\nprod:",
            "  nightli: true\nprod:",
            "staging: no choice 'nightli'; one of: account, region, keep, ",
        ),
        ("  hour: 2 ", "  hour: 25 ", "dev: hour=25: at most 23 expected"),
        ("  hour: 2 ", "  # hour: 2 ", "dev: hour: missing"),
        ("prod:\n", "prod:\n  branch: mine\n", "prod: branch: all stages share one pipeline; move it to common"),
        ("prod:\n", "prod: none\nother:\n", "prod: a mapping of choices expected, 'none' found"),
    ],
)
def test_an_invalid_stages_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, expected: str
) -> None:
    """An error is reported whatever stage is requested, since the pipeline deploys the others later."""
    path = own_stages(tmp_path, monkeypatch)
    assert load_stage({"stage": "staging"}).name == "staging"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(StageError) as caught:
        load_stage({"stage": "staging"})
    assert str(caught.value).startswith(f"{path}: {expected}")


def test_a_team_commits_its_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own_stages(tmp_path, monkeypatch)
    text_ = path.read_text().replace('connection: ""', f"connection: {CONNECTION}")
    text_ = text_.replace('repository: ""', "repository: us/encore").replace("prod:\n", "prod:\n  mlflow: sagemaker\n")
    path.write_text(text_)
    assert {
        stage: (one.repository, one.mlflow) for stage in ("dev", "prod") if (one := load_stage({"stage": stage}))
    } == {
        "dev": ("us/encore", "fargate"),
        "prod": ("us/encore", "sagemaker"),
    }


CHOICES = [
    ("dev",),
    ("staging",),
    ("sandbox",),
    ("prod", *PIPELINE),
    ("dev", *PIPELINE, "sandbox_nightly=true", "budget=300"),
    ("dev", *DOMAIN),
    ("dev", "ec2=true", "prewarmed=true", "timezone=Europe/Berlin"),
    ("dev", "mlflow=sagemaker"),
    ("dev", "release=emr-spark-8.2.0", "ec2=true"),
    PRIVATE_SCORER,
    PUBLIC_SCORER,
    SCORER_OF_BUNDLE,
    ENDPOINT,
    OF_ITS_OWN,
    (*PRIVATE_SCORER, "customer_key=true"),
    (*ENDPOINT, "customer_key=true", "mlflow=sagemaker", "ec2=true"),
]


@pytest.mark.slow
@pytest.mark.parametrize("choices", CHOICES, ids=" ".join)
def test_every_stage_and_choice_passes_cdk_nag_and_cfn_lint(
    choices: tuple[str, ...], verified: Callable[[str], None]
) -> None:
    paths = sorted(assembly(*choices).glob("*.template.json"))
    more = [
        choice
        for choice in choices
        if choice.startswith(("serving=", "connection=", "replica_region=", "customer_key=true"))
    ]
    assert len(paths) == 5 + len(more)
    command = [str(Path(sys.executable).with_name("cfn-lint")), "--format", "parseable"]
    # W3005: redundant DependsOn, which the CDK itself adds and which does no harm
    # W3691: a major version of PostgreSQL, for which RDS chooses the minor one, but which its list of versions lacks
    done = subprocess.run(
        [*command, "--ignore-checks", "W3005", "W3691", "--template", *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
    verified(
        f"{' '.join(choices)}: {len(paths)} stacks synthesized without credentials; cdk-nag and cfn-lint find nothing"
    )


@pytest.mark.slow
def test_choices_take_effect() -> None:
    made = templates("dev", "ec2=true", "prewarmed=true", "timezone=Europe/Berlin")
    (application,) = of_type(made["compute"], "AWS::EMRServerless::Application")
    assert {one["Key"] for one in application["InitialCapacity"]} == {"Driver", "Executor"}
    (cluster,) = of_type(made["compute"], "AWS::EMR::Cluster")
    assert cluster["ReleaseLabel"] == application["ReleaseLabel"] == "emr-spark-8.1.0"
    newer = templates("dev", "release=emr-spark-8.2.0", "ec2=true")["compute"]
    labels = [*of_type(newer, "AWS::EMRServerless::Application"), *of_type(newer, "AWS::EMR::Cluster")]
    assert [one["ReleaseLabel"] for one in labels] == ["emr-spark-8.2.0"] * 2
    schedules = of_type(made["orchestration"], "AWS::Scheduler::Schedule")
    assert {(one["ScheduleExpressionTimezone"], one["State"]) for one in schedules} == {("Europe/Berlin", "DISABLED")}
    managed = templates("dev", "mlflow=sagemaker")["mlflow"]
    (server,) = of_type(managed, "AWS::SageMaker::MlflowTrackingServer")
    assert server["MlflowVersion"] == "3.0"
    assert of_type(managed, "AWS::RDS::DBInstance") == []


@pytest.mark.slow
def test_each_role_may_call_the_managed_mlflow_server_and_put_artefacts() -> None:
    made = templates("dev", "mlflow=sagemaker")
    server = made["mlflow"]["Outputs"]
    (arn,) = [text(one["Value"]) for name, one in server.items() if "ServerTrackingServerArn" in name]
    artefacts = "arn:aws:s3:::encore-dev-artefacts-ACCOUNT-REGION/artefacts"
    roles = {
        name: one["Properties"]["Description"].split()[2]
        for name, one in made["compute"]["Resources"].items()
        if one["Type"] == "AWS::IAM::Role" and one["Properties"].get("Description", "").startswith("Encore: what ")
    }
    assert len(roles) == len({*JOBS, *EXTRA_JOBS})
    imported = {
        text(one["Export"]["Name"]): "SERVER"
        for one in server.values()
        if text(one["Value"]) == arn and "Export" in one
    }
    for role, job in roles.items():
        allowed = [
            {
                "Effect": one["Effect"],
                "Action": one["Action"] if isinstance(one["Action"], list) else [one["Action"]],
                "Resource": [imported.get(found, found)],
            }
            for policy in of_type(made["compute"], "AWS::IAM::Policy")
            if [text(name) for name in policy["Roles"]] == [role]
            for one in plain(policy["PolicyDocument"]["Statement"])
            for found in [one["Resource"]]
        ]
        for one in tracking_statements("SERVER", artefacts, job):
            assert {name: one[name] for name in ("Effect", "Action", "Resource")} in allowed, (role, one["Sid"])
        registers = any("sagemaker-mlflow:SetRegisteredModelAlias" in one["Action"] for one in allowed)
        assert registers == (job == "register_models")


@pytest.mark.slow
def test_cluster_nodes_have_a_valid_profile_and_the_derived_permissions() -> None:
    compute = templates("dev", "ec2=true", "prewarmed=true", "timezone=Europe/Berlin")["compute"]
    (profile,) = of_type(compute, "AWS::IAM::InstanceProfile")
    (role,) = [text(one) for one in profile["Roles"]]
    assert text(profile["InstanceProfileName"]) == role, "EMR requires the profile to have the role's name"
    (cluster,) = of_type(compute, "AWS::EMR::Cluster")
    assert cluster["StepConcurrencyLevel"] == 1, "two nodes hold one driver and one executor"
    allowed = [
        listed(one)
        for policy in of_type(compute, "AWS::IAM::Policy")
        if [text(name) for name in policy["Roles"]] == [role]
        for one in plain(policy["PolicyDocument"]["Statement"])
        if "Sid" in one
    ]
    lake, raw, code, logs = (
        f"arn:aws:s3:::encore-dev-{name}-ACCOUNT-REGION" for name in ("lake", "raw", "code", "logs")
    )
    assert allowed == [listed(one) for one in cluster_statements(Buckets(lake, raw, code, logs))]
    others = [
        one
        for policy in of_type(compute, "AWS::IAM::Policy")
        if [text(name) for name in policy["Roles"]] == [role]
        for one in policy["PolicyDocument"]["Statement"]
        if "Sid" not in one
    ]
    assert [one["Action"] for one in others] == [["secretsmanager:DescribeSecret", "secretsmanager:GetSecretValue"]]
    (nodes_role,) = [one for name, one in compute["Resources"].items() if name == role]
    managed = [text(one) for one in nodes_role["Properties"]["ManagedPolicyArns"]]
    assert managed == ["arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"], "sessions on a node use it"


@pytest.mark.slow
def test_a_stage_that_keeps_no_data_can_be_deleted_completely() -> None:
    """Non-empty buckets and retained resources would be left over, and block the next deployment."""
    for stack, template in templates("dev").items():
        retained = [
            name for name, one in template["Resources"].items() if one.get("DeletionPolicy") in ("Retain", "Snapshot")
        ]
        assert retained == [], stack
        buckets = [name for name, one in template["Resources"].items() if one["Type"] == "AWS::S3::Bucket"]
        emptied = [text(one["BucketName"]) for one in of_type(template, "Custom::S3AutoDeleteObjects")]
        assert sorted(emptied) == sorted(buckets), stack
        assert not any(one.get("DeletionProtection") for one in of_type(template, "AWS::RDS::DBInstance"))
        for balancer in of_type(template, "AWS::ElasticLoadBalancingV2::LoadBalancer"):
            assert {"Key": "deletion_protection.enabled", "Value": "false"} in balancer["LoadBalancerAttributes"]


def test_a_finding_of_cdk_nag_fails_the_synthesis() -> None:
    from aws_cdk import App, Stack, Validations
    from aws_cdk import aws_sqs as sqs
    from cdk_nag import AwsSolutionsChecks

    app = App(analytics_reporting=False)
    sqs.Queue(Stack(app, "wanting"), "Queue")
    Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    with pytest.raises(RuntimeError, match="AwsSolutions-SQS4"):
        app.synth()


def test_camel_case_of_job_names() -> None:
    assert camel("build_track_vectors") == "BuildTrackVectors"
