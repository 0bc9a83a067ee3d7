"""The probe of a lake, on a local disk and on an S3 server, and what it finds there."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from encore.config import Config
from encore.errors import EnvironmentMissing, LakeError
from encore.lake import probe
from encore.lake.delta import Tables
from encore.lake.filesystem import files_below, write_bytes
from tests.conftest import settings
from tests.s3server import S3Server


@pytest.fixture(autouse=True)
def _fresh_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3's own session keeps the credentials that it found first."""
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)


@pytest.fixture
def remote(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Config:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    bucket = f"probe-{uuid.uuid4().hex[:12]}"
    s3_server.client().create_bucket(Bucket=bucket)
    return settings(f"s3://{bucket}/lake", "s3.path_style=true", "s3.region=us-east-1")


@pytest.fixture(params=["local", "s3"])
def tables(request: pytest.FixtureRequest, lake_settings: Callable[..., Config]) -> Tables:
    return Tables(request.getfixturevalue("remote") if request.param == "s3" else lake_settings())


def test_everything_works_and_nothing_is_left(tables: Tables) -> None:
    """Not even what an earlier run has left that was killed."""
    write_bytes(f"{tables.root}/_smoke/killed/object", b"", tables.s3)
    with probe.probe_folder(tables, "now") as folder:
        assert files_below(f"{tables.root}/_smoke", tables.s3) == []
        url = probe.write_object(tables, folder)
        probe.read_object(tables, url)
        probe.delete_object(tables, url)
        probe.try_delta(tables, folder)
        left = {file.url.removeprefix(f"{folder}/").split("/")[0] for file in files_below(folder, tables.s3)}
        assert left <= {"table", "conditional"}
    assert files_below(f"{tables.root}/_smoke", tables.s3) == []


def test_a_server_that_ignores_conditions(remote: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "write_if", lambda *_: True)
    with pytest.raises(LakeError, match="ignores If-None-Match"):
        probe.write_object(Tables(remote), f"{remote.lake.path}/_smoke/run")


@pytest.mark.parametrize("tables", ["s3"], indirect=True)
def test_content_that_is_another_one(tables: Tables) -> None:
    with probe.probe_folder(tables, "now") as folder:
        write_bytes(f"{folder}/object", b"other", tables.s3)
        with pytest.raises(LakeError, match="b'other' found"):
            probe.read_object(tables, f"{folder}/object")


class TestCredentials:
    """delta-rs is given what boto3 finds, wherever boto3 looks."""

    @pytest.fixture
    def keys(self, remote: Config, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A file of a format that only boto3 knows holds the only keys."""
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        path = tmp_path / "boto.cfg"
        path.write_text(
            f"[Credentials]\naws_access_key_id = {s3_server.access_key}\n"
            f"aws_secret_access_key = {s3_server.secret_key}\n"
        )
        monkeypatch.setenv("BOTO_CONFIG", str(path))
        return path

    def test_delta_uses_the_keys_that_only_boto_finds(self, remote: Config, keys: Path) -> None:
        tables = Tables(remote)
        with probe.probe_folder(tables, "now") as folder:
            probe.try_delta(tables, folder)

    def test_without_any(self, remote: Config, keys: Path) -> None:
        keys.unlink()
        with pytest.raises(EnvironmentMissing, match="no AWS credentials found") as caught:
            probe.try_delta(Tables(remote), f"{remote.lake.path}/_smoke/run")
        assert "AWS_PROFILE" in str(caught.value.remedy)

    def test_temporary_ones_are_renewed_before_they_expire(
        self, remote: Config, s3_server: S3Server, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whenever a table is opened, so that a job may take longer than its credentials live."""
        program = tmp_path / "keys.py"
        program.write_text(
            PROGRAM.format(issued=str(tmp_path / "issued"), key=s3_server.access_key, secret=s3_server.secret_key)
        )
        config = tmp_path / "config"
        config.write_text(f"[default]\ncredential_process = python3 {program}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        monkeypatch.delenv("BOTO_CONFIG")
        tables = Tables(remote)
        tokens = [tables.options["aws_session_token"] for _ in range(4)]
        assert tokens[-2:] == ["token 3"] * 2, "they are valid for another hour"
        assert "token 3" not in tokens[:1], "they were valid for 12 minutes more"


PROGRAM = """
import datetime, json, os
path = {issued!r}
n = int(open(path).read()) + 1 if os.path.exists(path) else 1
open(path, "w").write(str(n))
until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=12 if n < 3 else 60)
print(json.dumps(dict(Version=1, AccessKeyId={key!r}, SecretAccessKey={secret!r}, SessionToken=f"token {{n}}",
    Expiration=until.isoformat())))
"""
