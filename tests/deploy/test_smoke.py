"""A trial deployment's steps: the script that orders them, and the commands that it calls."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import NoReturn

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from encore.aws.removal import NotRemoved, remove, vacant
from encore.aws.upload import upload
from encore.errors import ConfigError, EncoreError, InputError
from tests.conftest import ROOT

REGION = "us-east-1"
STEPS = ("deploy vacant", "generate", "make", "deploy upload", "deploy run", "deploy verify")
CLEAN = ("deploy stop", "deploy remove")


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dummy keys, and no other source of credentials."""
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN", "RUN_PROFILE", "REMOVE_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


class Script:
    """deploy/smoke.sh with `encore` and `make` replaced: each call is recorded, and ends as `fails` says."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.log = folder / "calls"
        for name in ("encore", "make"):
            program = folder / name
            prefix = "" if name == "encore" else "make "
            program.write_text(
                f"""#!/bin/sh
echo "${{AWS_PROFILE:+[$AWS_PROFILE] }}{prefix}$*" >> {self.log}
for one in $FAILS; do case "{prefix}$*" in "${{one%%:*}}"*|"deploy ${{one%%:*}}"*) exit "${{one##*:}}";; esac; done
for one in $WAITS; do case "{prefix}$*" in "$one"*|"deploy $one"*) exec sleep 30;; esac; done
"""
            )
            program.chmod(0o755)

    def environment(self, fails: str = "", waits: str = "", **more: str) -> dict[str, str]:
        return {"PATH": f"{self._folder}:/usr/bin:/bin", "FAILS": fails, "WAITS": waits, **more}

    def run(self, fails: str = "", **more: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", str(ROOT / "deploy" / "smoke.sh"), "sandbox", "300"],
            env=self.environment(fails, **more),
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    def calls(self) -> list[str]:
        """The steps that were called, without their arguments."""
        found = []
        for line in self.log.read_text().splitlines():
            words = line.split("] ")[-1].split()
            found.append(" ".join(words[:2]) if words[0] == "deploy" else words[0])
        return found


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


class TestScript:
    def test_the_steps_come_in_order_and_the_stage_is_removed(self, script: Script) -> None:
        code, said = script.run()
        assert code == 0
        assert script.calls() == [*STEPS, *CLEAN]
        assert "was removed" in said
        lines = script.log.read_text()
        assert "deploy verify --stage sandbox --playlists 300" in lines
        assert "make --no-print-directory deploy STAGE=sandbox STACKS=encore-sandbox-*" in lines

    @pytest.mark.parametrize(
        ("fails", "number"), [("generate:3", 2), ("make:1", 3), ("upload:75", 4), ("run:3", 5), ("verify:3", 6)]
    )
    def test_after_a_failure_the_stage_is_removed_and_the_code_is_that_of_the_step(
        self, script: Script, fails: str, number: int
    ) -> None:
        code, said = script.run(fails)
        assert code == int(fails.split(":")[1])
        assert script.calls() == [*STEPS[:number], *CLEAN]
        assert "failed with exit code" in said

    def test_a_stage_that_is_in_use_is_not_touched(self, script: Script) -> None:
        code, _ = script.run("vacant:3")
        assert code == 3
        assert script.calls() == ["deploy vacant"]

    def test_a_removal_that_fails_fails_the_trial(self, script: Script) -> None:
        code, said = script.run("remove:4")
        assert code == 4
        assert "is billed" in said

    def test_the_first_failure_decides_the_exit_code(self, script: Script) -> None:
        code, said = script.run("run:3 remove:4")
        assert code == 3
        assert "is billed" in said

    def test_an_application_that_cannot_be_stopped_does_not_prevent_the_removal(self, script: Script) -> None:
        code, _ = script.run("stop:75")
        assert code == 0
        assert script.calls()[-1] == "deploy remove"

    def test_steps_use_the_profiles_that_the_pipeline_gives_them(self, script: Script) -> None:
        script.run(RUN_PROFILE="runner", REMOVE_PROFILE="deployer")
        by_step = dict(zip(script.calls(), script.log.read_text().splitlines(), strict=True))
        assert {step for step, line in by_step.items() if line.startswith("[runner]")} == {
            "deploy upload",
            "deploy run",
            "deploy verify",
            "deploy stop",
        }
        assert {step for step, line in by_step.items() if line.startswith("[deployer]")} == {
            "deploy vacant",
            "deploy remove",
        }

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_an_interrupted_trial_is_removed_too(self, script: Script, number: int, code: int) -> None:
        with subprocess.Popen(
            ["bash", str(ROOT / "deploy" / "smoke.sh"), "sandbox", "300"],
            env=script.environment(waits="run"),
            stderr=subprocess.PIPE,
            process_group=0,
        ) as process:
            until = time.monotonic() + 20
            while not script.log.exists() or "deploy run" not in script.calls():
                assert time.monotonic() < until
                time.sleep(0.02)
            os.killpg(process.pid, number)
            assert process.wait(20) == code
        assert script.calls()[-2:] == list(CLEAN)


def written(folder: Path) -> Path:
    (folder / "features").mkdir(parents=True)
    (folder / "mpd.slice.0-9.json").write_text("{}")
    (folder / "features" / "tracks.parquet").write_bytes(b"12345")
    return folder


class TestUpload:
    def test_slices_and_features_go_where_jobs_read_them(self, tmp_path: Path) -> None:
        with mock_aws():
            s3 = boto3.client("s3", region_name=REGION)
            s3.create_bucket(Bucket="raw")
            said: list[str] = []
            for _ in range(2):
                # a second upload of the same folder is no mixture
                done = upload("sandbox", written_once(tmp_path / "data"), "raw", s3, said.append)
                assert (done.files, done.bytes) == (2, 7)
            found = [item["Key"] for item in s3.list_objects_v2(Bucket="raw")["Contents"]]
            assert found == ["features/tracks.parquet", "playlists/mpd.slice.0-9.json"]
            assert said[0] == "playlists: 1 files, 0.0 MB"

    def test_a_stage_that_keeps_its_data_gets_none(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="prod keeps its data"):
            upload("prod", written(tmp_path / "data"), "raw", None, print)

    def test_a_folder_without_slices(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no slices"):
            upload("sandbox", tmp_path, "raw", None, print)

    def test_other_data_is_not_mixed_with_it(self, tmp_path: Path) -> None:
        with mock_aws():
            s3 = boto3.client("s3", region_name=REGION)
            s3.create_bucket(Bucket="raw")
            s3.put_object(Bucket="raw", Key="playlists/mpd.slice.0-999.json", Body=b"other")
            with pytest.raises(InputError, match="1 other file") as caught:
                upload("sandbox", written(tmp_path / "data"), "raw", s3, print)
            assert "aws s3 rm" in str(caught.value.remedy)

    def test_a_file_that_arrives_truncated_is_noticed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with mock_aws():
            s3 = boto3.client("s3", region_name=REGION)
            s3.create_bucket(Bucket="raw")

            def lose(path: str, bucket: str, key: str) -> None:
                s3.put_object(Bucket=bucket, Key=key, Body=b"{")

            monkeypatch.setattr(s3, "upload_file", lose)
            with pytest.raises(InputError, match="1 bytes arrived of 2"):
                upload("sandbox", written(tmp_path / "data"), "raw", s3, print)

    def test_a_bucket_that_does_not_exist(self, tmp_path: Path) -> None:
        with mock_aws():
            s3 = boto3.client("s3", region_name=REGION)
            with pytest.raises(InputError, match="does not exist"):
                upload("sandbox", written(tmp_path / "data"), "raw", s3, print)


def written_once(folder: Path) -> Path:
    return folder if folder.exists() else written(folder)


class Formation:
    """CloudFormation with some stacks of the sandbox: each is gone after two polls, except those that `fails` names."""

    meta = boto3.session.Session(region_name=REGION).client("sts", region_name=REGION).meta

    def __init__(self, stacks: tuple[str, ...], fails: tuple[str, ...] = (), *, stuck: bool = False) -> None:
        self.stacks = {f"encore-sandbox-{name}": "CREATE_COMPLETE" for name in stacks}
        self.fails = {f"encore-sandbox-{name}" for name in fails}
        self.stuck = stuck
        self.deleted: list[str] = []
        self._polls: dict[str, int] = {}

    def describe_stacks(self, StackName: str) -> dict[str, object]:
        name = StackName.removeprefix("arn:")
        status = self.stacks.get(name)
        if status is None:
            stub = boto3.client("cloudformation", region_name=REGION)
            with Stubber(stub) as stubber:
                stubber.add_client_error("describe_stacks", "ValidationError", f"Stack {name} does not exist", 400)
                stub.describe_stacks(StackName=name)
        if status == "DELETE_IN_PROGRESS" and not self.stuck:
            self._polls[name] = self._polls.get(name, 0) + 1
            if self._polls[name] == 2:
                self.stacks[name] = status = "DELETE_FAILED" if name in self.fails else "DELETE_COMPLETE"
        return {"Stacks": [{"StackId": f"arn:{name}", "StackStatus": status}]}

    def delete_stack(self, StackName: str) -> None:
        self.deleted.append(StackName.removeprefix("encore-sandbox-"))
        self.stacks[StackName] = "DELETE_IN_PROGRESS"

    def describe_stack_events(self, StackName: str) -> dict[str, object]:
        one = {"ResourceStatus": "DELETE_FAILED", "ResourceType": "AWS::EC2::VPC", "LogicalResourceId": "Vpc"}
        return {"StackEvents": [{**one, "ResourceStatusReason": "has dependencies"}]}


def nothing(service: str) -> NoReturn:
    raise AssertionError(f"{service} is called")


ALL_STACKS = ("network", "storage", "mlflow", "compute", "orchestration")


class TestRemove:
    def removed(self, formation: Formation) -> list[str]:
        with mock_aws():
            logs = boto3.client("logs", region_name=REGION)
            for name in (
                "/aws/lambda/encore-sandbox-storage-Empty",
                "/aws/lambda/other",
                "/aws/lambda/encore-sandbox2-x",
            ):
                logs.create_log_group(logGroupName=name)
            made = {"cloudformation": formation, "logs": logs}
            try:
                return remove("sandbox", made.__getitem__, lambda _: None, sleep=lambda _: None)
            finally:
                left = [group["logGroupName"] for group in logs.describe_log_groups()["logGroups"]]
                assert left == ["/aws/lambda/encore-sandbox2-x", "/aws/lambda/other"]

    def test_stacks_go_before_those_that_they_use(self) -> None:
        formation = Formation(ALL_STACKS)
        assert len(self.removed(formation)) == 5
        assert formation.deleted == ["orchestration", "compute", "mlflow", "storage", "network"]

    def test_after_a_deployment_that_failed_halfway(self) -> None:
        formation = Formation(("network", "storage"))
        self.removed(formation)
        assert formation.deleted == ["storage", "network"]

    def test_where_nothing_is_deployed_nothing_is_deleted(self) -> None:
        assert self.removed(Formation(())) == []

    def test_a_stack_that_cannot_be_deleted_does_not_keep_the_others(self) -> None:
        formation = Formation(ALL_STACKS, fails=("network", "compute"))
        with pytest.raises(NotRemoved, match="encore-sandbox-compute: Vpc: has dependencies; encore-sandbox-network"):
            self.removed(formation)
        assert formation.deleted == ["orchestration", "compute", "mlflow", "storage", "network"]

    def test_a_deletion_that_does_not_end_is_given_up(self) -> None:
        with pytest.raises(NotRemoved, match="still DELETE_IN_PROGRESS after 60 minutes"):
            self.removed(Formation(("network",), stuck=True))

    def test_a_stage_that_keeps_its_data_is_never_removed(self) -> None:
        with pytest.raises(ConfigError, match="prod keeps its data"):
            remove("prod", nothing, print)

    @pytest.mark.parametrize(
        ("choices", "expected"),
        [
            ("  region: eu-west-1\n", "us-east-1, but sandbox is in eu-west-1"),
            ("  region: us-east-1\n  replica_region: us-west-2\n", "has a replica in us-west-2"),
        ],
    )
    def test_nothing_is_removed_elsewhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choices: str, expected: str
    ) -> None:
        shutil.copytree(ROOT / "conf", tmp_path / "conf")
        path = tmp_path / "conf" / "deploy" / "stages.yaml"
        path.write_text(
            re.sub(r"^sandbox:.*\n", lambda found: found[0] + choices, path.read_text(), flags=re.MULTILINE)
        )
        monkeypatch.setenv("ENCORE_CONF_DIR", str(tmp_path / "conf"))
        formation = Formation(ALL_STACKS)
        with pytest.raises(EncoreError, match=expected):
            remove("sandbox", {"cloudformation": formation}.__getitem__, print)
        assert formation.deleted == []

    def test_only_a_vacant_stage_may_be_tried(self) -> None:
        vacant("sandbox", {"cloudformation": Formation(())}.__getitem__)
        with pytest.raises(InputError, match="deployed already: encore-sandbox-storage, encore-sandbox-network"):
            vacant("sandbox", {"cloudformation": Formation(("network", "storage"))}.__getitem__)
        with pytest.raises(ConfigError, match="keeps its data"):
            vacant("prod", nothing)
