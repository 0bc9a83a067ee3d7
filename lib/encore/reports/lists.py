"""The lists of two models for a few playlists, next to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

SHOWN_TRACKS: Final = 15
"""Recommended tracks that are shown of each list."""
SHOWN_SEEDS: Final = 6
"""Known tracks that are shown of each playlist."""


class Name(NamedTuple):
    """A track for display: its name, or its URI if it has none, and its artist, or an empty string."""

    track: str
    artist: str


class Entry(NamedTuple):
    """A recommended track, and whether it is one of the playlist's hidden tracks."""

    name: Name
    is_hit: bool


@dataclass(frozen=True)
class ShownList:
    """The beginning of a model's list for a playlist, empty if it has none, and how many hits the whole list has."""

    model: str
    entries: list[Entry]
    n_hits: int
    n_recommended: int


@dataclass(frozen=True)
class ShownPlaylist:
    """A playlist: its pid, title (empty if it has none), its first known tracks, and the lists of each model.

    `n_known` and `n_hidden`: how many tracks are known to the models, and how many are hidden.
    """

    pid: int
    title: str
    seeds: list[Name]
    n_known: int
    n_hidden: int
    lists: list[ShownList]


def tracks_to_name(rows: Sequence[Mapping[str, Any]], lists: Mapping[tuple[str, int], Sequence[int]]) -> set[int]:
    """The ids of all tracks that `shown_playlists` shows, from the same arguments."""
    seeds = {track for row in rows for track in row["train"][:SHOWN_SEEDS]}
    return seeds.union(*(own[:SHOWN_TRACKS] for own in lists.values()))


def shown_playlists(
    rows: Sequence[Mapping[str, Any]],
    lists: Mapping[tuple[str, int], Sequence[int]],
    names: Mapping[int, Name],
    models: Sequence[str],
) -> list[ShownPlaylist]:
    """Playlists in the order of their pids.

    `rows` of `holdout` with pid, train, test, title; `lists`: track ids by model and pid; `names` by track id.
    """
    found = []
    for row in sorted(rows, key=lambda row: int(row["pid"])):
        hidden = set(row["test"])
        shown = []
        for model in models:
            own = lists.get((model, row["pid"]), ())
            entries = [Entry(names[track], track in hidden) for track in own[:SHOWN_TRACKS]]
            shown.append(ShownList(model, entries, len(hidden.intersection(own)), len(own)))
        seeds = [names[track] for track in row["train"][:SHOWN_SEEDS]]
        title = (row["title"] or "").strip()
        found.append(ShownPlaylist(row["pid"], title, seeds, len(row["train"]), len(hidden), shown))
    return found
