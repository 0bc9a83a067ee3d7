"""The table and the picture of the benchmark `models`, from the facts in its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.figures import BenchError, Report, markdown, shown
from tests.bench.machine import ROOT

DOCS = ROOT / "deploy" / "docs" / "benchmarks.md"
PICTURE = ROOT / "deploy" / "images" / "models.png"
BEGIN, END = "<!-- models: written by make bench-docs -->", "<!-- end of models -->"
HEADER = ("model", "R-precision", "with artist credit", "NDCG", "clicks", "fit, s", "ms a query", "memory, MB")
OURS, PEERS = "#1f5fb4", "#c2571a"

Rows = Sequence[Mapping[str, Any]]


def table(rows: Rows) -> str:
    """All contenders as a Markdown table, the best NDCG first, then those without figures and why they have none."""
    done = sorted((row for row in rows if "error" not in row), key=lambda row: -row["ndcg"])
    cells = [
        (
            _label(row),
            *(f"{row[name]:.4f}" for name in ("r_precision", "r_precision_artist", "ndcg")),
            f"{row['clicks']:.2f}",
            shown(row["fit_seconds"]),
            shown(row["query_cpu_ms"]),
            shown(row["memory"] / 1e6),
        )
        for row in done
    ]
    text = markdown(HEADER, cells)
    failed = [f"- {_label(row)}: not measured: {row['error']}\n" for row in rows if "error" in row]
    return text + ("\n" + "".join(failed) if failed else "")


def settings(rows: Rows) -> str:
    """The settings and versions of the peers, as a Markdown list."""
    named = [row for row in rows if not row["ours"] and "error" not in row]
    return "".join(f"- {row['label']} ({row['version']}): {row['settings']}\n" for row in named)


def _label(row: Mapping[str, Any]) -> str:
    return f"**Encore: {row['label']}**" if row["ours"] else str(row["label"])


def section(report: Report) -> str:
    """What deploy/docs/benchmarks.md says about a report: its conditions, the table, and the peers' settings.

    Raises BenchError if `models` is not in the report.
    """
    facts = _facts(report)
    machine = report.machine
    head = (
        f"Measured on {machine['date'][:10]} with `make bench PARTS=models`, on {machine['cores']} virtual cores of an "
        f"{machine['cpu']} with {machine['memory_gb']:.0f} GB: {facts['what']}, factors of {facts['d']} dimensions, "
        f"{facts['batch']} queries at a time."
    )
    return f"{head}\n\n{table(facts['rows'])}\nSettings of the peers:\n\n{settings(facts['rows'])}"


def _facts(report: Report) -> dict[str, Any]:
    facts: dict[str, Any] | None = report.found.facts.get("models")
    if facts is None:
        raise BenchError(f"report {report.stamp}: no part `models`; make one with `make bench PARTS=models`")
    return facts


def write_docs(report: Report, docs: Path = DOCS, picture: Path = PICTURE) -> None:
    """Replace the part of the docs between the two marks, and the picture. BenchError if the marks are missing."""
    text = docs.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise BenchError(f"{docs}: one line {BEGIN} and one line {END} expected")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    docs.write_text(f"{before}{BEGIN}\n\n{section(report)}\n{END}{after}", encoding="utf-8")
    draw(_facts(report)["rows"], picture)


def best_variants(rows: Rows) -> Rows:
    """Of the rows whose labels are equal up to the first comma, those with the best R-precision, labelled by that."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        label = row["label"].partition(",")[0]
        if label not in found or row["r_precision"] > found[label]["r_precision"]:
            found[label] = {**row, "label": label}
    return list(found.values())


