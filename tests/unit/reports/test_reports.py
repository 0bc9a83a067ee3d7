"""The report without a JVM: its data against slow references, the plots, and the page."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from encore.arrays.kinds import kind_names
from encore.arrays.ragged import Ragged
from encore.config import load_config
from encore.errors import ConfigError, EnvironmentMissing
from encore.evaluation.beyond_accuracy import POPULARITY
from encore.evaluation.bootstrap import METRICS, GroupSums, Interval
from encore.evaluation.explanation import Ablation, Explanation
from encore.evaluation.metrics import NO_HIT
from encore.evaluation.rows import summary as rows_summary
from encore.evaluation.summary import BUCKETS, Summary
from encore.jobs import report
from encore.jobs.report import write_page
from encore.lake.store import Store
from encore.reports import data, lists, page, plots
from encore.runtime.context import JobContext
from encore.runtime.tracking import Tracking
from encore.spark.session import Session
from encore.vocabulary import FEATURES, KINDS

PNG = b"\x89PNG\r\n\x1a\n"


def metric_rows(n: int, seed: int = 0, n_train: int | None = None, *, kinds: bool = False) -> pa.Table:
    rng = np.random.default_rng(seed)
    known = rng.integers(0, 120, n) if n_train is None else np.full(n, n_train)
    return pa.table(
        {
            "n_test": pa.array(rng.integers(1, 9, n), pa.int32()),
            "n_hits": pa.array(rng.integers(0, 2, n), pa.int32()),
            "r_precision": rng.random(n),
            "ndcg": rng.random(n),
            "clicks": pa.array(rng.integers(0, NO_HIT + 1, n), pa.int32()),
            "r_precision_artist": rng.random(n),
            "n_train": pa.array(known, pa.int32()),
            "n_recommended": pa.array(rng.integers(0, 3, n), pa.int32()),
            "kind": kind_names(rng.integers(-1, len(KINDS), n)) if kinds else pa.nulls(n, pa.string()),
            "novelty": rng.uniform(0, 15, n),
            "artist_diversity": rng.random(n),
            "popularity_test": by_popularity(rng, n, 20),
            "popularity_hits": by_popularity(rng, n, 8),
            "popularity_early": by_popularity(rng, n, 4),
        }
    )


def by_popularity(rng: np.random.Generator, n: int, limit: int) -> pa.ListArray:
    counts = rng.integers(0, limit, 4 * n).astype(np.int32)
    return Ragged.from_lengths(np.full(n, 4), counts).to_arrow()


def summary(rows: pa.Table) -> Summary:
    return rows_summary(rows, np.zeros(1, np.int64))


def feature_rows(rng: np.random.Generator, n: int) -> np.ndarray:
    found = rng.random((n, len(FEATURES))).astype(np.float32)
    found[:, FEATURES.index("key")] = rng.integers(-1, 12, n)
    found[:, FEATURES.index("loudness")] = rng.uniform(-70, 5, n)
    found[:, FEATURES.index("mode")] = rng.integers(0, 2, n)
    found[:, FEATURES.index("tempo")] = rng.uniform(0, 300, n)
    found[rng.random(n) < 0.2] = np.nan
    return found


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def check_png(figure: Figure) -> None:
    image = plots.png(figure)
    assert image.startswith(PNG)
    assert len(image) > 3000


# data ----------------------------------------------------------------------------------------------------------------


def test_the_sample_is_deterministic_bounded_and_uniform() -> None:
    pids = np.random.default_rng(1).permutation(10_000).astype(np.int64)
    sample = data.sample_pids(pids, 1000)
    assert len(sample) == 1000 == len(np.unique(sample))
    assert (np.diff(sample) > 0).all()
    assert np.isin(sample, pids).all()
    assert (data.sample_pids(np.sort(pids), 1000) == sample).all()
    assert np.isin(data.sample_pids(pids, 500), sample).all()
    # a thousand of each tenth of the pids: 100 expected, 9.5 its deviation
    tenths = np.bincount(sample // 1000, minlength=10)
    assert (np.abs(tenths - 100) < 45).all()
    assert (data.sample_pids(pids, 20_000) == np.arange(10_000)).all()
    assert len(data.sample_pids(np.empty(0, np.int64), 5)) == 0


def test_top_breaks_ties_by_index() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        counts = rng.integers(0, 6, rng.integers(0, 12))
        n = int(rng.integers(1, 12))
        wanted = [i for i in sorted(range(len(counts)), key=lambda i: (-counts[i], i)) if counts[i] > 0][:n]
        assert data.top(counts, n).tolist() == wanted


def test_sums_by_number() -> None:
    numbers = np.array([0, 2, -1, 2, 0], np.int32)
    assert data.sums_by(numbers, np.array([1, 10, 100, 20, 3]), 4).tolist() == [4, 0, 30, 0]
    assert data.sums_by(np.empty(0, np.int32), np.empty(0, np.int64), 2).tolist() == [0, 0]


def test_rank_frequency_and_occurrences() -> None:
    counts = np.array([0, 5, 1, 1, 3, 0, 1], np.int64)
    ranks, frequencies = data.rank_frequency(counts)
    assert (ranks.tolist(), frequencies.tolist()) == ([1, 2, 3, 4, 5], [5, 3, 1, 1, 1])
    times, tracks = data.occurrences(counts)
    assert (times.tolist(), tracks.tolist()) == ([1, 3, 5], [3, 1, 1])

    counts = np.random.default_rng(3).zipf(1.8, 5000).astype(np.int64)
    ranks, frequencies = data.rank_frequency(counts, points=50)
    ordered = sorted(counts.tolist(), reverse=True)
    assert len(ranks) <= 50
    assert (ranks[0], ranks[-1]) == (1, 5000)
    assert frequencies.tolist() == [ordered[rank - 1] for rank in ranks]
    assert [len(part) for part in data.rank_frequency(np.zeros(3, np.int64))] == [0, 0]


def test_titles_are_counted_in_lower_case_and_stripped() -> None:
    names = ["Rock", "rock ", " ROCK", "rock!", None, "", "  ", "b", "a", "Ärger", "ärger"]
    found = data.count_titles(pa.chunked_array([names[:4], names[4:]], pa.string()), 3)
    wanted = Counter(plain for name in names if name is not None and (plain := name.strip().lower()))
    assert [(entry.name, entry.n) for entry in found.most] == sorted(wanted.items(), key=lambda e: (-e[1], e[0]))[:3]
    assert found.untitled == 3
    assert found.distinct == len({name for name in names if name is not None})
    assert found.normalised == len({"rock", "b", "a", "ärger"})
    assert data.count_titles(pa.chunked_array([], pa.string()), 3) == data.Titles(0, 0, 0, [])


def test_key_figures() -> None:
    playlists = pa.table(
        {
            "n": pa.array([1, 2, 6], pa.int32()),
            "described": [False, True, False],
            "collaborative": pa.array([None, True, False]),
            "num_followers": pa.array([1, 1, 2], pa.int32()),
            "num_edits": pa.array([1, 2, 6], pa.int32()),
            "num_artists": pa.array([None, None, None], pa.int32()),
            "num_albums": pa.array([2, 4, None], pa.int32()),
        }
    )
    titles = data.Titles(3, 2, 0, [])
    lines = data.key_figures(playlists, np.array([1, 6, 1, 0, 1]), np.array([3, 6]), 4, titles)
    found = {line.name: line for line in lines}
    assert {name: line.value for name, line in found.items()} == {
        "playlists": 3,
        "rows: a track in a playlist": 9,
        "distinct tracks": 4,
        "distinct artists": 2,
        "distinct albums": 4,
        "distinct titles": 3,
        "distinct titles ignoring case and punctuation": 2,
        "tracks per playlist, mean": 3,
        "tracks per playlist, median": 2,
        "artists per playlist, mean": None,
        "albums per playlist, mean": 3,
        "editing sessions per playlist, mean": 3,
        "tracks that occur once": 0.75,
        "rows of the top artist": 6 / 9,
        "playlists with a description": 1 / 3,
        "collaborative playlists": 0.5,
        "playlists with one follower": 2 / 3,
    }
    assert found["rows: a track in a playlist"].published == 66_346_428
    empty = data.key_figures(playlists.slice(0, 0), np.zeros(0, int), np.zeros(0, int), 0, data.Titles(0, 0, 0, []))
    assert {line.value for line in empty} == {0, None}


def test_histograms_count_every_value_once() -> None:
    rng = np.random.default_rng(4)
    features = feature_rows(rng, 3000)
    weights = rng.integers(0, 5, 3000)
    found = data.feature_histograms({"tracks": (features, None), "rows": (features, weights)})
    assert tuple(found) == FEATURES
    for j, name in enumerate(FEATURES):
        bounds = data.edges(name)
        for label, weight in (("tracks", np.ones(3000)), ("rows", weights)):
            wanted = np.zeros(len(bounds) - 1)
            for value, w in zip(features[:, j].tolist(), weight.tolist(), strict=True):
                if not math.isnan(value):
                    place = int(np.searchsorted(bounds, value, side="right")) - 1
                    wanted[min(max(place, 0), len(wanted) - 1)] += w
            assert found[name][label] == pytest.approx(wanted / wanted.sum()), (name, label)
    assert data.histogram("key", np.array([-1, -1, 0, 11.0])).tolist() == [0.5, 0.25] + [0] * 10 + [0.25]
    assert data.histogram("energy", np.array([1.0]))[-1] == 1
    assert not data.histogram("energy", np.full(3, np.nan)).any()
    assert data.feature_histograms({"none": (np.full((4, 11), np.nan, np.float32), None)}) == {}


def test_playlist_means() -> None:
    rng = np.random.default_rng(5)
    features = feature_rows(rng, 50)
    lists = [rng.integers(0, 50, n).tolist() for n in (5, 0, 1, 30)] + [
        np.flatnonzero(np.isnan(features[:, 0])).tolist()
    ]
    found = data.playlist_means(Ragged.from_lists(lists), features)
    for i, tracks in enumerate(lists):
        for j, name in enumerate(FEATURES):
            values = [v for t in tracks if not math.isnan(v := float(features[t, j]))]
            if values and name not in ("key", "mode"):
                assert found[i, j] == pytest.approx(sum(values) / len(values), rel=1e-6)
            else:
                assert np.isnan(found[i, j])


def slow_components(name: str, lists: list[list[float]]) -> tuple[float, float]:
    """Variance within and between by the textbook formula, one value at a time."""
    groups = [[v for v in group if not math.isnan(v) and (name != "key" or v >= 0)] for group in lists]
    groups = [group for group in groups if group]
    turn = 2 * math.pi / 12
    parts: list[Callable[[float], float]] = [math.cos, math.sin] if name == "key" else [float]
    n, g = sum(map(len, groups)), len(groups)
    ssb = ssw = 0.0
    for part in parts:
        values = [[part(v * turn if name == "key" else v) for v in group] for group in groups]
        grand = math.fsum(v for group in values for v in group) / n
        for group in values:
            mean = math.fsum(group) / len(group)
            ssb += len(group) * (mean - grand) ** 2
            ssw += math.fsum((v - mean) ** 2 for v in group)
    n0 = (n - sum(len(group) ** 2 for group in groups) / n) / (g - 1)
    within = ssw / (n - g)
    return within, max(0.0, (ssb / (g - 1) - within) / n0)


def test_variance_components_against_the_textbook() -> None:
    rng = np.random.default_rng(6)
    features = feature_rows(rng, 400)
    # playlists of neighbours, and energy that follows the neighbourhood
    features[:, FEATURES.index("energy")] += np.arange(400) / 100
    lists = [
        (rng.integers(0, 40, n) + 40 * (i % 10)).tolist() for i, n in enumerate((1, 0, 7, 20, 3, 50, 12, 9, 30, 2) * 3)
    ]
    for j, found in enumerate(data.variance_components(Ragged.from_lists(lists), features)):
        within, between = slow_components(found.feature, [[float(features[t, j]) for t in row] for row in lists])
        assert found.feature == FEATURES[j]
        assert (found.within, found.between) == pytest.approx((within, between), rel=1e-9)
        assert found.share == pytest.approx(between / (between + within))


def test_variance_components_recover_known_variances() -> None:
    rng = np.random.default_rng(7)
    features = np.zeros((60_000, len(FEATURES)), np.float32)
    energy, valence = FEATURES.index("energy"), FEATURES.index("valence")
    # variance 1 between playlists, 3 within: a share of a quarter; valence knows no playlists
    features[:, energy] = np.repeat(rng.normal(0, 1, 2000), 30) + rng.normal(0, math.sqrt(3), 60_000)
    features[:, valence] = rng.normal(0, 1, 60_000)
    sample = Ragged.from_lengths(np.full(2000, 30), np.arange(60_000, dtype=np.int32))
    found = {one.feature: one for one in data.variance_components(sample, features)}
    assert found["energy"].share == pytest.approx(0.25, abs=0.02)
    assert found["valence"].share == pytest.approx(0, abs=0.005)
    assert found["tempo"] == data.VarianceComponents("tempo", 0, 0, 0, 2000, 60_000)
    assert (found["energy"].n_playlists, found["energy"].n_rows) == (2000, 60_000)


@pytest.mark.parametrize("lists", [[], [[]], [[0, 1]], [[0], [1]]])
def test_variance_components_of_too_little_data_are_zero(lists: list[list[int]]) -> None:
    features = np.arange(22, dtype=np.float32).reshape(2, 11)
    assert {one.share for one in data.variance_components(Ragged.from_lists(lists), features)} == {0.0}


def test_coverage_counts_tracks_and_rows() -> None:
    found = data.coverage(np.array([True, False, True]), np.array([5, 7, 0]))
    assert found == data.Coverage(tracks=3, tracks_with=2, rows=12, rows_with=5)


def test_the_summary_matches_the_rows() -> None:
    rows = metric_rows(500)
    found = summary(rows).figures()
    assert found["n_playlists"] == 500
    assert found["ndcg"] == pytest.approx(np.mean(rows["ndcg"].to_numpy()), abs=1e-11)
    assert found["share_unserved"] == np.mean(rows["n_recommended"].to_numpy() == 0)
    few = rows.filter(pa.array((rows["n_train"].to_numpy() >= 2) & (rows["n_train"].to_numpy() <= 4)))
    assert found["train_002_004/r_precision"] == pytest.approx(np.mean(few["r_precision"].to_numpy()), abs=1e-11)
    assert summary(rows.slice(0, 0)).n_playlists == 0


def test_the_summary_has_means_by_kind() -> None:
    rows = metric_rows(500, kinds=True)
    found, without = summary(rows), summary(rows.set_column(8, "kind", pa.nulls(500, pa.string())))
    kinds = np.array(rows["kind"].to_pylist(), dtype=object)
    for kind in KINDS:
        own = kinds == kind.name
        assert found.figures()[f"kind_{kind.name}/n_playlists"] == own.sum() > 0
        mean = np.mean(rows["ndcg"].to_numpy()[own])
        assert found.figures()[f"kind_{kind.name}/ndcg"] == pytest.approx(mean, abs=1e-11)
        assert f"kind_{kind.name}/ndcg" not in without.figures()
    # the means over all playlists and by number of train tracks are as without kinds
    assert without.figures().items() <= found.figures().items()
    half = [summary(rows.slice(start, 250)) for start in (0, 250)]
    assert half[0].merge(half[1]).figures() == found.figures()


def test_quarantine_and_ledger_are_sorted() -> None:
    rows = [
        {"stage": "b", "reason": "y", "source": "f", "record": "1", "detail": "d", "payload": None},
        {"stage": "a", "reason": "z", "source": "f", "record": "1", "detail": "d", "payload": "p"},
        {"stage": "b", "reason": "x", "source": "g", "record": "1", "detail": "d", "payload": None},
        {"stage": "b", "reason": "x", "source": "f", "record": "2", "detail": "first", "payload": "q"},
        {"stage": "b", "reason": "x", "source": "f", "record": "3", "detail": "d", "payload": None},
    ]
    for cut in range(len(rows) + 1):
        schema = pa.schema([(name, pa.string()) for name in data.QUARANTINE_COLUMNS])
        found = data.quarantine_groups(pa.Table.from_pylist(part, schema=schema) for part in (rows[:cut], rows[cut:]))
        assert [(line.stage, line.reason, line.n, line.detail, line.payload) for line in found] == [
            ("a", "z", 1, "d", "p"),
            ("b", "x", 3, "first", "q"),
            ("b", "y", 1, "d", ""),
        ]
    times = [datetime(2026, 1, day, tzinfo=UTC) for day in (3, 1, 2)]
    files = pa.table(
        {
            "slice": ["a", "b", "c"],
            "size_bytes": [10, 20, 40],
            "n_playlists": [1, 2, 0],
            "n_quarantined": [0, 5, 1],
            "status": ["ingested", "ingested", "refused"],
            "ingested_at": pa.array(times, pa.timestamp("us", tz="UTC")),
        }
    )
    assert data.ledger(files) == [
        data.Ledger("ingested", 2, 30, 3, 5, times[1], times[0]),
        data.Ledger("refused", 1, 40, 0, 1, times[2], times[2]),
    ]
    assert data.ledger(files.slice(0, 0)) == []


# plots ---------------------------------------------------------------------------------------------------------------


def summaries() -> dict[str, Summary]:
    return {
        "cosine": summary(metric_rows(400, 1)),
        "popularity": summary(metric_rows(400, 2)),
        "nobody": summary(metric_rows(0)),
    }


def test_precision_by_known_draws_the_means_of_each_bucket() -> None:
    found = summaries()
    figure = plots.precision_by_known(found)
    check_png(figure)
    text = texts(figure)
    for wanted in ("mean R-precision", "mean NDCG", "known tracks", "cosine", "popularity", "2–4\n", "100+\n"):
        assert wanted in text
    assert "nobody" not in text
    upper, lower = figure.axes
    for ax, metric in ((upper, "r_precision"), (lower, "ndcg")):
        assert [line.get_label() for line in ax.lines] == ["cosine", "popularity"]
        means = [found["popularity"].figures()[f"{bucket.label}/{metric}"] for bucket in BUCKETS]
        assert np.asarray(ax.lines[1].get_ydata()).tolist() == means


def test_precision_by_kind_draws_the_means_of_each_kind() -> None:
    found = {"cosine": summary(metric_rows(400, 1, kinds=True)), "popularity": summary(metric_rows(400, 2, kinds=True))}
    assert plots.has_kinds(found)
    assert not plots.has_kinds(summaries())
    figure = plots.precision_by_kind(found)
    check_png(figure)
    for ax, metric in zip(figure.axes, ("r_precision", "ndcg"), strict=True):
        means = [found["cosine"].figures()[f"kind_{kind.name}/{metric}"] for kind in KINDS]
        assert np.asarray(ax.lines[0].get_ydata()).tolist() == means
    ticks = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert [tick.rpartition("\n")[0].replace("\n", " ") for tick in ticks] == [
        "title",
        "title first 1",
        "title first 5",
        "first 5",
        "title first 10",
        "first 10",
        "title first 25",
        "title random 25",
        "title first 100",
        "title random 100",
    ]


def test_buckets_without_playlists_at_the_ends_are_not_drawn() -> None:
    figure = plots.precision_by_known({"one": summary(metric_rows(20, n_train=7))})
    check_png(figure)
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["5–9\n(20)"]


def test_clicks_distribution_is_cumulative() -> None:
    rows = metric_rows(4).set_column(4, "clicks", pa.array([0, 2, 2, NO_HIT], pa.int32()))
    figure = plots.clicks_distribution({"cosine": summary(rows)})
    check_png(figure)
    assert np.asarray(figure.axes[0].lines[0].get_ydata())[:4].tolist() == [0.25, 0.25, 0.75, 0.75]
    assert "cosine (no hit: 25.0 %)" in texts(figure)
    assert "clicks" in figure.axes[0].get_xlabel()


def test_model_means_are_drawn_for_each_model_and_metric() -> None:
    found = summaries()
    figure = plots.model_means(found)
    check_png(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["cosine", "popularity"]
    drawn = {line.get_label(): np.asarray(line.get_xdata()).tolist() for line in figure.axes[0].lines}
    names = {"R-precision": "r_precision", "with artist credit": "r_precision_artist", "NDCG": "ndcg"}
    for label, name in names.items():
        assert drawn[label] == [found[model].figures()[name] for model in ("cosine", "popularity")]


def test_more_models_than_colours_stay_distinct() -> None:
    styles = [tuple(plots._style(i).items()) for i in range(15)]
    assert len(set(styles)) == 15


def test_feature_plots() -> None:
    features = feature_rows(np.random.default_rng(8), 300)
    histograms = data.feature_histograms({"tracks": (features, None), "rows": (features, np.ones(300, np.int64))})
    figure = plots.feature_distributions("How the tracks sound", histograms)
    check_png(figure)
    for wanted in (
        *FEATURES,
        "How the tracks sound",
        "share of tracks",
        "share of rows",
        "beats per minute",
        "dB",
        "major",
    ):
        assert wanted in texts(figure)
    components = data.variance_components(
        Ragged.from_lengths(np.full(30, 10), np.arange(300, dtype=np.int32)), features
    )
    figure = plots.variance_shares(components)
    check_png(figure)
    # the greatest share is on top, which is last
    greatest = max(components, key=lambda one: (one.share, one.feature))
    assert figure.axes[0].get_yticklabels()[-1].get_text() == greatest.feature
    assert f"{100 * greatest.share:.1f} %" in texts(figure)


def test_intervals_are_drawn_for_each_model_and_metric() -> None:
    figure = plots.intervals("best", {"one": INTERVALS, "other": INTERVALS})
    check_png(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["one", "other"]
    assert len(figure.axes) == 3
    for wanted in ("Difference from best", "R-precision", "NDCG", "clicks", "lower is better"):
        assert wanted in texts(figure)


def test_recall_is_drawn_for_each_model_and_popularity_group() -> None:
    found = summaries()
    figure = plots.recall_by_popularity(found)
    check_png(figure)
    for wanted in ("cosine", "popularity", *POPULARITY, "in the whole list"):
        assert wanted in texts(figure)
    drawn = {line.get_label(): line.get_xdata() for line in figure.axes[1].lines}
    for group in POPULARITY:
        values = [found[model].figures()[f"popularity_{group}/recall"] for model in ("cosine", "popularity")]
        assert np.asarray(drawn[group]).tolist() == values


def test_playlist_and_track_plots() -> None:
    figure = plots.playlist_lengths(np.array([0, 5, 5, 7, 250], np.int32))
    check_png(figure)
    assert "median: 5 tracks" in texts(figure)
    assert sum(patch.get_height() for patch in figure.axes[0].patches if isinstance(patch, Rectangle)) == 5
    counts = np.array([1, 1, 1, 4, 9])
    figure = plots.track_popularity(*data.rank_frequency(counts), *data.occurrences(counts))
    check_png(figure)
    assert "60.0 % occur once" in texts(figure)
    assert {(ax.get_xscale(), ax.get_yscale()) for ax in figure.axes} == {("log", "log")}


def test_plots_without_data_say_so() -> None:
    nobody: Mapping[str, Summary] = {"nobody": Summary.empty(3)}
    nothing = np.empty(0, np.int64)
    for figure, said in (
        (plots.precision_by_known({}), "no models were evaluated"),
        (plots.precision_by_known(nobody), "no models were evaluated"),
        (plots.clicks_distribution(nobody), "no models were evaluated"),
        (plots.model_means({}), "no models were evaluated"),
        (plots.recall_by_popularity(nobody), "no models were evaluated"),
        (plots.importances("m", Explanation({"x": 0.0}, (0.0, 0.0), ())), "no feature is used"),
        (plots.ablations("m", Explanation({"x": 0.0}, (0.0, 0.0), ())), "no groups of features"),
        (plots.playlist_lengths(nothing), "no playlists"),
        (plots.track_popularity(nothing, nothing, nothing, nothing), "no tracks"),
        (plots.variance_shares([]), "too few playlists"),
        (plots.feature_distributions("nothing", {}), "nothing"),
        (plots.feature_distributions("x", {"key": {"tracks": np.zeros(13)}}), "no values"),
    ):
        assert plots.png(figure).startswith(PNG)
        assert said in texts(figure)


# page ----------------------------------------------------------------------------------------------------------------

INTERVALS = {
    "r_precision": Interval(-0.25, -0.5, -0.125, 9),
    "ndcg": Interval(-0.125, -0.5, 0.0625, 9),
    "clicks": Interval(3.5, 1.25, 4, 9),
}

EVIL = '<script>alert("x")</script>&\'<img src=http://example.org/x>'


EXPLANATION = Explanation(
    {EVIL: 3.0, "unused": 0.0, "popularity": 1.0},
    (0.5, 0.75),
    (Ablation("counts", ("popularity",), 0.4375, 0.5), Ablation(EVIL, (EVIL, "unused"), 0.25, 0.25)),
)


def shown() -> list[lists.ShownPlaylist]:
    rows = [
        {"pid": 7, "train": [1, 2], "test": [3], "title": None},
        {"pid": 5, "train": list(range(20)), "test": [30, 31, 60], "title": f" {EVIL} "},
    ]
    own = {("cosine", 5): list(range(30, 70)), ("popularity", 5): [99, 30], ("cosine", 7): [3]}
    names = {track: lists.Name(f"{EVIL} {track}", "" if track % 2 else f"{EVIL} artist") for track in range(100)}
    wanted = lists.tracks_to_name(rows, own)
    return lists.shown_playlists(rows, own, {t: names[t] for t in wanted}, ["cosine", "popularity"])


def content(*, full: bool) -> page.Content:
    titles = data.Titles(1, 1, 2, [data.Count(EVIL, "", 3)])
    nothing = pa.table(
        {
            "n": pa.array([], pa.int32()),
            **{
                name: pa.array([], pa.int32())
                for name in ("described", "collaborative", "num_followers", "num_edits", "num_artists", "num_albums")
            },
        }
    )
    when = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
    found = summaries() if full else {}
    return page.Content(
        token="0a-1b",
        run_id="run-1",
        lake=EVIL,
        commit="abc",
        made_at=when,
        versions={"tracks": 3, "playlists": 1},
        key_figures=data.key_figures(nothing, np.zeros(0, int), np.zeros(0, int), 0, titles),
        summaries=found,
        over_catalogue={"cosine": {"coverage": 0.125, "gini": 0.75}},
        best="cosine" if full else "",
        intervals={"popularity": INTERVALS} if full else {},
        shown=shown() if full else [],
        explanations={"cosine": EXPLANATION} if full else {},
        artists=[data.Count(EVIL, "", 7)] if full else [],
        tracks=[data.Count(EVIL, EVIL, 7), data.Count("b", "", 1)] if full else [],
        titles=titles.most if full else [],
        untitled=2,
        coverage=data.Coverage(4, 2, 10, 9) if full else data.Coverage(0, 0, 0, 0),
        sampled=5,
        quarantine=[data.QuarantineGroup(EVIL, EVIL, 2, EVIL, EVIL, EVIL, EVIL * 10)] if full else [],
        ledger=[data.Ledger("ingested", 2, 3_000_000, 3, 5, when, when)] if full else [],
        figures={
            "model_means": plots.model_means(found),
            "features": plots.feature_distributions(EVIL, {}),
            "importances cosine": plots.importances("cosine", EXPLANATION),
        },
    )


class Elements(HTMLParser):
    """Every element with its attributes; void ones are not closed."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parse(html: str) -> Elements:
    elements = Elements()
    elements.feed(html)
    elements.close()
    assert elements.open == []
    return elements


