"""What a stage holds after a run, whether that is what a run should leave, and whether it may go to production.

Facts are read from the lake once and written as JSON, because the stages that are compared may be in accounts that no
single identity can read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from encore.config import Config
from encore.errors import ConfigError, InputError, LakeError
from encore.findings import Finding
from encore.lake.store import Store, open_store
from encore.lake.tables import (
    ALL,
    AUDIO_FEATURES,
    HOLDOUT,
    JOB_RUNS,
    MODEL_METRICS,
    MODELS,
    PLAYLIST_CENTROIDS,
    PLAYLIST_METRICS,
    PLAYLISTS,
    RECOMMENDATIONS,
    TRACK_VECTORS,
    TRACKS,
)
from encore.runtime.registry import JOBS

FILLED = (
    PLAYLISTS,
    TRACKS,
    AUDIO_FEATURES,
    TRACK_VECTORS,
    HOLDOUT,
    PLAYLIST_CENTROIDS,
    MODELS,
    RECOMMENDATIONS,
    PLAYLIST_METRICS,
    MODEL_METRICS,
)
"""Tables that have rows after a complete run."""

ACCURACY = ("r_precision", "ndcg", "clicks")
"""Metrics that every evaluated model has, of the bucket `all`."""

CLICKS_MOST = 51.0
"""The clicks of a list without a hit."""

TOLERANCE = 0.05
"""How much worse than production's a metric may be, as a share of production's."""

COMPARABLE = 2.0
"""Metrics depend on the data: with this many times more or fewer playlists, they are not compared."""


@dataclass(frozen=True)
class Facts:
    """What a stage's lake holds.

    `run_id`: of the last run that recorded a job, None if there is none; `failed`: that run's failed jobs with their
    errors; `done`: jobs that have ever been done; `rows` by table; `metrics` by model and metric, those in force.
    """

    stage: str
    run_id: str | None = None
    failed: dict[str, str] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write them as JSON, and create the folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2, sort_keys=True) + "\n")

    @classmethod
    def read(cls, path: Path) -> Facts:
        """Read what `write` wrote. InputError if the file is missing or is something else."""
        remedy = "write it with `encore deploy facts --stage STAGE --out FILE`"
        try:
            found: dict[str, Any] = json.loads(path.read_text())
            return cls(**found)
        except FileNotFoundError as error:
            raise InputError(f"{path}: does not exist", remedy=remedy) from error
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: not the facts about a stage: {error}", remedy=remedy) from error


def facts_of(stage: str, config: Config) -> Facts:
    """Read the facts about the lake of a configuration. A lake without tables has none."""
    try:
        store = open_store(config)
    except LakeError:
        return Facts(stage)
    runs = _sorted(store.read_small(JOB_RUNS), "started_at") if store.exists(JOB_RUNS) else []
    last = str(runs[-1]["run_id"]) if runs else None
    return Facts(
        stage,
        run_id=last,
        failed=_failed(runs, last),
        done=sorted({str(row["job"]) for row in runs if row["status"] != "failed"}),
        rows={table.name: state.rows for table in ALL if (state := store.state(table)) is not None},
        metrics=_metrics(store),
    )


def _failed(runs: Sequence[dict[str, Any]], run_id: str | None) -> dict[str, str]:
    """Error of each job whose last attempt in a run failed."""
    ends = {str(row["job"]): row for row in runs if row["run_id"] == run_id}
    return {job: str(row["error"] or "no error recorded") for job, row in ends.items() if row["status"] == "failed"}


def _metrics(store: Store) -> dict[str, dict[str, float]]:
    """The metrics in force of each model: its newest, of the bucket `all`."""
    found: dict[str, dict[str, float]] = {}
    if store.exists(MODEL_METRICS):
        for row in _sorted(store.read_small(MODEL_METRICS), "evaluated_at"):
            if row["bucket"] == "all":
                found.setdefault(str(row["model"]), {})[str(row["metric"])] = float(row["value"])
    return found


def _sorted(rows: pa.Table, time: str) -> list[dict[str, Any]]:
    # without a time zone, for whose conversion pyarrow would import pandas
    times = rows[time].cast(pa.timestamp("us"))
    found = rows.set_column(rows.schema.get_field_index(time), time, times).to_pylist()
    return sorted(found, key=lambda row: row[time])


def accepted(facts: Facts, playlists: int | None) -> Iterator[Finding]:
    """Check what a complete run leaves: jobs done, tables filled, metrics in range. `playlists`: how many there are."""
    if facts.run_id is None:
        yield Finding("run", f"none in the lake of {facts.stage}", f"`encore deploy run --stage {facts.stage}`")
        return
    for job, error in facts.failed.items():
        yield Finding(job, error, "fix the cause, and run it again")
    missing = [job for job in JOBS if job not in facts.done and job not in facts.failed]
    yield Finding(
        "jobs",
        f"never done: {', '.join(missing)}" if missing else f"{len(JOBS)} done, the last in run {facts.run_id}",
        "run all of them: start an execution without `only` and `from`" if missing else None,
    )
    empty = [table.name for table in FILLED if not facts.rows.get(table.name)]
    yield Finding(
        "tables",
        f"without rows: {', '.join(empty)}" if empty else f"{len(FILLED)} with rows",
        "see the log of the job that writes them" if empty else None,
    )
    if playlists is not None:
        found = facts.rows.get(PLAYLISTS.name, 0)
        yield Finding(
            "playlists",
            f"{found:,} of {playlists:,} that were uploaded",
            None if found == playlists else "see the table quarantine, and what else is in the raw bucket",
        )
    yield from _measured(facts)


def _measured(facts: Facts) -> Iterator[Finding]:
    if not facts.metrics:
        yield Finding("metrics", "none", "see the log of evaluate")
        return
    wrong = []
    for model, metrics in sorted(facts.metrics.items()):
        for name in ACCURACY:
            value, most = metrics.get(name, math.nan), CLICKS_MOST if name == "clicks" else 1.0
            # the comparison is false for NaN
            if not 0 <= value <= most:
                wrong.append(f"{model}: {name} {value:.4g}")
    yield Finding(
        "metrics",
        "; ".join(wrong) if wrong else f"of {len(facts.metrics)} models, in range",
        "see the log of evaluate" if wrong else None,
    )


def gate(candidate: Facts, production: Facts, tolerance: float = TOLERANCE) -> Iterator[Finding]:
    """Check whether what `candidate` ran may go to production: a complete run, and metrics not far below production's.

    Before the first run of production there is nothing to compare with. ConfigError for a tolerance that is no share.
    """
    if not 0 <= tolerance < 1:
        raise ConfigError(f"--tolerance {tolerance}: a share from 0 to 1 expected")
    yield from accepted(candidate, None)
    if not production.metrics:
        yield Finding("comparison", f"{production.stage} has no metrics yet")
        return
    here, there = (facts.rows.get(PLAYLISTS.name, 0) for facts in (candidate, production))
    if not there or not 1 / COMPARABLE <= here / there <= COMPARABLE:
        yield Finding(
            "comparison",
            f"{candidate.stage} has {here:,} playlists and {production.stage} {there:,}: their metrics differ anyway",
            f"give {candidate.stage} the slices of {production.stage}, or compare with an earlier run of its own",
        )
        return
    for model, before in sorted(production.metrics.items()):
        after = candidate.metrics.get(model)
        if after is None:
            yield Finding(model, f"not evaluated in {candidate.stage}", "see recommend.models")
            continue
        worse = [
            f"{name} {after.get(name, math.nan):.4f}, in {production.stage} {before[name]:.4f}"
            for name in ACCURACY
            if name in before and not _as_good(name, after.get(name, math.nan), before[name], tolerance)
        ]
        yield Finding(
            model,
            f"worse: {'; '.join(worse)}" if worse else f"within {tolerance:.0%} of {production.stage}",
            "find out why, or pass a higher --tolerance for this one release" if worse else None,
        )


def _as_good(name: str, after: float, before: float, tolerance: float) -> bool:
    """Whether a metric is not worse than before by more than the tolerance; never for NaN. Fewer clicks are better."""
    return after <= before * (1 + tolerance) if name == "clicks" else after >= before * (1 - tolerance)
