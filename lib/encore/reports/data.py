"""What the report's pictures and lists show, computed from arrays and Arrow columns of a bounded size.

One entry a track, a playlist or less; nothing here is as long as the rows of all playlists. Every order is total:
equal counts are ordered by id or by text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encore.arrays.hashing import mix
from encore.arrays.ragged import Ragged
from encore.evaluation.metrics import Metrics, Summary
from encore.mpd.published import PUBLISHED, normalised_title
from encore.vocabulary import FEATURES, RANGES

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

SAMPLE_SEED: Final = 1
"""Of the hash that chooses the sample of playlists: always the same ones of the same pids."""

DISPLAY_RANGES: Final[dict[str, tuple[float, float]]] = {**RANGES, "loudness": (-40, 0), "tempo": (40, 220)}
"""Where nearly all values of a feature are; its picture counts what is beyond in the first and last bin."""
DISCRETE: Final = ("key", "mode")
"""Features of few whole values: a bin each."""
BINS: Final = 40
"""Bins of the other features."""


class Count(NamedTuple):
    """An entry of a list: what it is called, who made it (or nothing), and how often it occurs."""

    name: str
    by: str
    n: int


# key figures ---------------------------------------------------------------------------------------------------------


class KeyFigure(NamedTuple):
    """A key figure: `value` as found, `published` of the Million Playlist Dataset, None where there is none.

    `kind`: count, mean or share. `grows`: whether it grows or shrinks with the number of playlists, so that the
    two compare at 1,000,000 playlists only.
    """

    name: str
    value: float | None
    published: float | None
    kind: str
    grows: bool


def key_figures(playlists: pa.Table, counts: I64, artist_rows: I64, n_albums: int, titles: Titles) -> list[KeyFigure]:
    """The dataset in figures.

    `playlists`, a row each: `n` its length and, all nullable, `described`, `collaborative`, `num_followers`,
    `num_edits`, `num_artists`, `num_albums`. `counts` (tracks,) and `artist_rows` (artists,): rows of each. A share or
    mean of a column that is null throughout is None: it was not in the files.
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
            "distinct titles without case and punctuation",
            "distinct normalised titles",
            titles.normalised,
            grows=True,
        ),
        line("tracks a playlist, mean", "mean length", rows / n if n else None, "mean"),
        line("tracks a playlist, median", "median length", float(np.median(lengths)) if n else None, "mean"),
        line("artists a playlist, mean", "mean artists per playlist", mean("num_artists"), "mean"),
        line("albums a playlist, mean", "mean albums per playlist", mean("num_albums"), "mean"),
        line("editing sessions a playlist, mean", "mean edits", mean("num_edits"), "mean"),
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
    """At most n of the pids, sorted: those of the least hash, so that they are spread evenly and always the same."""
    pids = np.sort(pids)
    hashes = mix(SAMPLE_SEED, pids) if len(pids) else np.empty(0, np.uint64)
    return np.sort(pids[np.argsort(hashes, kind="stable")[:n]])


def top(counts: I64, n: int) -> I64:
    """Places of the n greatest counts that are not 0, greatest first, equal ones by place."""
    n = min(n, int((counts > 0).sum()))
    if n == 0:
        return np.empty(0, np.int64)
    least = np.partition(counts, len(counts) - n)[len(counts) - n]
    # only candidates are sorted: a catalogue of millions is not
    places = np.flatnonzero(counts >= least)
    return places[np.argsort(-counts[places], kind="stable")][:n]


def sums_by(numbers: I32, values: I64, n: int) -> I64:
    """Sum of the values of each number 0..n-1, int64 (n,); a number of -1 is nobody's."""
    known = numbers >= 0
    # sums stay far below 2**53, up to which float64 holds every integer
    return np.bincount(numbers[known], weights=values[known], minlength=n).astype(np.int64)


def rank_frequency(counts: I64, points: int = 1500) -> tuple[I64, I64]:
    """Ranks from 1 and how often the track of that rank occurs, not increasing; at most `points`, evenly in log(rank).

    Tracks that do not occur have no rank. The first and the last rank are always there.
    """
    found = np.sort(counts[counts > 0])[::-1]
    if not len(found):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    ranks = np.unique(np.rint(np.geomspace(1, len(found), points)).astype(np.int64))
    return ranks, found[ranks - 1]


def occurrences(counts: I64) -> tuple[I64, I64]:
    """Numbers of occurrences n > 0, ascending, and how many tracks occur exactly n times."""
    return np.unique(counts[counts > 0], return_counts=True)


class Titles(NamedTuple):
    """Titles of playlists: how many different ones as written and as the dataset's authors normalise them (lower case,
    no punctuation), playlists without one, and the most frequent in lower case without outer spaces."""

    distinct: int
    normalised: int
    untitled: int
    most: list[Count]


