"""Compares the generator's output with the published figures of the Million Playlist Dataset.

Only latent ids are drawn, no JSON is written, and counts are merged on the fly, so measuring all 1,000,000 playlists
takes minutes, and memory only for the distinct tracks.

The published figures come from the dataset's own statistics file (totals, titles, top track, top artist) and from the
RecSys Challenge 2018 (Chen, Lamere, Schedl, Zamani: lengths, collaborative playlists, edits). ``SAMPLE_ROWS`` and
``SAMPLE_TRACKS`` describe an independent sample of 7,071 real playlists. Its distribution of lengths is different, so
it is compared at an equal number of rows.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from encore.mpd.published import PUBLISHED, normalised_title
from encore.synthetic import catalogue
from encore.synthetic.catalogue import I64, U64
from encore.synthetic.generate import SLICE_PLAYLISTS, DistinctIds, distinct_per_playlist, draw_slice

SAMPLE_ROWS, SAMPLE_TRACKS = 696_957, 201_730
"""Rows and distinct tracks of the published sample."""


class Comparison(NamedTuple):
    """One line of the comparison; ``published`` is None if no comparable figure is known."""

    name: str
    published: float | None
    generated: float
    ratio: float | None


@dataclass(frozen=True)
class Measurement:
    """Figures of a generated dataset, with the same names as in ``PUBLISHED``."""

    playlists: int
    figures: dict[str, float]

    def compare(self) -> list[Comparison]:
        """Compare with the published figures; those that depend on the size, only at 1,000,000 playlists."""
        full = self.playlists == 1_000_000
        lines = []
        for name, value in self.figures.items():
            grows = name == "rows" or name.startswith("distinct") or name == "share of tracks that occur once"
            published = PUBLISHED[name] if full or not grows else None
            ratio = None if published is None else value / published
            lines.append(Comparison(name, published, value, ratio))
        return lines


class _Part(NamedTuple):
    """Sums over one slice."""

    lengths: I64
    ids: U64
    counts: I64
    artists: int
    albums: int
    distinct: int
    titles: set[str]
    described: int
    collaborative: int
    alone: int
    edits: int


class IdCounts:
    """How often each id occurs in a stream, in memory proportional to the number of distinct ids."""

    def __init__(self) -> None:
        """Start empty."""
        self._ids: U64 = np.empty(0, dtype=np.uint64)
        self._counts: I64 = np.empty(0, dtype=np.int64)
        self._pending: list[tuple[U64, I64]] = []
        self._waiting = 0

    def add(self, ids: U64, counts: I64) -> None:
        """Add to the counts of some ids."""
        self._pending.append((ids, counts))
        self._waiting += len(ids)
        if self._waiting > max(1_000_000, len(self._ids)):
            self._merge()

    def _merge(self) -> None:
        ids = np.concatenate([self._ids, *(i for i, _ in self._pending)])
        counts = np.concatenate([self._counts, *(c for _, c in self._pending)])
        order = np.argsort(ids, kind="stable")
        ids, counts = ids[order], counts[order]
        starts = np.flatnonzero(np.concatenate(([True], ids[1:] != ids[:-1]))) if len(ids) else order
        self._ids = ids[starts]
        self._counts = np.add.reduceat(counts, starts) if len(ids) else counts
        self._pending = []
        self._waiting = 0

    def result(self) -> tuple[U64, I64]:
        """Return the distinct ids, ascending, and their counts."""
        self._merge()
        return self._ids, self._counts


def _measure_slice(seed: int, index: int, playlists: int) -> _Part:
    draw = draw_slice(seed, index)
    n = min(SLICE_PLAYLISTS, playlists - index * SLICE_PLAYLISTS)
    lengths = np.diff(draw.offsets[: n + 1])
    tracks = draw.tracks[: draw.offsets[n]]
    playlist = np.repeat(np.arange(n), lengths)
    ids, at, counts = np.unique(tracks, return_inverse=True, return_counts=True)
    albums = catalogue.album_of(seed, ids)[at]
    return _Part(
        lengths=lengths,
        ids=ids,
        counts=counts.astype(np.int64),
        artists=sum(distinct_per_playlist(playlist, catalogue.artist_of(tracks), n)),
        albums=sum(distinct_per_playlist(playlist, albums, n)),
        distinct=sum(distinct_per_playlist(playlist, tracks, n)),
        titles=set(draw.titles[:n]),
        described=sum(text is not None for text in draw.descriptions[:n]),
        collaborative=int(draw.collaborative[:n].sum()),
        alone=int((draw.followers[:n] == 1).sum()),
        edits=int(draw.edits[:n].sum()),
    )


def _measure_slices(seed: int, playlists: int, processes: int) -> Iterator[_Part]:
    slices = -(-playlists // SLICE_PLAYLISTS)
    if processes == 1 or slices == 1:
        for index in range(slices):
            yield _measure_slice(seed, index, playlists)
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        step = 4 * processes  # bounds the number of results waiting to be merged
        for start in range(0, slices, step):
            group = [pool.submit(_measure_slice, seed, i, playlists) for i in range(start, min(start + step, slices))]
            for future in group:
                yield future.result()


def measure(playlists: int, *, seed: int = 42, processes: int | None = None) -> Measurement:
    """Measure the first ``playlists`` playlists of a seed, without writing anything.

    1,000,000 playlists take a few minutes on two processes and less than 1 GB.
    """
    tracks = IdCounts()
    titles: set[str] = set()
    lengths: I64 = np.zeros(1024, dtype=np.int64)
    sums = dict.fromkeys(("artists", "albums", "distinct", "described", "collaborative", "alone", "edits"), 0)
    for part in _measure_slices(seed, playlists, processes or os.cpu_count() or 1):
        tracks.add(part.ids, part.counts)
        titles |= part.titles
        lengths += np.bincount(part.lengths, minlength=len(lengths))
        for name in sums:
            sums[name] += getattr(part, name)
    ids, counts = tracks.result()
    artist, artist_at = np.unique(catalogue.artist_of(ids), return_inverse=True)
    albums = DistinctIds()
    for start in range(0, len(ids), 1 << 18):
        albums.add(catalogue.album_of(seed, ids[start : start + (1 << 18)]))
    rows = int(counts.sum())
    cumulative = np.cumsum(lengths)
    median = (np.searchsorted(cumulative, playlists / 2) + np.searchsorted(cumulative, playlists / 2, "right")) / 2
    figures = {
        "rows": rows,
        "distinct tracks": len(ids),
        "distinct artists": len(artist),
        "distinct albums": len(albums.values()),
        "distinct titles": len(titles),
        "distinct normalised titles": len({normalised_title(title) for title in titles}),
        "mean length": rows / playlists,
        "median length": float(median),
        "share of tracks that occur once": float((counts == 1).mean()),
        "share of playlists with the top track": int(counts.max()) / playlists,
        "share of rows of the top artist": float(np.bincount(artist_at, weights=counts).max()) / rows,
        "mean artists per playlist": sums["artists"] / playlists,
        "mean albums per playlist": sums["albums"] / playlists,
        "share of rows that repeat a track": 1.0 - sums["distinct"] / rows,
        "share of playlists with a description": sums["described"] / playlists,
        "share of collaborative playlists": sums["collaborative"] / playlists,
        "share of playlists with one follower": sums["alone"] / playlists,
        "mean edits": sums["edits"] / playlists,
    }
    return Measurement(playlists, figures)
