"""Compares the generator's output with figures of the Million Playlist Dataset.

    python -m encore.synthetic.calibration --playlists 1000000

Only latent ids are drawn, no JSON is written, and counts are merged on the fly, so measuring all 1,000,000 playlists
takes minutes, and memory only for the distinct tracks.

The published figures come from the dataset's own statistics file (totals, titles, top track, top artist) and from the
RecSys Challenge 2018 (Chen, Lamere, Schedl, Zamani: lengths, collaborative playlists, edits). ``SAMPLE`` describes the
order of tracks in an independent sample of 7,071 real playlists. Its playlists are longer than those of the dataset as
a whole, so it is compared with generated playlists that are chosen by their length (see ``measure_sample``).
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from encore.mpd.published import PUBLISHED, normalised_title
from encore.synthetic import catalogue
from encore.synthetic.catalogue import I64, U64
from encore.synthetic.generate import MAX_LENGTH, SLICE_PLAYLISTS, DistinctIds, distinct_per_playlist, draw_slice

SAMPLE_PLAYLISTS: Final = 7071
SAMPLE: Final[dict[str, float]] = {
    "rows": 696_957,
    "distinct tracks": 201_730,
    "same artist at distance 1": 0.222,
    "same artist at distance 2": 0.159,
    "same artist at distance 5": 0.097,
    "same artist at distance 20": 0.050,
    "same artist, random pair": 0.063,
    "together elsewhere, distance 1": 0.43,
    "together elsewhere, distance 5": 0.38,
    "together elsewhere, random pair": 0.35,
    "adjacent elsewhere": 0.117,
    "adjacent elsewhere, same order": 0.085,
    "distinct artists over length": 0.62,
}
"""Figures of the real sample, as ``measure_sample`` defines them."""

# Keeping a playlist with a probability proportional to this power of its length gives the sample's mean length, 98.6.
_SAMPLE_POWER: Final = 0.72
_SAMPLE_SALT: Final = 91
_PAIRS: Final = 20_000


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


# --- order of tracks ------------------------------------------------------------------------------------------


def _same_length_as_sample(seed: int) -> tuple[I64, U64]:
    """Draw as many playlists as the sample has, chosen by length: their offsets and tracks."""
    lengths: list[I64] = []
    tracks: list[U64] = []
    missing = SAMPLE_PLAYLISTS
    for index in itertools.count():
        draw = draw_slice(seed, index)
        length = np.diff(draw.offsets)
        pids = (np.arange(SLICE_PLAYLISTS) + index * SLICE_PLAYLISTS).astype(np.uint64)
        chosen = catalogue.uniform(seed, _SAMPLE_SALT, pids) < (length / MAX_LENGTH) ** _SAMPLE_POWER
        chosen[np.flatnonzero(chosen)[missing:]] = False
        lengths.append(length[chosen])
        tracks.append(draw.tracks[np.repeat(chosen, length)])
        missing -= int(chosen.sum())
        if missing == 0:
            break
    return np.concatenate(([0], np.cumsum(np.concatenate(lengths)))), np.concatenate(tracks)


class _Elsewhere(NamedTuple):
    """What holds of some pairs of rows in the playlists other than their own."""

    together: float
    adjacent: float
    in_order: float


class _Occurrences:
    """In which playlists, and where, each track occurs (at its first place, if a playlist repeats it)."""

    def __init__(self, offsets: I64, tracks: U64) -> None:
        """Index the rows of some playlists."""
        self._playlist = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        ids, self._track = np.unique(tracks, return_inverse=True)
        self._n_tracks = len(ids)
        self._keys, self._rows = np.unique(self._playlist * len(ids) + self._track, return_index=True)
        order = np.argsort(self._track[self._rows], kind="stable")
        self._postings = self._rows[order]
        self._first = np.searchsorted(self._track[self._postings], np.arange(len(ids) + 1))

    def elsewhere(self, one: I64, other: I64) -> _Elsewhere:
        """Compare pairs of rows, ``one`` before ``other`` in the same playlist, with the other playlists.

        ``together``: share of the pairs whose tracks are both in another playlist. ``adjacent`` and ``in_order``: of
        these pairs, the mean share of the playlists with both in which they are next to each other, and in which the
        second follows immediately on the first.
        """
        distinct = self._track[one] != self._track[other]
        one, other = one[distinct], other[distinct]
        a, b = self._track[one], self._track[other]
        count = self._first[a + 1] - self._first[a]
        pair = np.repeat(np.arange(len(one)), count)
        within = np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count)
        row = self._postings[self._first[a][pair] + within]
        key = self._playlist[row] * self._n_tracks + b[pair]
        at = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        both = (self._keys[at] == key) & (self._playlist[row] != self._playlist[one[pair]])
        pair, gap = pair[both], self._rows[at[both]] - row[both]
        found = np.bincount(pair, minlength=len(one))
        some = found > 0
        adjacent = np.bincount(pair, weights=np.abs(gap) == 1, minlength=len(one))[some] / found[some]
        in_order = np.bincount(pair, weights=gap == 1, minlength=len(one))[some] / found[some]
        return _Elsewhere(float(some.mean()), float(adjacent.mean()), float(in_order.mean()))


def measure_sample(*, seed: int = 42) -> list[Comparison]:
    """Compare the order of tracks in generated playlists with ``SAMPLE``, at its number of playlists and mean length.

    A pair at distance d consists of two rows of a playlist with d - 1 rows between them; all such pairs of all
    playlists count alike. A random pair consists of two rows of a random playlist. "Together elsewhere" is the share of
    the pairs whose tracks occur together in another of the playlists, too. "Adjacent elsewhere" is the share of these
    other playlists in which a pair at distance 1 is adjacent again, in either order or in the same one, averaged over
    the pairs that are together elsewhere. Distinct artists over length is averaged over playlists.
    """
    offsets, tracks = _same_length_as_sample(seed)
    lengths = np.diff(offsets)
    n = len(lengths)
    playlist = np.repeat(np.arange(n), lengths)
    artist = catalogue.artist_of(tracks)
    occurrences = _Occurrences(offsets, tracks)
    rng = np.random.default_rng(0)
    figures: dict[str, float] = {"rows": len(tracks), "distinct tracks": len(np.unique(tracks))}
    for distance in (1, 2, 5, 20):
        one = np.flatnonzero(playlist[:-distance] == playlist[distance:])
        figures[f"same artist at distance {distance}"] = float((artist[one] == artist[one + distance]).mean())
        if distance in (1, 5):
            one = rng.choice(one, _PAIRS, replace=False)
            found = occurrences.elsewhere(one, one + distance)
            figures[f"together elsewhere, distance {distance}"] = found.together
            if distance == 1:
                figures["adjacent elsewhere"] = found.adjacent
                figures["adjacent elsewhere, same order"] = found.in_order
    where = rng.integers(n, size=_PAIRS)
    one = (rng.random(_PAIRS) * lengths[where]).astype(np.int64)
    other = (one + 1 + (rng.random(_PAIRS) * (lengths[where] - 1)).astype(np.int64)) % lengths[where]
    one, other = offsets[where] + one, offsets[where] + other
    figures["same artist, random pair"] = float((artist[one] == artist[other]).mean())
    figures["together elsewhere, random pair"] = occurrences.elsewhere(one, other).together
    artists = np.array(distinct_per_playlist(playlist, artist, n))
    figures["distinct artists over length"] = float((artists / lengths).mean())
    return [Comparison(name, real, figures[name], figures[name] / real) for name, real in SAMPLE.items()]


def _table(title: str, lines: list[Comparison]) -> str:
    text = [f"{title:44} {'real':>14} {'generated':>14} {'ratio':>6}"]
    for name, real, generated, ratio in lines:
        digits = 0 if generated >= 1000 else 4
        known = "-" if real is None else f"{real:,.{digits}f}"
        relative = "-" if ratio is None else f"{ratio:.2f}"
        text.append(f"  {name:42} {known:>14} {generated:>14,.{digits}f} {relative:>6}")
    return "\n".join(text) + "\n"


def _main() -> None:
    """Print the figures of the dataset and of the sample beside those of generated playlists."""
    parser = argparse.ArgumentParser(prog="python -m encore.synthetic.calibration", description=_main.__doc__)
    parser.add_argument("--playlists", type=int, default=SAMPLE_PLAYLISTS, help="playlists for the first table")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--processes", type=int, help="worker processes; by default one per CPU")
    options = parser.parse_args()
    measured = measure(options.playlists, seed=options.seed, processes=options.processes)
    sys.stdout.write(_table(f"first {options.playlists:,} playlists", measured.compare()))
    sys.stdout.write(
        _table(f"{SAMPLE_PLAYLISTS:,} playlists of the sample's lengths", measure_sample(seed=options.seed))
    )


if __name__ == "__main__":
    _main()
