"""What is watched on AWS, and that the topic takes the messages of who watches."""

from __future__ import annotations

import json
import time
from typing import Any, NoReturn

import boto3
import pytest
from moto import mock_aws

from encore.aws.states import placeholders, substitute
from encore.aws.watch import watch
from tests.deploy.choices import ACCOUNT, PIPELINE
from tests.deploy.emr import emr_serverless
from tests.deploy.synth import Template, of_type, plain, templates, text


@pytest.fixture(scope="module")
def prod() -> dict[str, Template]:
    return templates("prod", *PIPELINE)


@pytest.fixture(scope="module")
def chosen() -> dict[str, Template]:
    """A stage with a budget that the pipeline delivers to."""
    return templates("dev", *PIPELINE, "budget=300", "run_hours=3")


def publishers(template: Template) -> dict[str, Any]:
    """By service, the conditions under which it may publish to the topic."""
    (policy,) = of_type(template, "AWS::SNS::TopicPolicy")
    (topic,) = policy["Topics"]
    found = {}
    for one in plain(policy["PolicyDocument"]["Statement"]):
        if one["Effect"] == "Allow":
            assert (one["Action"], one["Resource"]) == ("sns:Publish", text(topic))
            found[one["Principal"]["Service"]] = one["Condition"]
    return found


def key_users(template: Template) -> dict[str, Any]:
    """By service, the conditions under which it may encrypt messages with the topic's key."""
    (topic,) = of_type(template, "AWS::SNS::Topic")
    name = text(topic["KmsMasterKeyId"]).partition("|")[0]
    policy = template["Resources"][name]["Properties"]["KeyPolicy"]
    found = {}
    for one in plain(policy["Statement"]):
        services = one["Principal"].get("Service", [])
        if services and {"kms:Decrypt", "kms:GenerateDataKey*"} <= set(one["Action"]):
            # statements that differ by their service alone are merged
            for service in services if isinstance(services, list) else [services]:
                found[text(service)] = one.get("Condition")
    return found


def test_the_topic_takes_messages_of_alarms_alone(prod: dict[str, Template]) -> None:
    """A topic with its own policy loses the default one, which admits the account's alarms."""
    ours = {"StringEquals": {"aws:SourceAccount": "ACCOUNT"}}
    assert publishers(prod["orchestration"]) == {"cloudwatch.amazonaws.com": ours}
    assert key_users(prod["orchestration"])["cloudwatch.amazonaws.com"] == ours


ALARMS = {
    "MlflowUnhealthy": ("AWS/ApplicationELB", "HealthyHostCount", "LessThanThreshold", 1, "breaching"),
    "MlflowTasks": ("ECS/ContainerInsights", "RunningTaskCount", "LessThanThreshold", 2, "breaching"),
    "MlflowErrors": ("AWS/ApplicationELB", "HTTPCode_Target_5XX_Count", "GreaterThanThreshold", 10, "notBreaching"),
    "MlflowUnreachable": ("AWS/ApplicationELB", "HTTPCode_ELB_5XX_Count", "GreaterThanThreshold", 10, "notBreaching"),
    "DatabaseStorage": ("AWS/RDS", "FreeStorageSpace", "LessThanThreshold", 1e9, "notBreaching"),
    "DatabaseCpu": ("AWS/RDS", "CPUUtilization", "GreaterThanThreshold", 90, "notBreaching"),
    "DatabaseConnections": ("AWS/RDS", "DatabaseConnections", "GreaterThanThreshold", 112, "notBreaching"),
}


def test_mlflow_and_its_database_are_watched_and_the_topic_hears_of_it(prod: dict[str, Template]) -> None:
    (topic,) = of_type(prod["orchestration"], "AWS::SNS::Topic")
    arn = f"arn:aws:sns:REGION:ACCOUNT:{topic['TopicName']}"
    alarms = of_type(prod["mlflow"], "AWS::CloudWatch::Alarm")
    found = {
        one["AlarmName"].rsplit("-", 1)[1]: (
            one["Namespace"],
            one["MetricName"],
            one["ComparisonOperator"],
            one["Threshold"],
            one["TreatMissingData"],
        )
        for one in alarms
    }
    assert found == ALARMS
    assert {text(action) for one in alarms for action in one["AlarmActions"]} == {arn}


