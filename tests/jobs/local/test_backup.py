"""Backups: what they hold, how damage is repaired from them, and that nothing is stale afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from encore.errors import EncoreError, InputError, LakeError, TransientError
from encore.lake import backup as backups
from encore.lake.backup import Backup, Made, Restored, Vault, create, verify
from encore.lake.inspection import inspect
from encore.lake.store import Store, open_store
from encore.lake.tables import ALL, HOLDOUT, JOB_RUNS, PLAYLISTS, RECOMMENDATIONS
from encore.runtime import recovery
from tests.changes import Killed, Lake, plain
from tests.jobs.local.small import done, overwrite, rows, run
from tests.s3server import S3Server


@pytest.fixture
def vault(lake: Lake, tmp_path: Path) -> Vault:
    return Vault.at(str(tmp_path / "vault"), lake.config.s3)


def taken(lake: Lake, vault: Vault, keep_days: int | None = None) -> Made:
    return create(open_store(lake.config), vault, keep_days=keep_days)


def brought_back(lake: Lake, vault: Vault, backup: Backup, *only: str, replace: bool = False) -> Restored:
    store = Store(lake.config, lambda: pytest.fail("no Spark is needed"))
    return backups.restore(store, vault, backup, only=only, replace=replace)


def damage(lake: Lake) -> list[str]:
    """What `encore doctor --lake` finds."""
    return [f"{found.what}: {found.fact}" for found in inspect(open_store(lake.config)) if found.remedy]


def contents(lake: Lake) -> dict[str, list[str]]:
    store = open_store(lake.config)
    return {table.name: rows(lake, table) for table in ALL if store.exists(table)}


def data_files(lake: Lake, table: str) -> list[Path]:
    return sorted((lake.path / table).rglob("*.parquet"))


def test_a_lost_lake_is_brought_back_and_nothing_is_stale(lake: Lake, vault: Vault) -> None:
    before = contents(lake)
    made = taken(lake, vault)
    assert verify(vault, made.backup) == []
    shutil.rmtree(lake.path)
    found = brought_back(lake, vault, vault.newest())
    assert found.newer == {}
    assert contents(lake) == before
    assert damage(lake) == []
    assert done(lake) == set()


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    """Change one byte, so that the size stays the same."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("spoil", [flip, *(pytest.param(one, marks=pytest.mark.slow) for one in (remove, cut))])
def test_damaged_files_of_data_logs_and_models_are_repaired_and_no_others(
    lake: Lake, vault: Vault, spoil: Callable[[Path], None]
) -> None:
    before, made = contents(lake), taken(lake, vault)
    spoil(data_files(lake, "recommendations")[0])
    spoil(data_files(lake, "playlists")[0])
    spoil(lake.path / "holdout" / "_delta_log" / f"{1:020d}.json")
    spoil(next((lake.path / "_models" / "popularity").rglob("*.npy")))
    found = brought_back(lake, vault, made.backup)
    assert {name: n for name, n in found.tables.items() if n} == {"recommendations": 1, "playlists": 1, "holdout": 1}
    assert found.models == 1
    assert contents(lake) == before
    assert damage(lake) == []
    assert done(lake) == set()


def test_a_lake_whose_logs_are_gone_is_brought_back(lake: Lake, vault: Vault) -> None:
    before, made = contents(lake), taken(lake, vault)
    for table in ("playlists", "job_runs"):
        shutil.rmtree(lake.path / table / "_delta_log")
    brought_back(lake, vault, made.backup)
    assert contents(lake) == before
    assert done(lake) == set()


@pytest.mark.slow
def test_a_second_backup_copies_what_is_new_and_both_can_be_brought_back(lake: Lake, vault: Vault) -> None:
    first, before = taken(lake, vault), contents(lake)
    again = taken(lake, vault)
    assert (again.files, again.bytes) == (0, 0)
    lake.raw.write("b.json", {10: plain([1, 2, 3, 4])})
    run(lake)
    after, second = contents(lake), taken(lake, vault)
    assert 0 < second.files < len(list(second.backup.files)) / 2
    assert vault.newest().id == second.backup.id
    assert vault.newest(first.backup.taken_at).id == first.backup.id
    for made, rows_then in ((first, before), (second, after)):
        shutil.rmtree(lake.path)
        brought_back(lake, vault, made.backup)
        assert contents(lake) == rows_then
    assert done(lake) == set()


