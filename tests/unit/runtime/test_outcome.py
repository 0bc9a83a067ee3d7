"""How a job ended, as a scheduler reads it: written whatever happens, and never in the way of the job."""

from __future__ import annotations

import json
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from encore.cli.app import _settings_list
from encore.errors import ConfigError, EncoreError, InputError, TransientError
from encore.runtime.outcome import outcome_at


def told(place: Path, error: BaseException) -> dict[str, object]:
    with pytest.raises(type(error)), outcome_at(str(place), "report", "run-1"):
        raise error
    found: dict[str, object] = json.loads(place.read_text())
    return found


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError("no data", remedy="give some"), 3), (TransientError("busy"), 75), (KeyboardInterrupt(), 130)],
)
def test_the_code_the_reason_and_the_remedy_are_written(tmp_path: Path, error: BaseException, code: int) -> None:
    found = told(tmp_path / "deep" / "outcome.json", error)
    assert found["code"] == code
    assert (found["job"], found["run_id"]) == ("report", "run-1")
    if isinstance(error, EncoreError):
        assert (found["reason"], found["remedy"]) == (str(error), error.remedy or "")


def test_a_defect_is_code_1_with_its_first_line(tmp_path: Path) -> None:
    found = told(tmp_path / "outcome.json", ZeroDivisionError("by\nzero"))
    assert (found["code"], found["reason"]) == (1, "a defect: ZeroDivisionError: by")


def test_success_is_code_0_with_the_warnings(tmp_path: Path) -> None:
    with outcome_at(str(tmp_path / "outcome.json"), "check", "run-1") as warnings:
        warnings.remedy = "look"
    plain = {"job": "check", "run_id": "run-1", "code": 0, "reason": "", "remedy": ""}
    assert json.loads((tmp_path / "outcome.json").read_text()) == plain
    with outcome_at(str(tmp_path / "outcome.json"), "check", "run-1") as warnings:
        warnings.texts, warnings.remedy = ["few tracks", "many files"], "look"
    told = {**plain, "reason": "few tracks; many files", "remedy": "look"}
    assert json.loads((tmp_path / "outcome.json").read_text()) == told


def test_no_place_is_no_failure() -> None:
    with outcome_at(None, "report", None):
        pass
    with pytest.raises(InputError), outcome_at(None, "report", None):
        raise InputError("no data")


def test_a_place_that_cannot_be_written_leaves_the_jobs_own_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="no data"), outcome_at(str(tmp_path / "file" / "x.json"), "report", None):
        raise InputError("no data")


def test_secrets_are_not_written(tmp_path: Path) -> None:
    found = told(tmp_path / "outcome.json", InputError("cannot open postgresql://me:pass@host/db"))
    assert "pass@" not in str(found)


def test_it_goes_to_s3_as_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="encore-logs")
        with pytest.raises(InputError), outcome_at("s3://encore-logs/outcomes/report/r/1.json", "report", "r"):
            raise InputError("no data")
        body = client.get_object(Bucket="encore-logs", Key="outcomes/report/r/1.json")["Body"].read()
    assert json.loads(body)["code"] == 3


def test_settings_may_come_as_one_json_list() -> None:
    assert _settings_list('["report.top=5", "recommend.k=9"]') == ["report.top=5", "recommend.k=9"]
    assert _settings_list("[]") == []


@pytest.mark.parametrize("text", ["report.top=5", '{"report.top": 5}', "[1]", ""])
def test_settings_of_another_shape_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--set-json"):
        _settings_list(text)