@pytest.mark.parametrize("full", [True, False])
def test_the_page_is_well_formed_and_self_contained(full: bool) -> None:
    html = page.render(content(full=full))
    elements = parse(html)
    assert "script" not in {tag for tag, _ in elements.found}
    for tag, attributes in elements.found:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert page.render(content(full=full)) == html


def test_the_page_shows_breaches_first_and_counts_them() -> None:
    at = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)

    def one(name: str, verdict: str) -> page.Checked:
        return page.Checked(name, EVIL, "Share that is gone", "900", "at least 950", "1,000", "fail", verdict, at)

    met = [one("tracks_lost", "ok"), one("tracks_grown", "uncompared")]
    html = page.render(replace(content(full=False), checks=[*met, one("playlists_lost", "accepted")]))
    text = parse(html).text
    assert "1 of 3 expectations are not met" in text
    assert text.count("playlists_lost") == 2, "on its own, and among all"
    assert text.count("tracks_lost") == 1
    assert text.index("playlists_lost") < text.index("tracks_lost")
    assert "at least 950" in text
    assert "2026-05-04 03:02" in text
    assert EVIL in text
    html = page.render(replace(content(full=False), checks=met))
    assert "All 2 expectations are met" in parse(html).text
    assert 'id="checks"' not in page.render(content(full=False)), "in a lake in which nothing was checked"


