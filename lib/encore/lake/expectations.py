"""Expectations of the tables as a whole, beside the declarations, which say which single rows are valid.

They are about how many playlists there are, how many records were refused, how well the models do. Some values have a
fixed bound, others are compared with the last good run: the last one of the same job in which nothing failed, or what
failed was accepted.

The bounds are settings, `check.expect.NAME`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encore.config import Config
from encore.errors import ConfigError
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
)

Rule = Literal["at_most", "kept", "not_grown", "not_risen"]
"""How the expected value follows from the bound. at_most: it is the bound. kept: at least (1 - bound) times the
baseline; not_grown: at most (1 + bound) times the baseline; not_risen: at most the baseline plus the bound."""

Verdict = Literal["ok", "warn", "fail", "accepted", "uncompared"]


class Reader(Protocol):
    """What a measurement reads. `since`: when the last good run checked the lake; None: there was none.

    `split`: identifies the settings that determine which tracks are hidden.
    """

    since: datetime | None
    split: str

    def rows(self, table: Table) -> int:
        """The number of rows of a table."""

    def read(self, table: Table, columns: Collection[str], where: KeyRange | KeyIn | None = None) -> pa.Table:
        """Columns of a table; no rows if it does not exist."""

    def fact(self, job: str, name: str) -> float | None:
        """A figure that a job recorded in its last successful run; None if it did not."""


@dataclass(frozen=True)
class Measured:
    """A value. Only values of the same `basis` are compared; None: it can be compared with any. `noise`: a difference
    up to this one is no breach."""

    value: float
    basis: str | None = None
    noise: float = 0.0


Measure = Callable[[Reader], Mapping[str, Measured]]
"""Returns what was measured by subject, which is a model, or empty for the lake as a whole."""


@dataclass(frozen=True)
class Expectation:
    """An expectation: its `name` says what is wrong if it is not met. `job` checks it; `unit` is that of the value."""

    name: str
    job: str
    meaning: str
    rule: Rule
    unit: Literal["count", "share", "score"]
    measure: Measure

    @property
    def relation(self) -> str:
        """at_least or at_most: how the value has to compare with the expected one."""
        return "at_least" if self.rule == "kept" else "at_most"

    def expected(self, bound: float, baseline: float | None, noise: float = 0.0) -> float | None:
        """The lowest or highest value that is expected; None without a baseline where the rule needs one."""
        if self.rule == "at_most":
            return bound
        if baseline is None:
            return None
        if self.rule == "not_risen":
            return baseline + bound
        margin = max(bound * baseline, noise)
        return baseline - margin if self.rule == "kept" else baseline + margin

    def is_met(self, value: float, expected: float | None) -> bool:
        """Whether a value is as expected; it is if nothing is known that it could be compared with."""
        if expected is None:
            return True
        return value >= expected if self.relation == "at_least" else value <= expected

    def is_worse(self, value: float, other: float) -> bool:
        """Whether a value is further from what is expected than another one."""
        return value < other if self.relation == "at_least" else value > other

    def text(self, value: float) -> str:
        """A value as shown to people."""
        if self.unit == "count":
            return f"{value:,.0f}"
        return f"{100 * value:.4g} %" if self.unit == "share" else f"{value:.4f}"


# what was ingested -------------------------------------------------------------------------------------------------


def _whole(value: float) -> Mapping[str, Measured]:
    return {"": Measured(value)}


def _playlists(lake: Reader) -> Mapping[str, Measured]:
    return _whole(lake.rows(PLAYLISTS))


def _tracks(lake: Reader) -> Mapping[str, Measured]:
    """Tracks that are in a playlist or listed: the others stay in the table."""
    orphaned = lake.read(TRACKS, ("orphaned",))["orphaned"]
    return _whole(len(orphaned) - (pc.sum(orphaned).as_py() or 0))


def _new_files(lake: Reader) -> pa.Table:
    """The files that exist and were read after the last good run: slice, n_playlists, status."""
    files = lake.read(INGEST_LEDGER, ("slice", "n_playlists", "status", "ingested_at", "vanished_at"))
    files = files.filter(files["vanished_at"].is_null())
    if lake.since is not None:
        files = files.filter(pc.greater(files["ingested_at"], pa.scalar(lake.since, pa.timestamp("us", tz="UTC"))))
    return files


def _playlists_refused(lake: Reader) -> Mapping[str, Measured]:
    taken, refused, _ = _new_playlists(lake)
    return _whole(refused / (taken + refused) if refused else 0.0)


def _playlists_damaged(lake: Reader) -> Mapping[str, Measured]:
    taken, _, damaged = _new_playlists(lake)
    return _whole(damaged / taken if damaged else 0.0)


def _new_playlists(lake: Reader) -> tuple[int, int, int]:
    """In the files read since the last good run: how many playlists were taken, how many were refused, and how many of
    those that were taken lost an item."""
    files = _new_files(lake)
    taken = pc.sum(files["n_playlists"]).as_py() or 0
    rows = lake.read(QUARANTINE, ("source", "record"), KeyRange((("stage", "ingest_playlists"),)))
    rows = rows.filter(pc.is_in(rows["source"], files["slice"].combine_chunks()))
    rows = rows.filter(pc.not_equal(rows["record"], "file"))
    of_item = pc.match_substring(rows["record"], ", item ")
    playlist = pc.replace_substring_regex(rows["record"], ", item .*", "")
    names = pc.binary_join_element_wise(rows["source"], playlist, "\n")
    refused = set(names.filter(pc.invert(of_item)).to_pylist())
    return taken, len(refused), len(set(names.filter(of_item).to_pylist()) - refused)


def _files_refused(lake: Reader) -> Mapping[str, Measured]:
    files = _new_files(lake)
    refused = pc.sum(pc.equal(files["status"], "refused")).as_py() or 0
    return _whole(refused / len(files) if len(files) else 0.0)


def _features_refused(lake: Reader) -> Mapping[str, Measured]:
    refused = len(lake.read(QUARANTINE, ("stage",), KeyRange((("stage", "ingest_features"),))))
    taken = lake.rows(AUDIO_FEATURES)
    return _whole(refused / (taken + refused) if refused else 0.0)


def _features_missing(lake: Reader) -> Mapping[str, Measured]:
    coverage = lake.fact("ingest_features", "coverage_tracks")
    return {} if coverage is None else _whole(1 - coverage)


# what was evaluated ------------------------------------------------------------------------------------------------


def _means(lake: Reader, metric: str) -> dict[str, float]:
    """The newest mean of each model that has rows in playlist_metrics, over all playlists."""
    columns = ("model", "bucket", "metric", "value", "evaluated_at")
    rows = lake.read(MODEL_METRICS, columns)
    rows = rows.filter(pc.and_(pc.equal(rows["bucket"], "all"), pc.equal(rows["metric"], metric)))
    found = {row["model"]: row["value"] for row in sorted(rows.to_pylist(), key=itemgetter("evaluated_at"))}
    present = set(lake.read(PLAYLIST_METRICS, ("model",))["model"].unique().to_pylist())
    return {model: value for model, value in sorted(found.items()) if model in present}


def _unserved(lake: Reader) -> Mapping[str, Measured]:
    return {model: Measured(value) for model, value in _means(lake, "share_unserved").items()}


def _metric(name: str) -> Measure:
    def measure(lake: Reader) -> Mapping[str, Measured]:
        found = _means(lake, name)
        basis = _holdout(lake, next(iter(found))) if found else None
        return {model: Measured(value, basis, _noise(lake, model, name)) for model, value in found.items()}

    return measure


def _noise(lake: Reader, model: str, metric: str) -> float:
    """Two standard errors of the mean of a metric over the test playlists."""
    values = lake.read(PLAYLIST_METRICS, (metric,), KeyRange((("model", model),)))[metric].to_numpy()
    return float(2 * values.std() / np.sqrt(len(values))) if len(values) else 0.0


def _holdout(lake: Reader, model: str) -> str:
    """Identifies what was evaluated: the playlists, how many of their tracks are given and hidden, and the split.

    All models are evaluated on the same playlists. The version of `holdout` would not do: it changes when the table is
    written again with the same rows, for example by other code, and that is when a comparison matters most.
    """
    rows = lake.read(PLAYLIST_METRICS, ("pid", "n_test", "n_train"), KeyRange((("model", model),)))
    order = np.argsort(rows["pid"].to_numpy())
    digest = hashlib.blake2b(lake.split.encode(), digest_size=16)
    for column in ("pid", "n_test", "n_train"):
        digest.update(rows[column].to_numpy()[order].tobytes())
    return digest.hexdigest()


EXPECTATIONS: tuple[Expectation, ...] = (
    Expectation(
        "playlists_lost",
        "check",
        "Playlists that are gone since the last good run, as a share of those that there were",
        "kept",
        "count",
        _playlists,
    ),
    Expectation(
        "playlists_grown",
        "check",
        "Growth of the number of playlists since the last good run; 1 is twice as many",
        "not_grown",
        "count",
        _playlists,
    ),
    Expectation(
        "tracks_lost",
        "check",
        "Tracks that no playlist and no list has any more since the last good run, as a share of those that there were",
        "kept",
        "count",
        _tracks,
    ),
    Expectation(
        "tracks_grown",
        "check",
        "Growth of the number of tracks since the last good run; 1 is twice as many",
        "not_grown",
        "count",
        _tracks,
    ),
    Expectation(
        "playlists_refused",
        "check",
        "Share of the playlists in the files read since the last good run that were refused",
        "at_most",
        "share",
        _playlists_refused,
    ),
    Expectation(
        "playlists_damaged",
        "check",
        "Share of the playlists taken from files read since the last good run that lost an item, such as a local file",
        "at_most",
        "share",
        _playlists_damaged,
    ),
    Expectation(
        "files_refused",
        "check",
        "Share of the files read since the last good run that were refused as a whole",
        "at_most",
        "share",
        _files_refused,
    ),
    Expectation(
        "features_refused",
        "check",
        "Share of the records of audio features that were refused",
        "at_most",
        "share",
        _features_refused,
    ),
    Expectation(
        "features_missing",
        "check",
        "Share of the tracks without audio features",
        "at_most",
        "share",
        _features_missing,
    ),
    Expectation(
        "features_lost",
        "check",
        "Increase of the share of tracks without audio features since the last good run",
        "not_risen",
        "share",
        _features_missing,
    ),
    Expectation(
        "unserved",
        "check_results",
        "Share of the test playlists for which a model recommends nothing",
        "at_most",
        "share",
        _unserved,
    ),
    Expectation(
        "unserved_more",
        "check_results",
        "Increase of the share of test playlists without a recommendation since the last good run",
        "not_risen",
        "share",
        _unserved,
    ),
    Expectation(
        "ndcg_lost",
        "check_results",
        "Decrease of a model's NDCG since the last good run on the same holdout, as a share of what it was",
        "kept",
        "score",
        _metric("ndcg"),
    ),
    Expectation(
        "r_precision_lost",
        "check_results",
        "Decrease of a model's R-precision since the last good run on the same holdout, as a share of what it was",
        "kept",
        "score",
        _metric("r_precision"),
    ),
)
"""All expectations, in the order in which they are shown."""

BY_NAME: dict[str, Expectation] = {one.name: one for one in EXPECTATIONS}


def check_settings(config: Config) -> None:
    """Raise ConfigError unless the settings `check` have a bound for every expectation, and for nothing else."""
    expect = config.check.expect
    unknown = sorted(expect.keys() - BY_NAME.keys())
    if unknown:
        raise ConfigError(f"check.expect.{unknown[0]}: no such expectation", remedy="one of: " + ", ".join(BY_NAME))
    lacking = [name for name in BY_NAME if name not in expect]
    if lacking:
        raise ConfigError(f"check.expect.{lacking[0]}: missing", remedy="give it a bound and a severity")
    for name in config.check.accept:
        if name.partition("/")[0] not in BY_NAME:
            raise ConfigError(f"check.accept: {name}: no such expectation", remedy="one of: " + ", ".join(BY_NAME))


def is_accepted(name: str, subject: str, accept: Collection[str]) -> bool:
    """Whether a breach is accepted, by the expectation's name, or by NAME/MODEL for one model."""
    return name in accept or f"{name}/{subject}" in accept


