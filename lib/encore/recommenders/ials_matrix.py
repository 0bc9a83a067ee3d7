"""The matrix that iALS factorises: playlists x (tracks, then artists, then title n-grams), in blocks of rows.

An entry is the confidence that the item belongs to the playlist; see recommenders.ials for the weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from encore.arrays.ragged import NamedArrays, Ragged, offsets_of
from encore.recommenders.base import TrainingData
from encore.recommenders.titles import grams

if TYPE_CHECKING:
    from encore.config import IalsConfig
    from encore.lake.array_files import ArrayFiles

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

BLOCK_ROWS: Final = 65_536
"""Most rows of a block, however few entries they have."""


@dataclass(frozen=True, eq=False)
class Entries:
    """Rows of the matrix: `ids`, n rows of int32 items, and the weight of each, float32."""

    ids: Ragged
    weights: F32


@dataclass(frozen=True, eq=False)
class Encoder:
    """Turns playlists into rows of the matrix.

    `weights` float32 (items,): of a track or artist, (pop / mean)^-exponent; of an n-gram, its idf; 0 if it occurs in
    no playlist. `artist_of` int32 (tracks,); `n_artists`; `grams` uint64, ascending: hashes of the n-grams;
    `mean_length`: the mean number of tracks of a playlist that has any.
    """

    weights: F32
    artist_of: I32
    n_artists: int
    grams: U64
    mean_length: float
    settings: IalsConfig

    @classmethod
    def of(cls, train: TrainingData, settings: IalsConfig) -> tuple[Encoder, Titles]:
        """Count tracks, artists and n-grams; also returns the n-grams of the training titles."""
        artist_of = train.artist_of
        n_artists = int(artist_of.max(initial=-1)) + 1
        counts = np.bincount(train.lists.values, minlength=train.n_tracks)
        of_artists = np.zeros(n_artists, np.int64)
        for start, stop in train.lists.blocks(1 << 20):
            keys = _artists(train.lists.slice(start, stop), artist_of, n_artists)[0]
            of_artists += np.bincount(keys % max(n_artists, 1), minlength=n_artists)
        titles = Titles.of(train.titles)
        hashes, idf = titles.vocabulary(len(train.lists))
        exponent = settings.popularity_exponent
        weights = np.concatenate([_damped(counts, exponent), _damped(of_artists, exponent), idf]).astype(np.float32)
        lengths = train.lists.lengths
        mean_length = float(lengths[lengths > 0].mean()) if len(train.lists.values) else 1.0
        return cls(weights, artist_of, n_artists, hashes, mean_length, settings), titles

    def encode(self, lists: Ragged, titles: Ragged) -> Entries:
        """The rows for playlists with some distinct tracks and the n-grams `titles`, rows of uint64 hashes.

        Unknown tracks and n-grams are ignored. A row depends only on its own playlist.
        """
        n_tracks, settings = len(self.artist_of), self.settings
        values = lists.values
        known = (values >= 0) & (values < n_tracks)
        known[known] = self.weights[values[known]] > 0
        lists = lists.where(known)
        damping = (np.maximum(lists.lengths, 1) / self.mean_length) ** -settings.length_exponent
        tracks = Entries(lists, _product(self.weights[lists.values], damping[lists.rows]))

        keys, n = _artists(lists, self.artist_of, self.n_artists)
        rows, of = keys // max(self.n_artists, 1), keys % max(self.n_artists, 1)
        of_artists = _product(self.weights[n_tracks + of], settings.artist_weight * np.log1p(n), damping[rows])
        artists = Entries(_ragged(rows, n_tracks + of, len(lists)), of_artists)

        at = np.searchsorted(self.grams, titles.values)
        found = at < len(self.grams)
        found[found] = self.grams[at[found]] == titles.values[found]
        rows, columns = titles.rows[found], n_tracks + self.n_artists + at[found]
        idf = self.weights[columns].astype(np.float64)
        norms = np.sqrt(np.bincount(rows, weights=idf * idf, minlength=len(lists)))
        words = Entries(_ragged(rows, columns, len(lists)), _product(settings.title_weight * idf, 1 / norms[rows]))
        return _joined([tracks, artists, words])


@dataclass(frozen=True, eq=False)
class Titles:
    """The n-grams of titles: `hashes`, rows of distinct uint64 in ascending order, one row a distinct title; `codes`
    int64: for each title its row."""

    hashes: Ragged
    codes: I64

    @classmethod
    def of(cls, titles: Sequence[str | None]) -> Titles:
        """Split titles into n-grams, each distinct title once."""
        codes: dict[str | None, int] = {}
        numbers = np.array([codes.setdefault(title, len(codes)) for title in titles], np.int64)
        rows = [sorted({xxhash.xxh3_64_intdigest(gram.encode()) for gram in grams(title or "")}) for title in codes]
        return cls(Ragged.from_lists(rows, np.uint64), numbers)

    def slice(self, start: int, stop: int) -> Ragged:
        """The hashes of some titles."""
        return self.hashes.take(self.codes[start:stop])

    def vocabulary(self, n: int) -> tuple[U64, NDArray[np.float64]]:
        """All hashes, ascending, and the smoothed idf of each in n titles."""
        found, at = np.unique(self.hashes.values, return_inverse=True)
        uses = np.bincount(self.codes, minlength=len(self.hashes))
        df = np.bincount(at, weights=uses[self.hashes.rows], minlength=len(found))
        return found, np.log((1 + n) / (1 + df)) + 1


def _artists(lists: Ragged, artist_of: I32, n_artists: int) -> tuple[I64, I64]:
    """Row times n_artists plus artist of all artists of playlists, ascending, and how many tracks each has there."""
    of = artist_of[lists.values]
    keys = (lists.rows * n_artists + of)[of >= 0]
    found, n = np.unique(keys, return_counts=True)
    return found, n


def _damped(counts: I64, exponent: float) -> NDArray[np.float64]:
    """(count / mean count)^-exponent; 0 where the count is 0."""
    used = counts > 0
    mean = counts[used].mean() if used.any() else 1.0
    return np.where(used, (np.maximum(counts, 1) / mean) ** -exponent, 0.0)


def _product(*factors: NDArray[Any]) -> F32:
    total = factors[0].astype(np.float64)
    for factor in factors[1:]:
        total = total * factor
    return total.astype(np.float32)


def _ragged(rows: I64, values: NDArray[Any], n: int) -> Ragged:
    return Ragged(offsets_of(np.bincount(rows, minlength=n)), values.astype(np.int32))


def _joined(parts: Sequence[Entries]) -> Entries:
    """The rows of all parts side by side."""
    lengths = np.sum([part.ids.lengths for part in parts], axis=0)
    offsets = offsets_of(lengths)
    ids, weights = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float32)
    starts = offsets[:-1]
    for part in parts:
        at = np.repeat(starts - part.ids.offsets[:-1], part.ids.lengths) + np.arange(len(part.weights))
        ids[at], weights[at] = part.ids.values, part.weights
        starts = starts + part.ids.lengths
    return Entries(Ragged(offsets, ids), weights)


@dataclass(frozen=True)
class Side:
    """The playlists or the items of a stored matrix: the first row of each block, and the number of rows at the end;
    the number of entries of each block; and how many rows have entries."""

    name: str
    bounds: tuple[int, ...]
    entries: tuple[int, ...]
    n_used: int

    def __len__(self) -> int:
        return self.bounds[-1]

    @property
    def n_blocks(self) -> int:
        """How many blocks there are."""
        return len(self.entries)


@dataclass(frozen=True)
class Matrix:
    """A matrix that is stored in files, by playlists and by items; `total`: the sum of its entries."""

    lists: Side
    items: Side
    total: float


def read_block(files: ArrayFiles, side: str, block: int) -> tuple[I64, I32, F32]:
    """Offsets, ids on the other side and weights of the rows of a block."""
    offsets, ids, weights = (files.read(f"{side}-{block}-{part}") for part in ("offsets", "ids", "weights"))
    return offsets, ids, weights


def store(files: ArrayFiles, encoder: Encoder, lists: Ragged, titles: Titles) -> Matrix:
    """Write the matrix to files, unless they are there already.

    Memory: some arrays of `settings.entries_in_memory` entries, 8 bytes each.
    """
    if "matrix.json" in files.names():
        found = json.loads(files.read_bytes("matrix.json"))
        return Matrix(_side(found["lists"]), _side(found["items"]), found["total"])
    settings, n_items = encoder.settings, len(encoder.weights)
    counts, total = np.zeros(n_items, np.int64), 0.0
    bounds, entries, n_used = [0], list[int](), 0
    for start, stop in _ranges(lists.offsets, settings.block_entries):
        made = encoder.encode(lists.slice(start, stop), titles.slice(start, stop))
        _write(files, "lists", len(entries), made.ids.offsets, made.ids.values, made.weights)
        counts += np.bincount(made.ids.values, minlength=n_items)
        total += float(made.weights.sum(dtype=np.float64))
        bounds.append(stop)
        entries.append(len(made.weights))
        n_used += int((made.ids.lengths > 0).sum())
    by_lists = Side("lists", tuple(bounds), tuple(entries), n_used)
    matrix = Matrix(by_lists, _store_transposed(files, by_lists, counts, settings), total)
    files.write_bytes("matrix.json", json.dumps(matrix, default=vars).encode())
    return matrix


def _side(found: dict[str, Any]) -> Side:
    return Side(found["name"], tuple(found["bounds"]), tuple(found["entries"]), found["n_used"])


def _store_transposed(files: ArrayFiles, lists: Side, counts: I64, settings: IalsConfig) -> Side:
    """Read all blocks of playlists once for as many blocks of items as fit in memory."""
    from encore.recommenders import ials_loops as loops

    offsets = offsets_of(counts)
    blocks = list(_ranges(offsets, settings.block_entries))
    sizes = [int(offsets[stop] - offsets[start]) for start, stop in blocks]
    for first, last in _ranges(offsets_of(np.array(sizes)), settings.entries_in_memory):
        low, high = blocks[first][0], blocks[last - 1][1]
        own = offsets[low : high + 1] - offsets[low]
        rows, weights, ends = np.empty(own[-1], np.int32), np.empty(own[-1], np.float32), own[:-1].copy()
        for block in range(lists.n_blocks):
            loops.transpose(*read_block(files, "lists", block), lists.bounds[block], low, high, ends, rows, weights)
        for block in range(first, last):
            start, stop = (int(offsets[row] - offsets[low]) for row in blocks[block])
            within = offsets[blocks[block][0] : blocks[block][1] + 1] - offsets[blocks[block][0]]
            _write(files, "items", block, within, rows[start:stop], weights[start:stop])
    return Side("items", (0, *(stop for _, stop in blocks)), tuple(sizes), int((counts > 0).sum()))


def _ranges(offsets: I64, entries: int) -> Iterable[tuple[int, int]]:
    """Consecutive ranges of rows with at most `entries` entries, unless a single row has more, and BLOCK_ROWS rows."""
    start, n = 0, len(offsets) - 1
    while start < n:
        stop = int(np.searchsorted(offsets, offsets[start] + entries, side="right")) - 1
        stop = min(max(stop, start + 1), start + BLOCK_ROWS, n)
        yield start, stop
        start = stop


def _write(files: ArrayFiles, side: str, block: int, offsets: I64, ids: I32, weights: F32) -> None:
    for part, array in (("offsets", offsets), ("ids", ids), ("weights", weights)):
        files.write(f"{side}-{block}-{part}", array)


def encoder_arrays(encoder: Encoder) -> NamedArrays:
    """What `encoder_of` needs, for storing."""
    sizes = np.array([encoder.n_artists, encoder.mean_length])
    return {"weights": encoder.weights, "artist_of": encoder.artist_of, "grams": encoder.grams, "sizes": sizes}


def encoder_of(arrays: NamedArrays, settings: IalsConfig) -> Encoder:
    """The encoder whose arrays were stored."""
    n_artists, mean_length = arrays["sizes"].tolist()
    return Encoder(arrays["weights"], arrays["artist_of"], int(n_artists), arrays["grams"], mean_length, settings)