def test_the_page_escapes_all_text() -> None:
    html = page.render(content(full=True))
    assert "<script" not in html
    assert "<img src=http" not in html
    # lake, artist, track, its artist, title, and the quarantined record's five fields
    assert parse(html).text.count(EVIL) >= 10
    assert re.search(r'<meta name="encore-token" content="0a-1b">', html)


def test_the_page_shows_models_and_marks_the_best() -> None:
    made = content(full=True)
    assert page.kind_rows(made) == []
    rows = dict(page.model_rows(made))
    assert list(rows) == ["cosine", "popularity", "nobody"]
    for at, (name, _, kind, sign) in enumerate(page.COLUMNS):
        values = {model: made.summaries[model].figures().get(name) for model in ("cosine", "popularity")}
        if sign:
            best = (max if sign > 0 else min)(values, key=lambda model: values[model] or 0)
            assert [model for model, cells in rows.items() if cells[at].best] == [best]
            assert rows[best][at].text == page.form(values[best], kind)
            assert rows["nobody"][at].text == "–"
        else:
            assert not any(cells[at].best for cells in rows.values())
    at = [name for name, *_ in page.COLUMNS].index("coverage")
    assert [cell.text for cell in rows["cosine"][at : at + 2]] == ["12.5 %", "0.750"]
    assert [cell.text for cell in rows["popularity"][at : at + 2]] == ["–", "–"]


