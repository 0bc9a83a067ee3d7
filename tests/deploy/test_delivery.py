"""The delivery pipelines: what their builds may do, and the scripts that they call."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from botocore.session import Session

from encore.aws.removal import ORDER
from tests.conftest import ROOT
from tests.deploy.choices import ACCOUNT, PIPELINE, REGION
from tests.deploy.serving import SCORER_OF_BUNDLE
from tests.deploy.synth import Template, assembly, of_type, plain, templates, text
from tests.deploy.test_monitoring import allowed_to

pytestmark = pytest.mark.slow

CHOICES = ("dev", *PIPELINE, "sandbox_nightly=true")


@pytest.fixture(scope="module")
def made() -> dict[str, Template]:
    return templates(*CHOICES)


def actions(template: Template, pipeline: str) -> dict[str, dict[str, Any]]:
    """The actions of a pipeline, by the names of their stage and their own."""
    (found,) = [one for one in of_type(template, "AWS::CodePipeline::Pipeline") if one["Name"] == pipeline]
    return {f"{stage['Name']} {one['Name']}": one for stage in found["Stages"] for one in stage["Actions"]}


def variables(action: dict[str, Any]) -> dict[str, str]:
    """The environment of a build."""
    found = json.loads(text(action["Configuration"]["EnvironmentVariables"]))
    return {one["name"]: one["value"] for one in found}


def commands(template: Template) -> dict[str, list[str]]:
    """The commands of each project."""
    return {
        one["Name"]: [
            command
            for phase in json.loads(text(one["Source"]["BuildSpec"]))["phases"].values()
            for command in phase.get("commands", ())
        ]
        for one in of_type(template, "AWS::CodeBuild::Project")
    }


def test_the_sandbox_is_deployed_run_and_removed_each_night(made: dict[str, Template]) -> None:
    found = actions(made["delivery"], "encore-nightly")
    assert list(found) == ["Source Fetch", "Package Package", "Sandbox Smoke"]
    assert found["Source Fetch"]["Configuration"]["DetectChanges"] is False, "a push starts the other pipeline alone"
    (schedule,) = of_type(made["delivery"], "AWS::Scheduler::Schedule")
    assert json.loads(text(schedule["Target"]["Input"])).keys() == {"Name"}
    assert schedule["ScheduleExpression"] == "cron(0 3 * * ? *)", "an hour after the nightly run"
    smoke = commands(made["delivery"])["encore-smoke"]
    assert smoke[-1] == smoke[-3] == "AWS_PROFILE=remove .venv/bin/encore deploy remove --stage sandbox"
    assert smoke[-2] == "make smoke-deploy STAGE=sandbox PACKAGED=yes RUN_PROFILE=run REMOVE_PROFILE=remove"


def test_without_the_choice_there_is_no_nightly_pipeline() -> None:
    template = templates("staging", *PIPELINE)["delivery"]
    assert [one["Name"] for one in of_type(template, "AWS::CodePipeline::Pipeline")] == ["encore"]
    assert of_type(template, "AWS::Scheduler::Schedule") == []


def test_builds_assume_the_roles_that_the_stages_make(made: dict[str, Template]) -> None:
    """The name of the role is built in two places: the pipeline's stack, and that of each stage."""
    (role,) = [one for one in of_type(made["orchestration"], "AWS::IAM::Role") if "RoleName" in one]
    assert role["RoleName"] == "encore-dev-delivery"
    found = actions(made["delivery"], "encore") | actions(made["delivery"], "encore-nightly")
    run = {name: variables(one).get("RUN_ROLE") for name, one in found.items() if "Deploy" in name or "Run" in name}
    assert run == {
        f"{title} {name}": f"arn:aws:iam::{ACCOUNT}:role/encore-{title.lower()}-delivery"
        for title, name in (("Dev", "Deploy"), ("Staging", "Deploy"), ("Staging", "Run"), ("Prod", "Deploy"))
    }
    removing = variables(found["Sandbox Smoke"])["REMOVE_ROLE"]
    assert removing == f"arn:aws:iam::{ACCOUNT}:role/cdk-hnb659fds-deploy-role-{ACCOUNT}-{REGION}"


