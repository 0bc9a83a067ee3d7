"""How task errors reach the driver: as the original exception, once, and without a JVM stack trace."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from encore.errors import EncoreError, EnvironmentMissing, InputError, LakeError, TransientError, WriteRefused
from encore.lake.failures import reading
from encore.spark.session import Session
from encore.spark.tasks import WorkerTraceback, run_tasks, tries_of

NOTHING = pa.table({"n": [1]})


def failing(make: Callable[[], BaseException]) -> Callable[[Any], pa.Table]:
    def work(part: int) -> pa.Table:
        if part == 1:
            raise make()
        return NOTHING

    return work


@pytest.mark.parametrize(
    ("make", "kind", "code"),
    [
        (lambda: InputError("no data", remedy="give some"), InputError, 3),
        (lambda: TransientError("busy", remedy="wait"), TransientError, 75),
        (lambda: WriteRefused("tracks", ["one", "two"]), WriteRefused, 5),
        (lambda: OSError(errno.ENOSPC, "No space left on device", "/lake/f"), EnvironmentMissing, 4),
        (lambda: OSError(errno.EROFS, "Read-only file system", "/lake/f"), LakeError, 5),
        (lambda: ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), TransientError, 75),
    ],
)
def test_an_expected_failure_is_raised_as_itself(
    session: Session, make: Callable[[], BaseException], kind: type[EncoreError], code: int
) -> None:
    with pytest.raises(kind) as caught:
        run_tasks(session(), [0, 1, 2], failing(make))
    assert (type(caught.value), caught.value.exit_code) == (kind, code)
    assert "java" not in str(caught.value)
    made = make()
    if isinstance(made, EncoreError):
        assert (str(caught.value), caught.value.remedy) == (str(made), made.remedy)
    else:
        assert str(caught.value).startswith("/lake/f: " if code != 75 else "a file: ")


def test_a_defect_shows_the_workers_stack_and_not_the_jvms(session: Session) -> None:
    def work(part: int) -> pa.Table:
        raise KeyError(f"column {part}")

    with pytest.raises(KeyError, match="column 0") as caught:
        run_tasks(session(), [0], work)
    assert isinstance(caught.value.__cause__, WorkerTraceback)
    stack = str(caught.value.__cause__)
    assert "test_tasks.py" in stack
    assert "org.apache.spark" not in stack


class TwoArguments(Exception):
    """Cannot be unpickled, because its __init__ takes a different number of arguments than its `args` has."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def test_a_defect_that_cannot_be_pickled_is_told_by_its_text(session: Session) -> None:
    with pytest.raises(RuntimeError, match="TwoArguments: ab"):
        run_tasks(session(), [1], failing(lambda: TwoArguments("a", "b")))


def test_other_tasks_are_stopped(session: Session, tmp_path: Path) -> None:
    def work(part: int) -> pa.Table:
        if part == 0:
            raise InputError("bad")
        (tmp_path / str(part)).touch()
        time.sleep(1)
        return NOTHING

    with pytest.raises(InputError, match="bad"):
        run_tasks(session(), list(range(40)), work)
    time.sleep(1.5)
    assert len(os.listdir(tmp_path)) < 20


def test_a_job_goes_on_after_one_that_was_stopped(session: Session) -> None:
    with pytest.raises(InputError):
        run_tasks(session(), [1, 2, 3], failing(lambda: InputError("bad")))
    assert len(run_tasks(session(), [5, 6, 7], failing(lambda: InputError("bad")))) == 3


def test_a_worker_that_dies_is_no_defect(session: Session) -> None:
    def work(part: int) -> pa.Table:
        os.kill(os.getpid(), 9)
        return NOTHING

    with pytest.raises(EnvironmentMissing, match="a Python worker died") as caught:
        run_tasks(session(), [0], work)
    assert "memory" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("master", "most", "tries"),
    [("local[2]", "4", 1), ("local[*]", "9", 1), ("local[2, 3]", "4", 3), ("yarn", "4", 4), ("spark://h:7077", "6", 6)],
)
def test_how_often_spark_tries(master: str, most: str, tries: int) -> None:
    assert tries_of(master, most) == tries


def test_a_damaged_file_is_named(session: Session, tmp_path: Path) -> None:
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")

    def work(part: int) -> pa.Table:
        import pyarrow.parquet as pq

        with reading(str(tmp_path / "cut.parquet")):
            return pq.ParquetFile(tmp_path / "cut.parquet").read()

    with pytest.raises(LakeError, match=r"cut\.parquet: a damaged data file: Parquet magic bytes not found"):
        run_tasks(session(), [0], work)
