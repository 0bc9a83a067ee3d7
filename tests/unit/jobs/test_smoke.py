"""What the smoke job says about packages, without Spark."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import pytest

from encore.errors import EnvironmentMissing
from encore.jobs import smoke
from tests.conftest import ROOT

LOCK = ROOT / "deploy" / "requirements-emr.txt"


def test_it_requires_what_the_application_archive_contains() -> None:
    locked = set(re.findall(r"^([a-z0-9.-]+)==", LOCK.read_text(), re.MULTILINE))
    # only for Python 3.11.0 to 3.11.2
    assert locked - set(smoke.required_distributions("emr")) <= {"async-timeout"}
    assert set(smoke.required_distributions("emr")) <= locked
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
