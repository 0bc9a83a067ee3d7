"""A standalone Spark cluster: a master, and workers that are processes of other users who do not see the checkout."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
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
"""Of Debian and others: each owns nothing, and has no home that it could write to."""
START_SECONDS = 60


def may_isolate() -> bool:
    """Whether processes can be started as other users, and with folders hidden from them: by root on Linux."""
    if os.getuid() != 0 or shutil.which("unshare") is None or shutil.which("setpriv") is None:
        return False
    # root of a container may lack the right to mount, and its system a user
    try:
        tried = subprocess.run(isolated(["true"], USERS[0], [ROOT]), capture_output=True, check=False, timeout=20)
    except (KeyError, OSError, subprocess.TimeoutExpired):
        return False
    return tried.returncode == 0


def isolated(command: Sequence[str], user: str | None, hidden: Sequence[Path]) -> list[str]:
    """A command that is run as `user` (None: this one) and sees folders that are empty in place of `hidden`."""
    mounts = "".join(f"mount -t tmpfs -o mode=000,size=4k none '{folder}' && " for folder in hidden)
    become = ""
    if user:
        known = pwd.getpwnam(user)
        become = f"setpriv --reuid={known.pw_uid} --regid={known.pw_gid} --clear-groups --"
    script = f'{mounts}exec {become} "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *command]


@contextmanager
def public_spark(folder: Path) -> Iterator[Path]:
    """The installed pyspark where other users may read it: linked where that is possible, else copied."""
    source, target = Path(pyspark.__file__).parent, folder / "spark"
    try:
        shutil.copytree(source, target, copy_function=os.link, symlinks=True)
    except (OSError, shutil.Error):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, symlinks=True)
    yield target
    shutil.rmtree(target)


def spark_defaults(s3: S3Server) -> dict[str, str]:
    """What a cluster of EMR brings by its own settings: s3:// as a file system, and where S3 is."""
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
    """A worker: whose it is, and the one folder that it may write to."""

    user: str
    scratch: Path

    def clean(self) -> None:
        """Remove what applications that have ended left: an unpacked archive each."""
        for left in [*self.scratch.glob("work/app-*"), *self.scratch.glob("encore-compiled-*")]:
            shutil.rmtree(left, ignore_errors=True)

    def files(self) -> dict[str, int]:
        """Bytes of its files now, by path within its folder."""
        found = {}
        for folder, _, names in os.walk(self.scratch):
            for name in names:
                path = Path(folder) / name
                with suppress(OSError):
                    found[str(path.relative_to(self.scratch))] = path.lstat().st_size
        return found


@dataclass
class Cluster:
    """Where the master is, and what its processes use."""

    master: str
    spark: Path
    conf: Path
    workers: list[Worker]
    environment: dict[str, str]
    hidden: list[Path] = field(default_factory=list)


@contextmanager
def standalone(folder: Path, s3: S3Server, hidden: Sequence[Path] = (ROOT,)) -> Iterator[Cluster]:
    """A master and a worker for each of USERS, of one core and 4 GB each as Spark counts them.

    RuntimeError with the end of a log where one does not start.
    """
    with ExitStack() as stack:
        # pytest's own folders are closed to others
        spark = stack.enter_context(public_spark(folder))
        conf = folder / "conf"
        conf.mkdir()
        lines = "".join(f"{name} {value}\n" for name, value in spark_defaults(s3).items())
        (conf / "spark-defaults.conf").write_text(lines)
        environment = {
            "PATH": "/usr/bin:/bin",
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
    raise RuntimeError(f"{text!r} was not said; {log} ends:\n{log.read_text(errors='replace')[-3000:]}")


@dataclass
class Held:
    """The most that a worker's folder held while something ran, bytes: the archive (packed and unpacked), arrays that
    were sent, compiled loops, and all."""

    archive: int = 0
    arrays: int = 0
    compiled: int = 0
    all: int = 0

    def see(self, files: dict[str, int], packed: int) -> None:
        """Take what is there now into account. `packed`: the size of the packed archive."""
        now = dict.fromkeys(("archive", "arrays", "compiled"), 0)
        for name, size in files.items():
            # Spark keeps what it fetches a second time, under a name that says nothing but `_cache`
            if name.endswith((".nbi", ".nbc")):
                now["compiled"] += size
            elif "environment" in name or size == packed:
                now["archive"] += size
            elif name.endswith((".npy", "_cache")):
                now["arrays"] += size
        for name, size in (now | {"all": sum(files.values())}).items():
            setattr(self, name, max(getattr(self, name), size))


@contextmanager
def watched(workers: Sequence[Worker], packed: int) -> Iterator[dict[str, Held]]:
    """What each worker's folder holds at most while the block lasts; looking at 20,000 files is work, so not often."""
    held = {worker.user: Held() for worker in workers}
    done = threading.Event()

    def look() -> None:
        while not done.wait(8):
            for worker in workers:
                held[worker.user].see(worker.files(), packed)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        done.set()
        thread.join()