def draw(rows: Rows, path: Path) -> None:
    """Quality over cost: R-precision by milliseconds a query, Encore's models as discs and peers as hollow diamonds.

    Of the variants of a peer, only the best is drawn (see `best_variants`).
    """
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import FuncFormatter, NullFormatter

    done = best_variants([row for row in rows if "error" not in row])
    canvas = Canvas(figsize=(9.6, 5.8), layout="constrained")
    ax = canvas.subplots()
    for is_ours, marker, colour, label in ((True, "o", OURS, "Encore"), (False, "D", PEERS, "public peers")):
        own = [row for row in done if row["ours"] is is_ours]
        ax.scatter(
            [row["query_cpu_ms"] for row in own],
            [row["r_precision"] for row in own],
            marker=marker,
            s=64 if is_ours else 44,
            facecolors=colour if is_ours else "white",
            edgecolors=colour,
            linewidths=1.6,
            label=label,
            zorder=3,
        )
    ax.set_xscale("log")
    costs = [row["query_cpu_ms"] for row in done] or [1.0]
    ax.set_xlim(min(costs) / 1.8, max(costs) * 2.6)
    top = max((row["r_precision"] for row in done), default=0.1)
    ax.set_ylim(-0.05 * top, 1.1 * top)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("milliseconds of CPU time a query, best 500 tracks, one thread (logarithmic)")
    ax.set_ylabel("R-precision")
    ax.set_title("Quality over cost: up is better, left is cheaper", loc="left", fontsize=12)
    ax.grid(color="#dddddd", linewidth=0.6, zorder=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper left", frameon=False, fontsize=10)
    canvas.draw_without_rendering()
    _annotate(ax, done)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=160)


_DIRECTIONS = (
    (9, 0, "left", "center"),
    (7, 7, "left", "bottom"),
    (7, -7, "left", "top"),
    (0, 9, "center", "bottom"),
    (0, -9, "center", "top"),
    (-9, 0, "right", "center"),
    (-7, 7, "right", "bottom"),
    (-7, -7, "right", "top"),
)


def _annotate(ax: Any, rows: Rows) -> None:
    """Label all points, each where it covers least of the other labels and points: the best models choose first."""
    points = ax.transData.transform([(row["query_cpu_ms"], row["r_precision"]) for row in rows]).reshape(-1, 2)
    inside, taken = ax.get_window_extent(), [_box(x, y, 7) for x, y in points]
    for i in sorted(range(len(rows)), key=lambda i: -rows[i]["r_precision"]):
        row = rows[i]
        tried = []
        for distance in (1.0, 2.2, 3.6):
            for place, (dx, dy, horizontal, vertical) in enumerate(_DIRECTIONS):
                text = ax.annotate(
                    row["label"],
                    (row["query_cpu_ms"], row["r_precision"]),
                    (dx * distance, dy * distance),
                    textcoords="offset points",
                    ha=horizontal,
                    va=vertical,
                    fontsize=8.5,
                    color=OURS if row["ours"] else PEERS,
                    fontweight="bold" if row["ours"] else "normal",
                    arrowprops={"arrowstyle": "-", "color": "#aaaaaa", "lw": 0.6} if distance > 1 else None,
                    zorder=4,
                )
                extent = text.get_window_extent()
                box = np.array([extent.x0, extent.y0, extent.x1, extent.y1])
                others = [other for j, other in enumerate(taken) if j != i]
                cost = sum(_overlap(box, other) for other in others) + 4 * distance + 0.1 * place
                cost += 1e4 * (box[0] < inside.x0 or box[1] < inside.y0 or box[2] > inside.x1 or box[3] > inside.y1)
                tried.append((cost, text, box))
        chosen = min(tried, key=lambda entry: entry[0])
        for entry in tried:
            if entry is not chosen:
                entry[1].remove()
        taken.append(chosen[2])


def _box(x: float, y: float, radius: float) -> Any:
    return np.array([x - radius, y - radius, x + radius, y + radius])


def _overlap(a: Any, b: Any) -> float:
    """The common area of two boxes x0, y0, x1, y1, in pixels."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return float(width * height) if width > 0 and height > 0 else 0.0
