"""Builds what models are fitted on from the tables, reading only the columns that they need."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from encore.arrays import hashing
from encore.arrays.kinds import NO_KIND
from encore.arrays.ragged import Ragged
from encore.config import SplitConfig
from encore.lake.tables import CHALLENGE_PLAYLISTS, HOLDOUT, TRACK_VECTORS, TRACKS, Table, arrow_schema
from encore.lake.track_arrays import check_track_ids, count_tracks, listed_tracks, numbered, vector_matrix
from encore.recommenders.base import Queries, TrainingData, Trial
from encore.splits import challenge
from encore.splits.holdout import split
from encore.vocabulary import KINDS

Stream = Callable[[Table, Sequence[str]], Iterator[pa.Table]]
"""Reads columns of a table, in parts of bounded size."""

_TRIAL_SEED: Final = 0x7121A1
"""Combined with split.seed, so that the trial is independent of the test tracks."""
_TRIAL_SHARE: Final = 10
"""At most one playlist in so many is in the trial."""


def training_data(
    stream: Stream,
    n_tracks: int,
    needs: Collection[str],
    split_settings: SplitConfig,
    *,
    trial_playlists: int,
    with_challenge: bool = False,
) -> TrainingData:
    """The training data with the fields in `needs`; the others are empty.

    Models are trained on the train tracks of the playlists without a kind, and `with_challenge` also on the tracks that
    a challenge set gives. `trial_playlists`: at most how many playlists are in the trial, which are at most one in 10.
    Raises LakeError if a table refers to a track that is not one of `n_tracks`.
    """
    found: dict[str, Any] = {}
    if "counts" in needs:
        found["counts"] = count_tracks(_trained(stream, ("train",)), HOLDOUT, "train", n_tracks)
        if with_challenge:
            given = _distinct(stream(CHALLENGE_PLAYLISTS, ["track_ids"]))
            found["counts"] += count_tracks(given, CHALLENGE_PLAYLISTS, "track_ids", n_tracks)
    if "vectors" in needs:
        vectors = vector_matrix(stream(TRACK_VECTORS, ("track_id", "vector")), n_tracks)
        found["vector_ids"], found["vectors"] = vectors
    if {"lists", "titles", "trial"} & set(needs):
        found |= _lists(stream, n_tracks, split_settings, trial_playlists, with_challenge=with_challenge)
    for name, column in (("artist_of", "artist_uri"), ("album_of", "album_uri")):
        if name in needs:
            found[name], _ = numbered(stream(TRACKS, ("track_id", column)), column, n_tracks)
    listed = listed_tracks(stream(TRACKS, ("track_id", "orphaned")), n_tracks)
    orphaned = np.flatnonzero(~listed).astype(np.int32)
    return TrainingData(n_tracks=n_tracks, orphaned=orphaned, **found)


def _trained(stream: Stream, columns: Sequence[str]) -> Iterator[pa.Table]:
    for part in stream(HOLDOUT, (*columns, "kind")):
        yield part.filter(part["kind"].is_null()).select(list(columns))


def _distinct(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    for part in parts:
        yield pa.table({"track_ids": Ragged.from_arrow(part["track_ids"]).distinct().to_arrow()})


def _lists(
    stream: Stream, n_tracks: int, settings: SplitConfig, trial_playlists: int, *, with_challenge: bool
) -> dict[str, Any]:
    """The fields pids, lists, titles and trial."""
    columns = ("pid", "train", "title")
    rows = pa.concat_tables([arrow_schema(HOLDOUT, columns).empty_table(), *_trained(stream, columns)])
    if with_challenge:
        for part in stream(CHALLENGE_PLAYLISTS, ("pid", "track_ids", "name")):
            tracks = Ragged.from_arrow(part["track_ids"]).distinct().to_arrow()
            given = pa.table({"pid": part["pid"], "train": tracks, "title": part["name"]})
            rows = pa.concat_tables([rows, given.cast(rows.schema)])
    pids = rows["pid"].to_numpy()
    lists = Ragged.from_arrow(rows["train"])
    check_track_ids(HOLDOUT, "train", lists.values, n_tracks)
    order = np.argsort(pids)
    pids, lists = pids[order], lists.take(order)
    titles = rows["title"].take(pa.array(order)).to_pylist()
    trial, lists, titles = take_trial(pids, lists, titles, settings, trial_playlists, n_tracks=n_tracks)
    return {"pids": pids, "lists": lists, "titles": titles, "trial": trial}


def take_trial(
    pids: np.ndarray,
    lists: Ragged,
    titles: list[str | None],
    settings: SplitConfig,
    trial_playlists: int,
    *,
    n_tracks: int,
    seed: int = _TRIAL_SEED,
    eligible: np.ndarray | None = None,
) -> tuple[Trial, Ragged, list[str | None]]:
    """Hide tracks of some playlists by the same protocol as the split; returns the lists and titles that remain.

    With the protocol `random`, playlists of the trial lose `settings.fraction` of their tracks; with `challenge`, they
    are taken out as a whole, and their rows become empty and untitled. All rows keep their places. `seed` is combined
    with split.seed. `eligible` bool (N,): the playlists that may be chosen; None: all of them.
    """
    seed, n = settings.seed ^ seed, min(trial_playlists, len(pids) // _TRIAL_SHARE)
    among = np.arange(len(pids)) if eligible is None else np.flatnonzero(eligible)
    if settings.protocol == "challenge":
        titled = np.array([bool(title and title.strip()) for title in titles], np.bool_)
        kinds = np.full(len(pids), NO_KIND, np.int8)
        kinds[among] = challenge.assign_kinds(pids[among], lists.lengths[among], titled[among], n, seed=seed)
        chosen = np.flatnonzero(kinds != NO_KIND)
        rest = lists.where(np.repeat(kinds == NO_KIND, lists.lengths))
        is_trained = np.bincount(rest.values, minlength=n_tracks) > 0
        train, test = challenge.split(pids[chosen], lists.take(chosen), kinds[chosen], is_trained, seed=seed)
        left = [None if kind != NO_KIND else title for kind, title in zip(kinds.tolist(), titles, strict=True)]
        shown = [titles[i] if KINDS[kinds[i]].has_title else None for i in chosen.tolist()]
    else:
        chosen = np.sort(among[hashing.order(seed, pids[among])[:n]])
        train, test = split(pids[chosen], lists.take(chosen), seed=seed, fraction=settings.fraction)
        hidden = np.zeros(len(pids), np.bool_)
        hidden[chosen] = True
        lengths = lists.lengths.copy()
        lengths[chosen] = train.lengths
        values = np.empty(int(lengths.sum()), lists.values.dtype)
        rest = Ragged.from_lengths(lengths, values)
        of_trial = np.repeat(hidden, lengths)
        values[of_trial] = train.values
        values[~of_trial] = lists.values[~np.repeat(hidden, lists.lengths)]
        left, shown = titles, [titles[i] for i in chosen.tolist()]
    some = np.flatnonzero(test.lengths > 0)
    queries = Queries(pids[chosen], train, shown).take(some)
    return Trial(queries, test.take(some)), rest, left
