"""Stages in accounts and regions of their own, and a pipeline that deploys across them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from encore.aws.deployment import account_finding, region_finding, stack_outputs
from encore.aws.stage import StageError, load_stage
from encore.errors import EnvironmentMissing
from tests.deploy.simulator import is_allowed
from tests.deploy.synth import assembly, of_type, plain, templates
from tests.deploy.test_stacks import own_stages

PIPELINE, STAGING, PROD = "310987654321", "320987654321", "330987654321"
CONNECTION = f"connection=arn:aws:codeconnections:eu-west-1:{PIPELINE}:connection/0a1b"
OWN = ("dev", f"account={PROD}", "region=eu-central-1")


def manifest(*choices: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((assembly(*choices) / "manifest.json").read_text())
    return found


def environments(*choices: str) -> dict[str, str]:
    stacks = manifest(*choices)["artifacts"].items()
    return {name: one["environment"] for name, one in stacks if one["type"] == "aws:cloudformation:stack"}


@pytest.mark.slow
def test_the_stacks_of_a_stage_are_deployed_to_its_own_account_by_the_roles_there() -> None:
    found = environments(*OWN)
    assert len(found) > 4
    assert {place for name, place in found.items() if name != "encore-delivery"} == {f"aws://{PROD}/eu-central-1"}
    stack = manifest(*OWN)["artifacts"]["encore-dev-storage"]["properties"]
    assert stack["assumeRoleArn"].endswith(f":iam::{PROD}:role/cdk-hnb659fds-deploy-role-{PROD}-eu-central-1")


@pytest.mark.slow
def test_nothing_is_looked_up_in_the_account_while_templates_are_made() -> None:
    """A context lookup needs credentials, and its placeholder would end up in the template."""
    assert "missing" not in manifest(*OWN)
    zones = {json.dumps(one["AvailabilityZone"]) for one in of_type(templates(*OWN)["network"], "AWS::EC2::Subnet")}
    assert zones == {json.dumps({"Fn::Select": [number, {"Fn::GetAZs": ""}]}) for number in (0, 1)}


@pytest.mark.slow
def test_without_an_account_the_stacks_go_wherever_the_credentials_point() -> None:
    assert set(environments("dev").values()) == {"aws://unknown-account/unknown-region"}


@pytest.mark.slow
def test_the_pipeline_stays_with_its_connection_and_may_deploy_to_the_account_of_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own_stages(tmp_path, monkeypatch)
    text = path.read_text()
    for stage, account in (("staging", STAGING), ("prod", PROD)):
        text = text.replace(f"\n{stage}:\n", f'\n{stage}:\n  account: "{account}"\n  region: eu-central-1\n')
    path.write_text(text)
    choices = ("staging", CONNECTION, "repository=us/encore")
    found = environments(*choices)
    assert found["encore-delivery"] == f"aws://{PIPELINE}/eu-west-1"
    assert found["encore-staging-storage"] == f"aws://{STAGING}/eu-central-1"
    allowed = [
        one
        for policy in of_type(templates(*choices)["delivery"], "AWS::IAM::Policy")
        for one in plain(policy["PolicyDocument"]["Statement"])
        if one["Action"] == "sts:AssumeRole"
    ]
    tag = {"iam:ResourceTag/aws-cdk:bootstrap-role": "deploy"}
    for account, expected in ((PIPELINE, True), (STAGING, True), (PROD, True), ("340987654321", False)):
        role = f"arn:aws:iam::{account}:role/cdk-hnb659fds-deploy-role-{account}-eu-central-1"
        assert is_allowed(allowed, "sts:AssumeRole", role, tag) == expected, account
        assert not is_allowed(allowed, "sts:AssumeRole", role, {}), "a role of that name that bootstrap did not make"
        assert not is_allowed(allowed, "sts:AssumeRole", f"arn:aws:iam::{account}:role/Administrator", tag)


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"account": PROD}, f"account={PROD}: needs a region"),
        ({"account": "33"}, "account=33: nothing, or 12 digits expected"),
        ({"region": "Frankfurt"}, "region=Frankfurt: nothing, or a region such as eu-west-1 expected"),
        (
            {"region": "eu-west-1", "replica_region": "eu-west-1"},
            "replica_region=eu-west-1: is the region of the stage",
        ),
        ({"region": "cn-north-1", "replica_region": "eu-west-1"}, "replica_region=eu-west-1: S3 does not replicate"),
    ],
)
def test_places_that_cannot_be_deployed_to_are_refused(choices: dict[str, str], expected: str) -> None:
    with pytest.raises(StageError) as caught:
        load_stage({"stage": "dev", **choices})
    assert str(caught.value).startswith(expected)


def test_credentials_of_another_account_or_region_are_findings_with_a_remedy() -> None:
    stage = load_stage({"stage": "prod", "account": PROD, "region": "eu-central-1", "replica_region": "eu-west-1"})
    assert account_finding(stage, PROD, PROD).remedy is None
    assert region_finding(stage, "eu-central-1").remedy is None
    wrong = account_finding(stage, STAGING, f"{STAGING}, as user/me")
    assert wrong.fact == f"{STAGING}, as user/me, but prod is in {PROD}"
    assert PROD in str(wrong.remedy)
    assert not wrong.warning
    assert region_finding(stage, "us-east-1").remedy == "set AWS_REGION=eu-central-1"
    anywhere = load_stage({"stage": "prod", "replica_region": "eu-west-1"})
    assert account_finding(anywhere, STAGING, STAGING).remedy is None
    assert region_finding(anywhere, "us-east-1").remedy is None
    assert region_finding(anywhere, "eu-west-1").remedy == "choose another replica_region"


@pytest.mark.parametrize(
    ("account", "region", "expected"),
    [
        (STAGING, "eu-central-1", f"AWS account: {STAGING}, but dev is in {PROD}"),
        (PROD, "us-east-1", "AWS region: us-east-1, but dev is in eu-central-1"),
    ],
)
def test_a_command_does_not_look_for_a_stage_in_another_account_or_region(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, account: str, region: str, expected: str
) -> None:
    """A stage of the same name in another account would be found there, and used."""
    path = own_stages(tmp_path, monkeypatch)
    path.write_text(path.read_text().replace("\ndev:\n", f'\ndev:\n  account: "{PROD}"\n  region: eu-central-1\n'))
    sts, formation = Mock(), Mock()
    sts.get_caller_identity.return_value = {"Account": account}
    formation.meta.region_name = region
    formation.describe_stacks.return_value = {"Stacks": [{"Outputs": []}]}
    with pytest.raises(EnvironmentMissing) as caught:
        stack_outputs("dev", {"sts": sts, "cloudformation": formation}.__getitem__)
    assert str(caught.value) == expected
    formation.describe_stacks.assert_not_called()
