"""Migrate MLflow's database to the schema of the installed MLflow, and set its users; `--check`: only compare schemas.

It can be run again at any time: what is up to date is left as it is. Of several processes that run it at the same time
on PostgreSQL, one works and the others wait.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import create_engine, text

# MLflow itself is imported by `migrate` alone: that takes seconds, which `--check` would add to each start of a server

SCRIPTS = {
    "runs and models": ("alembic_version", "store/db_migrations"),
    "users": ("alembic_version_auth", "server/auth/db/migrations"),
}
"""By part of the database, the table with its revision, and MLflow's folder of migrations."""

LOCK = 0x656E636F7265
"""Key of the advisory lock, which PostgreSQL releases when the connection ends, however that happens."""

ARTEFACTS = "mlflow-artifacts:/"
"""What `mlflow server --serve-artifacts` uses as the location of artefacts."""

GRANTS = {"experiment": "EDIT", "registered_model": "MANAGE"}
"""What the user of jobs may do with all experiments and models, whoever created them. It may not delete experiments and
runs of other users. Removing an alias takes MANAGE, since MLflow counts it as a deletion."""


class MigrationError(Exception):
    """The database cannot be used with the installed MLflow."""


def revisions(engine: Any) -> dict[str, tuple[str | None, str]]:
    """By part of the database, its revision, None if it is empty, and the revision of the installed MLflow.

    MigrationError if the database is of a newer MLflow, whose revision is unknown here.
    """
    spec = find_spec("mlflow")
    assert spec is not None
    assert spec.origin is not None
    found = {}
    with engine.connect() as connection:
        for part, (table, folder) in SCRIPTS.items():
            scripts = ScriptDirectory(str(Path(spec.origin).parent / folder))
            own = scripts.get_current_head()
            assert own is not None
            current = MigrationContext.configure(connection, opts={"version_table": table}).get_current_revision()
            try:
                scripts.get_revision(current or own)
            except CommandError as error:
                raise MigrationError(
                    f"the schema of {part} is at revision {current}, which MLflow {version('mlflow')} does not know: "
                    "a newer MLflow has migrated it; deploy that version, or restore the database from before"
                ) from error
            found[part] = current, own
    return found


def check(engine: Any) -> None:
    """MigrationError if a part of the database is not at the revision of the installed MLflow."""
    for part, (current, own) in revisions(engine).items():
        if current != own:
            raise MigrationError(
                f"the schema of {part} is at revision {current}, and MLflow {version('mlflow')} needs {own}: "
                "run migrate.sh"
            )


@contextmanager
def locked(engine: Any) -> Iterator[None]:
    """Hold the lock; on SQLite, which only tests use, there is none."""
    if engine.dialect.name != "postgresql":
        yield
        return
    # outside a transaction, in which the server might end an idle connection
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK})
        yield


def migrate(uri: str, engine: Any, administrator: tuple[str, str], jobs: tuple[str, str]) -> None:
    """Migrate the database, and set both users: their names, passwords and permissions."""
    from mlflow import db
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore as AuthStore
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as TrackingStore

    if administrator[0] == jobs[0]:
        raise MigrationError(f"the user of jobs and the administrator have the same name, {jobs[0]}")
    with locked(engine):
        before = revisions(engine)
        # what `mlflow db upgrade` does, without the password on a command line
        db.upgrade.callback(uri)
        # creates the default experiment, which servers would create at the same time
        TrackingStore(uri, ARTEFACTS)
        users = AuthStore()
        users.init_db(uri)
        for part, (current, own) in before.items():
            say(
                f"{part}: schema {current or 'empty'} -> {own}"
                if current != own
                else f"{part}: schema {own}, as before"
            )
        set_user(users, *administrator, is_admin=True)
        set_user(users, *jobs, is_admin=False)
        for resource, permission in GRANTS.items():
            users.grant_user_permission(jobs[0], resource, "*", permission)
        check(engine)


def set_user(users: Any, name: str, password: str, *, is_admin: bool) -> None:
    """Create a user, or set the password and rights of an existing one."""
    kind = "administrator" if is_admin else "no administrator"
    if not users.has_user(name):
        users.create_user(name, password, is_admin=is_admin)
        say(f"user {name}: created, {kind}")
        return
    same = users.authenticate_user(name, password)
    users.update_user(name, password=None if same else password, is_admin=is_admin)
    say(f"user {name}: {kind}, {'as before' if same else 'new password'}")


def say(message: str) -> None:
    """Write a line to the log."""
    print(f"migrate: {message}", flush=True)  # noqa: T201 - the task's log


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    uri = os.environ["MLFLOW_BACKEND_STORE_URI"]
    engine = create_engine(uri)
    try:
        if list(arguments) == ["--check"]:
            check(engine)
        else:
            administrator, jobs = (
                (os.environ[f"{prefix}_USERNAME"], os.environ[f"{prefix}_PASSWORD"])
                for prefix in ("MLFLOW_AUTH_ADMIN", "MLFLOW_JOBS")
            )
            migrate(uri, engine, administrator, jobs)
    except MigrationError as error:
        say(f"failed: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