def test_each_build_may_assume_the_roles_of_its_environment_and_no_others(made: dict[str, Template]) -> None:
    template = made["delivery"]
    role = f"arn:aws:iam::{ACCOUNT}:role/"
    bootstrap = f"{role}cdk-*"
    assert {
        name: sorted(set(allowed_to(template, f"{name}Role").get("sts:AssumeRole", [])))
        for name in ("Test", "Package", "Deploy", "Run", "Gate", "Smoke")
    } == {
        "Test": [],
        "Package": [],
        "Deploy": [bootstrap, *(f"{role}encore-{stage}-delivery" for stage in ("dev", "prod", "staging"))],
        "Run": [f"{role}encore-staging-delivery"],
        "Gate": [
            f"{role}cdk-hnb659fds-lookup-role-{ACCOUNT}-{REGION}",
            *(f"{role}encore-{stage}-delivery" for stage in ("prod", "staging")),
        ],
        "Smoke": [bootstrap, f"{role}encore-sandbox-delivery"],
    }
    for name in ("Deploy", "Smoke"):
        (found,) = [
            one
            for policy in of_type(template, "AWS::IAM::Policy")
            if text(policy["Roles"][0]).startswith(f"{name}Role")
            for one in plain(policy["PolicyDocument"]["Statement"])
            if bootstrap in one["Resource"]
        ]
        kinds = found["Condition"]["StringEquals"]["iam:ResourceTag/aws-cdk:bootstrap-role"]
        assert kinds == ["deploy", "file-publishing", "image-publishing"]


def test_the_builds_call_what_there_is(made: dict[str, Template]) -> None:
    """Targets of the Makefile, scripts and subcommands that do not exist fail only when the pipeline gets there."""
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    known = set(re.findall(r'deployments\.command\("([a-z-]+)"\)', (ROOT / "lib/encore/cli/deploy.py").read_text()))
    lines = [line for found in commands(made["delivery"]).values() for line in found]
    for line in lines:
        assert set(re.findall(r"\bmake ([a-z-]+)", line)) <= targets, line
        assert all((ROOT / path).is_file() for path in re.findall(r"\bbash (\S+)", line)), line
        assert set(re.findall(r"\bencore deploy ([a-z]+)", line)) <= known, line
    for script in ("smoke.sh", "gate.sh"):
        called = set(re.findall(r"\bencore deploy ([a-z]+)", (ROOT / "deploy" / script).read_text()))
        assert called <= known, called - known


def test_the_removal_knows_every_stack_of_a_stage() -> None:
    """One that it does not know would stay, and be billed. A stage with a replica is refused."""
    made = set(templates(*SCORER_OF_BUNDLE, "customer_key=true"))
    assert made == set(ORDER)
    folder = assembly(*SCORER_OF_BUNDLE, "customer_key=true")
    manifest = json.loads((folder / "manifest.json").read_text())["artifacts"]
    for name, one in manifest.items():
        if one["type"] == "aws:cloudformation:stack":
            used = [other.rpartition("-")[2] for other in one["dependencies"] if other in manifest]
            behind = ORDER[ORDER.index(name.rpartition("-")[2]) :]
            assert [other for other in used if other in ORDER and other not in behind] == [], name


def test_a_failed_delivery_is_told(made: dict[str, Template]) -> None:
    template = made["delivery"]
    (rule,) = of_type(template, "AWS::Events::Rule")
    pattern = plain(rule["EventPattern"])
    assert pattern["detail"]["state"] == ["FAILED"]
    kinds = {template["Resources"][name]["Type"] for name in pattern["detail"]["pipeline"]}
    assert (len(pattern["detail"]["pipeline"]), kinds) == (2, {"AWS::CodePipeline::Pipeline"})
    (topic,) = [text(one["Arn"]) for one in rule["Targets"]]
    assert template["Resources"][topic]["Type"] == "AWS::SNS::Topic"
    key = text(template["Resources"][topic]["Properties"]["KmsMasterKeyId"]).partition("|")[0]
    users = plain(template["Resources"][key]["Properties"]["KeyPolicy"]["Statement"])
    assert any(one["Principal"].get("Service") == "events.amazonaws.com" for one in users)


