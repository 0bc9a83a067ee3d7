"""MLflow as a deployment runs it: its migration, its servers and its users, on PostgreSQL where that is installed."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

import tests.deploy.synth  # noqa: F401 - makes deploy/cdk importable
from encore.config import Config, load_config
from encore.runtime.model_registry import CHALLENGER
from encore.runtime.tracking import Tracking
from encore.serving.registry import RegisteredModel, Registry
from tests.deploy import mlflow_calls
from tests.deploy.mlflow_calls import MODEL
from tests.deploy.mlflow_server import (
    SCRIPT,
    MlflowServer,
    migrate,
    old_mlflow,
    postgres,
    postgres_programs,
    running,
    tasks_environment,
)
from tests.s3server import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.s3, pytest.mark.timeout(1800)]

BUCKET = "mlflow-artefacts"
NAME = f"encore-{MODEL}"


class Database:
    """An empty database, with the variables of tasks that use it."""

    def __init__(self, stack: ExitStack, folder: Path, s3: S3Server) -> None:
        programs = postgres_programs()
        self.store = "sqlite" if programs is None else "PostgreSQL"
        self.environment = tasks_environment(folder, s3, BUCKET)
        self.folder = folder
        if programs is None:
            self.uri = f"sqlite:///{folder}/mlflow.db"
        else:
            own = stack.enter_context(postgres(programs))
            self.environment |= own
            login = f"{own['DB_USER']}:{own['DB_PASSWORD']}@{own['DB_HOST']}:{own['DB_PORT']}"
            self.uri = f"postgresql+psycopg2://{login}/mlflow?sslmode=require"
        self.environment["MLFLOW_BACKEND_STORE_URI"] = self.uri

    def login(self, whose: str) -> tuple[str, str]:
        """Name and password: of JOBS or of AUTH_ADMIN."""
        return (self.environment[f"MLFLOW_{whose}_USERNAME"], self.environment[f"MLFLOW_{whose}_PASSWORD"])


@pytest.fixture
def database(tmp_path: Path, s3_server: S3Server) -> Iterator[Database]:
    with ExitStack() as stack:
        yield Database(stack, tmp_path, s3_server)


@pytest.fixture(scope="module")
def deployed(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Database, MlflowServer]]:
    """A server on a migrated database."""
    s3_server.client().create_bucket(Bucket=BUCKET)
    with ExitStack() as stack:
        made = Database(stack, tmp_path_factory.mktemp("mlflow"), s3_server)
        assert migrate(made.environment).returncode == 0
        yield made, stack.enter_context(running(made.store, made.environment, made.folder))


def log_in(monkeypatch: pytest.MonkeyPatch, user: tuple[str, str]) -> None:
    """Let MLflow's client log in as this user, and wait for a server on a busy machine."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", user[1])


def configured(uri: str, experiment: str) -> Config:
    return load_config("local", [f"tracking.uri={uri}", f"tracking.experiment={experiment}"])


def refused(method: str, url: str, user: tuple[str, str], **fields: Any) -> bool:
    """Whether the server forbids a request of this user, rather than answering it or finding it invalid."""
    given = {"params": fields} if method == "GET" else {"json": fields}
    answer = requests.Session().request(method, url, auth=user, timeout=120, **given)  # type: ignore[arg-type]
    assert answer.status_code in (200, 403), answer.text
    return answer.status_code == 403


# migration ---------------------------------------------------------------------------------------------------------