def test_alarms_are_on_the_resources_of_this_stage(prod: dict[str, Template]) -> None:
    """A metric with other dimensions is another one, which never has a value."""
    kinds = {"LoadBalancer": "LoadBalancer", "TargetGroup": "TargetGroup", "ClusterName": "Cluster"}
    kinds |= {"ServiceName": "Service", "DBInstanceIdentifier": "DBInstance"}
    dimensions: dict[str, set[str]] = {}
    for alarm in of_type(prod["mlflow"], "AWS::CloudWatch::Alarm"):
        for one in alarm["Dimensions"]:
            value = one["Value"]
            # the full name of a load balancer is cut out of its listener's ARN by the CDK
            name = next(iter(references(value)))
            type_ = prod["mlflow"]["Resources"][name]["Type"].rsplit("::", 1)[1]
            assert type_ in (kinds[one["Name"]], "Listener"), (one["Name"], type_)
            dimensions.setdefault(alarm["MetricName"], set()).add(one["Name"])
    assert dimensions == {
        "HealthyHostCount": {"LoadBalancer", "TargetGroup"},
        "HTTPCode_Target_5XX_Count": {"LoadBalancer", "TargetGroup"},
        "HTTPCode_ELB_5XX_Count": {"LoadBalancer"},
        "RunningTaskCount": {"ClusterName", "ServiceName"},
        "FreeStorageSpace": {"DBInstanceIdentifier"},
        "CPUUtilization": {"DBInstanceIdentifier"},
        "DatabaseConnections": {"DBInstanceIdentifier"},
    }


def references(value: Any) -> set[str]:
    """Logical ids in a value."""
    if isinstance(value, dict):
        if "Ref" in value:
            return {value["Ref"]}
        if "Fn::GetAtt" in value:
            return {value["Fn::GetAtt"][0]}
        return {name for inner in value.values() for name in references(inner)}
    return {name for inner in value for name in references(inner)} if isinstance(value, list) else set()


def test_the_dashboard_shows_every_alarm_of_the_stage(prod: dict[str, Template]) -> None:
    """Those of MLflow are named and not imported: an import would keep them from being replaced."""
    (dashboard,) = of_type(prod["orchestration"], "AWS::CloudWatch::Dashboard")
    widgets = json.loads(text(dashboard["DashboardBody"]))["widgets"]
    (shown,) = [one["properties"]["alarms"] for one in widgets if one["type"] == "alarm"]
    resources = prod["orchestration"]["Resources"]
    names = {
        resources[arn.partition("|")[0]]["Properties"]["AlarmName"] if "|" in arn else arn.rpartition(":")[2]
        for arn in shown
    }
    made = {
        one["AlarmName"]
        for stack in ("orchestration", "mlflow")
        for one in of_type(prod[stack], "AWS::CloudWatch::Alarm")
    }
    assert names == made


def test_the_database_alarm_fires_before_the_database_is_full(prod: dict[str, Template]) -> None:
    """A micro instance of 1 GB takes 112 connections by RDS's formula, and fewer in practice."""
    from encore_cdk.monitoring import LEAST_STORAGE_GB, most_connections

    assert most_connections(1) == 112
    (database,) = of_type(prod["mlflow"], "AWS::RDS::DBInstance")
    assert 0.1 * int(database["AllocatedStorage"]) > LEAST_STORAGE_GB, "RDS enlarges the storage before"