def test_stages_in_other_accounts_and_regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    path = tmp_path / "conf" / "deploy" / "stages.yaml"
    other = 'prod:\n  account: "777788889999"\n  region: eu-west-1\n'
    path.write_text(path.read_text().replace("prod:\n", other))
    monkeypatch.setenv("ENCORE_CONF_DIR", str(tmp_path / "conf"))
    template = templates("dev", *PIPELINE, "branch=elsewhere")["delivery"]
    found = actions(template, "encore")
    assert variables(found["Prod Deploy"])["RUN_ROLE"] == "arn:aws:iam::777788889999:role/encore-prod-delivery"
    assert variables(found["Prod Deploy"])["AWS_REGION"] == "eu-west-1"
    assert "AWS_REGION" not in variables(found["Staging Run"])
    gate = variables(found["Prod Gate"])
    assert gate["PRODUCTION_REGION"] == "eu-west-1"
    assert gate["ROLE_LOOKUP_PROD"] == "arn:aws:iam::777788889999:role/cdk-hnb659fds-lookup-role-777788889999-eu-west-1"
    assert "arn:aws:iam::777788889999:role/cdk-*" in allowed_to(template, "DeployRole")["sts:AssumeRole"]


class TestScripts:
    def test_profiles_assume_roles_with_the_credentials_of_the_build(self, tmp_path: Path) -> None:
        config = tmp_path / "aws" / "config"
        arns = {name: f"arn:aws:iam::{'1' * 12}:role/{name}" for name in ("run", "remove")}
        done = subprocess.run(
            ["bash", str(ROOT / "deploy" / "profiles.sh"), *(f"{name}={arn}" for name, arn in arns.items())],
            env={"AWS_CONFIG_FILE": str(config), "PATH": os.environ["PATH"]},
            check=False,
        )
        assert done.returncode == 0
        session = Session(session_vars={"config_file": (None, None, str(config), None)})
        found = session.full_config["profiles"]
        assert {name: one["role_arn"] for name, one in found.items()} == arns
        assert {one["credential_source"] for one in found.values()} == {"EcsContainer"}

    def test_a_profile_without_a_role_is_refused(self, tmp_path: Path) -> None:
        done = subprocess.run(
            ["bash", str(ROOT / "deploy" / "profiles.sh"), "run="],
            env={"AWS_CONFIG_FILE": str(tmp_path / "config"), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "NAME=ROLE_ARN expected" in done.stderr

    @pytest.mark.parametrize(
        ("deployed", "gate", "code", "called"),
        [
            ("yes", 0, 0, ["facts staging", "deployed prod", "facts prod", "gate"]),
            ("yes", 3, 3, ["facts staging", "deployed prod", "facts prod", "gate"]),
            ("no", 0, 0, ["facts staging", "deployed prod", "none prod", "gate"]),
            ("", 0, 1, ["facts staging", "deployed prod"]),
        ],
    )
    def test_the_gate_compares_with_production_if_there_is_one(
        self, tmp_path: Path, deployed: str, gate: int, code: int, called: list[str]
    ) -> None:
        log = tmp_path / "calls"
        program = tmp_path / "encore"
        program.write_text(
            f"""#!/bin/sh
echo "${{AWS_PROFILE:-}} ${{AWS_REGION:-}} $*" >> {log}
case "$2" in deployed) echo {deployed};; gate) exit {gate};; esac
"""
        )
        program.chmod(0o755)
        done = subprocess.run(
            ["bash", str(ROOT / "deploy" / "gate.sh"), "staging", "prod"],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", "AWS_REGION": "here", "PRODUCTION_REGION": "there"},
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert done.returncode == code
        lines = log.read_text().splitlines()
        found = []
        for line in lines:
            words = line.split()
            step, stage = words[words.index("deploy") + 1], line.partition("--stage ")[2].split(" ")[0]
            found.append(" ".join(filter(None, ("none" if "--none" in words else step, stage))))
        assert found == called
        assert lines[0].startswith("run-staging here")
        assert lines[1].startswith("lookup-prod there")
        if deployed == "yes":
            assert lines[2].startswith("run-prod there")
