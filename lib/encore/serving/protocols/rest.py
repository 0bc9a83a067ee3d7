"""The scorer's own REST API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from encore.recommenders.reasons import TITLE, Reason
from encore.serving.catalogue import Catalogue, Track
from encore.serving.protocols.common import (
    Asked,
    an_object,
    invalid,
    k_of,
    kind,
    parsed,
    pid_of,
    title_of,
    tracks_of,
)
from encore.serving.scorer import Playlist, Row
from encore.serving.settings import Settings

DEFAULT_K: Final = 50
_FIELDS: Final = ("tracks", "title", "k", "model", "explain", "pid")


def asked(body: bytes, settings: Settings) -> Asked:
    """What the body of POST /api/recommend asks. Raises Refused."""
    content = an_object("body", parsed(body), _FIELDS)
    explain = content.get("explain", False)
    if not isinstance(explain, bool):
        raise invalid(f"explain: expected true or false, found {kind(explain)}")
    model = content.get("model")
    if model is not None and not isinstance(model, str):
        raise invalid(f"model: expected a string or null, found {kind(model)}")
    playlist = Playlist(
        tracks_of("tracks", content.get("tracks", []), settings),
        title_of("title", content.get("title")),
        pid_of("pid", content.get("pid")),
    )
    k = content.get("k", min(DEFAULT_K, settings.max_k))
    return Asked([playlist], k_of("k", k, settings), model, explain)


def recommendations(
    row: Row, catalogue: Catalogue, reasons: Sequence[Reason | None] | None = None
) -> list[dict[str, Any]]:
    """The recommendations of a row for people, with reasons if given."""
    found = []
    for i, (track, score) in enumerate(zip(row.ids.tolist(), row.scores.tolist(), strict=True)):
        about = catalogue[track]
        found.append(
            {
                "rank": i + 1,
                "uri": about.uri,
                "name": about.name,
                "artist": about.artist,
                "score": score,
                "popularity": about.popularity,
                "reason": reason(reasons[i], catalogue) if reasons is not None else None,
            }
        )
    return found


def reason(why: Reason | None, catalogue: Catalogue) -> dict[str, Any] | None:
    """The reason of a recommendation: a track of the playlist, or its title."""
    if why is None:
        return None
    if why.seed == TITLE:
        return {"kind": "title"}
    seed = catalogue[why.seed]
    return {"kind": "track", "uri": seed.uri, "name": seed.name, "artist": seed.artist}


def track(about: Track) -> dict[str, Any]:
    """A track for people."""
    return {"uri": about.uri, "name": about.name, "artist": about.artist, "popularity": about.popularity}
