"""The lock of a lake: one run at a time, shared within a run, found when its holder is gone; local and in S3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from encore.config import Config, load_config
from encore.errors import LakeError, TransientError
from encore.lake import lock as module
from encore.lake.lock import NAME, Cell, Holder, LakeLock, LocalCell, S3Cell
from encore.log import configure_logging
from encore.temporary import machine
from tests.conftest import settings
from tests.s3server import S3Server

Named = Callable[..., LakeLock]


@pytest.fixture(params=["local", "s3"])
def config(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Settings of an empty lake."""
    if request.param == "local":
        return settings(tmp_path / "lake")
    server: S3Server = request.getfixturevalue("s3_server")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    bucket = f"lock-{uuid.uuid4().hex[:12]}"
    server.client().create_bucket(Bucket=bucket)
    return settings(f"s3://{bucket}/lake", "s3.path_style=true")


@pytest.fixture
def lock(config: Config) -> Iterator[Named]:
    """`lock(run_id, take_over=...)`: a process's lock of the lake; released at the end."""
    made: list[LakeLock] = []

    def named(run_id: str, *, take_over: bool = False) -> LakeLock:
        made.append(LakeLock(config, run_id, take_over=take_over))
        return made[-1]

    yield named
    for one in made:
        one.release()


def cell(config: Config) -> Cell:
    if config.lake.path.startswith("s3://"):
        return S3Cell(f"{config.lake.path}/{NAME}", config.s3)
    return LocalCell(f"{config.lake.path}/{NAME}")


def holders(config: Config) -> list[Holder]:
    return [Holder(**holder) for holder in json.loads(cell(config).read()[0])["holders"]]


def rewrite(config: Config, **changes: Any) -> None:
    """Change the entries as if they had been written elsewhere or earlier."""
    own = cell(config)
    while True:
        text, version, _ = own.read()
        changed = [{**holder, **changes} for holder in json.loads(text)["holders"]]
        # a lock may renew its entry meanwhile
        if own.swap(version, json.dumps({"holders": changed})):
            return


def test_a_second_run_is_refused_and_told_by_whom(config: Config, lock: Named) -> None:
    first = lock("run-1")
    assert first.take()
    assert not first.take(), "it has it already"
    with pytest.raises(TransientError) as caught:
        lock("run-2").take()
    (holder,) = holders(config)
    said = str(caught.value)
    assert said.startswith(f"the lake {config.lake.path} is in use by run run-1 on {holder.host} ")
    assert f"(process {os.getpid()}) since 2" in said
    assert "lease until 2" in said
    assert "--take-over" in str(caught.value.remedy)
    first.check()
    first.release()
    assert holders(config) == []
    assert lock("run-2").take()


def test_jobs_of_one_run_share_it_and_none_has_to_be_the_last(config: Config, lock: Named) -> None:
    one, other = lock("run-1"), lock("run-1")
    assert one.take()
    assert other.take()
    assert len(holders(config)) == 2
    one.release()
    other.check()
    with pytest.raises(TransientError):
        lock("run-2").take()
    assert lock("run-1").take()
    other.release()
    assert len(holders(config)) == 1


def test_nothing_is_written_before_it_is_taken(config: Config, lock: Named) -> None:
    idle = lock("run-1")
    idle.check()
    idle.release()
    assert cell(config).read()[:2] == ("", "")


