"""The graph of jobs, derived from the tables that each declares to read and write, and from the jobs that each declares
to precede. It alone determines the order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from encore.errors import ConfigError
from encore.lake.tables import SHARED, Table


@dataclass(frozen=True)
class Node:
    """A job as the graph sees it: its name, the tables that it reads and writes, and the jobs that it has to precede
    although they read none of its tables."""

    name: str
    reads: tuple[Table, ...]
    writes: tuple[Table, ...]
    before: tuple[str, ...] = ()


def writer_of(nodes: Sequence[Node]) -> dict[str, str]:
    """Which job writes each table. ValueError if two do; SHARED tables, which have a partition for each job, are left
    out."""
    writers: dict[str, str] = {}
    for node in nodes:
        for table in node.writes:
            if table in SHARED:
                continue
            if table.name in writers:
                raise ValueError(f"{table.name} has two writers: {writers[table.name]} and {node.name}")
            writers[table.name] = node.name
    return writers


def edges(nodes: Sequence[Node]) -> list[tuple[str, str, str]]:
    """(writing job, table, reading job), in the order of `nodes`, without edges from a job to itself."""
    writers = writer_of(nodes)
    return [
        (writers[table.name], table.name, node.name)
        for node in nodes
        for table in node.reads
        if writers.get(table.name, node.name) != node.name
    ]


def needs(nodes: Sequence[Node]) -> dict[str, set[str]]:
    """For each job, in the order of `nodes`, those that it directly waits for: the writers of the tables that it reads,
    and the jobs that declare to precede it."""
    found: dict[str, set[str]] = {node.name: set() for node in nodes}
    for before, _, after in edges(nodes):
        found[after].add(before)
    for node in nodes:
        for after in set(node.before) & found.keys():
            found[after].add(node.name)
    return found


def predecessors(nodes: Sequence[Node]) -> dict[str, set[str]]:
    """For each job, in topological order, all jobs that it waits for, directly or indirectly."""
    direct, found = needs(nodes), dict[str, set[str]]()
    for name in order(nodes):
        found[name] = direct[name].union(*(found[other] for other in direct[name]))
    return found


def order(nodes: Sequence[Node]) -> list[str]:
    """A topological order of the jobs, ties as in `nodes`. ValueError on a cycle."""
    waits = needs(nodes)
    done: list[str] = []
    while len(done) < len(waits):
        ready = [name for name in waits if name not in done and waits[name] <= set(done)]
        if not ready:
            raise ValueError("a cycle among " + ", ".join(sorted(set(waits) - set(done))))
        done.append(ready[0])
    return done


def select(nodes: Sequence[Node], first: str | None, last: str | None, only: Sequence[str]) -> list[str]:
    """The jobs that `--from` and `--to`, or `--only`, select, in order.

    Raises ConfigError for an unknown job, an empty part, and both ways at once.
    """
    names = order(nodes)
    for name in (first, last, *only):
        if name is not None and name not in names:
            raise ConfigError(f"no job {name!r}", remedy="one of: " + ", ".join(names))
    if only and (first is not None or last is not None):
        raise ConfigError("--only names jobs by themselves, not within --from and --to", remedy="leave out one of them")
    if only:
        return [name for name in names if name in only]
    start = names.index(first) if first is not None else 0
    stop = names.index(last) + 1 if last is not None else len(names)
    if start >= stop:
        raise ConfigError(f"--from {first} comes after --to {last}", remedy="the order is: " + ", ".join(names))
    return names[start:stop]


@dataclass(frozen=True)
class Series:
    """Parts of the graph that run one after the other."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Parallel:
    """Parts of the graph that are independent of one another."""

    parts: tuple[Part, ...]


Part: TypeAlias = "str | Series | Parallel"
"""A job by its name, or parts in series or side by side."""


def compose(nodes: Sequence[Node]) -> Part:
    """The graph as nested series and parallel parts, for schedulers that support nothing else.

    Every job comes after those that it waits for. Two jobs of which neither needs the other run side by side, but where
    the graph is not made of these two shapes alone: there some jobs wait for others that they do not need.
    """
    before = predecessors(nodes)
    return _compose(list(before), before)


def width(part: Part) -> int:
    """The maximum number of jobs of a part that run at the same time."""
    if isinstance(part, str):
        return 1
    widths = [width(inner) for inner in part.parts]
    return sum(widths) if isinstance(part, Parallel) else max(widths)


def _compose(names: list[str], before: dict[str, set[str]]) -> Part:
    if len(names) == 1:
        return names[0]
    groups = _groups(names, before)
    if len(groups) > 1:
        return Parallel(tuple(_compose(group, before) for group in groups))
    inside = set(names)
    ranked = sorted(names, key=lambda name: (len(before[name] & inside), names.index(name)))
    cuts = range(1, len(ranked))
    # a cut loses nothing where all that is after it needs all that is before it; else the jobs that can start do so
    exact = (cut for cut in cuts if all(before[name] >= set(ranked[:cut]) for name in ranked[cut:]))
    cut = next(exact, sum(not before[name] & inside for name in names))
    parts: list[Part] = []
    for half in (ranked[:cut], ranked[cut:]):
        part = _compose(sorted(half, key=names.index), before)
        parts.extend(part.parts if isinstance(part, Series) else [part])
    return Series(tuple(parts))


def _groups(names: list[str], before: dict[str, set[str]]) -> list[list[str]]:
    """The connected components, names in their order."""
    group = {name: {name} for name in names}
    for name in names:
        for other in before[name] & set(names):
            merged = group[name] | group[other]
            for member in merged:
                group[member] = merged
    found: list[list[str]] = []
    for name in names:
        if not any(name in one for one in found):
            found.append([member for member in names if member in group[name]])
    return found


def mermaid(nodes: Sequence[Node]) -> str:
    """The graph as a mermaid flowchart: jobs as boxes, tables on the arrows; dotted arrows only give the order."""
    lines = [
        "flowchart LR",
        "    slices([slices]) --> ingest_playlists",
        "    files([feature files or service]) --> ingest_features",
    ]
    between: dict[tuple[str, str], list[str]] = {}
    for before, table, after in edges(nodes):
        between.setdefault((before, after), []).append(table)
    lines += [f"    {before} -- {', '.join(names)} --> {after}" for (before, after), names in between.items()]
    lines += [f"    {node.name} -. passed .-> {after}" for node in nodes for after in node.before]
    lines += [
        "    evaluate -. metrics .-> mlflow[(MLflow)]",
        "    register_models -. versions .-> mlflow",
        "    report -. page .-> mlflow",
    ]
    return "\n".join(lines)