def test_the_page_shows_differences_from_the_best_model() -> None:
    made = content(full=True)
    ((model, cells),) = page.interval_rows(made)
    assert model == "popularity"
    assert [cell.text for cell in cells] == [
        "-0.2500 (-0.5000 to -0.1250)",
        "-0.1250 (-0.5000 to +0.0625)",
        "+3.50 (+1.25 to +4.00)",
    ]
    assert [cell.best for cell in cells] == [True, False, True]
    assert "Each model compared with cosine" in parse(page.render(made)).text
    assert "How certain" not in page.render(content(full=False))


def test_the_page_shows_hits_by_popularity() -> None:
    made = content(full=True)
    rows = dict(page.recall_rows(made))
    assert list(rows) == ["cosine", "popularity"]
    for at, (group, metric) in enumerate((g, m) for g in POPULARITY for m in ("r_recall", "recall")):
        values = {model: made.summaries[model].figures()[f"popularity_{group}/{metric}"] for model in rows}
        best = max(values, key=lambda model: values[model])
        for model, cells in rows.items():
            assert cells[at] == page.Cell(page.form(values[model], "share"), model == best)
    assert "By popularity" not in page.render(content(full=False))


def test_lists_of_two_models_are_shown_with_hits_marked() -> None:
    first, second = shown()
    assert (first.pid, first.title, first.n_known, first.n_hidden) == (5, EVIL, 20, 3)
    assert [name.track for name in first.seeds] == [f"{EVIL} {track}" for track in range(lists.SHOWN_SEEDS)]
    left, right = first.lists
    assert (left.model, left.n_hits, left.n_recommended, len(left.entries)) == ("cosine", 3, 40, lists.SHOWN_TRACKS)
    assert [entry.is_hit for entry in left.entries[:4]] == [True, True, False, False]
    assert [entry.is_hit for entry in right.entries] == [False, True]
    assert second.title == ""
    assert second.lists[1] == lists.ShownList("popularity", [], 0, 0)
    text = parse(page.render(content(full=True))).text
    # a hit is not marked by its colour alone
    assert text.count("✓ hit") == 4
    assert "(no title)" in text
    assert "and 14 more" in text
    assert "No recommendations." in text


