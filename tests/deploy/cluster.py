"""A standalone Spark cluster: a master, and workers that run as other users and cannot see the checkout."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyspark

from tests.conftest import FAST_JVM, ROOT
from tests.s3server import S3Server, free_ports

USERS = ("nobody", "daemon")
"""System users of Debian and others, which own no files and have no writable home."""
START_SECONDS = 60


def can_isolate() -> bool:
    """Whether processes can be started as other users with folders hidden from them, which takes root on Linux."""
    if os.getuid() != 0 or shutil.which("unshare") is None or shutil.which("setpriv") is None:
        return False
    # in a container root may not be allowed to mount, and the users may not exist
    try:
        result = subprocess.run(isolated(["true"], USERS[0], [ROOT]), capture_output=True, check=False, timeout=20)
    except (KeyError, OSError, subprocess.TimeoutExpired):
        return False
    return result.returncode == 0


def isolated(command: Sequence[str], user: str | None, hidden: Sequence[Path]) -> list[str]:
    """A command that runs as `user` (None: the current one) and sees empty folders in place of `hidden`."""
    mounts = "".join(f"mount -t tmpfs -o mode=000,size=4k none '{folder}' && " for folder in hidden)
    switch_user = ""
    if user:
        known = pwd.getpwnam(user)
        switch_user = f"setpriv --reuid={known.pw_uid} --regid={known.pw_gid} --clear-groups --"
    script = f'{mounts}exec {switch_user} "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *command]


def other_pythons() -> list[Path]:
    """The folders without which no Python of this machine starts."""
    folders = [Path(f"/usr/lib/python3.{minor}") for minor in range(30)]
    if sys.base_prefix != "/usr":
        folders.append(Path(sys.base_prefix))
    return [folder for folder in folders if folder.is_dir()]


def native_libraries(folder: Path) -> Path:
    """A folder for LD_LIBRARY_PATH with files that are no libraries, by names that Python needs and Java does not."""
    folder.mkdir()
    for name in ("libexpat.so.1", "libffi.so.8", "libgomp.so.1", "libsqlite3.so.0", "libssl.so.3"):
        (folder / name).write_text("not a library")
    return folder


@contextmanager
def public_spark(folder: Path) -> Iterator[Path]:
    """The installed pyspark where other users can read it: hard-linked if possible, else copied."""
    source, target = Path(pyspark.__file__).parent, folder / "spark"
    try:
        shutil.copytree(source, target, copy_function=os.link, symlinks=True)
    except (OSError, shutil.Error):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, symlinks=True)
    yield target
    shutil.rmtree(target)


def spark_defaults(s3: S3Server) -> dict[str, str]:
    """What an EMR cluster configures by itself: s3:// as a file system, and the S3 endpoint."""
    return {
        "spark.hadoop.fs.s3.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem",
        "spark.hadoop.fs.s3a.endpoint": s3.endpoint,
        "spark.hadoop.fs.s3a.path.style.access": "true",
        "spark.hadoop.fs.s3a.connection.ssl.enabled": "false",
        "spark.ui.enabled": "false",
        "spark.driver.extraJavaOptions": FAST_JVM,
        "spark.executor.extraJavaOptions": FAST_JVM,
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
    }


@dataclass
class Worker:
    """A worker: its user, and the one folder that it may write to."""

    user: str
    scratch: Path

    def clean(self) -> None:
        """Remove what finished applications left behind, such as the unpacked archive of each."""
        for path in [*self.scratch.glob("work/app-*"), *self.scratch.glob("encore-compiled-*")]:
            shutil.rmtree(path, ignore_errors=True)

    def files(self) -> dict[str, int]:
        """Current sizes of its files in bytes, by path relative to its folder."""
        found = {}
        for folder, _, names in os.walk(self.scratch):
            for name in names:
                path = Path(folder) / name
                with suppress(OSError):
                    found[str(path.relative_to(self.scratch))] = path.lstat().st_size
        return found


@dataclass
class Cluster:
    """A running cluster: the master's URL, and what its processes use."""

    master: str
    spark: Path
    conf: Path
    workers: list[Worker]
    environment: dict[str, str]
    hidden: list[Path] = field(default_factory=list)


