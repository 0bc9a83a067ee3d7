"""The data behind the report's plots and lists, computed from arrays and Arrow columns of bounded size.

Arrays have at most one entry per track or playlist; none is as long as the rows of all playlists. Every order is total:
ties are broken by id or by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encore.arrays import hashing
from encore.arrays.ragged import Ragged
from encore.mpd.published import PUBLISHED, normalised_title
from encore.vocabulary import FEATURES, RANGES

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

SAMPLE_SEED: Final = 1
"""Seed of the hash that samples playlists: the same pids always give the same sample."""

DISPLAY_RANGES: Final[dict[str, tuple[float, float]]] = {**RANGES, "loudness": (-40, 0), "tempo": (40, 220)}
"""The range of nearly all values of a feature; its plot counts values outside in the first and last bin."""
DISCRETE: Final = ("key", "mode")
"""Features with a few integer values, which get one bin each."""
BINS: Final = 40
"""Number of bins of the other features."""


class Count(NamedTuple):
    """An entry of a list: its name, who made it (or an empty string), and how often it occurs."""

    name: str
    by: str
    n: int


# key figures ---------------------------------------------------------------------------------------------------------


class KeyFigure(NamedTuple):
    """A key figure: its `value`, and the one `published` for the Million Playlist Dataset; either may be None.

    `kind`: count, mean or share. `grows`: whether it depends on the number of playlists, so that the two are comparable
    only at 1,000,000 playlists.
    """

    name: str
    value: float | None
    published: float | None
    kind: str
    grows: bool


def key_figures(playlists: pa.Table, counts: I64, artist_rows: I64, n_albums: int, titles: Titles) -> list[KeyFigure]:
    """The key figures of the dataset.

    `playlists` has one row per playlist: its length `n` and the nullable columns `described`, `collaborative`,
    `num_followers`, `num_edits`, `num_artists`, `num_albums`. `counts` (tracks,) and `artist_rows` (artists,): number
    of rows of each. The share or mean of a column that is entirely null, because the files lack it, is None.
    """
    lengths = playlists["n"].to_numpy()
    n, rows = len(lengths), int(counts.sum())
    used = int((counts > 0).sum())

    def mean(column: str) -> float | None:
        found = pc.mean(pc.cast(playlists[column], pa.float64())).as_py()
        return None if found is None else float(found)

    alone = pc.mean(pc.cast(pc.equal(playlists["num_followers"], 1), pa.float64())).as_py()
    single = int((counts == 1).sum()) / used if used else None
    rows_of_top = int(artist_rows.max()) / rows if rows and len(artist_rows) else None

    def line(label: str, name: str, value: float | None, kind: str = "count", grows: bool = False) -> KeyFigure:
        return KeyFigure(label, value, PUBLISHED[name], kind, grows)

    return [
        KeyFigure("playlists", n, 1_000_000, "count", True),
        line("rows: a track in a playlist", "rows", rows, grows=True),
        line("distinct tracks", "distinct tracks", used, grows=True),
        line("distinct artists", "distinct artists", len(artist_rows), grows=True),
        line("distinct albums", "distinct albums", n_albums, grows=True),
        line("distinct titles", "distinct titles", titles.distinct, grows=True),
        line(
            "distinct titles ignoring case and punctuation",
            "distinct normalised titles",
            titles.normalised,
            grows=True,
        ),
        line("tracks per playlist, mean", "mean length", rows / n if n else None, "mean"),
        line("tracks per playlist, median", "median length", float(np.median(lengths)) if n else None, "mean"),
        line("artists per playlist, mean", "mean artists per playlist", mean("num_artists"), "mean"),
        line("albums per playlist, mean", "mean albums per playlist", mean("num_albums"), "mean"),
        line("editing sessions per playlist, mean", "mean edits", mean("num_edits"), "mean"),
        line("tracks that occur once", "share of tracks that occur once", single, "share", True),
        line("rows of the top artist", "share of rows of the top artist", rows_of_top, "share"),
        line(
            "playlists with a description",
            "share of playlists with a description",
            mean("described"),
            "share",
        ),
        line("collaborative playlists", "share of collaborative playlists", mean("collaborative"), "share"),
        line("playlists with one follower", "share of playlists with one follower", alone, "share"),
    ]


# playlists and tracks ------------------------------------------------------------------------------------------------


def sample_pids(pids: I64, n: int) -> I64:
    """At most n of the pids, sorted: those with the smallest hashes, a uniform sample that is always the same."""
    return np.sort(pids[hashing.order(SAMPLE_SEED, pids)[:n]])


def top(counts: I64, n: int) -> I64:
    """Indices of the n greatest non-zero counts, greatest first, ties by index."""
    n = min(n, int((counts > 0).sum()))
    if n == 0:
        return np.empty(0, np.int64)
    threshold = np.partition(counts, len(counts) - n)[len(counts) - n]
    # sort only the candidates, not a catalogue of millions
    candidates = np.flatnonzero(counts >= threshold)
    return candidates[np.argsort(-counts[candidates], kind="stable")][:n]


def sums_by(numbers: I32, values: I64, n: int) -> I64:
    """Sum of the values of each number 0..n-1, int64 (n,); values with the number -1 are ignored."""
    known = numbers >= 0
    # sums stay far below 2**53, up to which float64 holds every integer
    return np.bincount(numbers[known], weights=values[known], minlength=n).astype(np.int64)


def rank_frequency(counts: I64, points: int = 1500) -> tuple[I64, I64]:
    """Ranks from 1, and how often the track at each rank occurs; at most `points` ranks, evenly spaced in log(rank).

    Tracks that do not occur have no rank. The first and last rank are always included.
    """
    found = np.sort(counts[counts > 0])[::-1]
    if not len(found):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    ranks = np.unique(np.rint(np.geomspace(1, len(found), points)).astype(np.int64))
    return ranks, found[ranks - 1]


def occurrences(counts: I64) -> tuple[I64, I64]:
    """The distinct numbers of occurrences n > 0, ascending, and how many tracks occur exactly n times."""
    return np.unique(counts[counts > 0], return_counts=True)


class Titles(NamedTuple):
    """Statistics of playlist titles.

    `distinct` titles as written, `normalised` distinct titles after the dataset authors' normalisation (lower case, no
    punctuation), `untitled` playlists, and the `most` frequent titles, in lower case and stripped.
    """

    distinct: int
    normalised: int
    untitled: int
    most: list[Count]


def count_titles(names: pa.ChunkedArray, n: int) -> Titles:
    """Statistics of the titles as written, nullable, one per playlist; lists the n most frequent."""
    written = pc.drop_null(pc.unique(names))
    plain = pc.utf8_lower(pc.utf8_trim_whitespace(names))
    plain = plain.filter(pc.fill_null(pc.not_equal(plain, ""), False))
    found = sorted(
        ((entry["values"], entry["counts"]) for entry in pc.value_counts(plain).to_pylist()),
        key=lambda entry: (-entry[1], entry[0]),
    )
    return Titles(
        distinct=len(written),
        normalised=len({normalised_title(title) for title, _ in found} - {""}),
        untitled=len(names) - len(plain),
        most=[Count(title, "", count) for title, count in found[:n]],
    )


# features ------------------------------------------------------------------------------------------------------------


def edges(feature: str) -> F64:
    """Bin edges of a feature's histogram, ascending."""
    low, high = DISPLAY_RANGES[feature]
    if feature in DISCRETE:
        return np.arange(low, high + 2) - 0.5
    return np.linspace(low, high, BINS + 1)