def test_old_backups_are_removed_with_the_files_that_only_they_have(lake: Lake, vault: Vault) -> None:
    first = taken(lake, vault).backup
    lake.raw.write("b.json", {10: plain([1, 2, 3, 4])})
    run(lake)
    old = first.taken_at - 10 * 86400
    aged = Backup(first.id, first.lake, old, first.tables, first.models)
    (Path(vault.url) / "backups" / f"{first.id}.json").write_bytes(aged.json())
    made = taken(lake, vault, keep_days=9)
    assert made.removed > 0
    assert vault.ids() == [made.backup.id]
    assert verify(vault, made.backup) == []
    assert set(vault.sizes()) == {file.sha256 for file in made.backup.files}


def test_a_table_that_was_dropped_and_made_again_does_not_spoil_earlier_backups(lake: Lake, vault: Vault) -> None:
    first, before = taken(lake, vault).backup, rows(lake, HOLDOUT)
    shutil.rmtree(lake.path / "holdout")
    lake.overrides["split.seed"] = "2"
    lake.run("split_holdout")
    other = rows(lake, HOLDOUT)
    second = taken(lake, vault).backup
    assert first.tables["holdout"].id != second.tables["holdout"].id
    with pytest.raises(LakeError, match="holdout: dropped and made again since backup") as caught:
        brought_back(lake, vault, first)
    assert "--replace" in str(caught.value.remedy)
    assert rows(lake, HOLDOUT) == other
    brought_back(lake, vault, first, "holdout", replace=True)
    assert rows(lake, HOLDOUT) == before
    assert done(lake) >= {"split_holdout"}, "the settings are those of the other split"
    assert rows(lake, HOLDOUT) == other


@pytest.mark.slow
def test_a_lake_that_is_newer_keeps_its_versions_and_says_how_to_go_back(lake: Lake, vault: Vault) -> None:
    made, before = taken(lake, vault).backup, rows(lake, HOLDOUT)
    lake.overrides["split.seed"] = "2"
    run(lake)
    new = set(data_files(lake, "holdout"))
    then = made.tables["holdout"].version
    found = brought_back(lake, vault, made)
    assert found.newer["holdout"] == (open_store(lake.config).there(HOLDOUT).version(), then)
    assert not any(found.tables.values())
    # files that no backup has are gone: the version of the backup can be restored, and the next run goes on from there
    for path in new - {Path(lake.path / "holdout" / file.path) for file in made.tables["holdout"].files}:
        path.unlink()
    with pytest.raises(LakeError, match=r"files of version .* are gone, and not in the backup") as caught:
        brought_back(lake, vault, made, "holdout")
    assert f"`encore restore holdout --version {then}`" in str(caught.value.remedy)
    store = open_store(lake.config)
    recovery.run(lake.config, store, recovery.plan(store, HOLDOUT, version=then), "restored")
    assert rows(lake, HOLDOUT) == before
    assert damage(lake) == []
    assert done(lake) >= {"split_holdout", "recommend"}
    assert done(lake) == set()


def test_a_lake_with_damage_is_not_backed_up(lake: Lake, vault: Vault) -> None:
    data_files(lake, "recommendations")[0].unlink()
    with pytest.raises(LakeError, match="bytes expected, nothing found: no backup was made"):
        taken(lake, vault)
    assert vault.ids() == []