def count_titles(names: pa.ChunkedArray, n: int) -> Titles:
    """Of the titles as written, nullable, a playlist each; the n most frequent."""
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
    """Edges of the bins of a feature's histogram, ascending."""
    low, high = DISPLAY_RANGES[feature]
    if feature in DISCRETE:
        return np.arange(low, high + 2) - 0.5
    return np.linspace(low, high, BINS + 1)


def histogram(feature: str, values: NDArray[Any], weights: I64 | None = None) -> F64:
    """Share of the values, or of their weights, in each bin of `edges`, NaN left out; zeros where nothing is left."""
    bounds = edges(feature)
    known = ~np.isnan(values)
    # half a unit inside of the outermost edges, so that rounding moves nothing out of the last bin
    inner = (bounds[:-1] + bounds[1:]) / 2
    inside = np.clip(values[known].astype(np.float64), inner[0], inner[-1])
    counts, _ = np.histogram(inside, bounds, weights=None if weights is None else weights[known])
    total = counts.sum()
    return counts / total if total else np.zeros(len(bounds) - 1)


def feature_histograms(series: Mapping[str, tuple[F32, I64 | None]]) -> dict[str, dict[str, F64]]:
    """By feature and label of the series: `histogram` of its column; a series is a matrix (n, 11) and weights (n,).

    A feature of which no series has a value is left out.
    """
    return {
        name: {label: histogram(name, matrix[:, j], weights) for label, (matrix, weights) in series.items()}
        for j, name in enumerate(FEATURES)
        if any(not np.isnan(matrix[:, j]).all() for matrix, _ in series.values())
    }


class VarianceComponents(NamedTuple):
    """Of one feature: variance of tracks within a playlist, between playlists beyond what that alone makes, and the
    share of the second in both (intraclass correlation); playlists and rows that were looked at."""

    feature: str
    within: float
    between: float
    share: float
    n_playlists: int
    n_rows: int


def playlist_means(sample: Ragged, features: F32) -> F32:
    """Mean of each feature over the rows of each playlist that have it, float32 (playlists, 11); NaN where none has.

    The discrete ones, whose means say little, are NaN: the key is a circle.
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

    `sample`: track ids of some playlists; `features` (tracks, 11) with NaN. One-way analysis of variance with the
    playlist as a random effect (S. R. Searle, G. Casella, C. E. McCulloch: Variance Components, 1992, 3.6): with
    MSB, MSW the mean squares between and within g playlists of n_i of N rows, n0 = (N - sum n_i^2 / N) / (g - 1),
    within = MSW, between = max(0, (MSB - MSW) / n0), share = between / (between + within). The key is a circle: sine
    and cosine of its angle, their sums of squares added; rows without a key (-1) are left out. All 0 where fewer than
    two playlists or no playlist with two rows are left, or nothing varies.
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
        # from the mean, so that squares of large values do not swallow small differences
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
    """How many tracks, and rows of playlists, have audio features."""

    tracks: int
    tracks_with: int
    rows: int
    rows_with: int


def coverage(has: NDArray[np.bool_], counts: I64) -> Coverage:
    """`has` (tracks,): whether a track has features; `counts` (tracks,): its rows."""
    return Coverage(len(has), int(has.sum()), int(counts.sum()), int(counts[has].sum()))


# metrics, quarantine, ledger -----------------------------------------------------------------------------------------


def summary(rows: pa.Table) -> Summary:
    """All playlists of one model together, from its rows of `playlist_metrics`; its `covered` means nothing."""
    found = Metrics(**{name: rows[name].to_numpy() for name in Metrics._fields})
    n_train, n_recommended = (rows[name].to_numpy() for name in ("n_train", "n_recommended"))
    return Summary.from_counts(found, n_train, n_recommended, np.zeros(1, np.bool_))


class QuarantineGroup(NamedTuple):
    """Records that one stage refused for one reason, and the first of them by source and record."""

    stage: str
    reason: str
    n: int
    source: str
    record: str
    detail: str
    payload: str


QUARANTINE_COLUMNS: Final = ("stage", "reason", "source", "record", "detail", "payload")
"""Columns of the quarantine that `refused` looks at."""


def quarantine_groups(parts: Iterable[pa.Table]) -> list[QuarantineGroup]:
    """By stage and reason, in their order, from rows of the columns QUARANTINE_COLUMNS; a missing payload is empty."""
    found: dict[tuple[str, str], QuarantineGroup] = {}
    for part in parts:
        for row in part.to_pylist():
            one = QuarantineGroup(**{**row, "payload": row["payload"] or ""}, n=0)
            known = found.get((one.stage, one.reason), one)
            first = min(known, one, key=lambda line: (line.source, line.record))
            found[one.stage, one.reason] = first._replace(n=known.n + 1)
    return sorted(found.values())


class Ledger(NamedTuple):
    """Source files of one status together."""

    status: str
    files: int
    size_bytes: int
    n_playlists: int
    n_quarantined: int
    first: Any
    last: Any


def ledger(rows: pa.Table) -> list[Ledger]:
    """By status, in its order, from rows of `ingest_ledger`; `first` and `last` are times of ingestion."""
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