def histogram(feature: str, values: NDArray[Any], weights: I64 | None = None) -> F64:
    """Share of the values, or of their weights, in each bin of `edges`, ignoring NaN; zeros if all are NaN."""
    bounds = edges(feature)
    known = ~np.isnan(values)
    # clip to the centres of the outermost bins, so that rounding moves no value out of them
    inner = (bounds[:-1] + bounds[1:]) / 2
    inside = np.clip(values[known].astype(np.float64), inner[0], inner[-1])
    counts, _ = np.histogram(inside, bounds, weights=None if weights is None else weights[known])
    total = counts.sum()
    return counts / total if total else np.zeros(len(bounds) - 1)


def feature_histograms(series: Mapping[str, tuple[F32, I64 | None]]) -> dict[str, dict[str, F64]]:
    """Histograms by feature and label of the series; a series is a matrix (n, 11) and weights (n,) or None.

    Features without a value in any series are left out.
    """
    return {
        name: {label: histogram(name, matrix[:, j], weights) for label, (matrix, weights) in series.items()}
        for j, name in enumerate(FEATURES)
        if any(not np.isnan(matrix[:, j]).all() for matrix, _ in series.values())
    }


class VarianceComponents(NamedTuple):
    """Variance components of a feature: within playlists, between playlists, and the latter's share of the total.

    The share is the intraclass correlation. `n_playlists` and `n_rows`: the size of the sample.
    """

    feature: str
    within: float
    between: float
    share: float
    n_playlists: int
    n_rows: int


def playlist_means(sample: Ragged, features: F32) -> F32:
    """Mean of each feature over the rows of each playlist, ignoring missing values, float32 (playlists, 11).

    NaN if all values are missing, and for the discrete features, whose means say little: key, for example, is circular.
    """
    found = np.full((len(sample), len(FEATURES)), np.nan, np.float32)
    rows = sample.rows
    for j, name in enumerate(FEATURES):
        if name in DISCRETE:
            continue
        values = features[sample.values, j].astype(np.float64)
        known = ~np.isnan(values)
        n = np.bincount(rows[known], minlength=len(sample))
        sums = np.bincount(rows[known], weights=values[known], minlength=len(sample))
        found[n > 0, j] = sums[n > 0] / n[n > 0]
    return found