@pytest.mark.parametrize(
    "changes",
    [{"until": 1.0, "machine": "another"}, {"until": 1.0}],
    ids=["of another machine", "of this machine"],
)
def test_a_lease_that_has_ended_is_taken_over_and_said(
    config: Config, lock: Named, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    # another test may have set another level, and another file for what is logged
    configure_logging(config.log.model_copy(update={"level": "warning"}))
    first = lock("run-1")
    first.take()
    rewrite(config, **changes)
    assert lock("run-2").take()
    assert [holder.run_id for holder in holders(config)] == ["run-2"]
    said = capsys.readouterr()
    (line,) = [line for line in (said.out + said.err).splitlines() if "lock_taken_over" in line]
    assert "run run-1" in line


def test_a_process_that_is_gone_holds_nothing(config: Config, lock: Named) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    lock("run-1").take()
    rewrite(config, pid=gone.pid, machine="another")
    with pytest.raises(TransientError):
        lock("run-2").take()
    rewrite(config, machine=machine())
    assert lock("run-2").take()


def test_who_was_taken_over_stops_before_the_next_commit(config: Config, lock: Named) -> None:
    first, second = lock("run-1"), lock("run-2", take_over=True)
    first.take()
    assert second.take()
    with pytest.raises(TransientError, match=r"taken over by run run-2 on .*; this run stops"):
        first.check()
    first.release()
    assert [holder.run_id for holder in holders(config)] == ["run-2"], "it released nothing of the other's"


def test_it_is_renewed_while_the_run_lives(config: Config, lock: Named, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed = threading.Event()
    real = LakeLock._renew

    def renew(self: LakeLock) -> None:
        real(self)
        renewed.set()

    monkeypatch.setattr(module, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(LakeLock, "_renew", renew)
    first = lock("run-1")
    first.take()
    rewrite(config, until=1.0)
    # the first of the two may have been under way before
    for _ in range(2):
        renewed.clear()
        assert renewed.wait(30)
    assert holders(config)[0].until > 1.0
    with pytest.raises(TransientError):
        lock("run-2").take()


def test_a_lease_that_ended_unseen_is_renewed_before_a_commit(config: Config, lock: Named) -> None:
    first = lock("run-1")
    first.take()
    rewrite(config, until=1.0)
    first.check()
    assert holders(config)[0].until > 1.0


def test_of_many_that_start_at_once_one_has_it(config: Config, lock: Named) -> None:
    locks, outcomes = [lock(f"run-{i}") for i in range(8)], []
    start = threading.Barrier(len(locks))

    def take(own: LakeLock) -> None:
        start.wait()
        try:
            outcomes.append(own.take())
        except TransientError:
            outcomes.append(False)

    threads = [threading.Thread(target=take, args=(own,)) for own in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 7 + [True]
    assert len(holders(config)) == 1


def test_a_swap_of_another_version_changes_nothing(config: Config) -> None:
    own = cell(config)
    assert own.swap("", "a longer text")
    version = own.read()[1]
    assert not own.swap("", "b"), "it is there"
    assert own.swap(version, "b")
    assert not own.swap(version, "c")
    assert own.read()[0] == "b"


def test_a_file_that_is_no_lock_is_refused(config: Config, lock: Named) -> None:
    assert cell(config).swap("", '{"holders": [{"who": 1}]}')
    with pytest.raises(LakeError, match="not a lock that this version of Encore knows"):
        lock("run-1").take()


def test_a_rewrite_that_was_cut_short_is_still_read(tmp_path: Path) -> None:
    config = settings(tmp_path / "lake")
    first = LakeLock(config, "run-1")
    first.take()
    path = tmp_path / "lake" / NAME
    path.write_text(path.read_text() + 'd": 1}]}')
    with pytest.raises(TransientError):
        LakeLock(config, "run-2").take()
    first.release()
    path.write_bytes(b"\0" * 100)
    second = LakeLock(config, "run-2")
    assert second.take()
    second.release()


def test_settings_are_not_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["/usr/bin/encore", "run", "--set", "spark.settings={secret.key: hush}", "--only", "report", "-s", "hush"]
    monkeypatch.setattr(sys, "argv", said)
    first = LakeLock(settings(tmp_path / "lake"), "run-1")
    first.take()
    assert holders(settings(tmp_path / "lake"))[0].command == "encore run --only report"
    first.release()


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(LakeError, match=r"cannot lock files \(No locks available\)"):
        LakeLock(settings(tmp_path / "lake"), "run-1").take()


def test_a_lake_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="the lake /proc/lake cannot be written"):
        LakeLock(settings("/proc/lake"), "run-1").take()


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [(200, "it ignores their conditions"), (501, "it answers NotImplemented")],
)
def test_a_server_without_conditional_puts_is_refused(
    answer: int, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unconditional(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say(404, b"<Error><Code>NoSuchKey</Code></Error>")

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._say(answer, b"" if answer == 200 else b"<Error><Code>NotImplemented</Code></Error>")

        def _say(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: pytest shows what tests write."""

    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with HTTPServer(("127.0.0.1", 0), Unconditional) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        config = load_config(
            "local", ["lake.path=s3://b/lake", f"s3.endpoint={endpoint}", "s3.region=us-east-1", "s3.path_style=true"]
        )
        with pytest.raises(LakeError) as caught:
            LakeLock(config, "run-1").take()
        server.shutdown()
    assert "this S3 server has no conditional puts" in str(caught.value)
    assert sentence in str(caught.value)
