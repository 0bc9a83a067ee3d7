"""Commits that are planned on a version: two writers at once double, lose and mix nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from deltalake.exceptions import DeltaError

from encore.errors import LakeError, TransientError
from encore.lake.delta import Commit
from encore.lake.maintenance import optimize
from encore.lake.parquet import Writer
from encore.lake.scan import KeyIn, KeyRange
from encore.lake.store import Store
from encore.lake.tables import (
    AUDIO_FEATURES,
    HOLDOUT,
    JOB_RUNS,
    QUARANTINE,
    RECOMMENDATIONS,
    Table,
    arrow_schema,
    one_of,
)
from encore.lake.transaction import Transaction
from encore.vocabulary import FEATURES
from tests.conftest import settings

ONE, TWO = Commit("split_holdout", "run-1", "one"), Commit("split_holdout", "run-2", "two")
NO_PIDS = KeyIn("pid", pa.array([], pa.int64()))


def no_spark() -> Any:
    raise AssertionError("no Spark is needed")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(settings(tmp_path / "lake"), no_spark)


def begin(store: Store, table: Table = HOLDOUT) -> Transaction:
    return Transaction(store, table, store.ensure(table))


def files(store: Store, table: Table, rows: list[dict[str, Any]]) -> pa.Table:
    writer = Writer(table, store.location(table))
    writer.write(pa.Table.from_pylist(rows, schema=arrow_schema(table)))
    return pa.Table.from_batches([writer.close()])


def lists(*pids: int) -> list[dict[str, Any]]:
    return [{"pid": pid, "train": [pid], "test": []} for pid in pids]


def pids(store: Store, table: Table = HOLDOUT) -> list[int]:
    return sorted(store.read_small(table, ["pid"])["pid"].to_pylist())


def test_two_that_fill_an_empty_table_do_not_double_it(store: Store) -> None:
    first, second = begin(store), begin(store)
    first.commit(files(store, HOLDOUT, lists(1, 2)), ONE, KeyRange())
    with pytest.raises(TransientError) as caught:
        second.commit(files(store, HOLDOUT, lists(1, 2)), TWO, KeyRange())
    assert "holdout: the job split_holdout of the run run-1 committed version 1" in str(caught.value)
    assert "planned on version 0: nothing was written" in str(caught.value)
    assert caught.value.exit_code == 75
    assert pids(store) == [1, 2]


def test_two_that_add_to_the_same_empty_range_do_not_double_it(store: Store) -> None:
    first, second = begin(store), begin(store)
    first.commit(files(store, HOLDOUT, lists(1, 2)), ONE, KeyRange((), "pid", None, 5))
    with pytest.raises(TransientError, match="run-1"):
        second.commit(files(store, HOLDOUT, lists(2)), TWO, KeyRange((), "pid", 2, 3))
    # cut by another chunk size, and overlapping only in part
    third = begin(store)
    begin(store).commit(files(store, HOLDOUT, lists(7)), ONE, KeyRange((), "pid", 6, 9))
    with pytest.raises(TransientError, match="run-1"):
        third.commit(files(store, HOLDOUT, lists(8)), TWO, KeyRange((), "pid", 7, None))
    assert pids(store) == [1, 2, 7]


def test_new_keys_are_a_conflict_too(store: Store) -> None:
    first, second, third = (begin(store) for _ in range(3))
    first.commit(files(store, HOLDOUT, lists(1, 4)), ONE, NO_PIDS)
    with pytest.raises(TransientError):
        second.commit(files(store, HOLDOUT, lists(2, 9)), TWO, NO_PIDS)
    third.commit(files(store, HOLDOUT, lists(5, 9)), TWO, NO_PIDS)
    assert pids(store) == [1, 4, 5, 9]


def test_a_commit_beside_others_is_planned_again(store: Store) -> None:
    first, second = begin(store), begin(store)
    first.commit(files(store, HOLDOUT, lists(1)), ONE, KeyRange((), "pid", None, 5))
    assert second.commit(files(store, HOLDOUT, lists(7)), TWO, KeyRange((), "pid", 5, None)) == 2
    first.commit(files(store, HOLDOUT, lists(4)), ONE, KeyRange((), "pid", 2, 5))
    assert pids(store) == [1, 4, 7]
    with pytest.raises(TransientError, match="run-1"):
        second.commit(files(store, HOLDOUT, lists(3)), TWO, KeyRange((), "pid", 3, 4))


def test_what_this_run_wrote_and_another_replaced_is_a_conflict(store: Store) -> None:
    first, second = begin(store), begin(store)
    first.commit(files(store, HOLDOUT, lists(1)), ONE, KeyRange((), "pid", None, 5))
    begin(store).commit(files(store, HOLDOUT, lists(2)), TWO, KeyRange((), "pid", None, 5))
    with pytest.raises(TransientError, match="run-2"):
        first.commit(files(store, HOLDOUT, lists(6)), ONE, KeyRange((), "pid", 5, None))
    assert second.committed == set()


def test_exclusive_work_is_refused_whatever_was_committed(store: Store) -> None:
    first, second = begin(store), begin(store)
    first.commit(files(store, HOLDOUT, lists(1)), ONE, KeyRange((), "pid", None, 2))
    with pytest.raises(TransientError):
        second.commit(files(store, HOLDOUT, lists(7)), TWO, KeyRange((), "pid", 5, None), exclusive=True)


def test_partitions_do_not_meet(store: Store) -> None:
    first, second, third = (begin(store, RECOMMENDATIONS) for _ in range(3))

    def rows(model: str) -> pa.Table:
        return files(store, RECOMMENDATIONS, [{"model": model, "pid": 1, "track_ids": [1], "scores": [1.0]}])

    first.commit(rows("a"), ONE, KeyRange((("model", "a"),)), exclusive=True)
    second.commit(rows("b"), TWO, KeyRange((("model", "b"),)), exclusive=True)
    with pytest.raises(TransientError, match="run-1"):
        third.commit(rows("a"), TWO, KeyRange((("model", "a"),)))
    assert pids(store, RECOMMENDATIONS) == [1, 1]


def test_tables_keyed_by_text(store: Store) -> None:
    def features(number: int) -> pa.Table:
        row = {"track_uri": f"spotify:track:{number:022}", **dict.fromkeys(FEATURES, 0.5), "source": "s"}
        return files(store, AUDIO_FEATURES, [row])

    no_uris = KeyIn("track_uri", pa.array([], pa.string()))
    first, second = begin(store, AUDIO_FEATURES), begin(store, AUDIO_FEATURES)
    first.commit(features(1), ONE, no_uris)
    with pytest.raises(TransientError):
        second.commit(features(2), TWO, no_uris)
    first.commit(features(3), ONE, no_uris)
    assert store.read_small(AUDIO_FEATURES).num_rows == 2


def test_a_stranger_and_a_table_made_anew(store: Store, tmp_path: Path) -> None:
    first = begin(store)
    write_deltalake(
        str(tmp_path / "lake" / "holdout"), pa.Table.from_pylist(lists(3), arrow_schema(HOLDOUT)), mode="append"
    )
    with pytest.raises(TransientError, match="another program committed version 1"):
        first.commit(files(store, HOLDOUT, lists(3)), ONE, KeyRange())
    second = begin(store)
    (tmp_path / "lake" / "holdout").rename(tmp_path / "gone")
    store.ensure(HOLDOUT)
    with pytest.raises(TransientError, match="dropped and made again"):
        second.commit(files(store, HOLDOUT, lists(3)), ONE, KeyRange())
    assert pids(store) == []


def test_maintenance_in_between_is_no_conflict(store: Store) -> None:
    first = begin(store)
    for pid in range(3):
        first.commit(files(store, HOLDOUT, lists(pid)), ONE, KeyRange((), "pid", pid, pid + 1))
    assert optimize(store, HOLDOUT, 2) == 3
    first.commit(files(store, HOLDOUT, lists(9)), ONE, KeyRange((), "pid", 9, None))
    assert pids(store) == [0, 1, 2, 9]


class TestSchemas:
    """A nullable column that a table lacks is added in place; anything else is refused with both schemas."""

    def older(self, store: Store, table: Table, *lacking: str) -> None:
        """The table as an older release made it, with a row."""
        store.ensure(table)
        schema = arrow_schema(table)
        nullable = [column.name for column in table.columns if column.nullable]
        kept = [field.with_nullable(field.name in nullable) for field in schema if field.name not in lacking]
        url = store.url(table)
        values = {"record": "1", "stage": "s", "reason": "not_json", "source": "a.json", "detail": "d"}
        for path in Path(url).rglob("*"):
            if path.is_file():
                path.unlink()
        rows = pa.Table.from_pylist([values], schema=pa.schema(kept))
        write_deltalake(url, rows, partition_by=list(table.partition_by))

    def test_a_nullable_column_is_added_and_old_rows_read_null(self, store: Store) -> None:
        self.older(store, QUARANTINE, "payload")
        before = store.state(QUARANTINE)
        assert store.read_small(QUARANTINE)["payload"].to_pylist() == [None]
        assert store.scan(QUARANTINE, QUARANTINE.names).whole()["payload"].to_pylist() == [None]
        transaction = begin(store, QUARANTINE)
        after = store.state(QUARANTINE)
        assert before is not None
        assert after is not None
        assert after.version == before.version + 1
        assert after.data_id == before.data_id, "a new column changes no row"
        row = {"source": "b", "record": "2", "reason": "not_json", "detail": "d", "payload": "text", "stage": "s"}
        where = KeyIn("source", pa.array(["b"]), (("stage", "s"),))
        transaction.commit(files(store, QUARANTINE, [row]), ONE, where)
        rows = store.read_small(QUARANTINE).to_pylist()
        assert {row["source"]: row["payload"] for row in rows} == {"a.json": None, "b": "text"}
        # a file with old rows that is written again
        transaction.commit(files(store, QUARANTINE, []), ONE, KeyIn("source", pa.array(["b"]), (("stage", "s"),)))
        assert store.scan(QUARANTINE, ["source", "payload"]).whole().to_pylist() == [
            {"source": "a.json", "payload": None}
        ]

    def test_a_changed_constraint_is_replaced(self, store: Store) -> None:
        store.ensure(replace(QUARANTINE, checks={"reason_known": one_of("reason", ("not_json",))}))
        before = store.state(QUARANTINE)
        row = {"source": "a", "record": "1", "reason": "item_local", "detail": "d", "stage": "s"}
        rows = pa.Table.from_pylist([row], arrow_schema(QUARANTINE))
        with pytest.raises(DeltaError, match="failed validation check"):
            write_deltalake(store.url(QUARANTINE), rows, mode="append")
        found = store.ensure(QUARANTINE)
        after = store.state(QUARANTINE)
        assert before is not None
        assert after is not None
        assert after.data_id == before.data_id, "a new constraint changes no row"
        write_deltalake(store.url(QUARANTINE), rows, mode="append")
        with pytest.raises(DeltaError, match="failed validation check"):
            write_deltalake(store.url(QUARANTINE), rows.set_column(3, "reason", [["no reason"]]), mode="append")
        assert store.ensure(QUARANTINE).version() == found.version() + 1, "only the rows were added"

    def test_anything_else_is_refused_with_both_schemas(self, store: Store) -> None:
        self.older(store, QUARANTINE, "detail")
        with pytest.raises(LakeError) as caught:
            store.ensure(QUARANTINE)
        text = str(caught.value)
        assert "column detail string is missing" in text
        assert "expected: source string not null, record string not null, pid bigint" in text
        assert "; found: source string not null" in text
        assert caught.value.remedy is not None

    def test_a_column_that_nobody_declared(self, store: Store, tmp_path: Path) -> None:
        rows = pa.table({"pid": [1], "train": [[1]], "test": [[2]], "extra": ["x"]})
        write_deltalake(str(tmp_path / "lake" / "holdout"), rows)
        with pytest.raises(LakeError, match="column extra is not declared"):
            store.ensure(HOLDOUT)


@pytest.mark.slow
def test_long_histories_are_read_as_far_as_needed(store: Store) -> None:
    store.ensure(JOB_RUNS)
    first = begin(store)
    for pid in range(130):
        first.commit(files(store, HOLDOUT, lists(pid)), ONE, KeyRange((), "pid", pid, pid + 1))
    state = store.state(HOLDOUT)
    assert state is not None
    assert len(state.newest) == 100
    assert [change.version for change in state.changes()] == list(range(130, 0, -1))