def test_the_page_explains_models_that_can_be_explained() -> None:
    made = content(full=True)
    text = parse(page.render(made)).text
    assert "What cosine learned" in text
    assert "an R-precision of 0.5000 and an NDCG of 0.7500" in text
    assert "learned" not in page.render(content(full=False))
    figure = plots.importances("ranker", EXPLANATION)
    check_png(figure)
    bars = [p.get_width() for p in figure.axes[0].patches if isinstance(p, Rectangle)]
    assert bars == [0.75, 0.25, 0]
    figure = plots.ablations("ranker", EXPLANATION)
    check_png(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [EVIL, "counts"]
    bars = [p.get_width() for p in figure.axes[0].patches if isinstance(p, Rectangle)]
    assert bars == [0.25, 0.0625, 0.5, 0.25]


def test_the_kinds_table_has_a_row_for_each_kind_and_model() -> None:
    found = {name: summary(metric_rows(400, seed, kinds=True)) for name, seed in (("cosine", 1), ("popularity", 2))}
    made = replace(content(full=True), summaries=found)
    made = replace(made, figures={**made.figures, "precision_by_kind": plots.precision_by_kind(found)})
    rows = page.kind_rows(made)
    assert [(kind, model) for kind, model, _ in rows[:3]] == [
        ("title", "cosine"),
        ("title", "popularity"),
        ("title first 1", "cosine"),
    ]
    assert len(rows) == 2 * len(KINDS)
    assert rows[0][2][1].text == page.form(found["cosine"].figures()["kind_title/r_precision"], "metric")
    text = page.render(made)
    assert "By kind of playlist" in text
    assert "title random 100" in text
    assert "By kind of playlist" not in page.render(content(full=True))


def test_figures_are_formatted_for_display() -> None:
    assert page.form(66_346_428, "count") == "66,346,428"
    assert page.form(0.0466, "share") == "4.66 %"
    assert page.form(0.5, "share") == "50.0 %"
    assert page.form(49, "mean") == "49"
    assert page.form(66.346, "mean") == "66.35"
    assert page.form(0.01234, "metric") == "0.0123"
    assert page.form(None, "count") == "–"
    assert [page.size(n) for n in (999, 1500, 2_000_000, 33_000_000_000)] == ["999 B", "1.5 kB", "2.0 MB", "33.0 GB"]
    assert page.when(datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)) == "2026-05-04 03:02 UTC"