@contextmanager
def standalone(folder: Path, s3: S3Server, hidden: Sequence[Path] = (ROOT,)) -> Iterator[Cluster]:
    """A master and one worker for each of USERS, with one core and 4 GB each as far as Spark knows.

    RuntimeError with the end of the log if one of them does not start.
    """
    with ExitStack() as stack:
        # pytest's temporary folders are not readable by other users
        spark = stack.enter_context(public_spark(folder))
        conf = folder / "conf"
        conf.mkdir()
        lines = "".join(f"{name} {value}\n" for name, value in spark_defaults(s3).items())
        (conf / "spark-defaults.conf").write_text(lines)
        environment = {
            "PATH": "/usr/bin:/bin",
            # as on nodes, where Spark and Hadoop set it
            "LD_LIBRARY_PATH": str(native_libraries(folder / "native")),
            "SPARK_HOME": str(spark),
            "SPARK_CONF_DIR": str(conf),
            "SPARK_NO_DAEMONIZE": "1",
            "SPARK_DAEMON_MEMORY": "512m",
            "PYTHONHASHSEED": "0",
            **({"JAVA_HOME": os.environ["JAVA_HOME"]} if "JAVA_HOME" in os.environ else {}),
            **s3.environment(),
        }
        port = free_ports(1)[0]
        master = f"spark://127.0.0.1:{port}"
        options = ["--host", "127.0.0.1", "--port", str(port), "--webui-port", "0"]
        log = folder / "master.log"
        stack.enter_context(
            _process([_class(spark), "org.apache.spark.deploy.master.Master", *options], environment, log)
        )
        _wait_for(log, "I have been elected leader")
        workers = []
        for user in USERS:
            scratch = folder / user
            scratch.mkdir(mode=0o700)
            known = pwd.getpwnam(user)
            os.chown(scratch, known.pw_uid, known.pw_gid)
            own = {
                **environment,
                "HOME": known.pw_dir,
                "TMPDIR": str(scratch),
                "SPARK_LOCAL_DIRS": str(scratch),
                "SPARK_WORKER_OPTS": f"-Djava.io.tmpdir={scratch}",
            }
            options = ["--host", "127.0.0.1", "--webui-port", "0", "--cores", "1", "--memory", "4g"]
            command = [
                _class(spark),
                "org.apache.spark.deploy.worker.Worker",
                *options,
                "--work-dir",
                str(scratch / "work"),
            ]
            log = folder / f"{user}.log"
            stack.enter_context(_process(isolated([*command, master], user, hidden), own, log))
            _wait_for(log, "Successfully registered with master")
            workers.append(Worker(user, scratch))
        yield Cluster(master, spark, conf, workers, environment, list(hidden))


def _class(spark: Path) -> str:
    return str(spark / "bin" / "spark-class")


@contextmanager
def _process(command: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, cwd="/", stdout=out, stderr=out, start_new_session=True)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(log: Path, text: str) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if text in log.read_text(errors="replace"):
            return
        time.sleep(0.1)
    raise RuntimeError(f"{text!r} not found; {log} ends with:\n{log.read_text(errors='replace')[-3000:]}")


@dataclass
class DiskUsage:
    """Peak disk usage of a worker's folder in bytes: the archive (packed and unpacked), broadcast arrays, compiled
    loops, and everything together."""

    archive: int = 0
    arrays: int = 0
    compiled: int = 0
    total: int = 0

    def update(self, files: dict[str, int], packed: int) -> None:
        """Raise the peaks to the current sizes. `packed`: the size of the packed archive."""
        now = dict.fromkeys(("archive", "arrays", "compiled"), 0)
        for name, size in files.items():
            # Spark keeps a second copy of what it fetches, under an opaque name that ends in `_cache`
            if name.endswith((".nbi", ".nbc")):
                now["compiled"] += size
            elif "environment" in name or size == packed:
                now["archive"] += size
            elif name.endswith((".npy", "_cache")):
                now["arrays"] += size
        for name, size in (now | {"total": sum(files.values())}).items():
            setattr(self, name, max(getattr(self, name), size))


@contextmanager
def monitored(workers: Sequence[Worker], packed: int) -> Iterator[dict[str, DiskUsage]]:
    """Peak disk usage by worker while the block runs; sampled rarely, since listing 20,000 files takes time."""
    usage = {worker.user: DiskUsage() for worker in workers}
    done = threading.Event()

    def sample() -> None:
        while not done.wait(8):
            for worker in workers:
                usage[worker.user].update(worker.files(), packed)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield usage
    finally:
        done.set()
        thread.join()
