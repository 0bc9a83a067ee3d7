"""Plots for the report and for MLflow: arrays and summaries in, matplotlib Figures out, no global state.

Plots are legible at 700 pixels; those with a width of HALF also at 480, two side by side. The colours are the
colour-blind-safe palette of Okabe and Ito; models also differ by marker. A plot without data says so, and is not an
error.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from encore.evaluation.beyond_accuracy import POPULARITY
from encore.evaluation.bootstrap import METRICS, Interval
from encore.evaluation.explanation import Explanation
from encore.evaluation.metrics import NO_HIT, PAGE
from encore.evaluation.summary import BUCKETS, Summary
from encore.reports.data import F64, I64, VarianceComponents, edges
from encore.vocabulary import KINDS, Kind

WIDTH, HALF = 7.0, 5.4
"""Width in inches of a plot that has a row to itself, and of one that may share a row with another."""
DPI: Final = 160
"""Sharp at 700 CSS pixels on a screen with a device pixel ratio of 2."""
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT, GRID = "#222222", "#5a5a5a", "#dddddd"

UNITS: Final = {
    "key": "pitch class, ?: none detected",
    "loudness": "mean loudness, dB",
    "mode": "",
    "tempo": "beats per minute",
}
"""Labels of the features that do not simply range from 0 to 1."""


def png(figure: Figure) -> bytes:
    """The figure as a PNG: identical figures give identical bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _figure(
    title: str, width: float, height: float, rows: int = 1, columns: int = 1, **kinds: Any
) -> tuple[Figure, Any]:
    """A figure with a left-aligned title, and its axes as an array (rows, columns)."""
    # room for the half of the last tick label that extends beyond the axis
    layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.06)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    axes = figure.subplots(rows, columns, squeeze=False, **kinds)
    for ax in axes.flat:
        ax.tick_params(labelsize=9, colors=FAINT)
        ax.grid(True, color=GRID, linewidth=0.6)
        ax.set_axisbelow(True)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            ax.spines[side].set_color("#999999")
    return figure, axes


def _labels(ax: Any, x: str, y: str, title: str = "") -> None:
    ax.set_xlabel(x, fontsize=9.5, color=INK)
    ax.set_ylabel(y, fontsize=9.5, color=INK)
    if title:
        ax.set_title(title, fontsize=10, loc="left", color=INK)


def _nothing(ax: Any, text: str) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=10, color=FAINT)


def _legend(ax: Any, **where: Any) -> None:
    ax.legend(fontsize=9, frameon=False, labelcolor=INK, **where)


def _percent(ax: Any, axis: str, digits: int = 0) -> None:
    formatter = FuncFormatter(lambda value, _: f"{100 * value:.{digits}f} %")
    getattr(ax, f"{axis}axis").set_major_formatter(formatter)


def _thousands(ax: Any, axis: str) -> None:
    getattr(ax, f"{axis}axis").set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _style(i: int) -> dict[str, Any]:
    """Style of the i-th model; when the colours repeat, lines are dashed, then dotted."""
    rounds = i // len(COLOURS)
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": ("-", "--", ":")[rounds % 3],
    }


# models --------------------------------------------------------------------------------------------------------------


def bucket_name(low: int, high: int | None) -> str:
    """A range of track counts for display: 0, 2-4, 100+."""
    if high is None:
        return f"{low}+"
    return str(low) if low == high else f"{low}–{high}"


