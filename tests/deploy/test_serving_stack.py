"""The templates of the scorer's stack, and the function that refuses two canaries at a time."""

from __future__ import annotations

import json
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from encore.aws.serving import PORT
from encore.aws.stage import StageError, load_stage
from encore.serving.settings import PREFIX, Settings
from tests.conftest import ROOT
from tests.deploy.serving import (
    BUNDLE,
    BUNDLE_BESIDE_MLFLOW,
    ENDPOINT,
    IMAGE,
    PRIVATE_SCORER,
    PUBLIC_SCORER,
    SCORER_OF_BUNDLE,
)
from tests.deploy.synth import Template, admitted, of_type, plain, templates, text

ROUTE = "/api/2.0/mlflow/registered-models/alias"


@pytest.fixture(scope="session")
def public() -> Template:
    return templates(*PUBLIC_SCORER)["serving"]


@pytest.mark.parametrize(
    ("choices", "expected", "remedy"),
    [
        ("serving=fargate", "serving_image=: serving=fargate needs an image", "push the scorer's image"),
        (
            f"serving=fargate {IMAGE} serving_access=public",
            "serving_access=public: bearer tokens would cross the internet unencrypted",
            "set serving_domain",
        ),
        (
            f"serving=fargate {IMAGE} mlflow=sagemaker",
            "serving_bundle=: the scorer with mlflow=sagemaker does not reach the registry",
            "name the folder",
        ),
        (
            f"serving=sagemaker {IMAGE}",
            "serving_bundle=: an endpoint of SageMaker does not reach the registry",
            "name the folder",
        ),
        (
            f"serving=sagemaker {IMAGE} serving_bundle=b serving_access=public",
            "serving_access=public: callers reach an endpoint of SageMaker through the API of AWS",
            "serving=fargate",
        ),
        (
            f"serving=sagemaker {IMAGE} serving_bundle=b serving_domain=a.example.com",
            "serving_domain=a.example.com: an endpoint of SageMaker has no domain name",
            "serving=fargate",
        ),
    ],
)
def test_impossible_combinations_are_refused(choices: str, expected: str, remedy: str) -> None:
    with pytest.raises(StageError) as caught:
        load_stage(dict(choice.split("=", 1) for choice in choices.split()))
    assert str(caught.value).startswith(expected)
    assert remedy in str(caught.value.remedy)


@pytest.mark.slow
def test_without_the_choice_nothing_changes() -> None:
    assert "serving" not in templates("dev")
    with_scorer = templates(*PRIVATE_SCORER)
    for name, template in templates("dev").items():
        if name not in ("storage", "network", "mlflow", "orchestration"):
            assert with_scorer[name] == template, name
        else:
            # what the scorer uses of it is exported, and the bucket of access logs admits its load balancer
            assert set(with_scorer[name]["Resources"]) == set(template["Resources"]), name


@pytest.mark.slow
def test_ecs_shifts_load_by_its_own_canary_and_rolls_back_on_alarms(public: Template) -> None:
    (service,) = of_type(public, "AWS::ECS::Service")
    deployment = service["DeploymentConfiguration"]
    assert deployment["Strategy"] == "CANARY"
    assert deployment["CanaryConfiguration"] == {"CanaryPercent": 10, "CanaryBakeTimeInMinutes": 10}
    assert deployment["BakeTimeInMinutes"] == 10
    alarms = {name: one for name, one in public["Resources"].items() if one["Type"] == "AWS::CloudWatch::Alarm"}
    assert (deployment["Alarms"]["Enable"], deployment["Alarms"]["Rollback"]) == (True, True)
    assert {text(name) for name in deployment["Alarms"]["AlarmNames"]} == set(alarms)
    (balancer,) = service["LoadBalancers"]
    advanced = balancer["AdvancedConfiguration"]
    groups = {text(balancer["TargetGroupArn"]), text(advanced["AlternateTargetGroupArn"])}
    rule = public["Resources"][text(advanced["ProductionListenerRule"])]["Properties"]
    weights = rule["Actions"][0]["ForwardConfig"]["TargetGroups"]
    assert {text(one["TargetGroupArn"]): one["Weight"] for one in weights} == {
        text(balancer["TargetGroupArn"]): 100,
        text(advanced["AlternateTargetGroupArn"]): 0,
    }
    assert len(groups) == 2
    # alarms in two minutes must be able to stop a canary before all of the load is shifted
    for alarm in (one["Properties"] for one in alarms.values()):
        assert alarm["EvaluationPeriods"] * 2 < deployment["CanaryConfiguration"]["CanaryBakeTimeInMinutes"]
        assert alarm["TreatMissingData"] == "notBreaching"
        assert alarm["AlarmActions"]
        (expression,) = [one["Expression"] for one in alarm["Metrics"] if "Expression" in one]
        assert expression in ("IF(requests >= 20, errors / requests, 0)", "IF(requests >= 20, p99, 0)")
    watched = {
        text(dimension["Value"]).split("|")[0]
        for alarm in alarms.values()
        for metric in alarm["Properties"]["Metrics"]
        for dimension in metric.get("MetricStat", {}).get("Metric", {}).get("Dimensions", ())
        if dimension["Name"] == "TargetGroup"
    }
    assert watched == groups, "new tasks are in either group"


