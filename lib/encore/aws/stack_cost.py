"""What a stage's stacks cost a month while nothing runs, from their templates and a table of prices.

Counting resources in the templates, rather than listing them by hand, keeps the sum right when a stack changes. A type
of resource that is not known here is an error, because it might be the most expensive one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encore.aws.cost import HOURS_A_MONTH, Prices
from encore.errors import ConfigError, InputError

Template = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """What is billed: its name, dollars a month for having it, and dollars an hour while it is started."""

    what: str
    month: float = 0.0
    hour: float = 0.0


FREE = frozenset(
    [
        "AWS::ApplicationAutoScaling::ScalableTarget",
        "AWS::ApplicationAutoScaling::ScalingPolicy",
        "AWS::Athena::WorkGroup",
        "AWS::Budgets::Budget",
        "AWS::CDK::Metadata",
        "AWS::CloudFormation::CustomResource",
        "AWS::CodeBuild::Project",
        "AWS::CodePipeline::Pipeline",
        "AWS::DynamoDB::GlobalTable",
        "AWS::EC2::FlowLog",
        "AWS::EC2::InternetGateway",
        "AWS::EC2::Route",
        "AWS::EC2::RouteTable",
        "AWS::EC2::SecurityGroup",
        "AWS::EC2::SecurityGroupEgress",
        "AWS::EC2::SecurityGroupIngress",
        "AWS::EC2::Subnet",
        "AWS::EC2::SubnetRouteTableAssociation",
        "AWS::EC2::VPC",
        "AWS::EC2::VPCGatewayAttachment",
        "AWS::ECS::Cluster",
        "AWS::ECS::TaskDefinition",
        "AWS::ElasticLoadBalancingV2::Listener",
        "AWS::ElasticLoadBalancingV2::ListenerRule",
        "AWS::ElasticLoadBalancingV2::TargetGroup",
        "AWS::Events::Rule",
        "AWS::Glue::Database",
        "AWS::Glue::Table",
        "AWS::IAM::InstanceProfile",
        "AWS::IAM::ManagedPolicy",
        "AWS::IAM::Policy",
        "AWS::IAM::Role",
        "AWS::KMS::Alias",
        "AWS::Lambda::EventInvokeConfig",
        "AWS::Lambda::Function",
        "AWS::Lambda::LayerVersion",
        "AWS::Lambda::Permission",
        "AWS::Logs::LogGroup",
        "AWS::RDS::DBParameterGroup",
        "AWS::RDS::DBSubnetGroup",
        "AWS::Route53::RecordSet",
        "AWS::S3::Bucket",
        "AWS::S3::BucketPolicy",
        "AWS::SNS::Topic",
        "AWS::SNS::TopicPolicy",
        "AWS::SQS::Queue",
        "AWS::SQS::QueuePolicy",
        "AWS::SageMaker::Endpoint",
        "AWS::SageMaker::Model",
        "AWS::Scheduler::Schedule",
        "AWS::SecretsManager::ResourcePolicy",
        "AWS::SecretsManager::RotationSchedule",
        "AWS::SecretsManager::SecretTargetAttachment",
        "AWS::StepFunctions::StateMachine",
        "AWS::WAFv2::WebACLAssociation",
    ]
)
"""Types that cost nothing, or only what is stored in them or what they do."""


def stack_items(template: Template, prices: Prices) -> list[Item]:
    """What the resources of a stack cost. InputError for a type of resource, or a size, without a price."""
    found: list[Item] = []
    for name, resource in template.get("Resources", {}).items():
        type_, properties = resource["Type"], resource.get("Properties", {})
        if type_ in FREE or type_.startswith("Custom::"):
            continue
        if type_ not in _RULES:
            raise InputError(f"{name}: no price for {type_}", remedy="add a rule for it to encore.aws.stack_cost")
        found += _RULES[type_](properties, template, prices)
    return found


def _nat(_: Mapping[str, Any], __: Template, prices: Prices) -> Iterator[Item]:
    yield Item("NAT gateway", HOURS_A_MONTH * prices.standing.nat_hour)


def _address(_: Mapping[str, Any], __: Template, prices: Prices) -> Iterator[Item]:
    yield Item("public IPv4 address", HOURS_A_MONTH * prices.standing.ipv4_hour)


def _endpoint(properties: Mapping[str, Any], _: Template, prices: Prices) -> Iterator[Item]:
    # a gateway endpoint, the default, costs nothing
    if properties.get("VpcEndpointType") == "Interface":
        zones = len(properties.get("SubnetIds", [1]))
        yield Item("interface endpoint", HOURS_A_MONTH * zones * prices.standing.endpoint_hour)


def _balancer(properties: Mapping[str, Any], _: Template, prices: Prices) -> Iterator[Item]:
    hour = prices.serving.balancer_hour + prices.serving.balancer_unit_hour
    yield Item("load balancer", HOURS_A_MONTH * hour)
    if properties.get("Scheme") == "internet-facing":
        addresses = len(properties["Subnets"])
        yield Item("public IPv4 address", HOURS_A_MONTH * addresses * prices.standing.ipv4_hour)


def _service(properties: Mapping[str, Any], template: Template, prices: Prices) -> Iterator[Item]:
    task = template["Resources"][properties["TaskDefinition"]["Ref"]]["Properties"]
    hour = (
        int(task["Cpu"]) / 1024 * prices.serving.fargate_vcpu_hour
        + int(task["Memory"]) / 1024 * prices.serving.fargate_gb_hour
    )
    count = int(properties.get("DesiredCount", _least_tasks(template)))
    yield Item("Fargate", HOURS_A_MONTH * count * hour)


def _least_tasks(template: Template) -> int:
    """The number of tasks below which autoscaling does not go, 1 without autoscaling."""
    for one in template["Resources"].values():
        if one["Type"] == "AWS::ApplicationAutoScaling::ScalableTarget":
            return int(one["Properties"]["MinCapacity"])
    return 1


def _database(properties: Mapping[str, Any], _: Template, prices: Prices) -> Iterator[Item]:
    class_, copies = str(properties["DBInstanceClass"]), 2 if properties.get("MultiAZ") else 1
    hours = prices.standing.database_hour
    if class_ not in hours:
        raise InputError(
            f"no price for a database of class {class_}",
            remedy=f"add it to standing.database_hour of the prices of {prices.region}",
        )
    yield Item("database", HOURS_A_MONTH * copies * hours[class_])
    yield Item("database storage", int(properties["AllocatedStorage"]) * copies * prices.standing.database_gb_month)


def _each(what: str, month: Callable[[Prices], float]) -> Callable[..., Iterator[Item]]:
    def rule(_: Mapping[str, Any], __: Template, prices: Prices) -> Iterator[Item]:
        yield Item(what, month(prices))

    return rule


def _alarm(properties: Mapping[str, Any], _: Template, prices: Prices) -> Iterator[Item]:
    # of an expression, each metric in it is billed
    metrics = sum("MetricStat" in one for one in properties.get("Metrics", ())) or 1
    yield Item("alarm", metrics * prices.standing.alarm_month)


def _firewall(properties: Mapping[str, Any], _: Template, prices: Prices) -> Iterator[Item]:
    rules = len(properties.get("Rules", ()))
    yield Item("firewall", prices.serving.firewall_month + rules * prices.serving.firewall_rule_month)


def _endpoint_config(properties: Mapping[str, Any], _: Template, prices: Prices) -> Iterator[Item]:
    for variant in properties["ProductionVariants"]:
        count = int(variant["InitialInstanceCount"])
        yield Item("SageMaker instance", HOURS_A_MONTH * count * prices.serving.instance_hour)


def _application(properties: Mapping[str, Any], _: Template, prices: Prices) -> Iterator[Item]:
    hour = 0.0
    for one in properties.get("InitialCapacity", ()):
        size = one["Value"]["WorkerConfiguration"]
        vcpu, gb = (float(str(size[name]).split()[0]) for name in ("Cpu", "Memory"))
        worker = vcpu * prices.serverless.vcpu_hour + gb * prices.serverless.gb_hour
        hour += int(one["Value"]["WorkerCount"]) * worker
    if hour:
        yield Item("prewarmed workers", hour=hour)


def _cluster(properties: Mapping[str, Any], _: Template, prices: Prices) -> Iterator[Item]:
    known = {node.type: node.hour + node.emr_hour for node in (prices.ec2.driver, prices.ec2.worker)}
    hour = 0.0
    for group in ("MasterInstanceFleet", "CoreInstanceFleet"):
        fleet = properties["Instances"][group]
        # spot nodes at the price of others: an upper bound
        nodes = int(fleet.get("TargetOnDemandCapacity", 0)) + int(fleet.get("TargetSpotCapacity", 0))
        type_ = fleet["InstanceTypeConfigs"][0]["InstanceType"]
        if type_ not in known:
            raise InputError(f"no price for a node {type_}", remedy="add it to `ec2` of the prices")
        hour += nodes * known[type_]
    yield Item("EMR cluster", hour=hour)


def _tracking_server(properties: Mapping[str, Any], _: Template, prices: Prices) -> Iterator[Item]:
    if properties.get("TrackingServerSize", "Small") != "Small":
        raise InputError("no price for a tracking server that is not Small", remedy="add it to the prices")
    yield Item("SageMaker MLflow", HOURS_A_MONTH * prices.standing.mlflow_server_hour)


_RULES: dict[str, Callable[[Mapping[str, Any], Template, Prices], Iterator[Item]]] = {
    "AWS::CloudWatch::Alarm": _alarm,
    "AWS::CloudWatch::Dashboard": _each("dashboard", lambda prices: prices.standing.dashboard_month),
    "AWS::EC2::EIP": _address,
    "AWS::EC2::NatGateway": _nat,
    "AWS::EC2::VPCEndpoint": _endpoint,
    "AWS::ECS::Service": _service,
    "AWS::EMR::Cluster": _cluster,
    "AWS::EMRServerless::Application": _application,
    "AWS::ElasticLoadBalancingV2::LoadBalancer": _balancer,
    "AWS::KMS::Key": _each("key", lambda prices: prices.standing.key_month),
    "AWS::KMS::ReplicaKey": _each("key", lambda prices: prices.standing.key_month),
    "AWS::RDS::DBInstance": _database,
    "AWS::Route53::HostedZone": _each("hosted zone", lambda prices: prices.standing.zone_month),
    "AWS::SageMaker::EndpointConfig": _endpoint_config,
    "AWS::SageMaker::MlflowTrackingServer": _tracking_server,
    "AWS::SecretsManager::Secret": _each("secret", lambda prices: prices.standing.secret_month),
    "AWS::WAFv2::WebACL": _firewall,
}


def read_templates(folder: Path) -> dict[str, Template]:
    """The templates of a synthesized stage, by the name of the stack. ConfigError if the folder has none."""
    found = {
        path.name.removesuffix(".template.json"): json.loads(path.read_text())
        for path in sorted(folder.glob("*.template.json"))
    }
    if not found:
        raise ConfigError(f"{folder}: no templates", remedy="run `make synth STAGE=dev`")
    return found


def total(items: list[Item]) -> Item:
    """The sum of items."""
    return Item("total", sum(one.month for one in items), sum(one.hour for one in items))


def summed(items: list[Item]) -> list[tuple[int, Item]]:
    """Items of the same name added up, each with how many there are, the most expensive first."""
    found: dict[str, list[Item]] = {}
    for one in items:
        found.setdefault(one.what, []).append(one)
    sums = [
        (len(same), Item(what, sum(one.month for one in same), sum(one.hour for one in same)))
        for what, same in found.items()
    ]
    return sorted(sums, key=lambda pair: (-pair[1].month, -pair[1].hour, pair[1].what))
