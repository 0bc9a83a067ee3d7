"""The report page: one self-contained HTML file. The template engine escapes all text."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from encore.evaluation.beyond_accuracy import POPULARITY
from encore.evaluation.bootstrap import METRICS, Interval
from encore.evaluation.explanation import Explanation
from encore.evaluation.summary import Summary
from encore.reports.data import Count, Coverage, KeyFigure, Ledger, QuarantineGroup
from encore.reports.lists import ShownPlaylist
from encore.reports.plots import METRIC_NAMES, kind_name, png
from encore.vocabulary import KINDS

COLUMNS: Final = (
    ("n_playlists", "playlists", "count", 0),
    ("r_precision", "R-precision", "metric", 1),
    ("r_precision_artist", "with artist credit", "metric", 1),
    ("ndcg", "NDCG", "metric", 1),
    ("clicks", "clicks", "mean", -1),
    ("share_unserved", "no recommendations", "share", 0),
    ("coverage", "coverage", "share", 0),
    ("gini", "Gini index", "ratio", 0),
    ("novelty", "novelty", "mean", 0),
    ("artist_diversity", "artist diversity", "ratio", 0),
)
"""Columns of the models table: figure, heading, format, and whether higher (1) or lower (-1) is better.

For the last figures there is no better: they are extreme for random recommendations.
"""
N_ACCURACY: Final = 5
"""The number of columns, the first ones, that the table by kind has too."""
FROM_LISTS: Final = ("coverage", "gini")
"""The figures that Content.over_catalogue has."""


@dataclass(frozen=True)
class Registered:
    """The newest registered version of a model, and the verdict on it. `numbers`: what that is based on, by name."""

    model: str
    version: int
    registered_at: datetime
    verdict: str
    reason: str
    compared_with: int | None
    numbers: Mapping[str, float]
    size_bytes: int


@dataclass(frozen=True)
class Checked:
    """An expectation as it was last checked: numbers as text, a dash where there is none."""

    name: str
    subject: str
    meaning: str
    value: str
    expected: str
    baseline: str
    severity: str
    verdict: str
    at: datetime


@dataclass(frozen=True)
class Content:
    """Everything the page shows.

    `over_catalogue`: the figures FROM_LISTS of each model, if they are known. `best`: the model that the others are
    compared with, and `intervals` their differences from it, by model and metric. `shown`: playlists with the lists of
    two models. `explanations` by model. `token` lets the program that wrote the page recognise it.
    """

    token: str
    run_id: str
    lake: str
    commit: str
    made_at: datetime
    versions: Mapping[str, int]
    key_figures: list[KeyFigure]
    summaries: Mapping[str, Summary]
    over_catalogue: Mapping[str, Mapping[str, float]]
    best: str
    intervals: Mapping[str, Mapping[str, Interval]]
    shown: list[ShownPlaylist]
    explanations: Mapping[str, Explanation]
    artists: list[Count]
    tracks: list[Count]
    titles: list[Count]
    untitled: int
    coverage: Coverage
    sampled: int
    quarantine: list[QuarantineGroup]
    ledger: list[Ledger]
    figures: Mapping[str, Figure]
    registered: Sequence[Registered] = ()
    checks: Sequence[Checked] = ()


@dataclass(frozen=True)
class Cell:
    """A cell of the models table."""

    text: str
    best: bool


def render(content: Content) -> str:
    """The page as HTML: the same text for the same content. The template refers to `figures` by name."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(form=form, bytes=size, when=when)
    template = resources.files("encore.reports").joinpath("templates/report.html").read_text(encoding="utf-8")
    images = {name: _image(figure) for name, figure in content.figures.items()}
    return environment.from_string(template).render(
        c=content,
        images=images,
        headings=[heading for _, heading, _, _ in COLUMNS],
        n_accuracy=N_ACCURACY,
        models=model_rows(content),
        kinds=kind_rows(content),
        popularity=POPULARITY,
        recalls=recall_rows(content),
        metrics=[METRIC_NAMES[name] for name in METRICS],
        intervals=interval_rows(content),
    )


