"""What people see of tracks, as flat arrays: URI, name, artist, popularity; and the index by which they find them.

The index is an inverted one over words. Tracks are numbered by popularity in it, so that its lists are in the order in
which tracks are shown. The words are sorted, so that those with a given prefix are neighbours, and so are their lists.
Prefixes that are frequent, such as single letters, have a bitmap of their tracks, since to merge their lists would take
too long. Arrays of M tracks, W words, P pairs of a word and a track, A artists and B bitmaps:

    keys                            S22 (M,)       the ids of Spotify, sorted
    order, place                    int32 (M,)     the track of each key, and the place of each track's key
    popularity, artist_of           int32 (M,)     by track; -1: no artist
    by_popularity                   int32 (M,)     tracks, the most popular first, ties by id: the ranks of the index
    name_bytes, name_offsets        uint8, (M + 1,)   UTF-8; also artist_ (A + 1,), by name, and word_ (W + 1,), sorted
    posting_ranks, posting_offsets  int32 (P,), (W + 1,)   the tracks of each word, as ranks, ascending
    bitmap_words                    int32 (B, 2)   the range of words of each bitmap
    bitmaps                         uint8 (B, ceil(M / 8))   a bit for each rank, the first one the highest

Offsets are int32, or int64 where that is too small.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from encore.arrays.ragged import NamedArrays, Ragged, offsets_of

I32 = NDArray[np.int32]

PREFIX: Final = "spotify:track:"
ID_LENGTH: Final = 22

BITMAP_SHARE: Final = 32
"""Prefixes of more than one in this many tracks have a bitmap."""
MAX_WORDS: Final = 16
"""Words of a query that count: each may cost a third of a millisecond."""
_FEW: Final = 4096
"""So many ranks are sorted; more of them are marked in a bitmap."""
_BLOCK: Final = 1 << 16
"""Texts that are decoded at a time."""
_JOINT: Final = "'"
"""What punctuation within words becomes."""


@dataclass(frozen=True)
class Track:
    """A track for people. `popularity`: in how many playlists it is."""

    uri: str
    name: str | None
    artist: str | None
    popularity: int


class _Folding(dict[int, str]):
    """A table for str.translate: accents are dropped, spaces become one kind, punctuation becomes _JOINT."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if unicodedata.combining(character):
            folded = ""
        elif character.isalnum() or unicodedata.category(character).startswith("M"):
            folded = character
        elif character.isspace():
            folded = character if character == "\n" else " "
        else:
            folded = _JOINT
        self[code] = folded
        return folded


_FOLDING: Final = _Folding()


def _folded(text: str) -> str:
    """Without case, accents and compatibility variants; see _Folding. Lines stay lines."""
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text)
        text = unicodedata.normalize("NFKD", text.casefold())
        return text.translate(_FOLDING)
    return text.lower().translate(_FOLDING)


def _words(folded: str) -> Iterator[str]:
    """The words of a folded text. What punctuation divides counts both as its parts and as a whole, so that "don't" is
    found by "don't" and by "dont", and "AC/DC" by "acdc"."""
    for chunk in folded.split():
        if _JOINT in chunk:
            yield from filter(None, chunk.split(_JOINT))
            chunk = chunk.replace(_JOINT, "")
        if chunk:
            yield chunk


def words_of(text: str) -> set[str]:
    """The words by which a name is found."""
    return set(_words(_folded(text)))


def query_words(text: str) -> list[str]:
    """The first MAX_WORDS distinct words of a query: each is to be the start of a word of the name or the artist."""
    return list(dict.fromkeys(_folded(text).replace(_JOINT, " ").split()))[:MAX_WORDS]


