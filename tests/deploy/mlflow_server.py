"""MLflow as a deployment runs it: the image's scripts, basic auth, PostgreSQL over TLS, artefacts in S3."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from moto.server import ThreadedMotoServer

from tests.conftest import ROOT
from tests.s3server import S3Server, free_ports
from tests.serving.environments import interpreter

SCRIPT = ROOT / "deploy" / "cdk" / "mlflow" / "serve.sh"
MIGRATE = SCRIPT.with_name("migrate.sh")
START_SECONDS = 300


def postgres_programs() -> Path | None:
    """The program folder of the newest PostgreSQL installed here; None if there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    beside = shutil.which("postgres")
    return found[-1].parent if found else Path(beside).parent if beside else None


@contextmanager
def postgres(programs: Path) -> Iterator[dict[str, str]]:
    """A server with an empty database `mlflow`, reachable only by TLS and password; yields serve.sh's variables."""
    folder = Path(tempfile.mkdtemp(prefix="encore-pg-"))
    password, port = secrets.token_hex(12), free_ports(1)[0]
    # PostgreSQL refuses to run as root; Debian's package creates a user for it
    user = "postgres" if os.getuid() == 0 else None
    data, password_file = folder / "data", folder / "password"
    password_file.write_text(password)
    _certificate(folder)
    if user:
        os.chmod(folder, 0o700)
        for path in (folder, *folder.iterdir()):
            os.chown(path, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    log = folder / "log"

    def run(*command: str) -> None:
        done = subprocess.run(command, user=user, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr}{log.read_text() if log.exists() else ''}")

    try:
        auth = ["--auth-host=scram-sha-256", "--auth-local=reject", f"--pwfile={password_file}"]
        run(str(programs / "initdb"), "-D", str(data), "-U", "encore", "--no-sync", *auth)
        # allow connections by TLS only
        (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off -c ssl=on"
        options += f" -c ssl_cert_file={folder / 'crt'} -c ssl_key_file={folder / 'key'}"
        run(str(programs / "pg_ctl"), "-D", str(data), "-w", "-l", str(log), "-o", options, "start")
        try:
            _database(port, password)
            yield {"DB_HOST": "127.0.0.1", "DB_PORT": str(port), "DB_USER": "encore", "DB_PASSWORD": password}
        finally:
            run(str(programs / "pg_ctl"), "-D", str(data), "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _database(port: int, password: str) -> None:
    import psycopg2

    parameters = {"host": "127.0.0.1", "port": port, "user": "encore", "password": password, "sslmode": "require"}
    connection = psycopg2.connect(dbname="postgres", **parameters)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE mlflow")
    connection.close()


def _certificate(folder: Path) -> None:
    """Write a self-signed certificate, valid for a day, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1)
    )
    pem = serialization.Encoding.PEM
    (folder / "crt").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key").write_bytes(private)
    os.chmod(folder / "key", 0o600)


@dataclass
class MlflowServer:
    """A server that can be stopped and restarted, with its URI and the user of jobs."""

    uri: str
    username: str
    password: str
    store: str
    environment: dict[str, str]
    folder: Path
    command: Sequence[str] = ("sh", str(SCRIPT))
    process: subprocess.Popen[bytes] | None = field(default=None)

    def on_a_port(self, command: Sequence[str], arguments: Sequence[str]) -> MlflowServer:
        """The same with another command, on a free port, which the command gets as options."""
        port = free_ports(1)[0]
        full = [*command, "--host", "127.0.0.1", "--port", str(port), *arguments]
        return replace(self, uri=f"http://127.0.0.1:{port}", command=full)

    def start(self) -> None:
        """Start it and wait until it responds. RuntimeError with the end of its log if it does not."""
        log = self.folder / "log"
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=self.folder,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(requests.ConnectionError, requests.Timeout):
                if requests.get(f"{self.uri}/health", timeout=5).ok:
                    return
            time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"MLflow does not respond; its log ends with:\n{log.read_text()[-4000:]}")

    def stop(self) -> None:
        """Stop it and all its workers."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=20)
            self.process = None


def migrate(environment: dict[str, str], *, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the image's migration script on the database of `environment`."""
    return subprocess.run(
        ["sh", str(MIGRATE)], env=environment, capture_output=True, text=True, check=False, timeout=seconds
    )


def tasks_environment(folder: Path, s3: S3Server, bucket: str) -> dict[str, str]:
    """The variables of a task, without those of the database and of HOST and PORT; `folder` is its home."""
    inherited = {name: os.environ[name] for name in ("LANG", "TZ") if name in os.environ}
    return {
        **inherited,
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(folder),
        "WORKERS": "1",
        "ALLOWED_HOSTS": "127.0.0.1:*",
        "ARTEFACT_BUCKET": bucket,
        "MLFLOW_S3_ENDPOINT_URL": s3.endpoint,
        "MLFLOW_AUTH_ADMIN_USERNAME": "administrator",
        "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.token_hex(12),
        "MLFLOW_JOBS_USERNAME": "encore",
        "MLFLOW_JOBS_PASSWORD": secrets.token_hex(12),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(12),
        **s3.environment(),
    }


@contextmanager
def mlflow_server(s3: S3Server, bucket: str) -> Iterator[MlflowServer]:
    """MLflow with artefacts in a bucket, on a migrated database: PostgreSQL if it is installed, else SQLite."""
    programs, folder = postgres_programs(), Path(tempfile.mkdtemp(prefix="encore-mlflow-"))
    environment = tasks_environment(folder, s3, bucket)
    try:
        if programs is None:
            environment["MLFLOW_BACKEND_STORE_URI"] = f"sqlite:///{folder}/mlflow.db"
            yield from _migrated("sqlite", environment, folder)
        else:
            with postgres(programs) as database:
                yield from _migrated("PostgreSQL", {**environment, **database}, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def old_mlflow(version: str) -> Path:
    """The folder of programs of an environment with MLflow 3.0, as SageMaker runs it, or 3.6, made if it is missing."""
    return interpreter(f"mlflow-{version}", Path(__file__).parent).parent


@contextmanager
def managed_mlflow(s3: S3Server, bucket: str) -> Iterator[MlflowServer]:
    """MLflow 3.0 without authentication, on SQLite; clients write artefacts to the bucket themselves."""
    folder, port = Path(tempfile.mkdtemp(prefix="encore-mlflow-")), free_ports(1)[0]
    programs = old_mlflow("3.0")
    command = [str(programs / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1", "--no-serve-artifacts"]
    command += ["--default-artifact-root", f"s3://{bucket}/artefacts"]
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(folder), **s3.environment()}
    server = MlflowServer(f"http://127.0.0.1:{port}", "", "", "sqlite", environment, folder, command)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def secrets_manager() -> Iterator[str]:
    """moto's mock account over HTTP, so that other processes can reach it; yields its URL."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def _migrated(store: str, environment: dict[str, str], folder: Path) -> Iterator[MlflowServer]:
    done = migrate(environment)
    assert done.returncode == 0, done.stdout + done.stderr
    with running(store, environment, folder) as server:
        yield server


@contextmanager
def running(store: str, environment: dict[str, str], folder: Path) -> Iterator[MlflowServer]:
    """A server with a task's variables on a port of its own, on a migrated database."""
    port = free_ports(1)[0]
    login = (environment["MLFLOW_JOBS_USERNAME"], environment["MLFLOW_JOBS_PASSWORD"])
    own = {name: value for name, value in environment.items() if not name.startswith("MLFLOW_JOBS_")}
    own |= {"HOST": "127.0.0.1", "PORT": str(port)}
    server = MlflowServer(f"http://127.0.0.1:{port}", *login, store, own, folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
