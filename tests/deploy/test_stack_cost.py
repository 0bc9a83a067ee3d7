"""What stacks cost while nothing runs: rules worked out by hand, and the table in the docs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from encore.aws.cost import load_prices
from encore.aws.stack_cost import Item, read_templates, stack_items, summed, total
from encore.cli.app import app
from encore.errors import ConfigError, InputError
from tests.conftest import ROOT
from tests.deploy.choices import PIPELINE
from tests.deploy.synth import assembly
from tests.deploy.test_cost import PRICES


def month(*resources: tuple[str, dict[str, Any]]) -> float:
    """Dollars a month of some resources, named r0, r1, ..."""
    template = {
        "Resources": {
            f"r{number}": {"Type": type_, "Properties": properties}
            for number, (type_, properties) in enumerate(resources)
        }
    }
    return total(stack_items(template, PRICES)).month


def test_a_nat_gateway_is_billed_for_its_address_too() -> None:
    assert month(("AWS::EC2::NatGateway", {}), ("AWS::EC2::EIP", {})) == pytest.approx(730 * (0.05 + 0.01))


@pytest.mark.parametrize(("scheme", "addresses"), [("internal", 0), ("internet-facing", 2)])
def test_a_load_balancer_has_a_public_address_in_each_zone_if_it_is_public(scheme: str, addresses: int) -> None:
    found = month(("AWS::ElasticLoadBalancingV2::LoadBalancer", {"Scheme": scheme, "Subnets": ["a", "b"]}))
    assert found == pytest.approx(730 * (0.02 + 0.01 + addresses * 0.01))


def test_tasks_are_billed_by_their_size_and_number() -> None:
    task = ("AWS::ECS::TaskDefinition", {"Cpu": "512", "Memory": "3072"})
    service = ("AWS::ECS::Service", {"TaskDefinition": {"Ref": "r0"}, "DesiredCount": 2})
    assert month(task, service) == pytest.approx(730 * 2 * (0.5 * 0.04 + 3 * 0.005))


@pytest.mark.parametrize(("zones", "copies"), [(False, 1), (True, 2)])
def test_a_database_in_two_zones_costs_twice_as_much(zones: bool, copies: int) -> None:
    database = {"DBInstanceClass": "db.small", "AllocatedStorage": "20", "MultiAZ": zones}
    assert month(("AWS::RDS::DBInstance", database)) == pytest.approx(copies * (730 * 0.03 + 20 * 0.1))


def test_endpoints_of_interfaces_cost_and_of_gateways_do_not() -> None:
    assert month(("AWS::EC2::VPCEndpoint", {"VpcEndpointType": "Gateway"})) == 0
    interface = {"VpcEndpointType": "Interface", "SubnetIds": ["a", "b"]}
    assert month(("AWS::EC2::VPCEndpoint", interface)) == pytest.approx(730 * 2 * 0.02)


def test_small_things() -> None:
    alarm = {"Metrics": [{"Expression": "a + b"}, {"MetricStat": {}}, {"MetricStat": {}}]}
    assert month(("AWS::CloudWatch::Alarm", {}), ("AWS::CloudWatch::Alarm", alarm)) == pytest.approx(0.3)
    assert month(("AWS::KMS::Key", {}), ("AWS::SecretsManager::Secret", {})) == pytest.approx(1.5)
    assert month(("AWS::Route53::HostedZone", {}), ("AWS::CloudWatch::Dashboard", {})) == pytest.approx(3.25)
    assert month(("AWS::WAFv2::WebACL", {"Rules": [1, 2, 3]})) == pytest.approx(8)
    variants = {"ProductionVariants": [{"InitialInstanceCount": 2}]}
    assert month(("AWS::SageMaker::EndpointConfig", variants)) == pytest.approx(730 * 0.2)
    assert month(("AWS::SageMaker::MlflowTrackingServer", {})) == pytest.approx(730 * 0.6)


def test_a_service_that_scales_is_billed_for_its_least_number_of_tasks() -> None:
    task = ("AWS::ECS::TaskDefinition", {"Cpu": "1024", "Memory": "1024"})
    service = ("AWS::ECS::Service", {"TaskDefinition": {"Ref": "r0"}})
    scaled = ("AWS::ApplicationAutoScaling::ScalableTarget", {"MinCapacity": 3})
    assert month(task, service, scaled) == pytest.approx(3 * month(task, service))


def fleet(type_: str, **capacity: int) -> dict[str, Any]:
    return {"InstanceTypeConfigs": [{"InstanceType": type_}, {"InstanceType": "another"}], **capacity}


def test_what_is_billed_only_while_it_is_started() -> None:
    worker = {"WorkerCount": 3, "WorkerConfiguration": {"Cpu": "4 vCPU", "Memory": "16 GB"}}
    application = {"Resources": {"a": {"Type": "AWS::EMRServerless::Application", "Properties": {}}}}
    assert stack_items(application, PRICES) == []
    application["Resources"]["a"]["Properties"] = {"InitialCapacity": [{"Key": "Executor", "Value": worker}]}
    (item,) = stack_items(application, PRICES)
    assert item.month == 0
    assert item.hour == pytest.approx(3 * (4 * 0.05 + 16 * 0.01))
    fleets = {"MasterInstanceFleet": fleet("small", TargetOnDemandCapacity=1)}
    fleets["CoreInstanceFleet"] = fleet("large", TargetSpotCapacity=2)
    cluster = {"Resources": {"c": {"Type": "AWS::EMR::Cluster", "Properties": {"Instances": fleets}}}}
    assert stack_items(cluster, PRICES)[0].hour == pytest.approx(0.25 + 2 * 0.5)


@pytest.mark.parametrize(
    ("type_", "properties", "expected"),
    [
        ("AWS::Redshift::Cluster", {}, "r0: no price for AWS::Redshift::Cluster"),
        (
            "AWS::RDS::DBInstance",
            {"DBInstanceClass": "db.x", "AllocatedStorage": 1},
            "no price for a database of class",
        ),
        ("AWS::SageMaker::MlflowTrackingServer", {"TrackingServerSize": "Large"}, "not Small"),
        (
            "AWS::EMR::Cluster",
            {"Instances": {"MasterInstanceFleet": {"InstanceTypeConfigs": [{"InstanceType": "huge"}]}}},
            "no price for a node huge",
        ),
    ],
)
def test_what_has_no_price_is_an_error(type_: str, properties: dict[str, Any], expected: str) -> None:
    """It might be the most expensive of all."""
    with pytest.raises(InputError, match=expected):
        month((type_, properties))


def test_items_are_added_up_by_name_and_the_most_expensive_comes_first() -> None:
    found = summed([Item("key", 1), Item("gateway", 30), Item("key", 1), Item("cluster", hour=2)])
    assert found == [(1, Item("gateway", 30)), (2, Item("key", 2)), (1, Item("cluster", hour=2))]


def test_the_command_prints_every_stack_and_the_sum() -> None:
    folder = assembly("prod", *PIPELINE)
    done = CliRunner().invoke(app, ["cost", "--stacks", str(folder)])
    assert done.exit_code == 0, done.output
    prices = load_prices("us-east-1")
    expected = sum(total(stack_items(template, prices)).month for template in read_templates(folder).values())
    assert f"{expected:,.2f}" in done.stdout
    assert "encore-prod-network" in done.stdout
    assert f"as of {prices.date}" in done.stdout


def test_a_folder_without_templates(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no templates"):
        read_templates(tmp_path)


@pytest.mark.slow
def test_the_docs_have_the_table_that_the_templates_and_prices_give() -> None:
    done = subprocess.run(
        [sys.executable, "cost_table.py", "--check"],
        cwd=ROOT / "deploy" / "cdk",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
