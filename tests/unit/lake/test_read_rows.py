"""Rows by the values of a column, without Spark."""

from __future__ import annotations

from collections.abc import Callable

from encore.config import Config
from encore.lake.store import Store
from encore.lake.tables import TRACKS
from encore.lake.transaction import append_small
from encore.spark.session import Session


def test_rows_are_found_by_text_and_by_number(lake_settings: Callable[..., Config]) -> None:
    config = lake_settings()
    store = Store(config, Session(config))
    assert store.read_rows(TRACKS, ["track_id"], "track_id", [1]).num_rows == 0
    names = ["plain", "it's", 'a "quoted" one', "'; DROP TABLE t; --"]
    empty = dict.fromkeys(TRACKS.names)
    for part in (names[:2], names[2:]):
        rows = [{**empty, "track_id": names.index(name), "track_uri": name, "orphaned": False} for name in part]
        append_small(store, TRACKS, rows)
    for i, name in enumerate(names):
        assert store.read_rows(TRACKS, ["track_id"], "track_uri", {name})["track_id"].to_pylist() == [i]
    found = store.read_rows(TRACKS, ["track_uri", "track_name"], "track_id", {3, 0, 9})
    assert found.column_names == ["track_uri", "track_name"]
    assert sorted(found["track_uri"].to_pylist()) == sorted([names[0], names[3]])
    assert store.read_rows(TRACKS, ["track_id"], "track_uri", []).num_rows == 0