def form(value: float | None, kind: str) -> str:
    """Format a figure for display; `kind`: count, mean, metric, ratio or share; None becomes a dash."""
    if value is None:
        return "–"
    if kind == "count":
        return f"{value:,.0f}"
    if kind == "ratio":
        return f"{value:.3f}"
    if kind == "share":
        return f"{100 * value:.2f} %" if abs(value) < 0.1 else f"{100 * value:.1f} %"
    return f"{value:.4f}" if kind == "metric" else f"{value:,.2f}".removesuffix(".00")


def size(value: int) -> str:
    """A number of bytes with a decimal unit."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit:
            return f"{value / unit:.1f} {name}"
    return f"{value} B"


def when(value: datetime) -> str:
    """A UTC time to the minute."""
    return f"{value:%Y-%m-%d %H:%M} UTC"


def model_rows(content: Content) -> list[tuple[str, list[Cell]]]:
    """The models table: one row per model, the best value of each metric marked, means over no playlists as dashes."""
    found = {}
    for model, summary in content.summaries.items():
        values: dict[str, float | None] = {**summary.figures()}
        values |= {name: content.over_catalogue.get(model, {}).get(name) for name in FROM_LISTS}
        found[model] = values
    return _rows(found)


def kind_rows(content: Content) -> list[tuple[str, str, list[Cell]]]:
    """The table of the challenge protocol's kinds: kind, model, and the cells of the models table, per kind and model.

    Empty if no playlist has a kind.
    """
    figures = {model: summary.figures() for model, summary in content.summaries.items()}
    rows = []
    for kind in KINDS:
        prefix = f"kind_{kind.name}/"
        own: dict[str, Mapping[str, float | None]] = {
            model: {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
            for model, values in figures.items()
            if f"{prefix}n_playlists" in values
        }
        rows += [(kind_name(kind).replace("\n", " "), model, cells) for model, cells in _rows(own)]
    return rows


def recall_rows(content: Content) -> list[tuple[str, list[Cell]]]:
    """The table of hits by popularity: for each model and each group of POPULARITY, the share of its hidden tracks that
    are among as many first recommendations as are hidden, and the share in the whole list; the best are marked.

    Empty if no model has these figures.
    """
    names = [f"popularity_{group}/{metric}" for group in POPULARITY for metric in ("r_recall", "recall")]
    found = {model: summary.figures() for model, summary in content.summaries.items()}
    greatest = {name: max((values.get(name, 0.0) for values in found.values()), default=0.0) for name in names}
    rows = []
    for model, values in found.items():
        if any(name in values for name in names):
            cells = [
                Cell(form(values.get(name), "share"), len(found) > 1 and values.get(name) == greatest[name] > 0)
                for name in names
            ]
            rows.append((model, cells))
    return rows


def interval_rows(content: Content) -> list[tuple[str, list[Cell]]]:
    """The table of differences from the best model: a cell per metric, marked if its interval excludes 0."""
    return [
        (
            model,
            [
                Cell(" ".join(_signed(name, found[name])), found[name].low > 0 or found[name].high < 0)
                for name in METRICS
            ],
        )
        for model, found in content.intervals.items()
    ]


def _signed(name: str, interval: Interval) -> tuple[str, str]:
    """A difference of a metric for display, and the ends of its interval."""
    digits = 2 if name == "clicks" else 4
    return f"{interval.difference:+.{digits}f}", f"({interval.low:+.{digits}f} to {interval.high:+.{digits}f})"


def _rows(found: Mapping[str, Mapping[str, float | None]]) -> list[tuple[str, list[Cell]]]:
    """Cells of COLUMNS for each model, the best value of each metric marked."""
    rows = []
    for model, values in found.items():
        cells = []
        for name, _, kind, sign in COLUMNS:
            known = [v for other in found.values() if (v := other.get(name)) is not None]
            value = values.get(name)
            best = bool(sign) and len(found) > 1 and value is not None and value * sign == max(v * sign for v in known)
            cells.append(Cell(form(value, kind), best))
        rows.append((model, cells))
    return rows


def _image(figure: Figure) -> Markup:
    """A figure as an image element with inline data; its alternative text is its title."""
    alternative = figure.get_suptitle()
    data = base64.b64encode(png(figure)).decode("ascii")
    return Markup('<div class="picture"><img alt="{}" src="data:image/png;base64,{}"></div>').format(alternative, data)