def judged(
    one: Expectation,
    subject: str,
    measured: Measured,
    history: Collection[Mapping[str, Any]],
    *,
    bound: float,
    severity: str,
    accept: Collection[str],
) -> dict[str, Any]:
    """The columns of `checks` that say how a value compares: value, baseline, expected, verdict and so on.

    `history`: rows of `checks` of good runs, oldest first. A breach of a fixed bound that was accepted stays accepted
    as long as the value gets no worse.
    """
    earlier = [row for row in history if (row["name"], row["subject"]) == (one.name, subject)]
    same = [row for row in earlier if row["basis"] == measured.basis]
    baseline = float(same[-1]["value"]) if same else None
    expected = one.expected(bound, baseline, measured.noise)
    verdict = "uncompared" if expected is None else "ok"
    if not one.is_met(measured.value, expected):
        known = one.rule == "at_most" and same and same[-1]["verdict"] == "accepted"
        stays = known and not one.is_worse(measured.value, same[-1]["value"])
        verdict = "accepted" if stays or is_accepted(one.name, subject, accept) else severity
    return {
        "name": one.name,
        "subject": subject,
        "value": measured.value,
        "baseline": baseline,
        "relation": one.relation,
        "expected": expected,
        "bound": bound,
        "severity": severity,
        "verdict": verdict,
        "basis": measured.basis,
    }