@pytest.mark.slow
def test_one_error_among_the_fewest_requests_is_no_alarm(public: Template) -> None:
    for alarm in of_type(public, "AWS::CloudWatch::Alarm"):
        if "errors" in str(alarm["Metrics"]):
            assert alarm["ComparisonOperator"] == "GreaterThanThreshold"
            assert alarm["Threshold"] >= 1 / 20


@pytest.mark.slow
def test_a_deployment_is_refused_during_a_canary_of_a_model(public: Template) -> None:
    (service,) = of_type(public, "AWS::ECS::Service")
    (hook,) = service["DeploymentConfiguration"]["LifecycleHooks"]
    assert hook["LifecycleStages"] == ["PRE_SCALE_UP"]
    (function,) = of_type(public, "AWS::Lambda::Function")
    assert function["Handler"] == "one_canary.handler"
    assert function["Environment"]["Variables"]["MODEL"] == "encore-ranker"
    # a fixed bundle has no aliases
    fixed = templates(*SCORER_OF_BUNDLE)["serving"]
    (service,) = of_type(fixed, "AWS::ECS::Service")
    assert "LifecycleHooks" not in service["DeploymentConfiguration"]
    assert of_type(fixed, "AWS::Lambda::Function") == []


@pytest.mark.slow
def test_tasks_are_not_root_have_a_read_only_root_and_their_secrets_by_reference(public: Template) -> None:
    (task,) = of_type(public, "AWS::ECS::TaskDefinition")
    (scorer,) = task["ContainerDefinitions"]
    assert scorer["ReadonlyRootFilesystem"] is True
    assert not scorer["User"].startswith(("0", "root"))
    assert scorer["LinuxParameters"]["Capabilities"] == {"Drop": ["ALL"]}
    environment = {one["Name"]: one["Value"] for one in scorer["Environment"]}
    secrets = {one["Name"]: text(one["ValueFrom"]) for one in scorer["Secrets"]}
    login = ("ENCORE_SERVE_REGISTRY", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    assert set(secrets) == {"ENCORE_SERVE_TOKEN", *login}
    fields = {name: secrets[name].split(":")[-3] for name in login}
    assert list(fields.values()) == ["uri", "username", "password"], "of jobs' login, whose address may change"
    registry = {"ENCORE_SERVE_REGISTRY": "https://mlflow.music.example.com"}
    settings = Settings.of_environment(
        {name: value for name, value in {**secrets, **registry, **environment}.items() if name.startswith(PREFIX)}
    )
    assert settings.model == "models:/encore-ranker@champion"
    assert settings.registry == registry["ENCORE_SERVE_REGISTRY"]
    assert (settings.host, settings.port) == ("0.0.0.0", PORT)
    writable = {one["ContainerPath"] for one in scorer["MountPoints"] if not one["ReadOnly"]}
    assert writable == {settings.cache, "/tmp"}
    assert scorer["LogConfiguration"]["Options"]["mode"] == "non-blocking"
    assert {one["RetentionInDays"] for one in of_type(public, "AWS::Logs::LogGroup")} == {90}


@pytest.mark.slow
def test_the_image_has_the_user_and_the_folders_of_a_task(public: Template) -> None:
    image = tomllib.loads((ROOT / "deploy" / "image" / "files.toml").read_text())["image"]
    assert image["port"] == PORT
    for template in (public, templates(*SCORER_OF_BUNDLE)["serving"]):
        (task,) = of_type(template, "AWS::ECS::TaskDefinition")
        (scorer,) = [one for one in task["ContainerDefinitions"] if one["Name"] == "scorer"]
        assert scorer["User"] == f"{image['user']}:{image['user']}"
        for mounted in scorer["MountPoints"]:
            assert mounted["ContainerPath"] in image["mounts" if mounted["ReadOnly"] else "writable"]
    (model,) = of_type(templates(*ENDPOINT)["serving"], "AWS::SageMaker::Model")
    assert model["PrimaryContainer"]["Environment"]["ENCORE_SERVE_MODEL"] in image["mounts"]


@pytest.mark.slow
def test_the_scorer_outlives_the_load_balancers_connections_and_drains_in_time(public: Template) -> None:
    (balancer,) = of_type(public, "AWS::ElasticLoadBalancingV2::LoadBalancer")
    attributes = {one["Key"]: one["Value"] for one in balancer["LoadBalancerAttributes"]}
    assert int(attributes["idle_timeout.timeout_seconds"]) < Settings().keep_alive_seconds
    (task,) = of_type(public, "AWS::ECS::TaskDefinition")
    (scorer,) = task["ContainerDefinitions"]
    assert scorer["StopTimeout"] > Settings().linger_seconds + Settings().drain_seconds
    for group in of_type(public, "AWS::ElasticLoadBalancingV2::TargetGroup"):
        delay = {one["Key"]: one["Value"] for one in group["TargetGroupAttributes"]}
        assert int(delay["deregistration_delay.timeout_seconds"]) > Settings().seconds
        assert (group["HealthCheckPath"], group["Matcher"], group["Port"]) == ("/ping", {"HttpCode": "200"}, PORT)


@pytest.mark.slow
def test_only_the_load_balancer_reaches_tasks_and_they_reach_https_alone(public: Template) -> None:
    groups = {
        name: one["Properties"] for name, one in public["Resources"].items() if one["Type"] == "AWS::EC2::SecurityGroup"
    }
    (tasks,) = [one for one in groups.values() if one["GroupDescription"] == "Scorer: the balancer alone"]
    assert "SecurityGroupIngress" not in tasks
    assert [(one["FromPort"], one["ToPort"]) for one in tasks["SecurityGroupEgress"]] == [(443, 443)]
    stacks = templates(*PUBLIC_SCORER)
    assert admitted(stacks, "serving/TaskGroup") == {PORT: {"serving/BalancerGroup"}}
    assert admitted(stacks, "serving/GuardGroup") == {}
    (service,) = of_type(public, "AWS::ECS::Service")
    assert service["NetworkConfiguration"]["AwsvpcConfiguration"]["AssignPublicIp"] == "DISABLED"


@pytest.mark.slow
def test_the_scorer_reaches_mlflow_only_where_it_asks_the_registry() -> None:
    """And then by the port on which MLflow listens: HTTP without a domain."""
    stacks = templates(*PRIVATE_SCORER)
    callers = {"network/Jobs", "serving/TaskGroup", "serving/GuardGroup"}
    assert admitted(stacks, "mlflow/BalancerGroup") == {80: callers}
    leaving = [
        (one["FromPort"], "mlflow" in text(one["DestinationSecurityGroupId"]))
        for one in of_type(stacks["serving"], "AWS::EC2::SecurityGroupEgress")
    ]
    assert sorted(leaving) == [(80, True), (80, True), (PORT, False)]
    assert admitted(templates(*BUNDLE_BESIDE_MLFLOW), "mlflow/BalancerGroup") == {80: {"network/Jobs"}}


@pytest.mark.slow
def test_private_means_the_vpc_and_public_means_https(public: Template) -> None:
    private = templates(*PRIVATE_SCORER)["serving"]
    for template, scheme, port, protocol in (
        (public, "internet-facing", 443, "HTTPS"),
        (private, "internal", 80, "HTTP"),
    ):
        (balancer,) = of_type(template, "AWS::ElasticLoadBalancingV2::LoadBalancer")
        assert balancer["Scheme"] == scheme
        (listener,) = of_type(template, "AWS::ElasticLoadBalancingV2::Listener")
        assert (listener["Port"], listener["Protocol"]) == (port, protocol)
        assert listener["DefaultActions"][0]["FixedResponseConfig"]["StatusCode"] == "404"
        (group,) = [
            one
            for one in of_type(template, "AWS::EC2::SecurityGroup")
            if one["GroupDescription"] == "Scorer: load balancer"
        ]
        (ingress,) = group["SecurityGroupIngress"]
        assert (ingress["CidrIp"] == "0.0.0.0/0") == (scheme == "internet-facing")
        hidden = min(of_type(template, "AWS::ElasticLoadBalancingV2::ListenerRule"), key=lambda one: one["Priority"])
        assert hidden["Conditions"][0]["PathPatternConfig"]["Values"] == ["/metrics"]
        assert hidden["Actions"][0]["Type"] == "fixed-response"


@pytest.mark.slow
def test_the_firewall_limits_the_rate_of_an_address(public: Template) -> None:
    (acl,) = of_type(public, "AWS::WAFv2::WebACL")
    rate = acl["Rules"][0]
    assert rate["Statement"]["RateBasedStatement"] == {
        "AggregateKeyType": "IP",
        "EvaluationWindowSec": 300,
        "Limit": 3000,
    }
    assert rate["Action"]["Block"]["CustomResponse"]["ResponseCode"] == 429
    (association,) = of_type(public, "AWS::WAFv2::WebACLAssociation")
    assert "Balancer" in text(association["ResourceArn"])


@pytest.mark.slow
def test_tasks_follow_cpu_and_the_requests_of_both_target_groups(public: Template) -> None:
    (target,) = of_type(public, "AWS::ApplicationAutoScaling::ScalableTarget")
    assert (target["MinCapacity"], target["MaxCapacity"]) == (2, 4)
    policies = [
        one["TargetTrackingScalingPolicyConfiguration"]
        for one in of_type(public, "AWS::ApplicationAutoScaling::ScalingPolicy")
    ]
    (cpu,) = [one for one in policies if "PredefinedMetricSpecification" in one]
    assert cpu["PredefinedMetricSpecification"]["PredefinedMetricType"] == "ECSServiceAverageCPUUtilization"
    (requests,) = [one for one in policies if "CustomizedMetricSpecification" in one]
    metrics = requests["CustomizedMetricSpecification"]["Metrics"]
    groups = {
        text(dimension["Value"])
        for one in metrics
        if "MetricStat" in one
        for dimension in one["MetricStat"]["Metric"]["Dimensions"]
        if dimension["Name"] == "TargetGroup"
    }
    assert len(groups) == 2
    assert [one["Expression"] for one in metrics if one["ReturnData"]] == ["FILL(blue, 0) + FILL(green, 0)"]


@pytest.mark.slow
def test_a_bundle_is_copied_by_a_role_that_reads_it_alone() -> None:
    template = templates(*SCORER_OF_BUNDLE)["serving"]
    (task,) = of_type(template, "AWS::ECS::TaskDefinition")
    containers = {one["Name"]: one for one in task["ContainerDefinitions"]}
    copier, scorer = containers["bundle"], containers["scorer"]
    assert plain(copier["Command"])[-2:] == [f"s3://encore-dev-artefacts-ACCOUNT-REGION/{BUNDLE}/", "/bundle"]
    assert (copier["Essential"], copier["ReadonlyRootFilesystem"]) == (False, True)
    assert scorer["DependsOn"] == [{"Condition": "SUCCESS", "ContainerName": "bundle"}]
    assert {one["ContainerPath"]: one["ReadOnly"] for one in scorer["MountPoints"]} == {
        "/bundle": True,
        "/tmp": False,
        "/var/cache/encore": False,
    }
    environment = {one["Name"]: one["Value"] for one in scorer["Environment"]}
    assert environment["ENCORE_SERVE_MODEL"] == "/bundle"
    assert "ENCORE_SERVE_REGISTRY" not in environment
    allowed = _statements(template, "TaskTaskRole")
    bucket = "arn:aws:s3:::encore-dev-artefacts-ACCOUNT-REGION"
    assert sorted((one["Action"], one["Resource"]) for one in allowed) == [
        ("s3:GetObject", f"{bucket}/{BUNDLE}/*"),
        ("s3:ListBucket", bucket),
    ]


def _statements(template: Template, role: str) -> list[dict[str, Any]]:
    """The statements of a role's policies, by the beginning of its logical id."""
    return [
        plain(statement)
        for policy in of_type(template, "AWS::IAM::Policy")
        if text(policy["Roles"][0]).startswith(role)
        for statement in policy["PolicyDocument"]["Statement"]
    ]


@pytest.mark.slow
def test_with_a_registry_a_task_has_no_permission_in_s3(public: Template) -> None:
    assert _statements(public, "TaskTaskRole") == []


@pytest.mark.slow
def test_an_endpoint_of_sagemaker_shifts_load_by_instance_and_reaches_nothing() -> None:
    template = templates(*ENDPOINT)["serving"]
    (model,) = of_type(template, "AWS::SageMaker::Model")
    assert model["EnableNetworkIsolation"] is True
    container = plain(model["PrimaryContainer"])
    assert container["ModelDataSource"]["S3DataSource"] == {
        "CompressionType": "None",
        "S3DataType": "S3Prefix",
        "S3Uri": f"s3://encore-dev-artefacts-ACCOUNT-REGION/{BUNDLE}/",
    }
    assert Settings.of_environment(container["Environment"]).model == "/opt/ml/model"
    assert container["Image"].endswith("/encore-scorer:1.0")
    (configuration,) = of_type(template, "AWS::SageMaker::EndpointConfig")
    (variant,) = configuration["ProductionVariants"]
    (endpoint,) = of_type(template, "AWS::SageMaker::Endpoint")
    policy = endpoint["DeploymentConfig"]["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]
    assert (policy["Type"], policy["CanarySize"]) == ("CANARY", {"Type": "INSTANCE_COUNT", "Value": 1})
    assert variant["InitialInstanceCount"] >= 2, "at most half of the instances may be canaries"
    alarms = {text(one["AlarmName"]) for one in endpoint["DeploymentConfig"]["AutoRollbackConfiguration"]["Alarms"]}
    made = [name for name, one in template["Resources"].items() if one["Type"] == "AWS::CloudWatch::Alarm"]
    assert alarms == set(made)
    for alarm in of_type(template, "AWS::CloudWatch::Alarm"):
        assert alarm["TreatMissingData"] == "notBreaching"
    (log,) = of_type(template, "AWS::Logs::LogGroup")
    assert (log["LogGroupName"], log["RetentionInDays"]) == ("/aws/sagemaker/Endpoints/encore-dev", 90)


@pytest.mark.slow
@pytest.mark.parametrize("choices", [PRIVATE_SCORER, SCORER_OF_BUNDLE, ENDPOINT], ids=" ".join)
def test_a_stage_that_keeps_no_data_keeps_nothing_of_the_scorer(choices: tuple[str, ...]) -> None:
    resources = templates(*choices)["serving"]["Resources"]
    assert [name for name, one in resources.items() if one.get("DeletionPolicy") in ("Retain", "Snapshot")] == []
    for balancer in of_type(templates(*choices)["serving"], "AWS::ElasticLoadBalancingV2::LoadBalancer"):
        assert {"Key": "deletion_protection.enabled", "Value": "false"} in balancer["LoadBalancerAttributes"]


@contextmanager
def registry(status: int, answer: bytes) -> Iterator[tuple[dict[str, str], list[tuple[str, str]]]]:
    """A server that answers every request like this: its login, and the path and authorization of each request."""
    seen: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, str(self.headers["Authorization"])))
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"uri": f"http://127.0.0.1:{server.server_port}", "username": "me", "password": "secret"}, seen
        server.shutdown()


