"""A table was opened, then the S3 server went away: each further access is a transient failure that names the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from deltalake import DeltaTable

from encore.cli.command import guarded
from encore.config import Config
from encore.errors import TransientError
from encore.lake import maintenance, restore
from encore.lake.delta import RESTORE, all_changes, log_entries
from encore.lake.restore import Target
from encore.lake.store import Store
from encore.lake.tables import JOB_COSTS, JOB_RUNS
from encore.lake.transaction import append_small
from encore.spark.session import Session
from tests.conftest import settings
from tests.s3server import s3_server

ROW = dict.fromkeys(JOB_COSTS.names)


@pytest.fixture(scope="module")
def away() -> Iterator[tuple[Store, DeltaTable]]:
    """A store whose server has been stopped, and its table `job_costs`, opened before."""
    with pytest.MonkeyPatch.context() as patch:
        with s3_server() as server:
            for name, value in server.environment().items():
                patch.setenv(name, value)
            patch.setattr("boto3.DEFAULT_SESSION", None)
            server.client().create_bucket(Bucket="away")
            config = settings("s3://away/lake", "s3.path_style=true", "s3.region=us-east-1")
            store = Store(config, Session(config))
            append_small(store, JOB_COSTS, [{**ROW, "run_id": "r", "job": "j"}])
            found = store.there(JOB_COSTS)
        yield store, found


ACCESSES: dict[str, Callable[[Store, DeltaTable], Any]] = {
    "open": lambda store, _: store.open(JOB_COSTS),
    "at": lambda store, found: store.at(JOB_COSTS, found.version()),
    "log_entries": lambda _, found: log_entries(found),
    "all_changes": lambda _, found: list(all_changes(found)),
    "rows": lambda store, _: store.read_small(JOB_COSTS),
    "target": lambda store, found: restore.target_of(found, JOB_COSTS, found.version()),
    "restore": lambda store, _: restore.restore(store, Target(JOB_COSTS, (), 0, False), RESTORE),
    "readable": lambda store, found: maintenance._readable(store, JOB_COSTS, found.version()),
}


@pytest.mark.s3
@pytest.mark.parametrize(
    "access",
    # each waits until delta-rs gives up, after 10 attempts
    [pytest.param(f, id=k, marks=[] if k in ("readable", "rows") else pytest.mark.slow) for k, f in ACCESSES.items()],
)
def test_each_access_is_a_transient_failure(
    away: tuple[Store, DeltaTable], access: Callable[[Store, DeltaTable], Any]
) -> None:
    with pytest.raises(TransientError, match=r"job_costs: .*S3 server does not answer"):
        access(*away)


def test_the_state_of_a_table_that_was_just_opened(
    away: tuple[Store, DeltaTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, found = away
    monkeypatch.setattr(store, "open", lambda table: found)
    with pytest.raises(TransientError, match=r"job_costs: .*S3 server does not answer"):
        store.state(JOB_COSTS)


def test_a_command_reports_what_no_module_translated(
    away: tuple[Store, DeltaTable], capsys: pytest.CaptureFixture[str]
) -> None:
    """As a program of someone else's, or a library, may raise it: an exit code, not a stack trace."""
    assert guarded(lambda: away[1].history()) == TransientError.exit_code
    assert "the S3 server does not answer" in capsys.readouterr().err


def test_a_version_that_never_existed_is_not_readable(lake_settings: Callable[..., Config]) -> None:
    store = Store(lake_settings(), Session(lake_settings()))
    append_small(store, JOB_RUNS, [{**dict.fromkeys(JOB_RUNS.names), "run_id": "r", "job": "j"}])
    newest = store.there(JOB_RUNS).version()
    assert maintenance._readable(store, JOB_RUNS, newest)
    assert not maintenance._readable(store, JOB_RUNS, newest + 7)
