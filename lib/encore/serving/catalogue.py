"""What people see of tracks, as flat arrays: URI, name, artist, popularity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import NamedArrays, offsets_of

I32 = NDArray[np.int32]

PREFIX: Final = "spotify:track:"
ID_LENGTH: Final = 22


@dataclass(frozen=True)
class Track:
    """A track for people. `popularity`: in how many playlists it is."""

    uri: str
    name: str | None
    artist: str | None
    popularity: int


def build(
    uris: Sequence[str], names: Sequence[str | None], artists: Sequence[str | None], counts: NDArray[np.int64]
) -> NamedArrays:
    """The arrays of a catalogue of M tracks, in the order of their ids; `counts` int64 (M,): see Track.popularity."""
    keys = np.array([uri.removeprefix(PREFIX) for uri in uris], f"S{ID_LENGTH}")
    order = np.argsort(keys, kind="stable").astype(np.int32)
    known = sorted({artist for artist in artists if artist})
    number = {artist: i for i, artist in enumerate(known)}
    return {
        "keys": keys,
        "order": order,
        "popularity": counts.astype(np.int32),
        "artist_of": np.array([number.get(artist or "", -1) for artist in artists], np.int32),
        **_texts("name", [name or "" for name in names]),
        **_texts("artist", known),
    }


def _texts(name: str, texts: Sequence[str]) -> NamedArrays:
    encoded = [text.encode() for text in texts]
    return {
        f"{name}_offsets": offsets_of(np.array([len(text) for text in encoded], np.int64)),
        f"{name}_bytes": np.frombuffer(b"".join(encoded), np.uint8),
    }


class Catalogue:
    """M tracks by id, 0 to M - 1, from the arrays of `build`, possibly mapped."""

    def __init__(self, arrays: NamedArrays) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays["keys"])

    def ids_of(self, tracks: Sequence[str]) -> I32:
        """The id of each track, given by its URI or the 22 characters of its id, int32 (n,); -1 if it is unknown."""
        keys, order = self.arrays["keys"], self.arrays["order"]
        found = np.full(len(tracks), -1, np.int32)
        for i, track in enumerate(tracks):
            key = track.removeprefix(PREFIX).encode()
            low, high = 0, len(order)
            # by hand: numpy's searchsorted with a sorter copies all keys
            while low < high:
                middle = (low + high) // 2
                if keys[order[middle]] < key:
                    low = middle + 1
                else:
                    high = middle
            if low < len(order) and keys[order[low]] == key:
                found[i] = order[low]
        return found

    def uri(self, track: int) -> str:
        """The URI of a track."""
        return PREFIX + self.arrays["keys"][track].decode()

    def uris(self, tracks: NDArray[Any]) -> list[str]:
        """The URIs of some tracks."""
        return [PREFIX + key.decode() for key in self.arrays["keys"][tracks].tolist()]

    def __getitem__(self, track: int) -> Track:
        artist = int(self.arrays["artist_of"][track])
        return Track(
            self.uri(track),
            self._text("name", track) or None,
            self._text("artist", artist) if artist >= 0 else None,
            int(self.arrays["popularity"][track]),
        )

    def _text(self, name: str, i: int) -> str:
        offsets = self.arrays[f"{name}_offsets"]
        return bytes(self.arrays[f"{name}_bytes"][offsets[i] : offsets[i + 1]]).decode()
