"""Hold out tracks to evaluate models with: random tracks of each playlist, or the challenge's kinds of playlists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encore.arrays.kinds import NO_KIND, kind_names
from encore.arrays.ragged import Ragged
from encore.lake.tables import HOLDOUT, PLAYLISTS
from encore.runtime.context import JobContext
from encore.spark.row_map import Kernel, RowMap
from encore.splits import challenge
from encore.splits.holdout import split
from encore.vocabulary import KINDS

READS = (PLAYLISTS,)
WRITES = (HOLDOUT,)
DERIVED = WRITES
SETTINGS = ("split",)


def run(ctx: JobContext) -> None:
    """Write `holdout`, one row per row of `playlists`."""
    start = _challenge(ctx) if ctx.config.split.protocol == "challenge" else _random(ctx)
    ctx.chunked(
        PLAYLISTS,
        HOLDOUT,
        ("pid", "name", "track_ids"),
        lambda playlists, *_: RowMap(playlists, start, block=20_000),
    )


def _random(ctx: JobContext) -> Callable[[], Kernel]:
    """The kernel that holds out random tracks of every playlist."""
    seed, fraction = ctx.config.split.seed, ctx.config.split.fraction

    def start() -> Kernel:
        def kernel(playlists: pa.Table) -> tuple[None, dict[str, Any]]:
            pids = playlists["pid"].to_numpy()
            train, test = split(pids, Ragged.from_arrow(playlists["track_ids"]), seed=seed, fraction=fraction)
            return None, _columns(train, test, playlists["name"], pa.nulls(len(pids), pa.string()))

        return kernel

    return start


def _challenge(ctx: JobContext) -> Callable[[], Kernel]:
    """The kernel that makes some playlists those of a challenge set, and leaves all the others to training.

    Which playlists those are is decided here, from the lengths and titles of all of them; so is which tracks remain in
    training.
    """
    settings = ctx.config.split
    columns = ("pid", "name", "track_ids")
    empty = np.empty(0, np.int64)
    pids, lengths, titled, n_tracks = [empty], [empty], [empty.astype(np.bool_)], 0
    for part in ctx.stream(PLAYLISTS, columns):
        tracks = Ragged.from_arrow(part["track_ids"])
        pids.append(part["pid"].to_numpy())
        lengths.append(tracks.distinct().lengths)
        titled.append(_is_titled(part["name"]).to_numpy())
        n_tracks = max(n_tracks, int(tracks.values.max(initial=-1)) + 1)
    every = np.concatenate(pids)
    kinds = challenge.assign_kinds(
        every, np.concatenate(lengths), np.concatenate(titled), settings.challenge_playlists, seed=settings.seed
    )
    chosen = np.flatnonzero(kinds != NO_KIND)
    order = chosen[np.argsort(every[chosen])]
    evaluated, their_kinds = every[order], kinds[order]
    is_trained = np.zeros(n_tracks, np.bool_)
    for part in ctx.stream(PLAYLISTS, ("pid", "track_ids")):
        trained = np.flatnonzero(np.isin(part["pid"].to_numpy(), evaluated, invert=True))
        is_trained[Ragged.from_arrow(part["track_ids"]).take(trained).values] = True
    _report(ctx, len(every), their_kinds)
    shipped = ctx.ship(pids=evaluated, kinds=their_kinds, is_trained=is_trained)
    seed = settings.seed

    def start() -> Kernel:
        arrays = shipped.open()

        def kernel(playlists: pa.Table) -> tuple[None, dict[str, Any]]:
            pids = playlists["pid"].to_numpy()
            kinds = kinds_of(pids, arrays["pids"], arrays["kinds"])
            tracks = Ragged.from_arrow(playlists["track_ids"])
            train, test = challenge.split(pids, tracks, kinds, arrays["is_trained"], seed=seed)
            shown = np.array([*(kind.has_title for kind in KINDS), True])[kinds]
            titles = pc.if_else(pa.array(shown), playlists["name"], pa.scalar(None, pa.string()))
            return None, _columns(train, test, titles, kind_names(kinds))

        return kernel

    return start


def kinds_of(pids: np.ndarray, evaluated: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """The kind of each playlist, int8, given the kinds of those that are `evaluated` (pids, ascending)."""
    found = np.full(len(pids), NO_KIND, np.int8)
    if len(evaluated):
        at = np.minimum(np.searchsorted(evaluated, pids), len(evaluated) - 1)
        known = evaluated[at] == pids
        found[known] = kinds[at[known]]
    return found


def _is_titled(names: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(names), ""), False)


def _columns(train: Ragged, test: Ragged, titles: Any, kinds: pa.Array) -> dict[str, Any]:
    return {"train": train.to_arrow(), "test": test.to_arrow(), "title": titles, "kind": kinds}


def _report(ctx: JobContext, n: int, kinds: np.ndarray) -> None:
    """Record how many playlists are evaluated, and which kinds got fewer playlists than they should have."""
    counts = np.bincount(kinds, minlength=len(KINDS))
    wanted = challenge.n_evaluated(n, ctx.config.split.challenge_playlists)
    ctx.facts["evaluated_playlists"] = len(kinds)
    if len(kinds) < wanted:
        found = zip(KINDS, counts, strict=True)
        short = [f"{kind.name} ({count:,})" for kind, count in found if count < wanted // len(KINDS)]
        ctx.facts["notes"] = [
            f"{len(kinds):,} of {wanted:,} playlists are evaluated: too few are long enough or have a title for "
            + ", ".join(short)
        ]
