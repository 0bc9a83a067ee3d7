"""The benchmark command, `python -m tests.bench`, behind `make bench`, `make bench-compare` and `make bench-full`."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from tests.bench import curves, ingest, inner, line, models, models_table, parser, serving, topk
from tests.bench import full as full_size
from tests.bench.data import CACHE
from tests.bench.figures import (
    BenchError,
    Figure,
    Found,
    Report,
    compare,
    failed,
    found_of,
    markdown,
    read_report,
    shown,
    spread,
    write_json,
)
from tests.bench.limits import parse_size
from tests.bench.machine import ROOT, clean_environment, describe, load_warning, python, second_core

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

PARTS: dict[str, tuple[Callable[[Any], Found], Any, Any]] = {
    "topk": (topk.run, topk.Sizes(), topk.QUICK),
    "parser": (parser.run, parser.Sizes(), parser.QUICK),
    "ingest": (ingest.run, ingest.Sizes(), ingest.QUICK),
    "line": (line.run, line.Sizes(), line.QUICK),
    "curves": (curves.run, curves.Sizes(), curves.QUICK),
    "inner": (inner.run, inner.Sizes(), inner.QUICK),
    "models": (models.run, models.Sizes(), models.QUICK),
    "serving": (serving.run, serving.Sizes(), serving.QUICK),
}
ONLY_BY_NAME = ("curves", "inner", "models", "serving")
"""Parts that only run if they are named."""
ENVIRONMENT = {"parser": {"POLARS_MAX_THREADS": "1"}}
"""By part, variables that must be set before its libraries are imported."""


@app.command()
def run(
    parts: Annotated[
        list[str] | None,
        typer.Argument(
            help="Some of topk, parser, ingest, line (default: all of these), curves, inner, models, serving"
        ),
    ] = None,
    quick: Annotated[bool, typer.Option(help="Use small sizes, only to check that everything works")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the reports")] = CACHE / "reports",
) -> None:
    """Measure, print a table, and write the report with a plot as <stamp>.json, .md and .png."""
    selected = parts or [name for name in PARTS if name not in ONLY_BY_NAME]
    for name in selected:
        if name not in PARTS:
            raise BenchError(f"{name}: one of {', '.join(PARTS)} expected")
    machine, began = describe(), time.monotonic()
    if warning := load_warning():
        typer.echo(f"warning: {warning}", err=True)
    found = second_core()
    for name in selected:
        typer.echo(f"{name} ...", err=True)
        found += _run_part(name, quick)
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    report = Report(stamp, quick, selected, machine, found, time.monotonic() - began)
    _publish(report, out)
    if failed(found):
        raise typer.Exit(1)


def _run_part(name: str, quick: bool) -> Found:
    """Run a part in its own process, with its own memory, threads and environment."""
    out = CACHE / "scratch" / f"part-{name}-{os.getpid()}.json"
    environment, _ = clean_environment(os.environ)
    command = python("tests.bench", "part", name, str(out), *(["--quick"] if quick else []))
    done = subprocess.run(command, cwd=ROOT, env={**environment, **ENVIRONMENT.get(name, {})}, check=False)
    if done.returncode:
        raise BenchError(f"{name} failed with exit code {done.returncode}")
    found = found_of(json.loads(out.read_text(encoding="utf-8")))
    out.unlink()
    return found


@app.command(hidden=True)
def part(name: str, out: Path, quick: bool = False) -> None:
    """Run one part and write its result to a file as JSON."""
    work, sizes, quick_sizes = PARTS[name]
    write_json(out, asdict(work(quick_sizes if quick else sizes)))


@app.command(name="compare")
def compare_reports(a: Path, b: Annotated[Path, typer.Argument(help="Two reports, as JSON")]) -> None:
    """Print how each figure changed from one report to another, and whether by more than noise."""
    left, right = read_report(a), read_report(b)
    changes, doubts = compare(left, right)
    rows = [
        (
            change.name,
            change.unit,
            *("" if value is None else shown(value) for value in (change.a, change.b, change.ratio)),
            change.verdict,
        )
        for change in changes
    ]
    typer.echo(markdown(("figure", "unit", f"A {left.stamp}", f"B {right.stamp}", "B / A", ""), rows))
    for doubt in doubts:
        typer.echo(f"doubtful: {doubt}")
    if any(change.verdict == "worse" for change in changes):
        raise typer.Exit(1)


@app.command()
def docs(report: Annotated[Path, typer.Argument(help="A report of the part models, as JSON")]) -> None:
    """Write the table of models of a report into deploy/docs/benchmarks.md, and its picture into deploy/images."""
    models_table.write_docs(read_report(report))
    typer.echo(f"{models_table.DOCS}, {models_table.PICTURE}")


@app.command()
def full(
    data: Annotated[Path | None, typer.Option(help="Slices of a million playlists; generated if not given")] = None,
    limit: Annotated[str | None, typer.Option(help="Memory limit for all processes together, such as 8g")] = None,
    only: Annotated[list[int] | None, typer.Option(help="Only these numbers of playlists")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the reports")] = CACHE / "reports",
) -> None:
    """Measure the pipeline at full size and at fractions of it; an interrupted run is resumed."""
    machine, began = describe(), time.monotonic()
    found = full_size.run(data, parse_size(limit) if limit else None, only or [], typer.echo)
    stamp = f"full-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    _publish(Report(stamp, False, ["full"], machine, found, time.monotonic() - began), out)
    if failed(found):
        raise typer.Exit(1)


def _publish(report: Report, out: Path) -> None:
    text = _text(report)
    write_json(out / f"{report.stamp}.json", report.as_json())
    (out / f"{report.stamp}.md").write_text(text, encoding="utf-8")
    plot = out / f"{report.stamp}.png"
    if report.parts == ["models"]:
        models_table.draw(report.found.facts["models"]["rows"], plot)
    else:
        _plot(report.found.figures, plot)
    typer.echo(text)
    typer.echo(f"{out / report.stamp}.json, .md, .png")


def _text(report: Report) -> str:
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    head = [
        f"{machine['date']}, commit {machine['git_commit']}, {report.seconds:,.0f} s in total"
        + (" (quick: sizes too small to be meaningful)" if report.quick else ""),
        f"{machine['cpu']}, {machine['cores']} cores ({' '.join(machine['flags'])}), {machine['memory_gb']} GB, "
        f"load at start {machine['load_at_start'][0]}",
        f"Python {machine['python']}, {machine['java']}, {versions}",
    ]
    rows = [
        (one.name, shown(one.value), one.unit, spread(one), one.note or one.work)
        for one in report.found.figures
        if not one.name.startswith("models.")
    ]
    parts = [markdown(("figure", "value", "", "spread", "of"), rows)] if rows else []
    if "models" in report.found.facts:
        parts.append(models_table.table(report.found.facts["models"]["rows"]))
    checks = [f"{'ok' if check.ok else 'FAILED'}: {check.name}: {check.detail}" for check in report.found.checks]
    return "\n\n".join(["\n".join(head), *parts, "\n".join(checks)])


CURVES = {"M": "tracks", "k": "results", "d": "dimensions"}
"""Labels of the x axes of `curves`, by the letter in the figures' names."""