def test_a_run_is_watched_from_the_event_of_its_start(prod: dict[str, Template]) -> None:
    resources = prod["orchestration"]["Resources"]
    (rule,) = of_type(prod["orchestration"], "AWS::Events::Rule")
    pattern = plain(rule["EventPattern"])
    line = pattern["detail"]["stateMachineArn"][0]
    assert resources[line]["Properties"]["StateMachineName"] == "encore-prod"
    assert (pattern["source"], pattern["detail"]["status"]) == (["aws.states"], ["RUNNING"])
    (target,) = rule["Targets"]
    watcher = resources[text(target["Arn"])]["Properties"]
    assert watcher["StateMachineName"] == "encore-prod-watch"
    made = json.loads(watcher["DefinitionString"])
    assert made["States"]["Wait"]["Seconds"] == 6 * 3600
    assert set(watcher["DefinitionSubstitutions"]) == placeholders(made)
    queue = text(target["DeadLetterConfig"]["Arn"]).partition("|")[0]
    assert resources[queue]["Type"] == "AWS::SQS::Queue"
    assert "events.amazonaws.com" in key_users(prod["orchestration"]), "the queue is encrypted with the key"


class TestWatch:
    @pytest.fixture(autouse=True)
    def account(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)

    def test_a_run_that_is_not_done_is_reported_until_it_ends(self) -> None:
        region, role = "us-east-1", "arn:aws:iam::123456789012:role/machine"

        def none(job: str, _: dict[str, Any]) -> NoReturn:
            raise AssertionError(f"{job} is no job of these machines")

        with mock_aws(config={"stepfunctions": {"execute_state_machine": True}}), emr_serverless(none):
            sns, sqs, states = (boto3.client(name, region_name=region) for name in ("sns", "sqs", "stepfunctions"))
            topic = sns.create_topic(Name="failures")["TopicArn"]
            queue = sqs.create_queue(QueueName="listener")["QueueUrl"]
            arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
            sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)

            def machine(name: str, definition: dict[str, Any]) -> str:
                made = states.create_state_machine(name=name, definition=json.dumps(definition), roleArn=role)
                return str(made["stateMachineArn"])

            waits = {"StartAt": "W", "States": {"W": {"Type": "Wait", "Seconds": 4, "End": True}}}
            line = machine("line", waits)
            watcher = machine("watch", substitute(watch(1, 6), {"TopicArn": topic}))
            run = states.start_execution(stateMachineArn=line, name="run-7")["executionArn"]
            event = {"detail": {"executionArn": run, "status": "RUNNING"}}
            look = states.start_execution(stateMachineArn=watcher, input=json.dumps(event))["executionArn"]
            until = time.monotonic() + 60
            while (found := states.describe_execution(executionArn=look))["status"] == "RUNNING":
                assert time.monotonic() < until
                time.sleep(0.1)
            assert found["status"] == "SUCCEEDED"
            assert states.describe_execution(executionArn=run)["status"] == "SUCCEEDED"
            bodies = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10)["Messages"]
            messages = [json.loads(json.loads(one["Body"])["Message"]) for one in bodies]
            assert len(messages) >= 2
            assert {one["run_id"] for one in messages} == {"run-7"}
            assert "6 hours" in messages[0]["reason"]