def model_means(summaries: Mapping[str, Summary]) -> Figure:
    """Mean R-precision, with and without artist credit, and NDCG; one row per model, the first on top."""
    names = {"r_precision": "R-precision", "r_precision_artist": "with artist credit", "ndcg": "NDCG"}
    found = {model: s.figures() for model, s in summaries.items() if s.n_playlists}
    figure, axes = _figure("Accuracy of each model over all playlists", HALF, 1.5 + 0.28 * max(2, len(found)))
    ax = axes[0, 0]
    if not found:
        _nothing(ax, "no models were evaluated")
        return figure
    places = np.arange(len(found))
    ax.hlines(places, 0, [max(values[name] for name in names) for values in found.values()], color=GRID, linewidth=2.5)
    for i, (name, label) in enumerate(names.items()):
        style = {**_style(i), "linestyle": "none"}
        ax.plot([values[name] for values in found.values()], places, label=label, markersize=6, clip_on=False, **style)
    ax.set_yticks(places, list(found), color=INK)
    ax.set_ylim(len(found) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.grid(False, axis="y")
    _labels(ax, "mean over playlists; 1 is perfect", "")
    figure.legend(loc="outside lower center", ncols=len(names), fontsize=9, frameon=False, labelcolor=INK)
    return figure


def precision_by_known(summaries: Mapping[str, Summary]) -> Figure:
    """R-precision and NDCG by the number of known tracks of the playlist; one line per model."""
    labels = {bucket.label: bucket_name(bucket.low, bucket.high) for bucket in BUCKETS}
    title = "Accuracy by number of known tracks"
    return _by_group(summaries, title, "known tracks of the playlist (number of playlists)", labels)


def precision_by_kind(summaries: Mapping[str, Summary]) -> Figure:
    """R-precision and NDCG by kind of the challenge protocol; one line per model."""
    labels = {f"kind_{kind.name}": kind_name(kind) for kind in KINDS}
    return _by_group(summaries, "Accuracy by kind of playlist", "what is known (number of playlists)", labels, WIDTH)


def kind_name(kind: Kind) -> str:
    """A kind for display, on up to three short lines."""
    known = f"{'random' if kind.is_random else 'first'}\n{kind.n_seeds}" if kind.n_seeds else ""
    return "\n".join(part for part in ("title" if kind.has_title else "", known) if part)


def has_kinds(summaries: Mapping[str, Summary]) -> bool:
    """Whether any playlist has a kind."""
    return any(sum(one.counts[len(BUCKETS) :]) for one in summaries.values())


def _by_group(
    summaries: Mapping[str, Summary], title: str, axis: str, labels: Mapping[str, str], width: float = HALF
) -> Figure:
    """R-precision and NDCG of some groups of playlists, which are named in `labels`; one line per model."""
    figure, axes = _figure(title, width, 6.8, rows=2, sharex=True)
    found = {model: s.figures() for model, s in summaries.items() if s.n_playlists}
    if not found:
        for ax in axes.flat:
            _nothing(ax, "no models were evaluated")
        return figure
    counts = [max(values.get(f"{group}/n_playlists", 0) for values in found.values()) for group in labels]
    filled = np.flatnonzero(counts)
    shown = list(labels)[filled[0] : filled[-1] + 1] if len(filled) else list(labels)
    for ax, (metric, name) in zip(axes.flat, {"r_precision": "R-precision", "ndcg": "NDCG"}.items(), strict=True):
        for i, (model, values) in enumerate(found.items()):
            heights = [values.get(f"{group}/{metric}", np.nan) for group in shown]
            ax.plot(range(len(shown)), heights, label=model, linewidth=1.8, markersize=6, clip_on=False, **_style(i))
        ax.set_ylim(bottom=0)
        ax.margins(x=0.04)
        _labels(ax, "", f"mean {name}")
    sizes = dict(zip(labels, counts, strict=True))
    axes[1, 0].set_xticks(range(len(shown)), [f"{labels[group]}\n({_short(int(sizes[group]))})" for group in shown])
    _labels(axes[1, 0], axis, "mean NDCG")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(4, len(found)),
        fontsize=9,
        frameon=False,
        labelcolor=INK,
    )
    return figure


def _short(n: int) -> str:
    return f"{n:,}" if n < 10_000 else f"{n / 1000:,.0f}k"


def clicks_distribution(summaries: Mapping[str, Summary]) -> Figure:
    """Cumulative share of playlists by the number of clicks until the first hit; one curve per model.

    Each click shows the next ten tracks; the gap to 1 at the right is the share of playlists without a hit.
    """
    figure, axes = _figure("Clicks until the first withheld track is shown", HALF, 3.7)
    ax = axes[0, 0]
    found = {model: s for model, s in summaries.items() if s.n_playlists}
    if not found:
        _nothing(ax, "no models were evaluated")
        return figure
    greatest = 0.0
    for i, (model, one) in enumerate(found.items()):
        clicks = np.array(one.clicks, dtype=np.int64)
        reached = np.cumsum(clicks[:NO_HIT]) / clicks.sum()
        greatest = max(greatest, float(reached[-1]))
        label = f"{model} (no hit: {100 * clicks[NO_HIT] / clicks.sum():.1f} %)"
        ax.plot(np.arange(NO_HIT), reached, label=label, linewidth=1.8, markevery=5, markersize=5, **_style(i))
    ax.set_xlim(-0.5, NO_HIT - 0.5)
    ax.set_ylim(0, min(1.0, 1.1 * greatest) if greatest else 1)
    _percent(ax, "y")
    _labels(ax, f"clicks (each shows the next {PAGE} recommendations)", "playlists with a hit so far")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False, labelcolor=INK)
    return figure


