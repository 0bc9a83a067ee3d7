"""Restoring tables: rows, provenance, and what the next run computes again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from unittest.mock import patch

import pytest

from encore.errors import ConfigError, LakeError, TransientError
from encore.lake.delta import Change, Commit, in_effect
from encore.lake.lock import LakeLock
from encore.lake.restore import restore
from encore.lake.store import Store, open_store
from encore.lake.tables import BY_NAME, HOLDOUT, INGEST_LEDGER, MODELS, PLAYLISTS, QUARANTINE, RECOMMENDATIONS, Table
from encore.runtime import recovery
from encore.vocabulary import FEATURES
from tests.changes import Killed, Lake, fresh, killed_after, plain, uri
from tests.jobs.local.small import done, overwrite, rows, run


def go_back(lake: Lake, table: Table, version: int | None = None, at_ms: int | None = None) -> dict[str, int]:
    """`encore restore`."""
    store = open_store(lake.config)
    return recovery.run(lake.config, store, recovery.plan(store, table, version=version, at_ms=at_ms), "restored")


def version(lake: Lake, table: Table) -> int:
    return open_store(lake.config).there(table).version()


@pytest.mark.parametrize("table", [RECOMMENDATIONS, HOLDOUT, PLAYLISTS], ids=lambda table: table.name)
def test_after_a_bad_overwrite_is_undone_nothing_is_stale(lake: Lake, table: Table) -> None:
    before, good = rows(lake, table), version(lake, table)
    overwrite(lake, table)
    assert rows(lake, table) != before
    assert set(go_back(lake, table, good)) == {table.name}
    assert rows(lake, table) == before
    assert done(lake) == set()


def test_what_was_computed_from_the_undone_rows_is_stale_and_nothing_else(lake: Lake) -> None:
    centroids = BY_NAME["playlist_centroids"]
    before = {table: (rows(lake, table), version(lake, table)) for table in (HOLDOUT, centroids)}
    lake.overrides["split.seed"] = "2"
    assert done(lake) == {"split_holdout", "build_centroids", "fit_models", "recommend"}
    n_models = len(rows(lake, MODELS))
    del lake.overrides["split.seed"]
    for table, (own, number) in before.items():
        go_back(lake, table, number)
        assert rows(lake, table) == own
    versions = {table: version(lake, table) for table in before}
    assert done(lake) == {"fit_models", "recommend"}, "the recommendations are still those of the other split"
    assert {table: version(lake, table) for table in before} == versions
    assert len(rows(lake, MODELS)) == n_models, "the models of the first split are known"
    assert done(lake) == set()


def test_ingest_reads_only_the_files_that_have_changed_since(lake: Lake) -> None:
    before, good = lake.contents(), version(lake, PLAYLISTS)
    # as many playlists as before, so that counts alone do not tell the versions apart
    lake.raw.write("b.json", {10 + j: plain([20 + j, 21 + j]) for j in range(4)})
    n_read = lake.ingest().facts["files_read"]
    assert 1 <= n_read < 3
    assert set(go_back(lake, PLAYLISTS, good)) == {"playlists", "tracks", "quarantine", "ingest_ledger"}
    assert lake.contents() == before
    assert lake.ingest().facts["files_read"] == n_read
    assert lake.contents() == fresh(lake)


def test_a_restore_of_the_ledger_alone_would_hide_a_change(lake: Lake) -> None:
    """The reason why tables of a job go back together."""
    good = version(lake, INGEST_LEDGER)
    lake.raw.write("b.json", {10 + j: plain([20 + j, 21 + j]) for j in range(4)})
    lake.ingest()
    assert "playlists" in go_back(lake, INGEST_LEDGER, good)


@pytest.mark.slow
def test_refused_records_go_back_with_the_playlists_and_those_of_other_jobs_stay(lake: Lake) -> None:
    features = Path(lake.overrides["raw.features"])
    features.write_text(features.read_text() + f"\n{uri(11)}{',9' * len(FEATURES)}")
    lake.raw.write("b.json", {10: plain([1])}, {"pid": "none"})
    run(lake)
    both, good = lake.quarantine(), version(lake, PLAYLISTS)
    assert len(both) == 2
    lake.raw.write("b.json", {10: plain([1])}, {"pid": "none"}, {"pid": "also none"})
    lake.ingest()
    assert len(lake.quarantine()) == 3
    go_back(lake, PLAYLISTS, good)
    assert lake.quarantine() == both
    lake.raw.write("b.json", {10: plain([1])}, {"pid": "none"})
    assert done(lake) == {"ingest_playlists"}
    assert lake.contents() == fresh(lake) | {"quarantine": both}


@pytest.mark.parametrize("n_done", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1, 3, 4))])
def test_a_restore_that_was_interrupted_leaves_a_lake_from_which_ingest_goes_on(lake: Lake, n_done: int) -> None:
    good, calls = version(lake, PLAYLISTS), 0
    lake.raw.write("b.json", {10 + j: plain([20 + j, 21 + j]) for j in range(4)})
    lake.ingest()

    def breaks_off(*args: object) -> int:
        nonlocal calls
        calls += 1
        if calls > n_done:
            raise Killed
        return restore(*args)  # type: ignore[arg-type]

    with patch.object(recovery, "restore", breaks_off):
        try:
            go_back(lake, PLAYLISTS, good)
        except Killed:
            assert n_done < 4
    lake.ingest()
    assert lake.contents() == fresh(lake)


def test_a_time_in_the_middle_of_a_run_is_one_from_which_ingest_goes_on(lake: Lake) -> None:
    began = version(lake, PLAYLISTS)
    lake.raw.write("b.json", {10 + j: plain([20 + j, 21 + j]) for j in range(4)})
    with pytest.raises(Killed), killed_after(3):
        lake.ingest()
    middle = open_store(lake.config).state(PLAYLISTS)
    assert middle is not None
    assert middle.version == began + 1
    at_ms = middle.changed_at_ms
    lake.ingest()
    lake.raw.write("c.json", {20: plain([30])})
    lake.ingest()
    go_back(lake, PLAYLISTS, at_ms=at_ms)
    lake.ingest()
    assert lake.contents() == fresh(lake)


def test_a_restore_can_be_undone(lake: Lake) -> None:
    first, old = rows(lake, HOLDOUT), version(lake, HOLDOUT)
    lake.overrides["split.seed"] = "2"
    run(lake)
    second, new = rows(lake, HOLDOUT), version(lake, HOLDOUT)
    go_back(lake, HOLDOUT, old)
    assert rows(lake, HOLDOUT) == first
    go_back(lake, HOLDOUT, new)
    assert rows(lake, HOLDOUT) == second
    assert done(lake) == set()


def test_what_cannot_be_restored_is_refused_and_nothing_changes(lake: Lake) -> None:
    store, newest = open_store(lake.config), version(lake, HOLDOUT)
    with pytest.raises(LakeError, match=f"holdout: versions 0 to {newest} expected, 99 found"):
        recovery.plan(store, HOLDOUT, version=99)
    with pytest.raises(LakeError, match="there is no version of 1970-01-01"):
        recovery.plan(store, HOLDOUT, at_ms=1)
    with pytest.raises(ConfigError, match="several jobs write it"):
        recovery.plan(store, QUARANTINE, version=0)
    before = list((lake.path / "holdout").glob("*.parquet"))
    overwrite(lake, HOLDOUT)
    before[0].unlink()
    with pytest.raises(LakeError, match=r"1 of the \d+ files of version .* are gone"):
        recovery.plan(store, HOLDOUT, version=newest)
    assert version(lake, HOLDOUT) == newest + 1


@pytest.mark.slow
def test_a_copy_whose_logs_are_ahead_of_its_files_goes_back_to_what_is_complete(lake: Lake) -> None:
    """As a replica of a bucket after a disaster: entries of logs have arrived before the files that they name."""
    before = lake.contents()
    old = set((lake.path / "playlists").glob("*.parquet"))
    lake.raw.write("b.json", {10 + j: plain([20 + j, 21 + j]) for j in range(4)})
    run(lake)
    for path in set((lake.path / "playlists").glob("*.parquet")) - old:
        path.unlink()
    store = open_store(lake.config)
    done_now = recovery.run(lake.config, store, recovery.plan_intact(store, PLAYLISTS), "restored")
    # of the run that was cut off, only the new tracks have arrived completely
    assert done_now.keys() >= {"playlists", "ingest_ledger"}
    assert lake.playlists() == before["playlists"]
    assert recovery.run(lake.config, store, recovery.plan_intact(store, PLAYLISTS), "again") == {}
    assert "ingest_playlists" in done(lake)
    assert lake.contents() == fresh(lake)
    for path in (lake.path / "holdout").rglob("*.parquet"):
        path.unlink()
    planned = recovery.plan_intact(store, HOLDOUT)
    assert [target.version for target in planned.targets] == [0], "the empty table has no files"


def test_a_run_that_holds_the_lock_keeps_a_restore_out(lake: Lake) -> None:
    good = version(lake, HOLDOUT)
    overwrite(lake, HOLDOUT)
    lock = LakeLock(lake.config, "another run")
    lock.take()
    try:
        with pytest.raises(TransientError, match="is in use by run another run"):
            go_back(lake, HOLDOUT, good)
    finally:
        lock.release()
    assert version(lake, HOLDOUT) == good + 1


def change(number: int, restored: int | None = None, stage: str | None = None) -> Change:
    partition = () if stage is None else (("stage", stage),)
    return Change(number, number, Commit("job", "run", "", partition=partition, restored=restored))


def effective(*found: Change) -> list[int]:
    newest_first: Iterable[Change] = reversed(found)
    return [change.version for change in in_effect(newest_first)]


def test_which_changes_rows_come_from_after_restores() -> None:
    assert effective(change(1), change(2), change(3, restored=1)) == [1]
    assert effective(change(1), change(2), change(3, restored=1), change(4)) == [4, 1]
    # the restore is undone
    assert effective(change(1), change(2), change(3, restored=1), change(4, restored=2)) == [2, 1]
    # only a partition goes back; another program's commit may have touched it
    a, b = change(2, stage="a"), change(3, stage="b")
    assert effective(change(1), a, b, change(4, restored=1, stage="a")) == [3, 1]
    other = Change(2, 2, None)
    assert effective(change(1), other, change(3, restored=1, stage="a")) == [2, 1]
    assert effective(change(1), other, change(3, restored=1)) == [1]
    # a partition goes back to before a restore of the whole table
    assert effective(change(1), a, b, change(4, restored=1), change(5, restored=3, stage="a")) == [2, 1]


def test_a_store_tells_a_commit_of_another_writer_from_a_restore(lake: Lake) -> None:
    store: Store = open_store(lake.config)
    good = version(lake, HOLDOUT)
    state = store.state(HOLDOUT)
    assert state is not None
    overwrite(lake, HOLDOUT)
    go_back(lake, HOLDOUT, good)
    after = store.state(HOLDOUT)
    assert after is not None
    assert (after.data_id, after.rows, after.commit) == (state.data_id, state.rows, state.commit)
    assert after.data_version_at(good + 1) == good + 1
    assert after.data_version_at(good) == after.data_version