def variance_components(sample: Ragged, features: F32) -> list[VarianceComponents]:
    """How much of each feature's variance lies between playlists, in the order of FEATURES.

    `sample`: track ids of some playlists; `features` (tracks, 11), NaN if missing. One-way analysis of variance with
    the playlist as a random effect (S. R. Searle, G. Casella, C. E. McCulloch: Variance Components, 1992, 3.6): with
    MSB and MSW the mean squares between and within g playlists, of which playlist i has n_i of the N rows,
    n0 = (N - sum n_i^2 / N) / (g - 1), within = MSW, between = max(0, (MSB - MSW) / n0),
    share = between / (between + within). Key is circular: the sums of squares of the sine and cosine of its angle are
    added; rows without a key (-1) are ignored. All are 0 if fewer than two playlists remain, if no playlist has two
    rows, or if nothing varies.
    """
    rows = sample.rows
    return [_components(name, rows, features[sample.values, j].astype(np.float64)) for j, name in enumerate(FEATURES)]


def _components(name: str, rows: I64, values: F64) -> VarianceComponents:
    known = ~np.isnan(values) & ((values >= 0) | (name != "key"))
    rows, values = rows[known], values[known]
    _, group = np.unique(rows, return_inverse=True)
    sizes = np.bincount(group).astype(np.float64)
    g, n = len(sizes), len(values)
    if g < 2 or n <= g:
        return VarianceComponents(name, 0.0, 0.0, 0.0, g, n)
    angle = values * (2 * np.pi / 12)
    components = (np.cos(angle), np.sin(angle)) if name == "key" else (values,)
    among = inside = 0.0
    for component in components:
        # subtract the mean first, so that squares of large values do not swamp small differences
        centred = component - component.mean()
        means = np.bincount(group, weights=centred) / sizes
        among += float((sizes * means**2).sum())
        inside += float(((centred - means[group]) ** 2).sum())
    among, inside = among / (g - 1), inside / (n - g)
    n0 = (n - float((sizes**2).sum()) / n) / (g - 1)
    between = max(0.0, (among - inside) / n0)
    total = between + inside
    return VarianceComponents(name, inside, between, between / total if total else 0.0, g, n)


@dataclass(frozen=True)
class Coverage:
    """How many tracks and how many playlist rows have audio features."""

    tracks: int
    tracks_with: int
    rows: int
    rows_with: int


def coverage(has: NDArray[np.bool_], counts: I64) -> Coverage:
    """`has` (tracks,): whether a track has features; `counts` (tracks,): its number of rows."""
    return Coverage(len(has), int(has.sum()), int(counts.sum()), int(counts[has].sum()))


# metrics, quarantine, ledger -----------------------------------------------------------------------------------------


class QuarantineGroup(NamedTuple):
    """Records that one job (`stage`) quarantined for one reason, and the first of them by source and record."""

    stage: str
    reason: str
    n: int
    source: str
    record: str
    detail: str
    payload: str


QUARANTINE_COLUMNS: Final = ("stage", "reason", "source", "record", "detail", "payload")
"""Columns of the quarantine table that `quarantine_groups` reads."""


def quarantine_groups(parts: Iterable[pa.Table]) -> list[QuarantineGroup]:
    """Group rows with QUARANTINE_COLUMNS by stage and reason, sorted by both; null payloads become empty."""
    found: dict[tuple[str, str], QuarantineGroup] = {}
    for part in parts:
        for row in part.to_pylist():
            one = QuarantineGroup(**{**row, "payload": row["payload"] or ""}, n=0)
            known = found.get((one.stage, one.reason), one)
            first = min(known, one, key=lambda line: (line.source, line.record))
            found[one.stage, one.reason] = first._replace(n=known.n + 1)
    return sorted(found.values())


class Ledger(NamedTuple):
    """Totals over the source files with one status."""

    status: str
    files: int
    size_bytes: int
    n_playlists: int
    n_quarantined: int
    first: Any
    last: Any


def ledger(rows: pa.Table) -> list[Ledger]:
    """Group rows of `ingest_ledger` by status, sorted; `first` and `last` are the range of ingestion times."""
    grouped = rows.group_by("status", use_threads=False).aggregate(
        [
            ("slice", "count"),
            ("size_bytes", "sum"),
            ("n_playlists", "sum"),
            ("n_quarantined", "sum"),
            ("ingested_at", "min"),
            ("ingested_at", "max"),
        ]
    )
    names = (
        "status",
        "slice_count",
        "size_bytes_sum",
        "n_playlists_sum",
        "n_quarantined_sum",
        "ingested_at_min",
        "ingested_at_max",
    )
    return sorted(Ledger(*(row[name] for name in names)) for row in grouped.to_pylist())