def test_no_server_starts_on_a_database_that_is_not_migrated(database: Database) -> None:
    done = subprocess.run(
        ["sh", str(SCRIPT)], env=database.environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert "run migrate.sh" in done.stdout
    assert tables(database) == set(), "it has created nothing either"


def test_migrations_and_servers_that_start_together_do_not_race(
    database: Database, verified: Callable[[str], None]
) -> None:
    """Two migrations of an empty database, then two servers."""
    if database.store == "sqlite":
        assert migrate(database.environment).returncode == 0
    else:
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(lambda _: migrate(database.environment), range(2)))
        assert [one.returncode for one in done] == [0, 0], [one.stdout + one.stderr for one in done]
        assert sorted("user encore: created" in one.stdout for one in done) == [False, True]
    with ThreadPoolExecutor(2) as pool, ExitStack() as stack:
        contexts = []
        for name in ("first", "second"):
            folder = database.folder / name
            folder.mkdir()
            environment = {**database.environment, "HOME": str(folder)}
            contexts.append(running(database.store, environment, folder))
        servers = list(pool.map(lambda context: context.__enter__(), contexts))
        for context in contexts:
            stack.push(context.__exit__)
        for server in servers:
            answer = requests.get(
                f"{server.uri}/api/2.0/mlflow/experiments/get",
                {"experiment_id": "0"},
                auth=database.login("AUTH_ADMIN"),
                timeout=120,
            )
            assert answer.json()["experiment"]["name"] == "Default"
    verified(f"two migrations of an empty MLflow database on {database.store} at once, then two servers: no race")