def newest(rows: Collection[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of `checks` that are in force: of each job, those of the run that checked last; in the order of the
    expectations, then by subject."""
    last: dict[str, datetime] = {}
    for row in rows:
        last[row["job"]] = max(row["at"], last.get(row["job"], row["at"]))
    place = {name: number for number, name in enumerate(BY_NAME)}
    found = [row for row in rows if row["at"] == last[row["job"]]]
    return sorted(found, key=lambda row: (row["job"], place.get(row["name"], len(place)), row["name"], row["subject"]))


def good_rows(rows: Collection[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of the rows of one job, those of runs in which nothing failed, oldest first."""
    failed = {row["run_id"] for row in rows if row["verdict"] == "fail"}
    return sorted((row for row in rows if row["run_id"] not in failed), key=itemgetter("at"))


def shown_value(row: Mapping[str, Any], column: str) -> str:
    """A number of a row of `checks` in the unit of its expectation; a dash for null."""
    if row[column] is None:
        return "-"
    one = BY_NAME.get(row["name"])
    return one.text(row[column]) if one is not None else f"{row[column]:.6g}"


def shown_expected(row: Mapping[str, Any]) -> str:
    """What was expected of a row of `checks`: at least 950; a dash if nothing was."""
    if row["expected"] is None:
        return "-"
    return f"{str(row['relation']).replace('_', ' ')} {shown_value(row, 'expected')}"


def sentence(row: Mapping[str, Any]) -> str:
    """A row of `checks` in words: playlists_lost: 900, at least 950 expected (1,000 in the last good run)."""
    name = f"{row['name']}/{row['subject']}" if row["subject"] else str(row["name"])
    text = f"{name}: {shown_value(row, 'value')}"
    if row["expected"] is not None:
        text += f", {shown_expected(row)} expected"
    if row["baseline"] is not None:
        text += f" ({shown_value(row, 'baseline')} in the last good run)"
    return text