class Secrets:
    """Boto3's client of Secrets Manager, with one secret."""

    def __init__(self, login: dict[str, str]) -> None:
        self.login = login

    def get_secret_value(self, SecretId: str) -> dict[str, str]:
        assert SecretId == "arn:login"
        return {"SecretString": json.dumps(self.login)}


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (200, b'{"model_version": {"version": "7"}}', "FAILED"),
        (400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "alias not found"}', "SUCCEEDED"),
        (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such model"}', "SUCCEEDED"),
    ],
)
def test_a_challenger_refuses_the_deployment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int, answer: bytes, expected: str
) -> None:
    from hooks import one_canary

    monkeypatch.setenv("LOGIN", "arn:login")
    monkeypatch.setenv("MODEL", "encore-ranker")
    with registry(status, answer) as (login, seen):
        monkeypatch.setattr("boto3.client", lambda service: Secrets(login))
        assert one_canary.handler({}, None) == {"hookStatus": expected}
    assert seen == [(f"{ROUTE}?name=encore-ranker&alias=challenger", "Basic bWU6c2VjcmV0")]
    assert ("encore canary stop" in capsys.readouterr().out) == (expected == "FAILED")


@pytest.mark.parametrize(("status", "answer"), [(503, b""), (404, b"<html>"), (400, b'{"error_code": "OTHER"}')])
def test_a_registry_that_cannot_tell_fails_the_deployment(
    monkeypatch: pytest.MonkeyPatch, status: int, answer: bytes
) -> None:
    from hooks import one_canary

    with registry(status, answer) as (login, _), pytest.raises(OSError, match=str(status)):
        one_canary.challenger(login, "encore-ranker")
