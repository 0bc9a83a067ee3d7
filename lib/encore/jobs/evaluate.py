"""Compare recommended with held-out tracks, playlist by playlist, and log each model to MLflow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encore.catalogue import artist_numbers, count_tracks
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
    n_tracks, models = ctx.n_rows(TRACKS), ctx.config.recommend.models
    artist_of, _ = artist_numbers(ctx.read(TRACKS), n_tracks)
    artists = ctx.ship(artist_of=artist_of)
    ctx.chunked(HOLDOUT, PLAYLIST_METRICS, lambda holdout, _: _metrics(ctx, holdout, artists))
    rows = ctx.store.read(PLAYLIST_METRICS).toArrow()
    for model in models:
        summary = _summary(rows.filter(pc.equal(rows["model"], model)), n_tracks, _covered(ctx, model, n_tracks))
        ctx.facts.update({f"{model}/{name}": value for name, value in summary.figures().items() if "/" not in name})
        _log(ctx, model, summary)


def _metrics(ctx: JobContext, holdout: Any, artists: Any) -> Mapped:
    """Metrics of a range of playlists. Their truth goes to every executor: the long lists stay where they are."""
    truth = holdout.where("size(test) > 0").selectExpr("pid", "test", "size(train) AS n_train").toArrow().sort_by("pid")
    test, pids = Ragged.from_arrow(truth["test"]), truth["pid"].to_numpy()
    n_train = truth["n_train"].to_numpy().astype(np.int32)
    shipped = ctx.ship(pids=pids, offsets=test.offsets, values=test.values, n_train=n_train)
    k, models = ctx.config.recommend.k, ctx.config.recommend.models

    def start() -> Kernel:
        arrays, artist_of = shipped.open(), artists.open()["artist_of"]
        all_test = Ragged(arrays["offsets"], arrays["values"])

        def kernel(rows: pa.Table) -> tuple[np.ndarray, dict[str, Any]]:
            own = rows["pid"].to_numpy()
            at = np.searchsorted(arrays["pids"], own)
            found = np.append(arrays["pids"], -1)[at] == own
            at, kept = at[found], np.flatnonzero(found)
            lists = Ragged.from_arrow(rows["track_ids"]).take(kept)
            metrics = evaluate(lists, all_test.take(at), k=k, artist_of=artist_of)
            return kept, _columns(metrics, arrays["n_train"][at], lists.lengths)

        return kernel

    low, high = (int(pids[0]), int(pids[-1])) if len(pids) else (0, -1)
    names = ", ".join(f"'{model}'" for model in models)
    recommended = ctx.read(RECOMMENDATIONS).where(f"model IN ({names}) AND pid BETWEEN {low} AND {high}")
    served = map_rows(recommended.select("model", "pid", "track_ids"), start, PLAYLIST_METRICS, block=4096)
    there = served.keys.toArrow()
    without = [_unserved(model, there, pids, test, n_train, k) for model in models]
    frame = served.frame.unionByName(ctx.spark.createDataFrame(pa.concat_tables(without)))
    every = [pa.table({"model": pa.repeat(model, len(pids)), "pid": pids}) for model in models]
    return Mapped(frame, ctx.spark.createDataFrame(pa.concat_tables(every)))


def _unserved(model: str, there: pa.Table, pids: np.ndarray, test: Ragged, n_train: np.ndarray, k: int) -> pa.Table:
    """Rows of the playlists for which a model had nothing to say: they count as zero, they are never dropped."""
    served = there.filter(pc.equal(there["model"], model))["pid"].to_numpy()
    missing = np.flatnonzero(~np.isin(pids, served))
    empty = Ragged.from_lengths(np.zeros(len(missing), np.int64), np.empty(0, np.int32))
    # with no recommendation no artist is met, so none has to be known
    metrics = evaluate(empty, test.take(missing), k=k, artist_of=None)
    columns = {"model": pa.repeat(model, len(missing)), "pid": pids[missing]}
    rows = pa.table({**columns, **_columns(metrics, n_train[missing], empty.lengths)})
    return rows.select(PLAYLIST_METRICS.names).cast(arrow_schema(PLAYLIST_METRICS))


def _columns(metrics: Metrics, n_train: np.ndarray, n_recommended: np.ndarray) -> dict[str, Any]:
    sizes = {"n_train": n_train, "n_recommended": n_recommended.astype(np.int32)}
    return {**{name: getattr(metrics, name) for name in Metrics._fields}, **sizes}


def _summary(rows: pa.Table, n_tracks: int, covered: np.ndarray) -> Summary:
    """All playlists of a model together, from the rows that were written."""
    found = Metrics(**{name: rows[name].to_numpy() for name in Metrics._fields})
    # whether there is a list is all that matters here: which tracks were covered is counted where the lists are
    served = np.minimum(rows["n_recommended"].to_numpy(), 1)
    lists = Ragged.from_lengths(served, np.zeros(served.sum(), np.int32))
    return replace(Summary.of(found, rows["n_train"].to_numpy(), lists, n_tracks=n_tracks), covered=covered)


def _covered(ctx: JobContext, model: str, n_tracks: int) -> np.ndarray:
    """Which tracks a model recommended to anyone: bool (n_tracks,)."""
    return count_tracks(ctx.read(RECOMMENDATIONS).where(f"model = '{model}'"), "track_ids", n_tracks) > 0


def _log(ctx: JobContext, model: str, summary: Summary) -> None:
    # matplotlib is for the driver alone: workers import this module too
    from encore.reports import plots

    mine = {model: summary}
    figures = {
        "precision_by_known": plots.precision_by_known(mine),
        "clicks_distribution": plots.clicks_distribution(mine),
    }
    ctx.tracking.log_model(model, summary.figures(), ctx.versions, figures)