@pytest.mark.slow
class TestChoices:
    def test_a_budget_of_the_stage_alone_sends_to_the_topic(self, chosen: dict[str, Template]) -> None:
        template = chosen["orchestration"]
        (made,) = of_type(template, "AWS::Budgets::Budget")
        budget = made["Budget"]
        assert budget["BudgetLimit"] == {"Amount": 300, "Unit": "USD"}
        (tag,) = budget["CostFilters"]["TagKeyValue"]
        key, _, value = tag.removeprefix("user:").partition("$")
        topic = next(one for one in template["Resources"].values() if one["Type"] == "AWS::SNS::Topic")
        tags = {one["Key"]: one["Value"] for one in topic["Properties"]["Tags"]}
        assert tags[key] == value == "dev", "the tag that resources have"
        sent = [
            (one["Notification"]["Threshold"], one["Notification"]["NotificationType"])
            for one in made["NotificationsWithSubscribers"]
        ]
        assert sent == [(80, "ACTUAL"), (100, "ACTUAL"), (100, "FORECASTED")]
        subscribers = {
            text(who["Address"]) for one in made["NotificationsWithSubscribers"] for who in one["Subscribers"]
        }
        assert {template["Resources"][name]["Type"] for name in subscribers} == {"AWS::SNS::Topic"}

    def test_the_topic_and_its_key_admit_budgets_of_this_account(self, chosen: dict[str, Template]) -> None:
        ours = {
            "StringEquals": {"aws:SourceAccount": "ACCOUNT"},
            "ArnLike": {"aws:SourceArn": "arn:aws:budgets::ACCOUNT:*"},
        }
        assert publishers(chosen["orchestration"])["budgets.amazonaws.com"] == ours
        assert key_users(chosen["orchestration"])["budgets.amazonaws.com"] == ours

    def test_without_a_budget_there_is_none(self, prod: dict[str, Template]) -> None:
        assert of_type(prod["orchestration"], "AWS::Budgets::Budget") == []

    def test_a_stage_with_one_task_is_alarmed_when_it_is_gone(self, chosen: dict[str, Template]) -> None:
        alarms = {one["AlarmName"]: one for one in of_type(chosen["mlflow"], "AWS::CloudWatch::Alarm")}
        (service,) = of_type(chosen["mlflow"], "AWS::ECS::Service")
        assert alarms["encore-dev-MlflowTasks"]["Threshold"] == service["DesiredCount"] == 1
        assert alarms["encore-dev-DatabaseConnections"]["Threshold"] == 56

    def test_the_pipeline_runs_a_stage_with_a_role_that_only_its_projects_may_assume(
        self, chosen: dict[str, Template]
    ) -> None:
        template = chosen["orchestration"]
        (role,) = [one for one in of_type(template, "AWS::IAM::Role") if one.get("RoleName") == "encore-dev-delivery"]
        (trust,) = plain(role["AssumeRolePolicyDocument"]["Statement"])
        assert trust["Principal"] == {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}
        assert trust["Condition"] == {"ArnLike": {"aws:PrincipalArn": f"arn:aws:iam::{ACCOUNT}:role/encore-delivery-*"}}
        alone = templates("dev", "mlflow=sagemaker")["orchestration"]
        assert not any("RoleName" in one for one in of_type(alone, "AWS::IAM::Role")), "without a pipeline"

    def test_that_role_reads_results_and_writes_raw_data_only_where_none_is_kept(
        self, chosen: dict[str, Template], prod: dict[str, Template]
    ) -> None:
        for name, template in (("dev", chosen), ("prod", prod)):
            allowed = allowed_to(template["orchestration"], "Delivery")
            assert ("s3:PutObject" in allowed) == (name == "dev")
            assert set(allowed["s3:GetObject"]) == {
                f"arn:aws:s3:::encore-{name}-lake-ACCOUNT-REGION/lake/{path}/*"
                for path in ("*/_delta_log", "job_runs", "model_metrics")
            }
            assert not any(action.startswith(("s3:Delete", "iam:", "kms:")) for action in allowed)


def allowed_to(template: Template, role: str) -> dict[str, list[str]]:
    """Resources by action in the policies of a role whose logical id begins with `role`."""
    found: dict[str, list[str]] = {}
    for policy in of_type(template, "AWS::IAM::Policy"):
        if any(text(one).startswith(role) for one in policy["Roles"]):
            for one in plain(policy["PolicyDocument"]["Statement"]):
                actions = one["Action"] if isinstance(one["Action"], list) else [one["Action"]]
                resources = one["Resource"] if isinstance(one["Resource"], list) else [one["Resource"]]
                for action in actions:
                    found.setdefault(action, []).extend(resources)
    return found
