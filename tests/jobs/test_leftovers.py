"""The next run removes what a killed run left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from encore import temporary
from encore.config import Config
from encore.lake.delta import data_files
from encore.lake.store import Store
from encore.lake.tables import HOLDOUT, PLAYLISTS
from encore.runtime.leftovers import Cleaned, working
from encore.runtime.pipeline import run_pipeline
from encore.runtime.tracking import Tracking
from encore.spark.session import Session


def dead_process() -> tuple[int, int]:
    """Id and start time of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        start = temporary.start_of(process.pid)
        assert start is not None
        assert temporary.is_running(process.pid, start)
        process.send_signal(signal.SIGKILL)
    assert not temporary.is_running(process.pid, start)
    return process.pid, start


def paths(config: Config) -> set[str]:
    found = Store(config, _no_spark).there(HOLDOUT)
    return {str(file["path"]) for file in data_files(found)}


def _no_spark() -> None:
    raise AssertionError


@pytest.mark.slow
def test_the_next_run_removes_what_a_killed_one_left(
    session: Session, generated: Path, lake_settings: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = lake_settings(f"raw.playlists={generated}")
    jobs = ["ingest_playlists", "split_holdout"]
    notes: list[str] = []
    run_pipeline(config, jobs, session=session)
    folder = Path(config.lake.path)
    first = paths(config)
    # a second version, so that the files of the first one are not in the newest
    run_pipeline(lake_settings(f"raw.playlists={generated}", "split.seed=7"), jobs, session=session)

    pid, start = dead_process()
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: pid)
        patched.setattr(temporary, "start_of", lambda _: start)
        tracking = Tracking(config, "killed")
        tracking.prepare()
        parent = tracking.parent()
        with (
            pytest.raises(SystemExit),
            working(Store(config, session), "split_holdout", "killed", (HOLDOUT,), Cleaned()),
        ):
            raise SystemExit
    (marker,) = (folder / "_scratch").glob("split_holdout-*/owner.json")
    (marker.parent / "aside.arrows").write_bytes(b"x" * 1000)
    (folder / "holdout" / "part-lost.zstd.parquet").write_bytes(b"y" * 2000)
    foreign = folder / "_scratch" / "recommend-1"
    foreign.mkdir()
    (foreign / "owner.json").write_text("{}")
    prefix = f"encore-{temporary.machine()}-{pid}-{start}-"
    (Path(tempfile.mkdtemp(prefix=prefix)) / "block").write_bytes(b"z" * 3000)

    # if there is nothing to do, leftovers are not searched for
    again = lake_settings(f"raw.playlists={generated}", "split.seed=7")
    run_pipeline(again, jobs, session=session, on_note=notes.append)
    assert marker.exists()
    assert notes == []

    last = lake_settings(f"raw.playlists={generated}", "split.seed=8")
    run_pipeline(last, jobs, session=session, on_note=notes.append)
    assert [note for note in notes if note.startswith("Cleaned")] == [
        "Cleaned up after runs that did not end: 1 temporary folder(s) (0.0 MB), 1 scratch file(s) (0.0 MB), "
        "1 unreferenced data file(s) (0.0 MB), 1 MLflow run(s) marked as killed"
    ]
    assert not marker.parent.exists()
    assert foreign.exists()
    assert not (folder / "holdout" / "part-lost.zstd.parquet").exists()
    # files of older versions stay
    assert all((folder / "holdout" / path).exists() for path in first)
    assert MlflowClient(config.tracking.uri).get_run(parent).info.status == "KILLED"


def test_what_a_live_process_has_stays(session: Session, lake_settings: Callable[..., Config]) -> None:
    store = Store(lake_settings(), session)
    store.ensure(PLAYLISTS)
    lost = Path(store.root) / "playlists" / "part-new.parquet"
    with working(store, "ingest_playlists", "one", (PLAYLISTS,), Cleaned()):
        lost.write_bytes(b"not committed yet")
        cleaned = Cleaned()
        with working(store, "ingest_playlists", "two", (PLAYLISTS,), cleaned):
            assert lost.exists()
    assert cleaned == Cleaned()
    assert os.listdir(Path(store.root) / "_scratch") == []


def test_nothing_is_removed_of_a_table_whose_log_is_not_whole(
    session: Session, lake_settings: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(lake_settings(), session)
    store.ensure(PLAYLISTS)
    pid, start = dead_process()
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: pid)
        patched.setattr(temporary, "start_of", lambda _: start)
        with pytest.raises(SystemExit), working(store, "ingest_playlists", "one", (PLAYLISTS,), Cleaned()):
            raise SystemExit
    lost = Path(store.root) / "playlists" / "part-new.parquet"
    lost.write_bytes(b"whose?")
    there = store.there(PLAYLISTS)
    there.alter.set_table_properties({"delta.logRetentionDuration": "interval 3650 days"})
    os.unlink(Path(store.root) / "playlists" / "_delta_log" / f"{1:020d}.json")
    monkeypatch.setattr(Store, "open", lambda *_: there)
    cleaned = Cleaned()
    with working(store, "ingest_playlists", "two", (PLAYLISTS,), cleaned):
        pass
    assert cleaned.data_files == 0
    assert lost.exists()