METRIC_NAMES: Final = {"r_precision": "R-precision", "ndcg": "NDCG", "clicks": "clicks"}
"""Names for display of the metrics that intervals are computed for."""


def recall_by_popularity(summaries: Mapping[str, Summary]) -> Figure:
    """The share of hidden tracks of each popularity group that a model finds; one row per model, the first on top."""
    found = {model: s.figures() for model, s in summaries.items() if s.n_playlists}
    title = "Hidden tracks found, by their popularity"
    figure, axes = _figure(title, WIDTH, 1.6 + 0.3 * max(2, len(found)), columns=2, sharey=True)
    groups = [name for name in POPULARITY if any(f"popularity_{name}/recall" in values for values in found.values())]
    if not groups:
        for ax in axes.flat:
            _nothing(ax, "no models were evaluated" if not found else "no figures by popularity")
        return figure
    places = np.arange(len(found))
    panels = {"r_recall": "among as many first tracks as are hidden", "recall": "in the whole list"}
    for ax, (metric, label) in zip(axes.flat, panels.items(), strict=True):
        widths = np.array(
            [[values.get(f"popularity_{g}/{metric}", np.nan) for g in groups] for values in found.values()]
        )
        ax.hlines(places, np.nanmin(widths, axis=1), np.nanmax(widths, axis=1), color=GRID, linewidth=2.5, zorder=1)
        for i, group in enumerate(groups):
            style = {**_style(i), "linestyle": "none"}
            ax.plot(widths[:, i], places, label=group, markersize=7, alpha=0.9, clip_on=False, **style)
        ax.set_xlim(left=0)
        ax.grid(False, axis="y")
        ax.xaxis.set_major_locator(MaxNLocator(5))
        _percent(ax, "x", 0 if np.nanmax(widths) > 0.05 else 1)
        _labels(ax, "share of the hidden tracks", "", label)
    axes[0, 0].set_yticks(places, list(found), color=INK)
    axes[0, 0].set_ylim(len(found) - 0.5, -0.5)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(groups),
        fontsize=9,
        frameon=False,
        labelcolor=INK,
    )
    return figure


def intervals(best: str, compared: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """A forest plot: the differences between models and the best one, with their intervals, one panel per metric."""
    title = f"Difference from {best}, with 95 % intervals"
    figure, axes = _figure(title, WIDTH, 1.1 + 0.3 * max(2, len(compared)), columns=len(METRICS), sharey=True)
    places = np.arange(len(compared))
    for ax, metric in zip(axes.flat, METRICS, strict=True):
        own = [found[metric] for found in compared.values()]
        middles = np.array([one.difference for one in own])
        reach = np.array([[one.difference - one.low, one.high - one.difference] for one in own]).T
        ax.axvline(0, color=FAINT, linewidth=1.2)
        ax.errorbar(middles, places, xerr=reach, fmt="o", color=COLOURS[0], markersize=5, capsize=3.5, linewidth=1.6)
        ax.grid(False, axis="y")
        ax.xaxis.set_major_locator(MaxNLocator(4))
        better = "lower is better" if metric == "clicks" else "higher is better"
        _labels(ax, better, "", METRIC_NAMES[metric])
        ax.margins(x=0.08)
    axes[0, 0].set_yticks(places, list(compared), color=INK)
    axes[0, 0].set_ylim(len(compared) - 0.5, -0.5)
    return figure


SHOWN_FEATURES: Final = 25
"""At most as many of the most important features of a model are shown."""


def importances(model: str, explanation: Explanation) -> Figure:
    """Bars of the shares that the most important features have in the importance of all."""
    total = sum(explanation.importances.values())
    ordered = sorted(explanation.importances.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_FEATURES]
    figure, axes = _figure(f"Features of {model}", HALF, 0.9 + 0.24 * max(2, len(ordered)))
    ax = axes[0, 0]
    if not total:
        _nothing(ax, "no feature is used")
        return figure
    places = np.arange(len(ordered))
    ax.barh(places, [value / total for _, value in ordered], 0.72, color=COLOURS[0])
    ax.set_yticks(places, [name for name, _ in ordered], color=INK)
    ax.set_ylim(len(ordered) - 0.5, -0.5)
    ax.grid(False, axis="y")
    _percent(ax, "x")
    _labels(ax, "share of the total importance", "")
    return figure


def ablations(model: str, explanation: Explanation) -> Figure:
    """Bars of how much accuracy the model loses without each group of features, the most costly group on top."""
    r_precision, ndcg = explanation.held_out
    losses = [(r_precision - one.r_precision, ndcg - one.ndcg, one.group) for one in explanation.ablations]
    losses.sort(key=lambda loss: (-loss[0], loss[2]))
    figure, axes = _figure(f"{model} without a group of features", HALF, 1.3 + 0.36 * max(2, len(losses)))
    ax = axes[0, 0]
    if not losses:
        _nothing(ax, "no groups of features")
        return figure
    places = np.arange(len(losses))
    for i, (label, all_of_them) in enumerate((("R-precision", r_precision), ("NDCG", ndcg))):
        values = [loss[i] for loss in losses]
        name = f"{label} ({all_of_them:.4f} with all)"
        ax.barh(places + 0.38 * (i - 0.5), values, 0.36, color=COLOURS[i], label=name)
    ax.axvline(0, color=FAINT, linewidth=1)
    ax.set_yticks(places, [group for _, _, group in losses], color=INK)
    ax.set_ylim(len(losses) - 0.5, -0.5)
    ax.grid(False, axis="y")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    _labels(ax, "loss on held-out playlists", "")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False, labelcolor=INK)
    return figure