def test_damage_of_a_backup_is_found_and_never_brought_back(lake: Lake, vault: Vault) -> None:
    made = taken(lake, vault).backup
    file = next(file for file in made.tables["holdout"].files if file.path.endswith(".parquet"))
    flip(Path(vault.file(file.sha256)))
    assert [text.partition(":")[0] for text in verify(vault, made)] == [file.path]
    (lake.path / "holdout" / file.path).unlink()
    with pytest.raises(LakeError, match="damaged: SHA-256"):
        brought_back(lake, vault, made)
    assert not (lake.path / "holdout" / file.path).exists()
    Path(vault.file(file.sha256)).unlink()
    assert ["no such file" in text.lower() for text in verify(vault, made)] == [True]


@pytest.mark.parametrize("n_files", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 30, 60))])
def test_a_restore_that_was_interrupted_leaves_nothing_that_a_job_takes_for_a_table(
    lake: Lake, vault: Vault, n_files: int
) -> None:
    before, made, place, n_placed = contents(lake), taken(lake, vault).backup, backups._put, 0

    def breaks_off(*args: object) -> None:
        nonlocal n_placed
        n_placed += 1
        if n_placed > n_files:
            raise Killed
        place(*args)  # type: ignore[arg-type]

    shutil.rmtree(lake.path)
    with patch.object(backups, "_put", breaks_off), pytest.raises(Killed):
        brought_back(lake, vault, made)
    store = Store(lake.config, lambda: pytest.fail("no Spark is needed"))
    for table in ALL:
        try:
            state = store.state(table)
        except EncoreError:
            continue
        assert state is None or state.version == made.tables[table.name].version
    brought_back(lake, vault, made)
    assert contents(lake) == before
    assert done(lake) == set()


def test_what_changes_while_it_is_copied_is_of_one_moment_in_the_backup(lake: Lake, vault: Vault) -> None:
    """Another run commits between the reads of two tables; the versions are read again."""
    store, calls = open_store(lake.config), 0
    opened = Store.open

    def open_and_commit(self: Store, table: object) -> object:
        nonlocal calls
        calls += 1
        found = opened(self, table)  # type: ignore[arg-type]
        if calls == 3:
            overwrite(lake, RECOMMENDATIONS)
            overwrite(lake, PLAYLISTS)
        return found

    with patch.object(Store, "open", open_and_commit):
        made = create(store, vault).backup
    assert made.tables["playlists"].rows == made.tables["recommendations"].rows == 0


def test_what_is_no_backup_is_refused(lake: Lake, vault: Vault) -> None:
    with pytest.raises(InputError, match="no backup in"):
        vault.newest()
    with pytest.raises(LakeError, match="inside of its lake"):
        taken(lake, Vault.at(str(lake.path / "backup"), lake.config.s3))
    made = taken(lake, vault).backup
    with pytest.raises(InputError, match=r"has no table report"):
        brought_back(lake, vault, made, "report")
    (Path(vault.url) / "backups" / "20990101-000000.json").write_text('{"format": 99}')
    with pytest.raises(LakeError, match="not a backup of format 1"):
        vault.newest()


@pytest.mark.slow
@pytest.mark.s3
def test_a_lake_goes_to_s3_and_back(
    lake: Lake, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = s3_server.client()
    for bucket in ("backup-vault", "backup-lake"):
        client.create_bucket(Bucket=bucket)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    lake.overrides["s3.path_style"] = "true"
    vault = Vault.at("s3://backup-vault/encore", lake.config.s3)
    before, made = contents(lake), taken(lake, vault).backup
    config = lake.config.model_copy(update={"lake": lake.config.lake.model_copy(update={"path": "s3://backup-lake/a"})})
    remote = Store(config, lambda: pytest.fail("no Spark is needed"))
    backups.restore(remote, vault, made)
    assert [found.fact for found in inspect(remote) if found.remedy] == []
    again = create(remote, vault)
    assert (again.files, again.bytes) == (0, 0), "the same content, whatever place it is in"
    shutil.rmtree(lake.path)
    brought_back(lake, vault, again.backup)
    assert contents(lake) == before
    assert done(lake) == set()
    with pytest.raises((TransientError, LakeError, InputError)):
        vault.read("none")
    assert JOB_RUNS.name in made.tables