def build(uris: Ragged, names: Ragged, artists: Ragged, counts: NDArray[np.int64]) -> NamedArrays:
    """The arrays of a catalogue of M tracks, in the order of their ids: see the module.

    `uris`, `names`, `artists`: M rows of UTF-8, uint8, as `lake.track_arrays.text_rows` makes them; an empty name or
    artist is one that is not known. `counts`, int64 (M,): see Track.popularity. Two million tracks take about half a
    minute and 2 GB, and become arrays of 213 MB. Raises ValueError if the lengths differ, or if a URI is not that of a
    track.
    """
    n = len(uris)
    if not n == len(names) == len(artists) == len(counts):
        raise ValueError(f"expected {n:,} rows each, found {len(names):,}, {len(artists):,} and {len(counts):,}")
    keys = _keys(uris)
    order = np.argsort(keys, kind="stable").astype(np.int32)
    place = np.empty(n, np.int32)
    place[order] = np.arange(n, dtype=np.int32)
    artist_of, known = _distinct(artists)
    return {
        "keys": keys[order],
        "order": order,
        "place": place,
        "popularity": counts.astype(np.int32),
        "artist_of": artist_of,
        **_texts("name", names),
        **_texts("artist", known),
        **_index(names, known, artist_of, counts),
    }


def _keys(uris: Ragged) -> NDArray[Any]:
    """The ids in URIs: S22 (M,)."""
    prefix = np.frombuffer(PREFIX.encode(), np.uint8)
    length = len(prefix) + ID_LENGTH
    wrong = uris.lengths != length
    if not wrong.any():
        matrix = uris.values.reshape(-1, length)
        wrong = (matrix[:, : len(prefix)] != prefix).any(axis=1)
    if wrong.any():
        raise ValueError(f"uris: expected {PREFIX} and {ID_LENGTH} characters, not so in row {int(wrong.argmax())}")
    return np.ascontiguousarray(matrix[:, len(prefix) :]).view(f"S{ID_LENGTH}").reshape(-1)


def _distinct(texts: Ragged) -> tuple[I32, Ragged]:
    """The number of each row's text among the distinct ones, int32 (n,), -1 if it is empty; and those, sorted."""
    found: dict[bytes, int] = {}
    codes = np.fromiter((found.setdefault(text, len(found)) if text else -1 for text in _rows(texts)), np.int32)
    ordered = sorted(found)
    renumbered = np.full(len(found) + 1, -1, np.int32)
    renumbered[[found[text] for text in ordered]] = np.arange(len(found), dtype=np.int32)
    return renumbered[codes], _joined(ordered)


def _rows(texts: Ragged) -> Iterator[bytes]:
    for start in range(0, len(texts), _BLOCK):
        block = texts.slice(start, min(start + _BLOCK, len(texts)))
        content, offsets = block.values.tobytes(), block.offsets.tolist()
        yield from (content[low:high] for low, high in pairwise(offsets))


def _joined(texts: Sequence[bytes]) -> Ragged:
    return Ragged.from_lengths(
        np.fromiter(map(len, texts), np.int64, len(texts)), np.frombuffer(b"".join(texts), np.uint8)
    )


def _texts(name: str, texts: Ragged) -> NamedArrays:
    return {f"{name}_offsets": _small(texts.offsets), f"{name}_bytes": texts.values}


def _small(offsets: NDArray[np.int64]) -> NDArray[Any]:
    return offsets.astype(np.int32) if offsets[-1] < 2**31 else offsets


