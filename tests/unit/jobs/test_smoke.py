"""What the smoke job says about packages, without Spark."""

from __future__ import annotations

import json
import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from encore.errors import EnvironmentMissing
from encore.jobs import smoke
from tests.conftest import ROOT

LOCK = ROOT / "deploy" / "requirements-emr.txt"


def test_outside_of_an_archive_it_follows_requirements_to_their_ends() -> None:
    locked = set(re.findall(r"^([a-z0-9.-]+)==", LOCK.read_text(), re.MULTILINE))
    found = set(smoke.required_distributions("emr"))
    assert found <= locked
    assert {"numba", "llvmlite", "botocore", "s3transfer", "sagemaker-mlflow"} <= found, "direct and indirect ones"
    assert "sagemaker-mlflow" not in smoke.required_distributions()


def test_a_distribution_that_is_missing_or_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(name: str) -> str:
        if name == "xxhash":
            raise PackageNotFoundError(name)
        return version(name)

    with monkeypatch.context() as patch:
        patch.setattr(smoke, "version", other)
        with pytest.raises(EnvironmentMissing, match=r"^xxhash: not installed, but encore requires it") as caught:
            smoke.required_distributions("emr")
    assert "make package" in str(caught.value.remedy)
    monkeypatch.setattr(smoke, "version", lambda name: "1.0" if name == "urllib3" else version(name))
    with pytest.raises(EnvironmentMissing, match=r"^urllib3: \w+ requires .*, 1.0 is installed"):
        smoke.required_distributions("emr")


def test_an_archive_says_itself_what_it_contains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There, neither Encore nor any package has the records from which it could be told."""
    monkeypatch.setattr(smoke, "encore", SimpleNamespace(__file__=str(tmp_path / "encore" / "__init__.py")))
    assert smoke.archived_distributions() == {}
    listed = {"xxhash": {"version": version("xxhash"), "modules": ["xxhash"]}}
    (tmp_path / smoke.CONTENTS).write_text(json.dumps(listed))
    monkeypatch.setattr(smoke, "requires", lambda name: pytest.fail(f"{name} has no metadata in an archive"))
    assert smoke.describe("emr")["packages"] == 1
    listed["xxhash"]["version"] = "1.0"
    (tmp_path / smoke.CONTENTS).write_text(json.dumps(listed))
    with pytest.raises(EnvironmentMissing, match=r"^xxhash: the application archive has 1.0, .* was found"):
        smoke.describe("emr")


def test_a_package_that_the_system_cannot_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one whose shared library needs a newer libc than the node has."""

    def load(name: str) -> ModuleType:
        if name == "pyarrow":
            raise ImportError("/lib64/libc.so.6: version `GLIBC_2.35' not found")
        return import_module(name)

    monkeypatch.setattr(smoke, "required_distributions", lambda _: ["orjson", "pyarrow"])
    monkeypatch.setattr(smoke, "import_module", load)
    with pytest.raises(EnvironmentMissing, match=r"^pyarrow .*: pyarrow cannot be imported by /.*python.*: .*GLIBC"):
        smoke.describe("emr")