TICKS = (0.03, 0.05, 0.1, 0.2, 0.5, 1.0)


def _short(n: int) -> str:
    return f"{n / 1e6:g} M" if n >= 1_000_000 else f"{n // 1000} k" if n >= 10_000 else str(n)


def _curve(figures: Sequence[Figure], letter: str) -> list[tuple[int, float]]:
    """The points of one curve, by size."""
    prefix = f"curve.{letter}"
    return sorted((int(one.name.removeprefix(prefix)), one.value) for one in figures if one.name.startswith(prefix))


def _plot(figures: Sequence[Figure], path: Path) -> None:
    """Ratios as bars on a logarithmic axis; if there are none, curves, or seconds by number of playlists."""
    from matplotlib.figure import Figure as Canvas

    # better quality is not more speed
    ratios = [
        one for one in figures if one.unit == "x" and one.better == "higher" and not one.name.startswith("models.")
    ]
    seconds = [one for one in figures if one.name.endswith(".seconds")]
    canvas = Canvas(figsize=(8, 1 + 0.3 * max(4, len(ratios))), layout="constrained")
    if ratios:
        ax = canvas.subplots()
        ax.barh([one.name for one in ratios], [one.value for one in ratios], color="#4269d0")
        ax.set_xscale("log")
        ax.axvline(1, color="black", linewidth=0.8)
        ax.set_xlabel("times as fast as the peer")
        ax.invert_yaxis()
        for row, one in enumerate(ratios):
            ax.annotate(f" {shown(one.value)}", (one.value, row), va="center", fontsize=8)
    elif any(one.name.startswith("curve.") for one in figures):
        canvas.set_size_inches(9, 3)
        for ax, (letter, label) in zip(canvas.subplots(1, len(CURVES), sharey=True), CURVES.items(), strict=True):
            points = _curve(figures, letter)
            ax.loglog(*zip(*points, strict=True), "o-", color="#4269d0")
            ax.set_xlabel(label)
            ax.set_xticks([n for n, _ in points], [_short(n) for n, _ in points], fontsize=8)
            ax.minorticks_off()
            ax.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS], fontsize=8)
            ax.grid(linewidth=0.3)
        canvas.axes[0].set_ylabel("ms a query, one thread")
    elif seconds:
        ax = canvas.subplots()
        sizes = [int(one.name.split(".n")[1].split(".")[0]) for one in seconds]
        ax.loglog(sizes, [one.value for one in seconds], "o-", color="#4269d0")
        ax.set_xlabel("playlists")
        ax.set_ylabel("seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=120)


if __name__ == "__main__":
    try:
        app()
    except BenchError as error:
        raise SystemExit(f"bench: {error}") from error
