"""A write is checked against its table's declaration, and writes all of its rows or none."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.transaction import AddAction, RemoveAction

from encore.errors import LakeError, WriteRefused
from encore.lake.coverage import remaining
from encore.lake.delta import Commit, Interval, changes
from encore.lake.parquet import Writer
from encore.lake.scan import KeyIn, KeyRange
from encore.lake.store import Store
from encore.lake.tables import (
    ALL,
    AUDIO_FEATURES,
    CHECKS,
    FRAMEWORK,
    HOLDOUT,
    PLAYLIST_CENTROIDS,
    PLAYLISTS,
    QUARANTINE,
    RECOMMENDATIONS,
    Table,
    arrow_schema,
)
from encore.lake.transaction import Transaction
from encore.spark.session import Session
from encore.vocabulary import FEATURES
from tests.conftest import settings

COMMIT = Commit("test", "run", "fingerprint")
TABLES = [table for table in ALL if table not in FRAMEWORK]
SAMPLE: dict[str, Any] = {
    "bigint": 7,
    "int": 1,
    "double": 0.5,
    "float": 0.5,
    "boolean": True,
    "string": "text",
    "timestamp": datetime.datetime(2017, 1, 1, tzinfo=datetime.UTC),
    "array<int>": [1, 2],
    "array<float>": [0.5, 0.25],
    "array<double>": [0.5],
    "array<string>": ["a"],
    "array<array<double>>": [[0.5]],
    "map<string,string>": [("a", "b")],
    "map<string,bigint>": [("a", 7)],
    "map<string,double>": [("a", 0.5)],
}
SPECIAL = {
    "track_uri": "spotify:track:" + "0" * 22,
    "reason": "not_json",
    "status": "ingested",
    "verdict": "held",
    "event": "started",
    "checks.verdict": "ok",
    "severity": "warn",
    "relation": "at_most",
}


def good_row(table: Table, number: int = 0) -> dict[str, Any]:
    """A row that conforms to the declaration; each number gives a different key."""
    row = {
        column.name: SPECIAL.get(f"{table.name}.{column.name}", SPECIAL.get(column.name, SAMPLE[column.type]))
        for column in table.columns
    }
    for name in table.key:
        value = row[name]
        if name in SPECIAL and table.checks.get(f"{name}_known"):
            # one of few values: the other columns of the key tell rows apart
            continue
        if isinstance(value, str):
            row[name] = f"{value}{number}"
        else:
            row[name] = value + (datetime.timedelta(number) if isinstance(value, datetime.datetime) else number)
    return row


def breaking(condition: str) -> dict[str, Any]:
    """A value that violates a declared check."""
    name = condition.replace("size(", "").split()[0].rstrip(")")
    if "size(" in condition:
        return {"track_ids": [1, 2, 3]}
    if "LIKE" in condition:
        return {name: "spotify:album:x"}
    return {name: "no such" if " IN (" in condition else -1000}


@pytest.fixture(scope="module")
def store(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(settings(tmp_path_factory.mktemp("store") / "lake"), session)
    for table in ALL:
        made.ensure(table)
    return made


def version(store: Store, table: Table) -> int:
    return store.there(table).version()


def frame(session: Session, table: Table, rows: list[dict[str, Any]]) -> Any:
    return session().createDataFrame(pa.Table.from_pylist(rows, schema=arrow_schema(table)))


def write(
    store: Store,
    table: Table,
    rows: list[dict[str, Any]],
    where: KeyRange | KeyIn | None = None,
    commit: Commit = COMMIT,
) -> None:
    writer = Writer(table, store.location(table))
    writer.write(pa.Table.from_pylist(rows, schema=arrow_schema(table)))
    Transaction(store, table, store.there(table)).commit(
        pa.Table.from_batches([writer.close()]), commit, where or KeyRange()
    )


def named(tables: Iterable[Table], **options: Any) -> list[Any]:
    return [pytest.param(table, id=table.name, **options) for table in tables]


SOME = (PLAYLISTS, RECOMMENDATIONS, CHECKS)
"""One with lists, one with partitions, and one whose key has no numbers."""


@pytest.mark.parametrize(
    "table", named(SOME) + named((table for table in TABLES if table not in SOME), marks=pytest.mark.slow)
)
class TestEachTable:
    def test_takes_good_rows_and_gives_them_back(self, store: Store, table: Table) -> None:
        rows = [good_row(table, 0), good_row(table, 1)]
        write(store, table, rows)
        found = store.read(table).orderBy(*table.key).toArrow().to_pylist()
        assert [tuple(row[name] for name in table.key) for row in found] == sorted(
            tuple(row[name] for name in table.key) for row in rows
        )
        assert store.state(table).rows == 2  # type: ignore[union-attr]

    def test_is_streamed_as_spark_reads_it(self, store: Store, table: Table) -> None:
        write(store, table, [good_row(table, number) for number in range(5)])
        parts = store.scan(table, table.names).read()
        found = pa.concat_tables(parts).sort_by([(name, "ascending") for name in table.key]).to_pylist()
        assert found == store.read(table).orderBy(*table.key).toArrow().to_pylist()


@pytest.mark.parametrize("table", named(TABLES))
def test_every_null_and_every_broken_check_is_named(store: Store, table: Table) -> None:
    required = [column.name for column in table.columns if not column.nullable]
    rows = [good_row(table, 0)]
    rows += [{**good_row(table, 100 + i), name: None} for i, name in enumerate(required)]
    rows += [{**good_row(table, 200 + i), **breaking(check.sql)} for i, check in enumerate(table.checks.values())]
    before = version(store, table)
    with pytest.raises(WriteRefused) as caught:
        write(store, table, rows)
    text = str(caught.value)
    for name in required:
        assert f"{name} is not null: broken by" in text
    for name in table.checks:
        assert f"{name} (" in text
    assert version(store, table) == before


def test_rows_of_a_file_without_statistics_stay_where_others_are_replaced(store: Store) -> None:
    """As another writer may write one: its contents are unknown until it is read."""
    write(store, HOLDOUT, [good_row(HOLDOUT, number) for number in range(4)])
    found = DeltaTable(store.uri(HOLDOUT))
    (file,) = pa.table(found.get_add_actions(flatten=True)).to_pylist()
    folder = Path(store.uri(HOLDOUT))
    (folder / "foreign.parquet").write_bytes((folder / file["path"]).read_bytes())
    actions = [
        RemoveAction(file["path"], True, 0, file["size_bytes"], {}),
        AddAction("foreign.parquet", file["size_bytes"], {}, 0, True, "{}"),
    ]
    found.create_write_transaction(actions, "append", found.schema(), [])
    assert pa.table(DeltaTable(store.uri(HOLDOUT)).get_add_actions(flatten=True))["num_records"].to_pylist() == [None]

    def pids_there() -> list[int]:
        return sorted(pid for part in store.scan(HOLDOUT, ("pid",)).read() for pid in part["pid"].to_pylist())

    pids = pids_there()
    assert len(pids) == 4
    new = {**good_row(HOLDOUT, 0), "pid": pids[2]}
    write(store, HOLDOUT, [new], KeyRange((), "pid", pids[2], None))
    assert pids_there() == pids[:3]


def test_the_checks_are_the_tables_own_so_that_no_other_writer_gets_past_them(store: Store, session: Session) -> None:
    from py4j.protocol import Py4JJavaError

    row = {**good_row(AUDIO_FEATURES, 50), "energy": 1.5}
    with pytest.raises(Py4JJavaError, match="energy_in_range"):
        frame(session, AUDIO_FEATURES, [row]).write.format("delta").mode("append").save(store.uri(AUDIO_FEATURES))


def test_comments_and_grain_stand_in_the_table(store: Store) -> None:
    fields = store.read(AUDIO_FEATURES).schema.fields
    assert [field.metadata["comment"] for field in fields] == [column.comment for column in AUDIO_FEATURES.columns]
    assert len(FEATURES) == 11


def test_replacing_a_range_leaves_the_rest(store: Store) -> None:
    write(store, HOLDOUT, [good_row(HOLDOUT, i) | {"pid": i} for i in range(10)])
    write(store, HOLDOUT, [{"pid": i, "train": [9], "test": []} for i in (3, 4)], KeyRange((), "pid", 3, 6))
    found = {row["pid"]: row["train"] for row in store.read(HOLDOUT).toArrow().to_pylist()}
    assert found == {**{i: [1, 2] for i in (0, 1, 2, 6, 7, 8, 9)}, 3: [9], 4: [9]}


def test_replacing_some_keys_leaves_the_rest_and_none_only_adds(store: Store) -> None:
    write(store, HOLDOUT, [good_row(HOLDOUT, i) | {"pid": i} for i in range(4)])
    write(store, HOLDOUT, [{"pid": 1, "train": [9], "test": []}], KeyIn("pid", pa.array([1, 3, 70])))
    write(store, HOLDOUT, [{"pid": 8, "train": [8], "test": []}], KeyIn("pid", pa.array([], pa.int64())))
    found = {row["pid"]: row["train"] for row in store.read(HOLDOUT).toArrow().to_pylist()}
    assert found == {0: [1, 2], 2: [1, 2], 1: [9], 8: [8]}


def test_a_table_whose_files_do_not_say_all_is_refused(store: Store, session: Session) -> None:
    table = PLAYLIST_CENTROIDS
    write(store, table, [good_row(table, i) for i in range(3)])
    spark = session()
    spark.sql(f"ALTER TABLE delta.`{store.uri(table)}` SET TBLPROPERTIES ('delta.enableDeletionVectors' = true)")
    with pytest.raises(LakeError, match="plain data files expected, deletionVectors found"):
        store.scan(table, table.names)


def test_the_log_says_which_ranges_are_left(store: Store) -> None:
    def part(fingerprint: str, low: int | None, high: int | None) -> None:
        rows = [{"pid": high or low or 0, "train": [1], "test": []}] if low is not None else []
        rows = [{**row, "pid": low} for row in rows]
        write(store, HOLDOUT, rows, KeyRange((), "pid", low, high), Commit("test", "run", fingerprint))

    def left(fingerprint: str) -> list[Interval]:
        return remaining(changes(store.there(HOLDOUT)), (), lambda commit: commit.fingerprint == fingerprint)

    part("one", None, 2)
    part("one", 2, 5)
    assert left("one") == [(5, None)]
    part("two", 1, 3)
    assert left("one") == [(1, 3), (5, None)]
    assert left("two") == [(None, 1), (3, None)]
    part("one", 1, None)
    assert left("one") == []


def test_what_another_job_writes_is_no_change_for_a_job_but_what_a_stranger_writes_is(
    store: Store, session: Session
) -> None:
    table = QUARANTINE
    write(store, table, [good_row(table, 1)], commit=Commit("first", "run", "f"))
    mine = store.state(table)
    write(store, table, [good_row(table, 2)], KeyIn("source", pa.array([], pa.string())), Commit("second", "run", "f"))
    after = store.state(table)
    assert mine is not None
    assert after is not None
    assert after.version_for("first") == mine.version_for("first") < after.version_for("second") == after.data_version
    frame(session, table, [good_row(table, 3)]).write.format("delta").mode("append").save(store.uri(table))
    last = store.state(table)
    assert last is not None
    assert last.version_for("first") == last.version_for("second") == last.version


def test_maintenance_makes_a_version_but_no_data_version(store: Store, session: Session) -> None:
    for i in range(3):
        write(store, HOLDOUT, [good_row(HOLDOUT, i)], KeyIn("pid", pa.array([], pa.int64())))
    before = store.state(HOLDOUT)
    session().sql(f"OPTIMIZE delta.`{store.uri(HOLDOUT)}`")
    after = store.state(HOLDOUT)
    assert before is not None
    assert after is not None
    assert after.version > before.version
    assert after.data_version == before.data_version


def test_a_lake_of_another_schema_is_refused_with_every_difference(session: Session, tmp_path: Path) -> None:
    store = Store(settings(tmp_path / "lake"), session)
    session().sql("SELECT 'x' AS pid, 1 AS n_tracks").write.format("delta").save(store.uri(PLAYLIST_CENTROIDS))
    with pytest.raises(LakeError) as caught:
        store.ensure(PLAYLIST_CENTROIDS)
    assert "column pid: bigint expected, string found" in str(caught.value)
    assert "column vector array<float> is missing" in str(caught.value)


def test_a_lake_that_cannot_be_written_is_refused(session: Session) -> None:
    with pytest.raises(LakeError, match="cannot be written"):
        Store(settings("/proc/lake"), session).check_writable()


def test_files_that_workers_wrote_replace_a_range_in_one_commit(store: Store, session: Session) -> None:
    def lists(model: str, pids: range, first: int) -> list[dict[str, Any]]:
        return [{"model": model, "pid": pid, "track_ids": [first, 2], "scores": [0.5, 0.25]} for pid in pids]

    table = RECOMMENDATIONS
    # a file from another writer with rows for all pids: rows outside the replaced range must stay
    everything = [*lists("a", range(10), 1), *lists("b", range(10), 1)]
    other = frame(session, table, everything).coalesce(1).write.format("delta").partitionBy("model")
    other.mode("overwrite").save(store.uri(table))
    before = version(store, table)
    part = Commit("test", "run", "files", "a:3")
    write(store, table, lists("a", range(3, 6), 7), KeyRange((("model", "a"),), "pid", 3, 7), part)
    assert version(store, table) == before + 1
    found = {(row["model"], row["pid"]): row["track_ids"][0] for row in store.read(table).collect()}
    expected = {("a", pid): 7 if 3 <= pid < 6 else 1 for pid in range(10) if pid != 6}
    assert found == {**expected, **{("b", pid): 1 for pid in range(10)}}
    state = store.state(table)
    assert state is not None
    assert (state.rows, state.commit and state.commit.part) == (19, "a:3")
    # readers skip files by their statistics: the new file has only pids 3 to 5
    plan = store.read(table).where("model = 'a' AND pid = 8").inputFiles()
    assert len(plan) == 1


def test_a_key_that_repeats_is_refused_within_a_file_and_between_files(store: Store) -> None:
    rows = [{"pid": i, "train": [i], "test": []} for i in (1, 5, 3)]
    before = version(store, HOLDOUT)
    with pytest.raises(WriteRefused, match=r"key pid is unique: broken by 1 row\(s\), such as pid 5"):
        write(store, HOLDOUT, [*rows, rows[1]])
    made = []
    for part in (rows, [{"pid": 3, "train": [], "test": []}, {"pid": 9, "train": [], "test": []}]):
        writer = Writer(HOLDOUT, store.location(HOLDOUT))
        writer.write(pa.Table.from_pylist(part, schema=arrow_schema(HOLDOUT)))
        made.append(writer.close())
    with pytest.raises(WriteRefused, match="key pid is unique: 1 repeat, such as 3"):
        Transaction(store, HOLDOUT, store.there(HOLDOUT)).commit(pa.Table.from_batches(made), COMMIT, KeyRange())
    with pytest.raises(WriteRefused, match="outside of what they replace"):
        write(store, HOLDOUT, rows, KeyRange((), "pid", 2, 9))
    assert version(store, HOLDOUT) == before


def test_a_range_that_is_emptied_is_a_commit_too(store: Store) -> None:
    write(store, HOLDOUT, [{"pid": 1, "train": [1], "test": []}])
    write(store, HOLDOUT, [], commit=Commit("test", "run", "files", "nothing"))
    state = store.state(HOLDOUT)
    assert state is not None
    assert state.rows == 0
    assert state.commit is not None
    assert state.commit.part == "nothing"


def test_files_with_rows_that_break_the_declaration_are_not_committed(store: Store) -> None:
    rows: list[dict[str, Any]] = [
        {"model": "a", "pid": 1, "track_ids": [1, 2], "scores": [0.5]},
        {"model": "a", "pid": None, "track_ids": [1], "scores": [0.5]},
    ]
    before = version(store, RECOMMENDATIONS)
    with pytest.raises(WriteRefused) as caught:
        write(store, RECOMMENDATIONS, rows)
    text = str(caught.value)
    assert "a_score_for_each_track (size(track_ids) = size(scores)): broken by 1 row(s), such as model/pid a/1" in text
    assert "pid is not null: broken by 1 row(s)" in text
    assert version(store, RECOMMENDATIONS) == before


@pytest.mark.parametrize("table", [table for table in TABLES if table.checks], ids=lambda table: table.name)
def test_a_check_says_the_same_in_sql_and_on_arrow(session: Session, table: Table) -> None:
    good = good_row(table)
    rows = [good, *({**good, **breaking(check.sql)} for check in table.checks.values())]
    rows += [{**good, **dict.fromkeys(breaking(check.sql))} for check in table.checks.values()]
    data = pa.Table.from_pylist(rows, schema=arrow_schema(table))
    spark = session().createDataFrame(data)
    for check in table.checks.values():
        by_sql = [bool(row[0]) for row in spark.selectExpr(f"coalesce({check.sql}, false)").collect()]
        on_arrow = check.holds(data).fill_null(False).to_pylist()
        assert on_arrow == by_sql
        assert not all(by_sql)
