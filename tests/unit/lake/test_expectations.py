"""Expectations: what is measured, what follows from a bound, and which breaches are accepted."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from encore.config import load_config
from encore.errors import ConfigError
from encore.lake.expectations import (
    BY_NAME,
    EXPECTATIONS,
    Measured,
    check_settings,
    good_rows,
    judged,
    newest,
    sentence,
)
from encore.lake.scan import KeyIn, KeyRange
from encore.lake.tables import (
    AUDIO_FEATURES,
    INGEST_LEDGER,
    MODEL_METRICS,
    PLAYLIST_METRICS,
    PLAYLISTS,
    QUARANTINE,
    TRACKS,
    Table,
    arrow_schema,
)
from encore.runtime.registry import job_module

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@dataclass
class Rows:
    """A Reader of rows in memory."""

    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    facts: dict[tuple[str, str], float] = field(default_factory=dict)
    since: datetime | None = None
    split: str = "seed 42"

    def rows(self, table: Table) -> int:
        return self.counts.get(table.name, len(self.tables.get(table.name, ())))

    def read(self, table: Table, columns: Collection[str], where: KeyRange | KeyIn | None = None) -> pa.Table:
        partition = dict(where.partition) if where else {}
        rows = [row for row in self.tables.get(table.name, ()) if partition.items() <= row.items()]
        return pa.Table.from_pylist(rows, schema=arrow_schema(table, columns))

    def fact(self, job: str, name: str) -> float | None:
        return self.facts.get((job, name))


def measured(name: str, lake: Rows) -> dict[str, float]:
    return {subject: found.value for subject, found in BY_NAME[name].measure(lake).items()}


def file(name: str, n: int, hours: float = 0, **more: Any) -> dict[str, Any]:
    row = {"slice": name, "n_playlists": n, "status": "ingested", "vanished_at": None}
    return {**row, "ingested_at": NOW + timedelta(hours=hours), **more}


def refused(source: str, record: str, stage: str = "ingest_playlists") -> dict[str, Any]:
    return {"source": source, "record": record, "stage": stage}


# measurements -------------------------------------------------------------------------------------------------------


def test_tracks_that_are_in_no_playlist_do_not_count() -> None:
    lake = Rows({TRACKS.name: [{"orphaned": None}, {"orphaned": False}, {"orphaned": True}]}, {PLAYLISTS.name: 7})
    assert measured("tracks_lost", lake) == {"": 2}
    assert measured("playlists_lost", lake) == measured("playlists_grown", lake) == {"": 7}


def test_playlists_count_once_however_many_items_they_lost() -> None:
    rows = [refused("a", "playlist 0"), refused("a", "playlist 1, item 3"), refused("a", "playlist 1, item 4")]
    lake = Rows({INGEST_LEDGER.name: [file("a", 9)], QUARANTINE.name: rows})
    rows.append(refused("a", "playlist 0, item 1"))
    lake.tables[QUARANTINE.name] = rows
    assert measured("playlists_damaged", lake) == {"": pytest.approx(1 / 9)}
    assert measured("playlists_refused", lake) == {"": pytest.approx(1 / 10)}, "9 were taken"


def test_only_files_count_that_exist_and_were_read_since_the_last_good_run() -> None:
    files = [file("old", 10, -2), file("new", 8, 1), file("gone", 10, 1, vanished_at=NOW)]
    files.append(file("broken", 0, 1, status="refused"))
    rows = [refused("old", "playlist 0"), refused("new", "playlist 1"), refused("new", "playlist 2")]
    rows += [refused("gone", "playlist 3"), refused("broken", "file"), refused("new", "playlist 3", "ingest_features")]
    lake = Rows({INGEST_LEDGER.name: files, QUARANTINE.name: rows}, since=NOW)
    assert measured("playlists_refused", lake) == {"": pytest.approx(0.2)}
    assert measured("files_refused", lake) == {"": 0.5}
    assert measured("playlists_refused", Rows(lake.tables)) == {"": pytest.approx(3 / 21)}


def test_nothing_that_was_read_is_nothing_refused() -> None:
    assert measured("playlists_refused", Rows()) == measured("files_refused", Rows()) == {"": 0.0}
    assert measured("playlists_damaged", Rows()) == {"": 0.0}
    assert measured("features_refused", Rows()) == {"": 0.0}


def test_features() -> None:
    refusals = [refused("f.csv", str(i), "ingest_features") for i in range(5)]
    facts = {("ingest_features", "coverage_tracks"): 0.75}
    lake = Rows({QUARANTINE.name: [*refusals, refused("a", "file")]}, {AUDIO_FEATURES.name: 95}, facts)
    assert measured("features_refused", lake) == {"": 0.05}
    assert measured("features_missing", lake) == measured("features_lost", lake) == {"": 0.25}
    assert measured("features_missing", Rows()) == {}, "an older release did not record it"


def mean(model: str, metric: str, value: float, hours: float = 0, bucket: str = "all") -> dict[str, Any]:
    at = NOW + timedelta(hours=hours)
    return {"model": model, "bucket": bucket, "metric": metric, "value": value, "evaluated_at": at}


def playlist(model: str, pid: int, ndcg: float = 0.5, n_test: int = 3) -> dict[str, Any]:
    return {"model": model, "pid": pid, "n_test": n_test, "n_train": 9, "ndcg": ndcg, "r_precision": ndcg}


def evaluated(*rows: dict[str, Any], split: str = "seed 42") -> Rows:
    means = [mean("ranker", "ndcg", 0.2), mean("ranker", "ndcg", 0.4, 1), mean("ranker", "ndcg", 0.9, 2, "train_0_5")]
    means += [mean("dropped", "ndcg", 0.3, 3), mean("ranker", "share_unserved", 0.125, 1)]
    return Rows({MODEL_METRICS.name: means, PLAYLIST_METRICS.name: list(rows)}, split=split)


def test_the_newest_mean_of_each_model_that_is_still_there() -> None:
    lake = evaluated(playlist("ranker", 1), playlist("ranker", 2))
    assert measured("ndcg_lost", lake) == {"ranker": 0.4}
    assert measured("unserved", lake) == measured("unserved_more", lake) == {"ranker": 0.125}
    assert measured("ndcg_lost", Rows()) == {}


def test_metrics_have_the_basis_of_what_they_were_measured_on() -> None:
    def basis(*rows: dict[str, Any], split: str = "seed 42") -> str | None:
        return BY_NAME["ndcg_lost"].measure(evaluated(*rows, split=split))["ranker"].basis

    one, two = playlist("ranker", 1), playlist("ranker", 2)
    assert basis(one, two) == basis(two, {**one, "ndcg": 0.1}), "neither the order nor the result matters"
    others = [
        basis(one),
        basis(one, {**two, "n_test": 4}),
        basis(one, {**two, "n_train": 8}),
        basis(one, two, split="7"),
    ]
    assert len({basis(one, two), *others}) == 5


def test_chance_explains_two_standard_errors() -> None:
    lake = evaluated(*(playlist("ranker", pid, ndcg) for pid, ndcg in enumerate([0.0, 1.0] * 50)))
    assert BY_NAME["ndcg_lost"].measure(lake)["ranker"].noise == pytest.approx(2 * 0.5 / 10)


# verdicts -----------------------------------------------------------------------------------------------------------


def row(
    name: str, value: float, verdict: str = "ok", run: str = "run-1", hours: float = 0, **more: Any
) -> dict[str, Any]:
    found = {"run_id": run, "job": BY_NAME[name].job, "name": name, "subject": "", "value": value, "verdict": verdict}
    return {**found, "basis": None, "at": NOW + timedelta(hours=hours), **more}


def verdict(name: str, found: Measured, history: list[dict[str, Any]], *accept: str, bound: float = 0.05) -> str:
    told = judged(BY_NAME[name], "", found, good_rows(history), bound=bound, severity="fail", accept=accept)
    return str(told["verdict"])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("playlists_lost", 950, "ok"),
        ("playlists_lost", 949, "fail"),
        ("playlists_lost", 5000, "ok"),
        ("playlists_grown", 1050, "ok"),
        ("playlists_grown", 1051, "fail"),
        ("playlists_grown", 1, "ok"),
    ],
)
def test_a_number_of_rows_is_compared_with_the_last_good_run(name: str, value: float, expected: str) -> None:
    assert verdict(name, Measured(value), [row(name, 1000)]) == expected
    assert verdict(name, Measured(value), []) == "uncompared"


@pytest.mark.parametrize(("value", "expected"), [(0.05, "ok"), (0.0501, "fail")])
def test_a_fixed_bound_needs_no_baseline(value: float, expected: str) -> None:
    assert verdict("playlists_refused", Measured(value), []) == expected


@pytest.mark.parametrize(("value", "expected"), [(0.15, "ok"), (0.16, "fail"), (0.0, "ok")])
def test_a_share_may_rise_by_the_bound(value: float, expected: str) -> None:
    assert verdict("features_lost", Measured(value), [row("features_lost", 0.1)]) == expected


def test_a_loss_within_the_noise_is_no_breach() -> None:
    history = [row("ndcg_lost", 0.4)]
    assert verdict("ndcg_lost", Measured(0.35), history) == "fail"
    assert verdict("ndcg_lost", Measured(0.35, noise=0.06), history) == "ok"
    assert verdict("ndcg_lost", Measured(0.33, noise=0.06), history) == "fail"


def test_values_of_another_basis_are_not_compared_but_older_ones_of_the_same_are() -> None:
    history = [row("ndcg_lost", 0.4, basis="a"), row("ndcg_lost", 0.9, run="run-2", hours=1, basis="b")]
    assert verdict("ndcg_lost", Measured(0.1, "c"), history) == "uncompared"
    assert verdict("ndcg_lost", Measured(0.39, "a"), history) == "ok"
    assert verdict("ndcg_lost", Measured(0.3, "a"), history) == "fail"


def test_a_run_in_which_anything_failed_is_no_baseline() -> None:
    history = [row("playlists_lost", 1000), row("playlists_lost", 500, "fail", "run-2", 1)]
    history.append(row("tracks_lost", 500, "ok", "run-2", 1))
    assert [found["value"] for found in good_rows(history)] == [1000]
    assert verdict("playlists_lost", Measured(500), history) == "fail"


def test_a_breach_that_was_accepted_is_the_next_baseline() -> None:
    history = [row("playlists_lost", 1000), row("playlists_lost", 500, "accepted", "run-2", 1)]
    assert verdict("playlists_lost", Measured(500), history) == "ok"
    assert verdict("playlists_lost", Measured(400), history) == "fail", "another loss is another breach"


def test_a_breach_of_a_fixed_bound_stays_accepted_until_it_gets_worse() -> None:
    history = [row("features_missing", 0.6, "accepted")]
    assert verdict("features_missing", Measured(0.6), history, bound=0.5) == "accepted"
    assert verdict("features_missing", Measured(0.55), history, bound=0.5) == "accepted"
    assert verdict("features_missing", Measured(0.61), history, bound=0.5) == "fail"
    history.append(row("features_missing", 0.4, "ok", "run-2", 1))
    assert verdict("features_missing", Measured(0.55), history, bound=0.5) == "fail"


def test_breaches_are_accepted_by_name_or_for_one_model() -> None:
    one, history = BY_NAME["ndcg_lost"], [row("ndcg_lost", 0.4, subject="ranker")]

    def found(*accept: str) -> str:
        told = judged(one, "ranker", Measured(0.1), history, bound=0.1, severity="warn", accept=accept)
        return str(told["verdict"])

    assert found() == found("ndcg_lost/ials", "unserved") == "warn"
    assert found("ndcg_lost") == found("ndcg_lost/ranker") == "accepted"


def test_the_rows_in_force_are_those_of_each_jobs_last_run() -> None:
    rows = [row("playlists_lost", 1), row("ndcg_lost", 2), row("ndcg_lost", 3, run="run-2", hours=1)]
    rows.append(row("unserved", 4, run="run-2", hours=1, subject="ranker"))
    assert [found["value"] for found in newest(rows)] == [1, 4, 3]
    assert newest([]) == []


def test_a_row_in_words() -> None:
    told = judged(
        BY_NAME["playlists_lost"],
        "",
        Measured(900),
        [row("playlists_lost", 1000)],
        bound=0.05,
        severity="fail",
        accept=(),
    )
    assert sentence(told) == "playlists_lost: 900, at least 950 expected (1,000 in the last good run)"
    told = judged(BY_NAME["unserved"], "title", Measured(0.25), [], bound=0.1, severity="warn", accept=())
    assert sentence(told) == "unserved/title: 25 %, at most 10 % expected"


# declarations and settings ------------------------------------------------------------------------------------------


def test_names_are_unique_and_jobs_exist() -> None:
    assert len(BY_NAME) == len(EXPECTATIONS)
    assert all(hasattr(job_module(one.job), "BEFORE") for one in EXPECTATIONS)


def test_the_default_settings_have_a_bound_for_each() -> None:
    check_settings(load_config("local", []))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("check.expect.nosuch={bound: 1, severity: warn}", "check.expect.nosuch: no such expectation"),
        ("check.accept=[nosuch]", "check.accept: nosuch: no such expectation"),
        ("check.accept=[nosuch/ranker]", "check.accept: nosuch/ranker: no such expectation"),
    ],
)
def test_settings_of_no_expectation_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_settings(load_config("local", [override]))
    assert "playlists_lost" in str(caught.value.remedy)


@pytest.mark.parametrize("own", ["bound=-1", "bound=x", "severity=maybe", "nosuch=1"])
def test_invalid_bounds_and_severities_are_refused(own: str) -> None:
    with pytest.raises(ConfigError, match=r"check\.expect\.unserved"):
        load_config("local", [f"check.expect.unserved.{own}"])


def test_one_model_can_be_accepted() -> None:
    check_settings(load_config("local", ["check.accept=[ndcg_lost/ranker,tracks_lost]"]))