def test_the_page_is_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_page(path, "é")
    write_page(path, "ü")
    assert path.read_text(encoding="utf-8") == "ü"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    path.unlink()
    path.mkdir()
    with pytest.raises(EnvironmentMissing, match=r"report\.html: cannot be written"):
        write_page(path, "x")
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def context(tmp_path: Path, lake: str, run_id: str) -> JobContext:
    overrides = [f"lake.path={tmp_path}/{lake}", f"report.path={tmp_path}/report", "tracking.uri=sqlite:///x.db"]
    config = load_config("local", overrides)
    session = Session(config)
    return JobContext(
        "report", config, session, Store(config, session), Tracking(config, run_id), run_id, report.READS, report.WRITES
    )


def test_models_to_compare_must_be_among_those_that_are_run() -> None:
    models = "recommend.models=[cosine,popularity]"
    report.check(load_config("local", [models, "report.compare=[popularity,cosine]"]))
    with pytest.raises(ConfigError, match=r"report\.compare: random: not in recommend\.models"):
        report.check(load_config("local", [models, "report.compare=[cosine,random]"]))


def test_a_missing_or_replaced_page_is_written_again(tmp_path: Path) -> None:
    def state(lake: str, run_id: str) -> str:
        return report.state(context(tmp_path, lake, run_id))

    def make(lake: str, run_id: str) -> None:
        made = replace(content(full=False), token=report._token(context(tmp_path, lake, run_id)), figures={})
        write_page(tmp_path / "report" / "report.html", page.render(made))

    first = state("a", "run1")
    assert state("a", "run2") != first
    make("a", "run1")
    assert state("a", "run2") == first
    # made anew in the same place, as where a table has changed
    make("a", "run2")
    assert state("a", "run3") == first
    # the page of another lake in its place
    other = state("b", "run4")
    make("b", "run4")
    assert state("b", "run5") == other
    assert state("a", "run6") not in (first, other)
    (tmp_path / "report" / "report.html").unlink()
    assert state("a", "run7") != first


def test_only_models_that_were_evaluated_on_the_same_playlists_are_compared() -> None:
    rng = np.random.default_rng(9)
    pids = np.arange(20)
    sums = {
        name: GroupSums.of(own, {metric: rng.random(len(own)) for metric in METRICS})
        for name, own in (("best", pids), ("same", pids), ("other", pids + 1), ("none", pids[:0]))
    }
    assert list(report._compared(sums, sums, "best")) == ["same"]
    assert report._compared(sums, sums, "none") == {}
    assert report._compared({}, {}, "") == {}
