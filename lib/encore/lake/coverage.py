"""Determines from a table's own log which of its rows a given unit of work has written.

Every commit of a long write records the range of keys that it replaced and the fingerprint of the work. Reading the log
backwards from the newest commit therefore shows which work wrote the rows of each range. This distinguishes a run that
was interrupted, divided into other chunks, or interleaved with a run with other settings from a complete one, without
any record outside the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from encore.lake.delta import Change, Commit, Interval

_LEAST, _GREATEST = -(1 << 63), 1 << 63


def remaining(
    changes: Iterable[Change], partition: tuple[tuple[str, str], ...], is_own: Callable[[Commit], bool]
) -> list[Interval]:
    """The key ranges of a partition, in order, whose rows were not written by commits that `is_own` accepts.

    `changes`: newest first. Ranges that were never written are included; a commit that does not record which rows it
    replaced may have replaced any. If the list is empty, the work is done.
    """
    undecided = [(_LEAST, _GREATEST)]
    lost: list[tuple[int, int]] = []
    for change in changes:
        if not undecided:
            break
        commit = change.commit
        if commit is None or commit.rows is None:
            if commit is None or commit.touches(partition):
                break
            continue
        if not commit.touches(partition):
            continue
        low = _LEAST if commit.rows[0] is None else commit.rows[0]
        high = _GREATEST if commit.rows[1] is None else commit.rows[1]
        if not is_own(commit):
            lost += _within(undecided, low, high)
        undecided = [*_within(undecided, _LEAST, low), *_within(undecided, high, _GREATEST)]
    return [_bounds(low, high) for low, high in _joined([*lost, *undecided])]


def fitted_models(changes: Iterable[Change], partition: tuple[tuple[str, str], ...]) -> set[str] | None:
    """The fingerprints of the fitted models that the rows of a partition come from; None if the log does not say.

    `changes`: newest first. Includes models of which only a few rows are left, or none.
    """
    found: set[str] = set()

    def noted(commit: Commit) -> bool:
        found.add(commit.fitted)
        return True

    return None if remaining(changes, partition, noted) or "" in found else found


def complement(intervals: Iterable[Interval]) -> list[Interval]:
    """The complement of ranges that are sorted and do not overlap."""
    found, low = [], _LEAST
    for one, other in intervals:
        start = _LEAST if one is None else one
        if low < start:
            found.append(_bounds(low, start))
        low = _GREATEST if other is None else other
    return [*found, _bounds(low, _GREATEST)] if low < _GREATEST else found


def _within(intervals: Iterable[tuple[int, int]], low: int, high: int) -> list[tuple[int, int]]:
    cut = ((max(one, low), min(other, high)) for one, other in intervals)
    return [(one, other) for one, other in cut if one < other]


def _joined(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for low, high in sorted(intervals):
        if found and found[-1][1] == low:
            found[-1] = (found[-1][0], high)
        else:
            found.append((low, high))
    return found


def _bounds(low: int, high: int) -> Interval:
    return (None if low == _LEAST else low, None if high == _GREATEST else high)