def _index(names: Ragged, artists: Ragged, artist_of: I32, counts: NDArray[np.int64]) -> NamedArrays:
    n = len(names)
    by_popularity = np.argsort(-counts, kind="stable").astype(np.int32)
    rank_of = np.empty(n, np.int64)
    rank_of[by_popularity] = np.arange(n)
    vocabulary: dict[str, int] = {}
    of_name, of_artist = _coded(names, vocabulary), _coded(artists, vocabulary)
    with_artist = np.flatnonzero(artist_of >= 0)
    of_artist = of_artist.take(artist_of[with_artist])
    words = sorted(vocabulary)
    renumbered = np.empty(len(words), np.int64)
    renumbered[[vocabulary[word] for word in words]] = np.arange(len(words))
    pairs = np.concatenate(
        [
            renumbered[of_name.values] << 32 | rank_of[of_name.rows],
            renumbered[of_artist.values] << 32 | rank_of[with_artist[of_artist.rows]],
        ]
    )
    pairs.sort()
    # a word that a track has twice
    pairs = pairs[np.concatenate([[True], pairs[1:] != pairs[:-1]])] if len(pairs) else pairs
    ranks = (pairs & 0xFFFFFFFF).astype(np.int32)
    offsets = offsets_of(np.bincount(pairs >> 32, minlength=len(words)))
    encoded = [word.encode() for word in words]
    ranges = _frequent(encoded, offsets, n // BITMAP_SHARE)
    bitmaps = np.zeros((len(ranges), (n + 7) // 8), np.uint8)
    for bitmap, (low, high) in zip(bitmaps, ranges, strict=True):
        bitmap[:] = _packed(ranks[offsets[low] : offsets[high]], n)
    return {
        "by_popularity": by_popularity,
        **_texts("word", _joined(encoded)),
        "posting_ranks": ranks,
        "posting_offsets": _small(offsets),
        "bitmap_words": np.array(ranges, np.int32).reshape(-1, 2),
        "bitmaps": bitmaps,
    }


def _coded(texts: Ragged, vocabulary: dict[str, int]) -> Ragged:
    """The words of each text as numbers, int32; words that are new are added to the vocabulary."""
    lengths: list[NDArray[np.int64]] = []
    codes: list[I32] = []
    for start in range(0, len(texts), _BLOCK):
        block = texts.slice(start, min(start + _BLOCK, len(texts)))
        # a line for each text, so that they are folded in a few calls
        joined = b"\n".join(text.replace(b"\n", b" ") for text in _rows(block))
        lines = [list(_words(line)) for line in _folded(joined.decode()).split("\n")]
        lengths.append(np.fromiter(map(len, lines), np.int64, len(lines)))
        numbers: Iterable[int] = (vocabulary.setdefault(word, len(vocabulary)) for line in lines for word in line)
        codes.append(np.fromiter(numbers, np.int32, int(lengths[-1].sum())))
    return Ragged.from_lengths(
        np.concatenate(lengths or [np.zeros(0, np.int64)]), np.concatenate(codes or [np.zeros(0, np.int32)])
    )


def _frequent(words: Sequence[bytes], offsets: NDArray[np.int64], most: int) -> list[tuple[int, int]]:
    """The distinct ranges of sorted words that share a prefix and have more than `most` pairs in all."""
    found: dict[tuple[int, int], None] = {}
    ranges, length = [(0, len(words))], 0
    while ranges:
        length += 1
        longer = []
        for low, high in ranges:
            starts = [i for i in range(low, high) if i == low or words[i][:length] != words[i - 1][:length]]
            for start, stop in pairwise([*starts, high]):
                # a word that has ended has no longer prefixes
                if offsets[stop] - offsets[start] > most and len(words[stop - 1]) >= length:
                    longer.append((start, stop))
        ranges = longer
        found.update(dict.fromkeys(ranges))
    return list(found)


class Catalogue:
    """M tracks by id, 0 to M - 1, from the arrays of `build`, possibly mapped."""

    def __init__(self, arrays: NamedArrays) -> None:
        self.arrays = arrays
        ranges = arrays["bitmap_words"].tolist()
        self._bitmap_of = {(low, high): i for i, (low, high) in enumerate(ranges)}

    def __len__(self) -> int:
        return len(self.arrays["keys"])

    def ids_of(self, tracks: Sequence[str]) -> I32:
        """The id of each track, given by its URI or the 22 characters of its id, int32 (n,); -1 if it is unknown."""
        keys = self.arrays["keys"]
        found = np.full(len(tracks), -1, np.int32)
        texts = [track.removeprefix(PREFIX) for track in tracks]
        valid = [i for i, text in enumerate(texts) if len(text) == ID_LENGTH and text.isascii() and "\0" not in text]
        if not valid or not len(keys):
            return found
        wanted = np.array([texts[i].encode() for i in valid], keys.dtype)
        places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        found[valid] = np.where(keys[places] == wanted, self.arrays["order"][places], -1)
        return found

    def search(self, text: str, n: int) -> list[int]:
        """The n most popular tracks of which the name and artist have, for each word of a text, a word that starts with
        it; ties by id. Case, accents and punctuation do not matter, nor do words after the first MAX_WORDS. A text
        without words finds nothing."""
        ranges = sorted(map(self._range, query_words(text)), key=self._pairs)
        if not ranges or not self._pairs(ranges[0]):
            return []
        if self._pairs(ranges[0]) <= _FEW:
            ranks = _distinct_sorted(self._postings(ranges[0]))
            for words in ranges[1:]:
                ranks = ranks[_bits(self._bitmap(words), ranks)]
        else:
            bitmaps = [self._bitmap(words) for words in ranges]
            ranks = _first(np.bitwise_and.reduce(bitmaps) if len(bitmaps) > 1 else bitmaps[0], n)
        return self.arrays["by_popularity"][ranks[:n]].tolist()  # type: ignore[no-any-return]

    def popular(self, n: int) -> list[int]:
        """The n most popular tracks, ties by id."""
        return self.arrays["by_popularity"][:n].tolist()  # type: ignore[no-any-return]

    def _range(self, prefix: str) -> tuple[int, int]:
        """The range of the words with a prefix."""
        encoded = prefix.encode()
        # no byte of UTF-8 is 0xFF
        return self._place(encoded), self._place(encoded + b"\xff")

    def _place(self, word: bytes) -> int:
        """How many words are less than a given one."""
        offsets, content = self.arrays["word_offsets"], self.arrays["word_bytes"]
        low, high = 0, len(offsets) - 1
        while low < high:
            middle = (low + high) // 2
            if content[offsets[middle] : offsets[middle + 1]].tobytes() < word:
                low = middle + 1
            else:
                high = middle
        return low

    def _pairs(self, words: tuple[int, int]) -> int:
        offsets = self.arrays["posting_offsets"]
        return int(offsets[words[1]]) - int(offsets[words[0]])

    def _postings(self, words: tuple[int, int]) -> I32:
        offsets = self.arrays["posting_offsets"]
        return self.arrays["posting_ranks"][offsets[words[0]] : offsets[words[1]]]

    def _bitmap(self, words: tuple[int, int]) -> NDArray[np.uint8]:
        """The tracks with a word of a range as a bitmap."""
        stored = self._bitmap_of.get(words)
        return _packed(self._postings(words), len(self)) if stored is None else self.arrays["bitmaps"][stored]

    def uri(self, track: int) -> str:
        """The URI of a track."""
        return PREFIX + self.arrays["keys"][self.arrays["place"][track]].decode()

    def uris(self, tracks: NDArray[Any]) -> list[str]:
        """The URIs of some tracks."""
        return [PREFIX + key.decode() for key in self.arrays["keys"][self.arrays["place"][tracks]].tolist()]

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


def _packed(ranks: I32, n: int) -> NDArray[np.uint8]:
    """A bitmap of n bits in which those of some ranks are set."""
    marked = np.zeros(n, np.bool_)
    marked[ranks] = True
    return np.packbits(marked)


def _bits(bitmap: NDArray[np.uint8], ranks: I32) -> NDArray[np.bool_]:
    """Which of some ranks are set in a bitmap."""
    return (bitmap[ranks >> 3] >> (7 - (ranks & 7)) & 1).astype(np.bool_)


def _distinct_sorted(ranks: I32) -> I32:
    # np.unique takes ten times as long
    ordered = np.sort(ranks)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]


def _first(bitmap: NDArray[np.uint8], n: int) -> NDArray[Any]:
    """The places of the first n bits that are set, or of some more."""
    filled = np.flatnonzero(bitmap != 0)[:n]
    places, bits = np.nonzero(np.unpackbits(bitmap[filled]).reshape(-1, 8))
    return filled[places] * 8 + bits