# features ------------------------------------------------------------------------------------------------------------


def feature_distributions(title: str, histograms: Mapping[str, Mapping[str, F64]]) -> Figure:
    """Small multiples of `data.feature_histograms`: the first series filled, the others as outlines on top.

    A series without values for a feature is not drawn; a feature without any values says so.
    """
    columns = 3
    rows = max(1, -(-len(histograms) // columns))
    figure, axes = _figure(title, WIDTH, 0.9 + 1.85 * rows, rows=rows, columns=columns)
    labelled: dict[str, Any] = {}
    for ax, (name, series) in zip(axes.flat, histograms.items(), strict=False):
        bounds = edges(name)
        ax.set_title(name, fontsize=10, loc="left", color=INK)
        for i, (label, shares) in enumerate(series.items()):
            if shares.any():
                colour = "#9ecae1" if i == 0 else COLOURS[i % len(COLOURS)]
                width = 0 if i == 0 else 1.6
                patch = ax.stairs(shares, bounds, fill=i == 0, color=colour, linewidth=width, label=label)
                labelled.setdefault(label, patch)
        if not any(shares.any() for shares in series.values()):
            _nothing(ax, "no values")
            continue
        ax.set_xlim(bounds[0], bounds[-1])
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_locator(MaxNLocator(4))
        _percent(ax, "y")
        ax.tick_params(labelsize=8)
        if name in UNITS:
            ax.set_xlabel(UNITS[name], fontsize=8.5, color=FAINT)
        if name == "mode":
            ax.set_xticks([0, 1], ["minor", "major"])
        elif name == "key":
            ax.set_xticks([-1, 0, 2, 4, 5, 7, 9, 11], ["?", "C", "D", "E", "F", "G", "A", "B"])
    for ax in axes.flat[len(histograms) :]:
        ax.axis("off")
    if labelled:
        handles, names = list(labelled.values()), [f"share of {label}" for label in labelled]
        figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=9, frameon=False, labelcolor=INK)
    return figure


def variance_shares(components: Sequence[VarianceComponents]) -> Figure:
    """Stacked bars of each feature's variance between and within playlists, the greatest share between on top."""
    figure, axes = _figure("How much playlists differ from each other, by feature", WIDTH, 4.2)
    ax = axes[0, 0]
    found = sorted((s for s in components if s.between + s.within > 0), key=lambda s: (s.share, s.feature))
    if not found:
        _nothing(ax, "too few playlists with audio features")
        return figure
    places = np.arange(len(found))
    shares = np.array([s.share for s in found])
    ax.barh(places, shares, 0.72, color=COLOURS[0], label="between playlists")
    ax.barh(places, 1 - shares, 0.72, left=shares, color="#d9d9d9", label="within playlists")
    for place, share in zip(places, shares, strict=True):
        inside = share > 0.9
        ax.annotate(
            f"{100 * share:.1f} %",
            (share, place),
            xytext=(-4 if inside else 4, 0),
            textcoords="offset points",
            va="center",
            ha="right" if inside else "left",
            fontsize=8.5,
            color="white" if inside else INK,
        )
    ax.set_yticks(places, [s.feature for s in found], color=INK)
    ax.set_xlim(0, 1)
    ax.grid(False)
    _percent(ax, "x")
    _labels(ax, "share of the feature's variance", "")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False, labelcolor=INK)
    return figure