def test_the_database_of_an_older_mlflow_is_upgraded_with_its_users(
    database: Database, monkeypatch: pytest.MonkeyPatch, verified: Callable[[str], None]
) -> None:
    """MLflow 3.6 ran with one user, an administrator as whom jobs logged in; its runs and models stay usable."""
    programs = old_mlflow("3.6")
    ini = database.folder / "old.ini"
    user, password = database.login("JOBS")[0], secrets.token_hex(12)
    ini.write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = {database.uri}\n"
        f"admin_username = {user}\nadmin_password = {password}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {
        **{name: value for name, value in database.environment.items() if not name.startswith("MLFLOW_")},
        "PATH": f"{programs}:/usr/bin:/bin",
        "MLFLOW_AUTH_CONFIG_PATH": str(ini),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(12),
    }
    own = MlflowServer("", user, password, database.store, environment, database.folder)
    old = own.on_a_port(
        [str(programs / "mlflow"), "server", "--app-name", "basic-auth", "--workers", "1"],
        ["--backend-store-uri", database.uri, "--artifacts-destination", str(database.folder / "files")],
    )
    old.start()
    try:
        log_in(monkeypatch, (user, password))
        client = MlflowClient(old.uri)
        experiment = client.create_experiment("encore")
        run = client.create_run(experiment, tags={"encore.kind": "pipeline"}).info.run_id
        client.log_metric(run, "seconds", 7)
        client.create_registered_model(NAME)
    finally:
        old.stop()

    done = subprocess.run(
        ["sh", str(SCRIPT)], env=database.environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, "run migrate.sh" in done.stdout) == (1, True), "as MLflow itself refuses to start on it"
    done = migrate(database.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"user {user}: no administrator, new password" in done.stdout
    with running(database.store, database.environment, database.folder) as server:
        log_in(monkeypatch, database.login("JOBS"))
        client = MlflowClient(server.uri)
        assert client.get_experiment_by_name("encore").experiment_id == experiment
        assert client.get_run(run).data.metrics == {"seconds": 7}
        client.set_tag(run, "more", "true")
        assert client.get_registered_model(NAME).name == NAME
        assert refused("POST", f"{server.uri}/api/2.0/mlflow/users/create", database.login("JOBS"),
                       username="another", password=secrets.token_hex(12))  # fmt: skip
        assert requests.get(f"{server.uri}/api/2.0/mlflow/experiments/search", {"max_results": 1},
                            auth=(user, password), timeout=120).status_code == 401, "the old password"  # fmt: skip
    verified(f"a database that MLflow 3.6.0 made on {database.store} is upgraded, and its administrator made a user")


def test_the_database_of_a_newer_mlflow_is_left_alone(database: Database) -> None:
    from sqlalchemy import create_engine, text

    assert migrate(database.environment).returncode == 0
    with create_engine(database.uri).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'ffffffffffff'"))
    done = migrate(database.environment)
    assert done.returncode == 1
    assert "a newer MLflow has migrated it" in done.stdout


def tables(database: Database) -> set[str]:
    from sqlalchemy import create_engine, inspect

    return set(inspect(create_engine(database.uri)).get_table_names())


# users -------------------------------------------------------------------------------------------------------------


def test_the_user_of_jobs_may_do_all_that_jobs_do(
    deployed: tuple[Database, MlflowServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verified: Callable[[str], None],
) -> None:
    """In an experiment of its own, and in one that the administrator has created, with a model of the administrator."""
    made, server = deployed
    log_in(monkeypatch, made.login("AUTH_ADMIN"))
    administrators = MlflowClient(server.uri)
    administrators.create_experiment("of-the-administrator")
    administrators.create_registered_model(NAME)
    log_in(monkeypatch, made.login("JOBS"))
    # jobs create the experiment when they first log to it
    own = Tracking(configured(server.uri, "of-jobs"), "own")
    assert own.parent() is not None
    own.finish(["evaluate"], None, 2.0)
    assert own.failed is None
    config = configured(server.uri, "of-the-administrator")
    run = mlflow_calls.track(config, "calls", tmp_path)
    version = mlflow_calls.register(config, "calls", run, tmp_path)

    # the scorer, which speaks HTTP without MLflow's client
    registry = Registry(server.uri, os.environ)
    model = RegisteredModel(registry, f"models:/{NAME}@champion", tmp_path / "cache")
    assert model.resolve().champion == str(version.version)
    assert (model.fetch(str(version.version)) / "manifest.json").is_file()
    model.set_tag(str(version.version), "encore.canary", "ok")
    model.set_alias(CHALLENGER, "1")
    # the function that ECS calls
    from hooks import one_canary

    login = {"uri": server.uri, **dict(zip(("username", "password"), made.login("JOBS"), strict=True))}
    assert one_canary.challenger(login, NAME) == "1"
    model.delete_alias(CHALLENGER)
    assert one_canary.challenger(login, NAME) is None
    verified(f"MLflow's user of jobs, no administrator, may do what jobs, scorer and hook do, on {made.store}")


def test_the_user_of_jobs_administers_nothing(
    deployed: tuple[Database, MlflowServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, server = deployed
    jobs, administrator = made.login("JOBS"), made.login("AUTH_ADMIN")
    log_in(monkeypatch, administrator)
    client = MlflowClient(server.uri)
    experiment = client.create_experiment("private")
    run = client.create_run(experiment).info.run_id
    api, word = f"{server.uri}/api/2.0/mlflow", secrets.token_hex(12)
    create = {"username": "person", "password": word}
    assert not refused("POST", f"{api}/users/create", administrator, **create), "the administrator may"
    for method, path, fields in (
        ("POST", "users/create", {"username": "another", "password": word}),
        ("GET", "users/get", {"username": administrator[0]}),
        ("PATCH", "users/update-password", {"username": administrator[0], "password": word}),
        ("PATCH", "users/update-password", {"username": "person", "password": word}),
        ("PATCH", "users/update-admin", {"username": jobs[0], "is_admin": True}),
        ("DELETE", "users/delete", {"username": "person"}),
        ("POST", "experiments/permissions/create",
         {"experiment_id": experiment, "username": "person", "permission": "READ"}),
        ("POST", "experiments/delete", {"experiment_id": experiment}),
        ("POST", "runs/delete", {"run_id": run}),
    ):  # fmt: skip
        assert refused(method, f"{api}/{path}", jobs, **fields), path
    # what it may read about users holds no password, not even a hash
    users = requests.get(f"{api}/users/list", auth=jobs, timeout=120)
    assert "password" not in users.text
    log_in(monkeypatch, jobs)
    with pytest.raises(MlflowException, match="Permission denied"):
        MlflowClient(server.uri).delete_experiment(experiment)
    log_in(monkeypatch, administrator)
    assert MlflowClient(server.uri).get_experiment(experiment).lifecycle_stage == "active"
