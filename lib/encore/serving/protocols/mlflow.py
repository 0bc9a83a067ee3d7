"""MLflow's scoring protocol: POST /invocations with one of four shapes of the input, and parameters."""

from __future__ import annotations

from typing import Any, Final

from encore.serving.protocols.common import (
    Asked,
    a_list,
    an_object,
    count_checked,
    invalid,
    k_of,
    kind,
    parsed,
    playlist_of,
    playlists_of,
)
from encore.serving.scorer import Playlist
from encore.serving.settings import Settings

SHAPES: Final = ("dataframe_split", "dataframe_records", "instances", "inputs")
DEFAULT_K: Final = 500
_COLUMNS: Final = ("tracks", "title")


def asked(body: bytes, settings: Settings) -> Asked:
    """What a body asks. Raises Refused."""
    content = an_object("body", parsed(body), (*SHAPES, "params"))
    given = [shape for shape in SHAPES if shape in content]
    if len(given) != 1:
        raise invalid(f"body: expected exactly one of the fields {', '.join(SHAPES)}, found {len(given)} of them")
    shape = given[0]
    value = content[shape]
    k = params_k("params", content.get("params"), settings)
    if shape == "dataframe_split":
        return Asked(_split(value, settings), k)
    if shape == "inputs" and isinstance(value, dict):
        if is_columns(value):
            return Asked(columns("inputs", value, settings), k)
        return Asked([playlist_of("inputs", value, settings)], k)
    return Asked(playlists_of(shape, value, settings), k)


def params_k(where: str, value: Any, settings: Settings) -> int:
    """The parameter `k`, or its default."""
    default = min(DEFAULT_K, settings.max_k)
    if value is None:
        return default
    params = an_object(where, value, ("k",))
    return k_of(f"{where}.k", params["k"], settings) if "k" in params else default


def is_columns(value: dict[str, Any]) -> bool:
    """Whether the object `inputs` has a list for each column, and not the values of one playlist, as MLflow's server
    reads it: the tracks are lists, or the titles are a list."""
    tracks = value.get("tracks")
    return isinstance(value.get("title"), list) or (
        isinstance(tracks, list) and any(isinstance(track, list) for track in tracks)
    )


def columns(where: str, value: dict[str, Any], settings: Settings) -> list[Playlist]:
    """Playlists from a list for each column."""
    an_object(where, value, _COLUMNS)
    if "tracks" not in value:
        raise invalid(f"{where}.tracks: expected a list with the tracks of each playlist, found no such field")
    rows = count_checked(f"{where}.tracks", a_list(f"{where}.tracks", value["tracks"]), settings)
    titles = value.get("title")
    if titles is not None and len(a_list(f"{where}.title", titles)) != len(rows):
        raise invalid(f"{where}.title: expected {len(rows)} titles, as many as playlists, found {len(titles)}")
    records = [{"tracks": row, **({"title": titles[i]} if titles is not None else {})} for i, row in enumerate(rows)]
    return [playlist_of(f"{where}, row {i}", record, settings) for i, record in enumerate(records)]


def _split(value: Any, settings: Settings) -> list[Playlist]:
    where = "dataframe_split"
    table = an_object(where, value, ("columns", "data", "index"))
    names = a_list(f"{where}.columns", table.get("columns"))
    if "tracks" not in names or not all(name in _COLUMNS for name in names) or len(set(names)) < len(names):
        raise invalid(f"{where}.columns: expected `tracks`, and perhaps `title`, each once")
    rows = count_checked(f"{where}.data", a_list(f"{where}.data", table.get("data")), settings)
    index = table.get("index")
    if index is not None and len(a_list(f"{where}.index", index)) != len(rows):
        raise invalid(f"{where}.index: expected {len(rows)} entries, as many as rows, found {len(index)}")
    found = []
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(names):
            what = f"a list of {len(row)}" if isinstance(row, list) else kind(row)
            raise invalid(f"{where}.data[{i}]: expected a list of {len(names)} values, one a column, found {what}")
        found.append(playlist_of(f"{where}.data[{i}]", dict(zip(names, row, strict=True)), settings))
    return found
