"""Benchmark results as data: figures with their spread, checks and the machine; JSON files; and comparing two reports.

Nothing here measures anything, so all of it can be tested without a clock.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

SCHEMA = 1
"""Version of the JSON format; other versions are rejected."""

DEFAULT_NOISE = 0.10
"""Relative spread, to either side, assumed for a figure that was measured once."""

MIN_CHANGE = 0.02
"""Smaller relative changes are never marked, however small the spread of the repeats."""

Better = Literal["lower", "higher", "neither"]


class BenchError(Exception):
    """A benchmark cannot be run, read or compared; the message says why and what to do."""


@dataclass(frozen=True)
class Figure:
    """One number. `value` is the median of `repeats` measurements, `low` and `high` are their extremes.

    `name`: dotted, the same in every run. `work`: a description of what was measured; figures of different work are not
    compared. `better`: which direction is good; "neither" for purely descriptive figures.
    """

    name: str
    unit: str
    value: float
    low: float
    high: float
    repeats: int = 1
    better: Better = "lower"
    work: str = ""
    note: str = ""

    @property
    def noise(self) -> tuple[float, float]:
        """The interval in which a repeated measurement is expected."""
        if self.repeats > 1:
            return self.low, self.high
        return self.value * (1 - DEFAULT_NOISE), self.value * (1 + DEFAULT_NOISE)


def figure(
    name: str, unit: str, values: Sequence[float], *, better: Better = "lower", work: str = "", note: str = ""
) -> Figure:
    """A figure from one or more measurements of the same thing. ValueError if there are none."""
    if not values:
        raise ValueError(f"{name}: at least one measurement expected")
    return Figure(
        name,
        unit,
        statistics.median(values),
        min(values),
        max(values),
        len(values),
        better=better,
        work=work,
        note=note,
    )


def ratio(name: str, above: Figure, below: Figure, *, note: str = "") -> Figure:
    """`above` divided by `below`, higher is better; its spread is the widest that theirs allow."""
    (above_low, above_high), (below_low, below_high) = above.noise, below.noise
    repeats = min(above.repeats, below.repeats)
    work = f"{above.work} / {below.work}" if above.work != below.work else above.work
    return Figure(
        name,
        "x",
        above.value / below.value,
        above_low / below_high,
        above_high / below_low,
        repeats,
        better="higher",
        work=work,
        note=note,
    )


@dataclass(frozen=True)
class Check:
    """Whether a precondition of a comparison holds, such as equal results or the stated number of threads."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Found:
    """The results of one part."""

    figures: list[Figure] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def __add__(self, other: Found) -> Found:
        return Found([*self.figures, *other.figures], [*self.checks, *other.checks], {**self.facts, **other.facts})

    def __getitem__(self, name: str) -> Figure:
        """The figure with a name. KeyError if there is none."""
        for found in self.figures:
            if found.name == name:
                return found
        raise KeyError(name)


@dataclass(frozen=True)
class Report:
    """A benchmark run. `quick`: at reduced sizes, only to check that everything works."""

    stamp: str
    quick: bool
    parts: list[str]
    machine: dict[str, Any]
    found: Found
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The report as plain data, for a JSON file."""
        return {"schema": SCHEMA, **asdict(self)}


def found_of(data: dict[str, Any]) -> Found:
    """Rebuild Found from the plain data that `asdict` made of it."""
    return Found(
        [Figure(**entry) for entry in data["figures"]],
        [Check(**entry) for entry in data["checks"]],
        dict(data["facts"]),
    )


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_report(path: Path) -> Report:
    """Read a report. Raises BenchError if the file is not a valid report."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: cannot be read: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise BenchError(f"{path}: a report of schema {SCHEMA} expected; make a new one with `make bench`")
    del data["schema"]
    try:
        return Report(**{**data, "found": found_of(data["found"])})
    except (KeyError, TypeError) as error:
        raise BenchError(f"{path}: incomplete report: {error}") from error


@dataclass(frozen=True)
class Change:
    """A figure in two reports. `ratio`: b / a. `verdict`: better, worse, same (within the noise), or why neither."""

    name: str
    unit: str
    a: float | None
    b: float | None
    ratio: float | None
    verdict: str


_SAME_MACHINE = ("cpu", "cores", "memory_gb")


def compare(a: Report, b: Report) -> tuple[list[Change], list[str]]:
    """How each figure changed from a to b, and reasons to doubt the comparison.

    Raises BenchError if only one of them is quick, since their sizes differ.
    """
    if a.quick != b.quick:
        raise BenchError("only one of the reports is of a quick run: the sizes differ, so nothing can be compared")
    doubts = [
        f"{name}: {a.machine.get(name)} and {b.machine.get(name)}"
        for name in _SAME_MACHINE
        if a.machine.get(name) != b.machine.get(name)
    ]
    doubts += [f"{label}: {c.name} failed: {c.detail}" for label, r in (("A", a), ("B", b)) for c in failed(r.found)]
    left, right = ({found.name: found for found in report.found.figures} for report in (a, b))
    return [_change(name, left.get(name), right.get(name)) for name in dict.fromkeys([*left, *right])], doubts


def failed(found: Found) -> list[Check]:
    """The checks that failed."""
    return [check for check in found.checks if not check.ok]


def _change(name: str, a: Figure | None, b: Figure | None) -> Change:
    if a is None or b is None:
        one = a or b
        assert one is not None
        left, right = (figure.value if figure else None for figure in (a, b))
        return Change(name, one.unit, left, right, None, "only in A" if b is None else "only in B")
    if a.work != b.work:
        return Change(name, a.unit, a.value, b.value, None, "other work")
    changed = b.value / a.value if a.value else None
    return Change(name, a.unit, a.value, b.value, changed, _verdict(a, b))


def _verdict(a: Figure, b: Figure) -> str:
    (a_low, a_high), (b_low, b_high) = a.noise, b.noise
    if (b_low <= a_high and a_low <= b_high) or abs(b.value - a.value) <= MIN_CHANGE * abs(a.value):
        return "same"
    if a.better == "neither":
        return "other"
    return "better" if (b.value > a.value) == (a.better == "higher") else "worse"


def shown(value: float) -> str:
    """A number for display: three significant digits or so, with thousands separators."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = 4 if abs(value) < 0.001 else max(0, 3 - len(str(int(abs(value)))) + (abs(value) < 1))
    return f"{value:.{digits}g}" if abs(value) < 0.001 else f"{value:.{digits}f}"


def spread(one: Figure) -> str:
    """The extremes of the repeats as text; empty for a figure measured once."""
    return "" if one.repeats < 2 else f"{shown(one.low)} to {shown(one.high)}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column left-aligned, the others right-aligned."""
    lines = [f"| {' | '.join(header)} |", "|" + "|".join(["---", *["---:"] * (len(header) - 1)]) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"
