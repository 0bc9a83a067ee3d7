"""Compare recommended with held-out tracks, playlist by playlist, and log each model to MLflow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from encore.catalogue import artist_numbers
from encore.evaluation.metrics import Metrics, Summary, evaluate
from encore.job import JobContext
from encore.ragged import Ragged
from encore.rows import Kernel, Mapped, map_rows
from encore.store import arrow_schema
from encore.tables import HOLDOUT, PLAYLIST_METRICS, RECOMMENDATIONS, TRACKS

READS = (RECOMMENDATIONS, HOLDOUT, TRACKS)
WRITES = (PLAYLIST_METRICS,)
SETTINGS = ("recommend",)


def state(ctx: JobContext) -> str:
    """Where the metrics are logged: another store has to be told too."""
    return f"{ctx.config.tracking.uri} {ctx.config.tracking.experiment}"


def run(ctx: JobContext) -> None:
    """`playlist_metrics`: a row for every playlist with test tracks and every model, and a child run for each model."""
    n_tracks = ctx.n_rows(TRACKS)
    artist_of, _ = artist_numbers(ctx.read(TRACKS), n_tracks)
    artists = ctx.ship(artist_of=artist_of)
    for model in ctx.config.recommend.models:
        where = f"model = '{model}'"
        ctx.chunked(
            HOLDOUT,
            PLAYLIST_METRICS,
            lambda holdout, _, name=model: _metrics(ctx, name, holdout, artists),  # type: ignore[misc]
            prefix=model,
            where=where,
        )
        summary = _summary(ctx, model, n_tracks)
        ctx.facts.update({f"{model}/{name}": value for name, value in summary.figures().items() if "/" not in name})
        _log(ctx, model, summary)
    names = ", ".join(f"'{name}'" for name in ctx.config.recommend.models)
    if not ctx.store.read(PLAYLIST_METRICS).where(f"model NOT IN ({names})").isEmpty():
        ctx.delete(PLAYLIST_METRICS, f"model NOT IN ({names})", part="other models")


def _metrics(ctx: JobContext, model: str, holdout: Any, artists: Any) -> Mapped:
    """Metrics of a range of playlists. Their truth goes to every executor: the long lists stay where they are."""
    truth = holdout.where("size(test) > 0").selectExpr("pid", "test", "size(train) AS n_train").toArrow().sort_by("pid")
    test = Ragged.from_arrow(truth["test"])
    pids = truth["pid"].to_numpy()
    shipped = ctx.ship(
        pids=pids,
        offsets=test.offsets,
        values=test.values,
        n_train=truth["n_train"].to_numpy().astype(np.int32),
    )
    k = ctx.config.recommend.k

    def start() -> Kernel:
        arrays, artist_of = shipped.open(), artists.open()["artist_of"]
        all_test = Ragged(arrays["offsets"], arrays["values"])

        def kernel(rows: pa.Table) -> pa.Table:
            own = rows["pid"].to_numpy()
            at = np.searchsorted(arrays["pids"], own)
            known = (at < len(arrays["pids"])) & (arrays["pids"][np.minimum(at, len(arrays["pids"]) - 1)] == own)
            at, kept = at[known], np.flatnonzero(known)
            lists = Ragged.from_arrow(rows["track_ids"]).take(kept)
            found = evaluate(lists, all_test.take(at), k=k, artist_of=artist_of)
            return _rows(model, own[known], found, arrays["n_train"][at], lists.lengths)

        return kernel

    if not len(pids):
        return Mapped(*(ctx.spark.createDataFrame(arrow_schema(PLAYLIST_METRICS).empty_table()),) * 2)
    low, high = int(pids[0]), int(pids[-1])
    recommended = ctx.read(RECOMMENDATIONS).where(f"model = '{model}' AND pid BETWEEN {low} AND {high}")
    constant = {"model": model}
    served = map_rows(recommended.select("pid", "track_ids"), start, PLAYLIST_METRICS, block=4096, constant=constant)

    there = recommended.select("pid").toArrow()["pid"].to_numpy()
    missing = ~np.isin(pids, there)
    empty = Ragged.from_lengths(np.zeros(missing.sum(), np.int64), np.empty(0, np.int32))
    found = evaluate(empty, test.take(np.flatnonzero(missing)), k=k, artist_of=None)
    unserved = _rows(model, pids[missing], found, truth["n_train"].to_numpy()[missing], empty.lengths)
    frame = served.frame
    if missing.any():
        frame = frame.unionByName(ctx.spark.createDataFrame(unserved.cast(arrow_schema(PLAYLIST_METRICS))))
    keys = ctx.spark.createDataFrame(pa.table({"model": pa.repeat(model, len(pids)), "pid": pids}))
    return Mapped(frame, keys)


def _rows(model: str, pids: np.ndarray, found: Metrics, n_train: np.ndarray, n_recommended: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "model": pa.repeat(model, len(pids)),
            "pid": pids,
            **{name: getattr(found, name) for name in Metrics._fields},
            "n_train": n_train.astype(np.int32),
            "n_recommended": n_recommended.astype(np.int32),
        }
    ).select(PLAYLIST_METRICS.names)


def _summary(ctx: JobContext, model: str, n_tracks: int) -> Summary:
    """All playlists of a model together, from the table that was written."""
    rows = ctx.store.read(PLAYLIST_METRICS).where(f"model = '{model}'").toArrow()
    found = Metrics(**{name: rows[name].to_numpy() for name in Metrics._fields})
    n_recommended = rows["n_recommended"].to_numpy()
    # whether there is a list is all that matters here: which tracks were covered is counted where the lists are
    served = np.minimum(n_recommended, 1)
    lists = Ragged.from_lengths(served, np.zeros(served.sum(), np.int32))
    summary = Summary.of(found, rows["n_train"].to_numpy(), lists, n_tracks=n_tracks)
    return replace(summary, covered=_covered(ctx, model, n_tracks))


def _covered(ctx: JobContext, model: str, n_tracks: int) -> np.ndarray:
    """Which tracks were recommended to anyone: bool (n_tracks,)."""

    def distinct(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        seen = np.zeros(n_tracks, bool)
        for batch in batches:
            seen[Ragged.from_arrow(batch.column(0)).values] = True
        yield pa.RecordBatch.from_arrays([pa.array(np.flatnonzero(seen), pa.int32())], ["track_id"])

    recommended = ctx.read(RECOMMENDATIONS).where(f"model = '{model}'").select("track_ids")
    covered = np.zeros(n_tracks, bool)
    covered[recommended.mapInArrow(distinct, "track_id int").toArrow()["track_id"].to_numpy()] = True
    return covered


def _log(ctx: JobContext, model: str, summary: Summary) -> None:
    # matplotlib is for the driver alone: workers import this module too
    from encore.reports import plots

    mine = {model: summary}
    figures = {
        "precision_by_known": plots.precision_by_known(mine),
        "clicks_distribution": plots.clicks_distribution(mine),
    }
    ctx.tracking.log_model(model, summary.figures(), ctx.versions, figures)
