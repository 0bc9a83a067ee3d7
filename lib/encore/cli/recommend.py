"""Recommends tracks for a playlist that is in no table, without Spark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from encore.arrays.ragged import Ragged
from encore.config import Config
from encore.errors import InputError
from encore.importing.records import Loss, track_uri
from encore.lake.store import Store, open_store
from encore.lake.tables import TRACKS
from encore.recommenders.base import Queries, recommend
from encore.recommenders.fitted import FittedModels
from encore.recommenders.reasons import TITLE, Reason, reasons

_NAMES = ["track_id", "track_uri", "track_name", "artist_name"]


def print_recommendations(
    config: Config,
    tracks: Sequence[str],
    title: str | None,
    source: Path | None,
    model: str | None,
    k: int,
    *,
    as_json: bool,
    out: Console,
    err: Console,
) -> None:
    """Print the k best tracks for a playlist, with a score and a reason each.

    The playlist is given by its tracks (URIs, links or ids), by its title, or by a file of one of the formats that
    `encore import` reads. Raises InputError if nothing is given, or none of it is known to the lake.
    """
    uris = _uris(tracks)
    if source is not None:
        # only with --from: it takes a twentieth of a second
        from encore.importing.importer import read_playlists

        playlist = next(iter(read_playlists(source)), None)
        if playlist is None:
            raise InputError(f"{source}: no playlist found", remedy="`encore import` lists the formats")
        uris += [track["track_uri"] for track in playlist.tracks]
        title = title or playlist.title
    if not uris and not title:
        raise InputError("no playlist is given", remedy="give --tracks URI,URI, --title TEXT, or --from FILE")
    store = open_store(config)
    name = model or FittedModels.best(config, store)
    ids = _ids(store, uris)
    seeds = [ids[uri] for uri in dict.fromkeys(uris) if uri in ids]
    if unknown := len(set(uris)) - len(seeds):
        err.print(f"{unknown:,} of {len(set(uris)):,} tracks are in no playlist of the lake", highlight=False)
    if uris and not seeds and not title:
        raise InputError("none of the tracks is in the lake", remedy="give other tracks, or a --title too")
    fitted = FittedModels.newest(config, store, name).load(name)
    ranked = recommend(fitted, Queries.of(Ragged.from_lists([seeds]), titles=[title]), k)
    if not len(ranked.scores):
        raise InputError(f"{name} has no recommendation for this playlist", remedy="choose another --model")
    why = reasons(fitted, seeds, title, ranked.ids.values)
    named = _named(store, [*ranked.ids.values.tolist(), *seeds])
    rows = [
        {
            "rank": rank,
            **{key: value for key, value in named[track].items() if key != "track_id"},
            "score": score,
            "reason": _sentence(reason, named),
        }
        for rank, (track, score, reason) in enumerate(
            zip(ranked.ids.values.tolist(), ranked.scores.tolist(), why, strict=True), start=1
        )
    ]
    if as_json:
        # not through rich, which would wrap lines
        out.file.write(json.dumps({"model": name, "recommendations": rows}, indent=2, ensure_ascii=False) + "\n")
        return
    out.print(_grid(name, rows))


def _uris(tracks: Sequence[str]) -> list[str]:
    found = []
    for given in (part for text in tracks for part in text.replace(",", " ").split()):
        uri = track_uri(given)
        if isinstance(uri, Loss):
            raise InputError(
                f"--tracks: expected URIs, links or ids of Spotify tracks, found {given!r}",
                remedy="separate them by commas; a URI is spotify:track: and 22 letters or digits",
            )
        found.append(uri)
    return found


def _ids(store: Store, uris: Sequence[str]) -> dict[str, int]:
    """The id of each track that the lake knows, by URI."""
    # not by a scan with pyarrow's functions, which import pandas for a list of values
    rows = store.read_rows(TRACKS, ["track_id", "track_uri"], "track_uri", set(uris))
    return dict(zip(rows["track_uri"].to_pylist(), rows["track_id"].to_pylist(), strict=True))


def _named(store: Store, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Names of some tracks, by id."""
    return {row["track_id"]: row for row in store.read_rows(TRACKS, _NAMES, "track_id", set(ids)).to_pylist()}


def _sentence(reason: Reason | None, named: dict[int, dict[str, Any]]) -> str | None:
    if reason is None:
        return None
    if reason.seed == TITLE:
        return "the title"
    seed = named[reason.seed]
    by = f" by {seed['artist_name']}" if seed["artist_name"] else ""
    return f"{seed['track_name'] or seed['track_uri']}{by}"


def _grid(name: str, rows: Sequence[dict[str, Any]]) -> Grid:
    grid = Grid(title=f"recommended by {name}", title_justify="left")
    grid.add_column("rank", justify="right")
    for column in ("track", "artist"):
        grid.add_column(column)
    grid.add_column("score", justify="right")
    grid.add_column("because of")
    for row in rows:
        grid.add_row(
            str(row["rank"]),
            row["track_name"] or row["track_uri"],
            row["artist_name"] or "",
            f"{row['score']:.4g}",
            row["reason"] or "all of it",
        )
    return grid