# playlists and tracks ------------------------------------------------------------------------------------------------


def playlist_lengths(lengths: I64) -> Figure:
    """Histogram of the number of tracks per playlist, with the median."""
    figure, axes = _figure("Playlist lengths", HALF, 3.2)
    ax = axes[0, 0]
    if not len(lengths):
        _nothing(ax, "no playlists")
        return figure
    # integer bin widths, otherwise the histogram shows comb artefacts
    width = max(1, -(-int(lengths.max()) // 50))
    bounds = np.arange(0, int(lengths.max()) + width + 1, width) - 0.5
    ax.hist(lengths, bounds, color="#6baed6", edgecolor="white", linewidth=0.4)
    median = float(np.median(lengths))
    ax.axvline(median, color=COLOURS[1], linewidth=1.6, label=f"median: {median:g} tracks")
    ax.set_xlim(bounds[0], bounds[-1])
    _thousands(ax, "y")
    _labels(ax, f"tracks per playlist, in bins of {width}", "playlists")
    ax.grid(False, axis="x")
    _legend(ax, loc="upper right")
    return figure


def track_popularity(ranks: I64, frequencies: I64, times: I64, tracks: I64) -> Figure:
    """Left: number of rows of the track at each rank. Right: number of tracks by number of rows. All axes logarithmic.

    The arrays come from `data.rank_frequency` and `data.occurrences`.
    """
    figure, axes = _figure("A few tracks are everywhere, most are rare", HALF, 3.7, columns=2)
    left, right = axes[0]
    if not len(ranks):
        for ax in (left, right):
            _nothing(ax, "no tracks")
        return figure
    left.loglog(ranks, frequencies, color=COLOURS[0], linewidth=1.8)
    _labels(left, "rank of the track (log)", "playlist rows (log)", "Rows by rank")
    right.loglog(times, tracks, ".", color=COLOURS[0], markersize=4, alpha=0.6)
    if times[0] == 1:
        share = tracks[0] / tracks.sum()
        right.loglog([1], [tracks[0]], "o", color=COLOURS[1], markersize=7)
        right.annotate(
            f"{100 * share:.1f} % occur once",
            (1, tracks[0]),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
        )
    _labels(right, "rows per track (log)", "tracks (log)", "Tracks by number of rows")
    for ax in (left, right):
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
            axis.set_minor_formatter(NullFormatter())
        ax.margins(0.05)
    return figure


def job_costs(costs: pa.Table) -> Figure:
    """Seconds, bytes read and written, and peak memory of jobs: rows of `job_costs`, in their order."""
    figure, axes = _figure("What the jobs cost", WIDTH, 0.9 + 0.42 * max(2, costs.num_rows), columns=3, sharey=True)
    panels = (
        ("seconds", 1.0, {"seconds": "time"}),
        ("GB", 1e9, {"read_bytes": "read", "written_bytes": "written"}),
        ("GB, peak", 1e9, {"jvm_bytes": "JVM", "python_bytes": "Python workers", "driver_bytes": "driver"}),
    )
    places = np.arange(costs.num_rows)
    for ax, (unit, scale, columns) in zip(axes.flat, panels, strict=True):
        height = 0.8 / len(columns)
        for i, (column, label) in enumerate(columns.items()):
            at = places - 0.4 + height * (i + 0.5)
            ax.barh(at, costs[column].to_numpy() / scale, height * 0.92, color=COLOURS[i], label=label)
        ax.grid(False, axis="y")
        ax.xaxis.set_major_locator(MaxNLocator(4))
        _labels(ax, unit, "")
        if len(columns) > 1:
            ax.legend(loc="best", fontsize=7.5, frameon=False, labelcolor=INK)
    axes[0, 0].set_yticks(places, costs["job"].to_pylist(), color=INK)
    axes[0, 0].invert_yaxis()
    return figure


def _power(value: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"
