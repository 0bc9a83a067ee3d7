"""Compare the recommended tracks of each playlist with its held-out tracks, and log each model to MLflow."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encore.arrays.kinds import kind_numbers
from encore.arrays.ragged import Ragged
from encore.evaluation import rows as metric_rows
from encore.evaluation.beyond_accuracy import TrackFacts, beyond_accuracy, track_facts
from encore.evaluation.metrics import find_hits, score
from encore.evaluation.summary import Summary
from encore.lake.coverage import fitted_models
from encore.lake.delta import Interval
from encore.lake.scan import KeyIn, KeyRange, Scan
from encore.lake.tables import HOLDOUT, MODEL_METRICS, PLAYLIST_METRICS, RECOMMENDATIONS, TRACKS, arrow_schema
from encore.lake.track_arrays import artist_numbers, check_track_ids, count_tracks, listed_tracks
from encore.runtime.context import JobContext
from encore.runtime.fingerprint import code_digest, fingerprint
from encore.spark.broadcast import BroadcastArrays
from encore.spark.row_map import Kernel, RowMap
from encore.splits.sampling import sample_settings, sampled_pids

READS = (RECOMMENDATIONS, HOLDOUT, TRACKS)
WRITES = (PLAYLIST_METRICS, MODEL_METRICS)
DERIVED = (PLAYLIST_METRICS,)
SETTINGS = ("recommend", "evaluate")


def state(ctx: JobContext) -> str:
    """Where the metrics are logged: if the store changes, they must be logged to the new one too."""
    tracking = ctx.config.tracking
    return f"{tracking.store} {tracking.experiment}"


def model_fingerprints(ctx: JobContext) -> dict[str, str]:
    """The fingerprint of each model's metrics, which depend only on that model's recommendations."""
    return {name: _fingerprint(ctx, name) for name in ctx.config.recommend.models}


def _fingerprint(ctx: JobContext, model: str) -> str:
    found = ctx.inputs.get(RECOMMENDATIONS.name)
    own = found.data_id_of((("model", model),)) if found else ""
    return fingerprint(
        f"{ctx.name} {model}",
        code=code_digest(__name__, left_out={"encore.reports"}),
        settings={"k": ctx.config.recommend.k, "sample": sample_settings(ctx.config)},
        inputs={RECOMMENDATIONS.name: own, **{table.name: ctx.data_id(table) for table in (HOLDOUT, TRACKS)}},
        writes=WRITES,
    )


def run(ctx: JobContext) -> None:
    """Write `playlist_metrics`, one row per model and playlist with test tracks, and their means, `model_metrics`.

    Every evaluated model is logged as a child run, and so is any model whose metrics the store does not have yet.
    """
    n_tracks, models = ctx.n_rows(TRACKS), ctx.config.recommend.models
    tracks = list(ctx.stream(TRACKS, ("track_id", "artist_uri", "orphaned")))
    artist_of, _ = artist_numbers([part.select(["track_id", "artist_uri"]) for part in tracks], n_tracks)
    listed = listed_tracks(tracks, n_tracks)
    facts = _track_facts(ctx, artist_of)
    shipped = ctx.ship(**facts._asdict())
    exposure = {model: np.zeros(n_tracks, np.int64) for model in models}
    sample = sampled_pids(ctx.stream, ctx.config)
    left_out = ctx.chunked(
        HOLDOUT,
        PLAYLIST_METRICS,
        ("pid", "train", "test", "kind"),
        lambda holdout, pids, own: _metrics(
            ctx, holdout, pids, facts, shipped, {model: exposure[model] for model in own}, is_sample=sample is not None
        ),
        models=models,
        only=sample,
    )
    for name in sorted(ctx.store.partitions(PLAYLIST_METRICS, "model") - set(models)):
        ctx.write(PLAYLIST_METRICS, [], KeyRange((("model", name),)), part=f"{name}: dropped")
    known = {} if ctx.force else _known(ctx)
    for model in models:
        if (ctx.models[model], state(ctx)) != known.get(model):
            _summarize(ctx, model, exposure[model], left_out[model], listed)


def _track_facts(ctx: JobContext, artist_of: np.ndarray) -> TrackFacts:
    """Facts about the tracks; a playlist is a training playlist if it has no kind and a train track."""
    counts, n_playlists = np.zeros(len(artist_of), np.int64), 0
    for part in ctx.stream(HOLDOUT, ("train", "kind")):
        trained = part.filter(part["kind"].is_null())
        counts += count_tracks([trained], HOLDOUT, "train", len(artist_of))
        n_playlists += pc.sum(pc.greater(pc.list_value_length(trained["train"]), 0)).as_py() or 0
    return track_facts(artist_of, counts, n_playlists)


def _known(ctx: JobContext) -> dict[str, tuple[str, str | None]]:
    """For each model, the fingerprint of its newest means, and where they were logged."""
    rows = ctx.store.read_small(MODEL_METRICS, ["model", "fingerprint", "evaluated_at", "logged_to"]).to_pylist()
    return {
        row["model"]: (row["fingerprint"], row["logged_to"]) for row in sorted(rows, key=itemgetter("evaluated_at"))
    }


def _summarize(ctx: JobContext, model: str, exposure: np.ndarray, left_out: list[Interval], listed: np.ndarray) -> None:
    """Write and log the means of a model, and its coverage of the `listed` tracks.

    `exposure`: how often each track was recommended in the ranges that this run evaluated; `left_out`: the other
    ranges.
    """
    n_tracks = len(exposure)
    for low, high in left_out:
        lists = ctx.stream(RECOMMENDATIONS, ["track_ids"], KeyRange((("model", model),), "pid", low, high))
        exposure += count_tracks(lists, RECOMMENDATIONS, "track_ids", n_tracks)
    rows = ctx.store.scan(PLAYLIST_METRICS, metric_rows.COLUMNS, where=KeyRange((("model", model),))).whole(
        ctx.io_stats
    )
    # the tasks that read the lists have already counted their tracks
    found = metric_rows.summary(rows, exposure[listed])
    fitted = _fitted(ctx, model)
    is_logged = _log(ctx, model, found, fitted) is not None
    constant = {
        "run_id": ctx.run_id,
        "model": model,
        "fingerprint": ctx.models[model],
        "evaluated_at": datetime.now(UTC),
        "logged_to": state(ctx) if is_logged else None,
        "fitted": fitted,
    }
    means = [{**constant, **mean} for mean in means_of(found)]
    table = pa.Table.from_pylist(means, schema=arrow_schema(MODEL_METRICS))
    where = KeyIn("run_id", pa.array([ctx.run_id]), (("model", model),))
    ctx.write(MODEL_METRICS, [table], where, part=model, fingerprint=ctx.models[model])


def _fitted(ctx: JobContext, model: str) -> str | None:
    """The fingerprint of the fitted model that the evaluated recommendations come from; None if it is not just one."""
    found = fitted_models(ctx.inputs[RECOMMENDATIONS.name].changes(), (("model", model),))
    return next(iter(found)) if found is not None and len(found) == 1 else None


def means_of(summary: Summary) -> list[dict[str, Any]]:
    """A summary as rows of `model_metrics`, with bucket, metric, value and n_playlists."""
    figures, rows = summary.figures(), []
    for name, value in figures.items():
        bucket, _, metric = name.rpartition("/")
        if metric != "n_playlists":
            count = figures[f"{bucket}/n_playlists" if bucket else "n_playlists"]
            rows.append({"bucket": bucket or "all", "metric": metric, "value": value, "n_playlists": int(count)})
    return rows


class Evaluation:
    """The kernel: computes metrics of recommended lists, and records the playlists and tracks that occur in them.

    `pids` int64 (n,), ascending: playlists with test tracks; `test`, n rows; `n_train` int32 and `kinds` int8 (n,):
    numbers of train tracks and kinds. `served[model]` bool (n,): playlists that had a list; `exposure[model]` int32
    (n_tracks,): how often each track was recommended.
    """

    def __init__(self, arrays: dict[str, np.ndarray], facts: TrackFacts, models: tuple[str, ...], k: int) -> None:
        self._pids, self._n_train, self._kinds = arrays["pids"], arrays["n_train"], arrays["kinds"]
        self._test = Ragged(arrays["offsets"], arrays["values"])
        self._facts, self._k = facts, k
        self.served = {model: np.zeros(len(self._pids), np.bool_) for model in models}
        self.exposure = {model: np.zeros(len(facts.artist_of), np.int32) for model in models}

    def __call__(self, rows: pa.Table) -> tuple[np.ndarray, dict[str, Any]]:
        """See row_map.Kernel; `rows` of `recommendations`, of any models."""
        lists = Ragged.from_arrow(rows["track_ids"])
        check_track_ids(RECOMMENDATIONS, "track_ids", lists.values, len(self._facts.artist_of))
        at = np.searchsorted(self._pids, rows["pid"].to_numpy())
        found = np.append(self._pids, -1)[at] == rows["pid"].to_numpy()
        for model in self.served:
            own = pc.equal(rows["model"], model).to_numpy()
            self.served[model][at[own & found]] = True
            tracks = lists.values if own.all() else lists.take(np.flatnonzero(own)).values
            # eight times as fast as np.add.at, for two million tracks too
            self.exposure[model] += np.bincount(tracks, minlength=len(self.exposure[model]))
        kept = np.flatnonzero(found)
        lists = lists if len(kept) == len(rows) else lists.take(kept)
        columns = _columns(
            lists, self._test.take(at[kept]), self._n_train[at[kept]], self._kinds[at[kept]], self._facts, self._k
        )
        return kept, columns

    def partial_state(self) -> bytes:
        """`served` and `exposure`, compressed, which `merge` reads."""
        packed = {f"served {model}": np.packbits(bits) for model, bits in self.served.items()}
        # the smallest type is enough, and compresses fastest
        packed |= {
            f"exposure {model}": counts.astype(np.min_scalar_type(int(counts.max(initial=0))))
            for model, counts in self.exposure.items()
        }
        stream = io.BytesIO()
        np.savez_compressed(stream, allow_pickle=False, **packed)
        return stream.getvalue()


def merge(states: list[bytes], model: str, n_playlists: int, exposure: np.ndarray) -> np.ndarray:
    """Which of `n_playlists` had a list of a model, bool, from the states of all tasks.

    How often they recommended each track is added to `exposure`, int64 (n_tracks,).
    """
    served = np.zeros(n_playlists, np.bool_)
    for text in states:
        with np.load(io.BytesIO(text), allow_pickle=False) as packed:
            served |= np.unpackbits(packed[f"served {model}"], count=n_playlists).astype(np.bool_)
            exposure += packed[f"exposure {model}"]
    return served


def _metrics(
    ctx: JobContext,
    holdout: Scan,
    pids: np.ndarray,
    facts: TrackFacts,
    shipped_facts: BroadcastArrays,
    exposure: dict[str, np.ndarray],
    *,
    is_sample: bool,
) -> RowMap:
    """Metrics of a range of playlists, for the models in `exposure`; `is_sample`: only of those in `pids`.

    The ground truth is sent to every executor, so that the much larger recommended lists need not be moved.
    """
    truth = _truth(ctx, holdout, pids if is_sample else None)
    test = truth.test
    shipped = ctx.ship(
        pids=truth.pids, offsets=test.offsets, values=test.values, n_train=truth.n_train, kinds=truth.kinds
    )
    k, models = ctx.config.recommend.k, tuple(exposure)

    def start() -> Kernel:
        return Evaluation(shipped.open(), TrackFacts(**shipped_facts.open()), models, k)

    def remaining_rows(states: list[bytes]) -> pa.Table:
        parts = []
        for model in models:
            missing = np.flatnonzero(~merge(states, model, len(truth.pids), exposure[model]))
            parts.append(_unserved(model, missing, truth, facts, k))
        return pa.concat_tables(parts)

    low, high = (int(pids[0]), int(pids[-1]) + 1) if len(pids) else (0, 0)
    recommended = ctx.scan(RECOMMENDATIONS, ("model", "pid", "track_ids"), KeyRange((), "pid", low, high))
    return RowMap(recommended.of("model", models), start, block=4096, remaining_rows=remaining_rows)


class _Truth(NamedTuple):
    """The playlists with test tracks, sorted by pid: `pids` int64 (n,), `test` tracks, n rows, numbers of train tracks
    `n_train` int32 (n,), and `kinds` int8 (n,), indices into KINDS or -1."""

    pids: np.ndarray
    test: Ragged
    n_train: np.ndarray
    kinds: np.ndarray


def _truth(ctx: JobContext, holdout: Scan, only: np.ndarray | None) -> _Truth:
    if only is None:
        rows = holdout.whole(ctx.io_stats)
    else:
        wanted, parts = pa.array(only), holdout.read(ctx.io_stats)
        sampled = (part.filter(pc.is_in(part["pid"], wanted)) for part in parts)
        rows = pa.concat_tables([holdout.schema.empty_table(), *sampled])
    pids = rows["pid"].to_numpy()
    test, train = Ragged.from_arrow(rows["test"]), Ragged.from_arrow(rows["train"])
    check_track_ids(HOLDOUT, "test", test.values, ctx.n_rows(TRACKS))
    order = np.argsort(pids)
    order = order[test.lengths[order] > 0]
    kinds = kind_numbers(rows["kind"])[order]
    return _Truth(pids[order], test.take(order), train.lengths[order].astype(np.int32), kinds)


def _unserved(model: str, missing: np.ndarray, truth: _Truth, facts: TrackFacts, k: int) -> pa.Table:
    """Rows of the playlists without recommendations from a model: they score zero instead of being dropped."""
    empty = Ragged.empty(len(missing))
    values = _columns(empty, truth.test.take(missing), truth.n_train[missing], truth.kinds[missing], facts, k)
    rows = pa.table({"model": pa.repeat(model, len(missing)), "pid": truth.pids[missing], **values})
    return rows.select(PLAYLIST_METRICS.names).cast(arrow_schema(PLAYLIST_METRICS))


def _columns(
    lists: Ragged, test: Ragged, n_train: np.ndarray, kinds: np.ndarray, facts: TrackFacts, k: int
) -> dict[str, Any]:
    """The columns of `playlist_metrics` without its keys."""
    hits = find_hits(lists, test, k=k)
    metrics, beyond = score(hits, test, k=k, artist_of=facts.artist_of), beyond_accuracy(hits, test, facts)
    return metric_rows.columns(metrics, beyond, n_train, lists.lengths, kinds)


def _log(ctx: JobContext, model: str, summary: Summary, fitted: str | None) -> str | None:
    # import matplotlib only on the driver: workers import this module too
    from encore.reports import plots

    mine = {model: summary}
    figures = {
        "precision_by_known": plots.precision_by_known(mine),
        "clicks_distribution": plots.clicks_distribution(mine),
        **({"precision_by_kind": plots.precision_by_kind(mine)} if plots.has_kinds(mine) else {}),
    }
    return ctx.tracking.log_model(model, summary.figures(), ctx.versions, ctx.input_tables, figures, fitted)
