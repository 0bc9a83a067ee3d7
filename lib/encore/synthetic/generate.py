"""Seeded generator of playlists in the format of the Spotify Million Playlist Dataset (MPD).

``generate`` writes any number of playlists, in slices of 1,000 with the byte layout of the published ones, in bounded
memory and with several processes. A playlist depends only on the seed and its ``pid``, not on the number of playlists
or processes.

Each playlist has one to four *focus* scenes (see ``encore.synthetic.catalogue``) and one canon of each, a taste between
obscure and mainstream, a share of songs from anywhere, and a circle (which tracks of an artist it prefers).

Its rows are divided into stretches of a few rows, each of one of three kinds: tracks of an album in track order, a
piece copied from a canon in its order, or a mix. In a mix, each burst of rows picks an artist, then tracks by that
artist; most playlists avoid artists that they already have. A few *devoted* playlists consist of a few artists. A track
that the playlist already has is drawn again; 1.3% of the rows repeat a track nevertheless, most on purpose. Finally,
some playlists are reversed, and some are shuffled to some degree.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from encore import interrupts
from encore.errors import InputError
from encore.synthetic import catalogue, titles
from encore.synthetic.catalogue import F64, I64, U64

REVISION: Final = 2
"""Incremented whenever the same arguments give other playlists."""
SLICE_PLAYLISTS: Final = 1000
FEATURES_FILE: Final = "audio_features.parquet"
DAY: Final = 86_400
LAST_MODIFIED: Final = 1_509_494_400  # 2017-11-01, the newest date in the published data
_SLICE_NAME: Final = re.compile(r"mpd\.slice\.(\d+)-(\d+)\.json")
_FEATURE_ROWS: Final = 1 << 18

MIN_LENGTH, MAX_LENGTH = 5, 250
# Log-normal, truncated to [5, 250], with the published mean 66.35 and median 49.
_LENGTH_MU, _LENGTH_SIGMA = 3.96678, 1.03585
_FOCUS: Final = 4
_FOCUS_CDF: Final = np.array([0.32, 0.56, 0.80, 1.0])
# Repeats on purpose. Those that are left after the last attempt to avoid them make it the published 0.0133.
_REPEAT_SHARE: Final = 0.0108
_CIRCLE_SHARE: Final = 0.7

# Fitted to the order of real playlists (see ``calibration.SAMPLE``).
_STRETCH_MEAN: Final = 7.0
_ALBUM_SHARE: Final = 0.17
_COPIED_SHARE: Final = 0.25
_BURST_MEAN: Final = 0.27
_ANYWHERE_MOST: Final = 0.25
_ANYWHERE_HITS: Final = 1.5
_SUPERSTAR_SHARE: Final = 0.06
_DEEP_SHARE: Final = 0.3
_CANON_EXPONENT: Final = 0.3
_VARIETY_EXPONENT: Final = 0.5
_VARIETY_ROUNDS: Final = 2
_DEVOTED_SHARE: Final = 0.05
_DEVOTED_STRETCH_MEAN: Final = 100.0
_DEVOTED_BURST: Final = 0.98
_REVERSED_SHARE: Final = 0.12
_TIDY_SHARE: Final = 0.7
_DESCRIBED: Final = 0.01876
_COLLABORATIVE: Final = 0.0226
# Playlists are named only after the best-known artists of a scene.
_NAMED_ARTISTS: Final = 6


@dataclass(frozen=True)
class GenerateSummary:
    """What ``generate`` wrote: ``bytes`` is the size of the slices, ``feature_rows`` the length of the feature file."""

    playlists: int
    rows: int
    bytes: int
    files: int
    feature_rows: int
    seconds: float
    tracks: U64
    """The tracks that occur, ascending."""


class SliceDraw(NamedTuple):
    """The latent content of one slice: playlists (length n) and their rows (length ``offsets[n]``).

    Attributes:
        offsets: int64 (n + 1,), playlist ``i`` has rows ``offsets[i] .. offsets[i + 1] - 1``.
        tracks: uint64 (rows,), track ids of the catalogue in playlist order.
        titles: n titles as written, and ``plain_titles`` the same normalised.
        descriptions: n optional descriptions.
        modified_at: int64 (n,), epoch seconds at midnight UTC.
        followers: int64 (n,).
        edits: int64 (n,).
        collaborative: bool (n,).
    """

    offsets: I64
    tracks: U64
    titles: list[str]
    plain_titles: list[str]
    descriptions: list[str | None]
    modified_at: I64
    followers: I64
    edits: I64
    collaborative: NDArray[np.bool_]


# --- drawing ------------------------------------------------------------------------------------------------


def _normal_cdf(x: F64) -> F64:
    """Standard normal distribution function by Abramowitz and Stegun 26.2.17 (error below 1e-7)."""
    t = 1.0 / (1.0 + 0.2316419 * np.abs(x))
    poly = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail: F64 = np.exp(-0.5 * x * x) / np.sqrt(2.0 * np.pi) * poly
    return np.where(x > 0.0, 1.0 - tail, tail)


def _length_cdf() -> F64:
    edges = np.concatenate(([MIN_LENGTH - 0.5], np.arange(MIN_LENGTH, MAX_LENGTH + 1) + 0.5))
    cdf = _normal_cdf((np.log(edges) - _LENGTH_MU) / _LENGTH_SIGMA)
    inside: F64 = (cdf[1:] - cdf[0]) / (cdf[-1] - cdf[0])
    return inside


_LENGTH_CDF: Final = _length_cdf()
_SCENE_CDF: Final = np.cumsum(catalogue.SCENE_SHARE)
_SUBSCENE_CDF: Final = np.cumsum(catalogue.SUBSCENE_SHARE)
_RELATED: Final = np.array([genre.related for genre in catalogue.GENRES])


def _pick(cdf: F64, u: F64) -> I64:
    return np.minimum(np.searchsorted(cdf, u, side="right"), len(cdf) - 1).astype(np.int64)


def _focus_scenes(u: F64) -> I64:
    """Draw the (n, 4) focus scenes of playlists: the first by share, the others mostly similar to it."""
    n = len(u)
    scenes = np.empty((n, _FOCUS), dtype=np.int64)
    scenes[:, 0] = _pick(_SCENE_CDF, u[:, 0])
    genre = scenes[:, 0] // catalogue.SCENES_PER_GENRE
    for k in range(1, _FOCUS):
        how, which, side = u[:, 3 * k], u[:, 3 * k + 1], u[:, 3 * k + 2]
        near = np.where(how < 0.60, genre, _RELATED[genre, (side < 0.5).astype(np.int64)])
        local = near * catalogue.SCENES_PER_GENRE + _pick(_SUBSCENE_CDF, which)
        scenes[:, k] = np.where(how < 0.85, local, _pick(_SCENE_CDF, which))
    return scenes


@dataclass(frozen=True)
class _Tastes:
    """Preferences of the n playlists of a slice, one array element or row per playlist.

    Attributes:
        scenes: int64 (n, 4), the focus scenes.
        weights: float64 (n, 4), their cumulative weights, last column 1.
        canons: int64 (n, 4), number of the canon of each focus scene.
        circle: int64 (n,), 0 .. CIRCLES - 1.
        star, deep, canon, anywhere: float64 (n,), shares of star artists, of deep cuts, of tracks from a canon, and of
            songs from anywhere, among the tracks that are drawn.
        burst: float64 (n,), probability that the next track of a mix is by the same artist.
        variety: float64 (n,), probability to replace an artist that the playlist already has.
        album, copied: float64 (n,), shares of the stretches that are an album's or copied from a canon.
        devoted: bool (n,), whether the playlist consists of a few artists.
    """

    scenes: I64
    weights: F64
    canons: I64
    circle: I64
    star: F64
    deep: F64
    canon: F64
    anywhere: F64
    burst: F64
    variety: F64
    album: F64
    copied: F64
    devoted: NDArray[np.bool_]


def _tastes(rng: np.random.Generator, n: int) -> _Tastes:
    scenes = _focus_scenes(rng.random((n, 3 * _FOCUS)))
    active = np.arange(_FOCUS) < (1 + _pick(_FOCUS_CDF, rng.random(n)))[:, None]
    weights = -np.log1p(-rng.random((n, _FOCUS))) + 0.05
    weights[:, 0] += 0.65
    weights = np.cumsum(weights * active, axis=1)
    weights /= weights[:, -1:]
    circle = (rng.random(n) * catalogue.CIRCLES).astype(np.int64)
    # One number decides all shares, so that well-known tracks are together, and obscure ones too.
    mainstream = rng.random(n)
    devoted = rng.random(n) < _DEVOTED_SHARE
    return _Tastes(
        scenes=scenes,
        weights=weights,
        canons=catalogue.canon_number(rng.random((n, _FOCUS)), circle[:, None]),
        circle=circle,
        star=np.where(devoted, 1.0, mainstream ** (1.0 / catalogue.STAR_SHARE - 1.0)),
        deep=np.where(devoted, 1.0, (1.0 - mainstream) ** (1.0 / _DEEP_SHARE - 1.0)),
        canon=np.where(devoted, 0.0, mainstream**_CANON_EXPONENT),
        anywhere=np.where(devoted, 0.0, _ANYWHERE_MOST * rng.random(n) ** 1.5),
        burst=np.where(devoted, _DEVOTED_BURST, 2.0 * _BURST_MEAN * rng.random(n)),
        variety=np.where(devoted, 0.0, rng.random(n) ** _VARIETY_EXPONENT),
        album=np.where(devoted, 0.5, 3.0 * _ALBUM_SHARE * rng.random(n) ** 2),
        copied=np.where(devoted, 0.0, 2.0 * _COPIED_SHARE * rng.random(n)),
        devoted=devoted,
    )


def _pick_focus(tastes: _Tastes, playlist: I64, u: F64) -> tuple[I64, I64]:
    """Return a focus scene, and the number of its canon, for each entry of ``playlist`` (indices of playlists)."""
    column = np.minimum((u[:, None] >= tastes.weights[playlist]).sum(axis=1), _FOCUS - 1)
    return tastes.scenes[playlist, column], tastes.canons[playlist, column]


def _draw_tracks(rng: np.random.Generator, seed: int, tastes: _Tastes, playlist: I64) -> U64:
    """Draw one track by a newly picked artist for each entry of ``playlist`` (indices of playlists)."""
    u = rng.random((8, len(playlist)))
    scene, number = _pick_focus(tastes, playlist, u[0])
    anywhere = u[1] < tastes.anywhere[playlist]
    canon = ~anywhere & (u[2] < tastes.canon[playlist])
    tracks = np.empty(len(playlist), dtype=np.uint64)
    tracks[canon] = catalogue.canon_track(seed, scene[canon], number[canon], catalogue.canon_place(u[3, canon]))

    own = np.flatnonzero(~canon)
    u, playlist, anywhere = u[:, own], playlist[own], anywhere[own]
    # Given that it chose "anywhere", this uniform is uniform below the threshold, so it can be reused.
    spread = np.where(anywhere, u[1] / np.maximum(tastes.anywhere[playlist], 1e-12), 0.0)
    scene = np.where(anywhere, _pick(_SCENE_CDF, spread), scene[own])
    rank = catalogue.artist_rank(u[3], (u[4] < tastes.star[playlist]) | anywhere)
    superstar = anywhere & (u[2] < _SUPERSTAR_SHARE)
    scene[superstar] = rank[superstar] = 0
    artist = catalogue.artist_of(catalogue.track_id(scene, rank, np.zeros_like(rank)))
    circle = np.where(u[5] < _CIRCLE_SHARE, tastes.circle[playlist], -1)
    # Songs from anywhere are hits, except that everything by the superstar is well known.
    deep = np.where(anywhere, superstar, u[6] < tastes.deep[playlist])
    which = np.where(anywhere & ~superstar, u[7] ** _ANYWHERE_HITS, u[7])
    tracks[own] = catalogue.track_of(artist, catalogue.track_rank(seed, which, artist, circle, deep))
    return tracks


def _same_artist(rng: np.random.Generator, seed: int, tastes: _Tastes, playlist: I64, track: U64) -> U64:
    """Draw another track by the artist of each track, for the playlists of the given indices."""
    u = rng.random((3, len(track)))
    artist = catalogue.artist_of(track)
    circle = np.where(u[1] < _CIRCLE_SHARE, tastes.circle[playlist], -1)
    return catalogue.track_of(artist, catalogue.track_rank(seed, u[0], artist, circle, u[2] < tastes.deep[playlist]))


def _repeated(playlist: I64, track: U64) -> NDArray[np.intp]:
    """Return the rows whose track occurs in an earlier row of the same playlist."""
    key = catalogue.mix64(track + np.uint64(1)) + playlist.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    return np.sort(order[1:][ordered[1:] == ordered[:-1]])


def _rows(rng: np.random.Generator, seed: int, tastes: _Tastes, lengths: I64) -> U64:
    """Draw the tracks of all playlists of a slice, playlist after playlist: uint64 (sum of lengths,)."""
    n = len(lengths)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    playlist = np.repeat(np.arange(n), lengths)

    # Divide the rows into stretches, and each mixed stretch into bursts.
    stretch_mean = np.where(tastes.devoted, _DEVOTED_STRETCH_MEAN, _STRETCH_MEAN)
    begins = rng.random(len(playlist)) < 1.0 / stretch_mean[playlist]
    begins[offsets[:-1]] = True
    stretch = np.cumsum(begins) - 1
    step = np.arange(len(playlist)) - np.flatnonzero(begins)[stretch]
    owner = playlist[begins]
    kind = rng.random(len(owner))
    from_album = (kind < tastes.album[owner])[stretch]
    copied = (kind >= 1.0 - tastes.copied[owner])[stretch]
    goes_on = rng.random(len(playlist)) < tastes.burst[playlist]
    starts = ~copied & (begins | ~(from_album | goes_on))

    tracks = np.empty(len(playlist), dtype=np.uint64)
    scene, number = _pick_focus(tastes, owner, rng.random(len(owner)))
    place = catalogue.canon_place(rng.random(len(owner)))
    at = stretch[copied]
    tracks[copied] = catalogue.canon_track(seed, scene[at], number[at], place[at] + step[copied])

    head_of = playlist[starts]
    heads = _draw_tracks(rng, seed, tastes, head_of)
    for _ in range(_VARIETY_ROUNDS):
        again = _repeated(head_of, catalogue.artist_of(heads))
        again = again[rng.random(len(again)) < tastes.variety[head_of[again]]]
        heads[again] = _draw_tracks(rng, seed, tastes, head_of[again])
    burst = np.maximum(np.cumsum(starts) - 1, 0)
    tracks[starts] = heads
    tracks[from_album] = catalogue.album_mate(seed, heads[burst[from_album]], step[from_album])
    follows = ~(starts | from_album | copied)
    tracks[follows] = _same_artist(rng, seed, tastes, playlist[follows], heads[burst[follows]])

    follows |= from_album
    for attempt in range(10):
        again = _repeated(playlist, tracks)
        if len(again) == 0:
            break
        same = again[follows[again]] if attempt < 3 else again[:0]
        other = again[~follows[again]] if attempt < 3 else again
        tracks[same] = _same_artist(rng, seed, tastes, playlist[same], tracks[same])
        tracks[other] = _draw_tracks(rng, seed, tastes, playlist[other])

    # A few playlists have most of the repeats.
    careless = 5.0 * _REPEAT_SHARE * rng.random(n) ** 4
    repeat = np.flatnonzero(rng.random(len(playlist)) < careless[playlist])
    source = offsets[playlist[repeat]] + (rng.random(len(repeat)) * lengths[playlist[repeat]]).astype(np.int64)
    tracks[repeat] = tracks[source]

    # Most playlists keep their order, some have the newest first; the others are shuffled to some degree.
    mess = np.maximum(0.0, (rng.random(n) - _TIDY_SHARE) / (1.0 - _TIDY_SHARE))
    direction = np.where(rng.random(n) < _REVERSED_SHARE, -1, 1)
    place = direction[playlist] * (np.arange(len(playlist)) - offsets[playlist])
    position = place + mess[playlist] * lengths[playlist] * rng.random(len(playlist))
    ordered: U64 = tracks[np.lexsort((position, playlist))]
    return ordered


def _modified_at(u: F64) -> I64:
    age = 200.0 * ((1.0 - u * 0.985) ** (-1.0 / 1.3) - 1.0)
    return LAST_MODIFIED - DAY * np.minimum(age, 2700.0).astype(np.int64)


def _followers(u: F64, famous: F64) -> I64:
    power = np.where(famous < 0.02, 1.0 / 0.85, 1.0 / 2.0)
    return np.minimum((1.0 - u) ** -power, 71_643.0).astype(np.int64)


def _edits(z: F64, lengths: I64) -> I64:
    edits = np.exp(2.40 + 1.0 * z + 0.35 * (np.log(lengths) - _LENGTH_MU))
    return np.clip(edits, 1.0, 201.0).astype(np.int64)


def _gaussian(u: F64, v: F64) -> F64:
    return np.sqrt(-2.0 * np.log1p(-u)) * np.cos(2.0 * np.pi * v)


def draw_slice(seed: int, index: int) -> SliceDraw:
    """Draw the latent content of slice ``index``: playlists ``1000 * index`` to ``1000 * index + 999``."""
    rng = np.random.Generator(np.random.Philox(key=[seed & 0xFFFFFFFFFFFFFFFF, index]))
    n = SLICE_PLAYLISTS
    lengths = MIN_LENGTH + _pick(_LENGTH_CDF, rng.random(n))
    tastes = _tastes(rng, n)
    tracks = _rows(rng, seed, tastes, lengths)
    meta = rng.random((8, n))
    modified_at = _modified_at(meta[0])
    offsets = np.concatenate(([0], np.cumsum(lengths)))

    draws = rng.random((n, titles.TITLE_DRAWS)).tolist()
    first_artist = catalogue.artist_of(tracks[offsets[:-1]])
    devoted = np.flatnonzero(tastes.devoted & (catalogue.rank_of_artist(first_artist) < _NAMED_ARTISTS))
    names = (json.loads(f'"{name}"') for name in titles.artist_names(seed, first_artist[devoted]))
    artist: dict[int, str] = dict(zip(devoted.tolist(), names, strict=True))
    plain = [
        titles.plain_title(u, scene, date, artist.get(i))
        for i, (u, scene, date) in enumerate(
            zip(draws, tastes.scenes[:, 0].tolist(), modified_at.tolist(), strict=True)
        )
    ]
    return SliceDraw(
        offsets=offsets,
        tracks=tracks,
        titles=[titles.written_title(u, text) for u, text in zip(draws, plain, strict=True)],
        plain_titles=plain,
        descriptions=[
            titles.description(u[9] / _DESCRIBED, text) if u[9] < _DESCRIBED else None
            for u, text in zip(draws, plain, strict=True)
        ],
        modified_at=modified_at,
        followers=_followers(meta[1], meta[2]),
        edits=_edits(_gaussian(meta[3], meta[4]), lengths),
        collaborative=meta[5] < _COLLABORATIVE,
    )


# --- writing ------------------------------------------------------------------------------------------------


def slice_name(index: int, playlists: int) -> str:
    """Return the file name of slice ``index`` of a dataset of ``playlists`` playlists."""
    first = index * SLICE_PLAYLISTS
    return f"mpd.slice.{first}-{min(first + SLICE_PLAYLISTS, playlists) - 1}.json"


def track_texts(seed: int, tracks: U64) -> tuple[list[str], I64]:
    """Return the JSON text that follows ``"pos"`` for each of some distinct tracks, and their durations (ms)."""
    artist_ids, artist_at = np.unique(catalogue.artist_of(tracks), return_inverse=True)
    album_ids, album_at = np.unique(catalogue.album_of(seed, tracks), return_inverse=True)
    artists = list(zip(titles.artist_names(seed, artist_ids), catalogue.artist_uri_ids(seed, artist_ids), strict=True))
    albums = list(zip(titles.album_names(seed, album_ids), catalogue.album_uri_ids(seed, album_ids), strict=True))
    durations = catalogue.duration_ms(seed, tracks)
    gap = ", \n" + " " * 20
    texts = [
        f'"artist_name": "{artists[a][0]}"{gap}"track_uri": "spotify:track:{uri}"{gap}'
        f'"artist_uri": "spotify:artist:{artists[a][1]}"{gap}"track_name": "{name}"{gap}'
        f'"album_uri": "spotify:album:{albums[b][1]}"{gap}"duration_ms": {ms}{gap}'
        f'"album_name": "{albums[b][0]}"\n'
        for a, b, uri, name, ms in zip(
            artist_at.tolist(),
            album_at.tolist(),
            catalogue.track_uri_ids(seed, tracks),
            titles.track_names(seed, tracks),
            durations.tolist(),
            strict=True,
        )
    ]
    return texts, durations


def distinct_per_playlist(playlist: I64, ids: U64, n: int) -> list[int]:
    """Count the distinct ids of each playlist."""
    order = np.lexsort((ids, playlist))
    p, i = playlist[order], ids[order]
    new = np.ones(len(p), dtype=np.bool_)
    new[1:] = (p[1:] != p[:-1]) | (i[1:] != i[:-1])
    counts: list[int] = np.bincount(p[new], minlength=n).tolist()
    return counts


def render_slice(seed: int, index: int, playlists: int, draw: SliceDraw) -> bytes:
    """Return the JSON text of a slice in exactly the byte layout of the published files.

    It is the layout of Python 2's ``json.dump(..., indent=4)``: ASCII only, a space after each comma, keys in the order
    of the published files; the optional ``description`` comes last.
    """
    n = min(SLICE_PLAYLISTS, playlists - index * SLICE_PLAYLISTS)
    offsets = draw.offsets[: n + 1]
    rows = draw.tracks[: offsets[-1]]
    playlist = np.repeat(np.arange(n), np.diff(offsets))
    distinct, at = np.unique(rows, return_inverse=True)
    texts, durations = track_texts(seed, distinct)
    total_ms = np.add.reduceat(durations[at], offsets[:-1]).tolist()
    albums = distinct_per_playlist(playlist, catalogue.album_of(seed, distinct)[at], n)
    artists = distinct_per_playlist(playlist, catalogue.artist_of(rows), n)
    heads = [f'                {{\n                    "pos": {k}, \n                    ' for k in range(MAX_LENGTH)]

    first = index * SLICE_PLAYLISTS
    # A fixed start plus one minute per slice: plausible, and the same in every run.
    made = datetime(2017, 12, 3, 8, 41, 42, 57563) + timedelta(minutes=index)
    parts = [
        f'{{\n    "info": {{\n        "generated_on": "{made}", \n'
        f'        "slice": "{first}-{first + n - 1}", \n        "version": "v1"\n    }}, \n'
        '    "playlists": [\n'
    ]
    row_at = at.tolist()
    bounds = offsets.tolist()
    for i in range(n):
        low, high = bounds[i], bounds[i + 1]
        parts.append(
            f'        {{\n            "name": {json.dumps(draw.titles[i])}, \n'
            f'            "collaborative": "{"true" if draw.collaborative[i] else "false"}", \n'
            f'            "pid": {first + i}, \n'
            f'            "modified_at": {draw.modified_at[i]}, \n'
            f'            "num_tracks": {high - low}, \n'
            f'            "num_albums": {albums[i]}, \n'
            f'            "num_followers": {draw.followers[i]}, \n'
            f'            "tracks": [\n'
        )
        parts.append("                }, \n".join([heads[k] + texts[t] for k, t in enumerate(row_at[low:high])]))
        text = draw.descriptions[i]
        described = "" if text is None else f', \n            "description": {json.dumps(text)}'
        parts.append(
            f"                }}\n            ], \n"
            f'            "num_edits": {draw.edits[i]}, \n'
            f'            "duration_ms": {total_ms[i]}, \n'
            f'            "num_artists": {artists[i]}{described}\n'
            f"        }}{', ' if i + 1 < n else ''}\n"
        )
    parts.append("    ]\n}")
    return "".join(parts).encode("ascii")


@dataclass(frozen=True)
class _Written:
    """What was written for one slice."""

    playlists: int
    rows: int
    bytes: int
    tracks: U64  # distinct, ascending


def _write_slice(out: Path, seed: int, index: int, playlists: int) -> _Written:
    """Draw, render and write one slice (atomically); runs in a worker process."""
    draw = draw_slice(seed, index)
    data = render_slice(seed, index, playlists, draw)
    n = min(SLICE_PLAYLISTS, playlists - index * SLICE_PLAYLISTS)
    rows = int(draw.offsets[n])
    target = out / slice_name(index, playlists)
    partial = target.with_name(target.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, target)
    return _Written(n, rows, len(data), np.unique(draw.tracks[:rows]))


class DistinctIds:
    """The distinct values of a stream of uint64 arrays, in memory proportional to their number."""

    def __init__(self) -> None:
        """Start empty."""
        self._merged: U64 = np.empty(0, dtype=np.uint64)
        self._pending: list[U64] = []
        self._waiting = 0

    def add(self, ids: U64) -> None:
        """Add some ids (any order, repeats allowed)."""
        self._pending.append(ids)
        self._waiting += len(ids)
        if self._waiting > max(1_000_000, len(self._merged) // 2):
            self._merge()

    def _merge(self) -> None:
        self._merged = np.unique(np.concatenate([self._merged, *self._pending]))
        self._pending = []
        self._waiting = 0

    def values(self) -> U64:
        """Return all distinct ids, ascending."""
        self._merge()
        return self._merged


def has_features(seed: int, tracks: U64, coverage: float) -> NDArray[np.bool_]:
    """Whether each track is in the feature file: a fixed subset, a share ``coverage`` of all tracks."""
    return catalogue.uniform(seed, 51, tracks) < coverage


def _write_features(path: Path, seed: int, tracks: U64, coverage: float) -> int:
    """Write the feature file (Parquet, ``track_uri`` and the eleven features); return its number of rows."""
    known = tracks[has_features(seed, tracks, coverage)]
    whole = ("key", "mode")
    schema = pa.schema(
        [pa.field("track_uri", pa.string(), nullable=False)]
        + [pa.field(name, pa.int32() if name in whole else pa.float64()) for name in catalogue.FEATURES]
    )
    partial = path.with_name(path.name + ".partial")
    with pq.ParquetWriter(partial, schema, compression="snappy", use_dictionary=False) as writer:
        for start in range(0, len(known), _FEATURE_ROWS):
            ids = known[start : start + _FEATURE_ROWS]
            values = catalogue.audio_features(seed, ids)
            uris = [f"spotify:track:{uri}" for uri in catalogue.track_uri_ids(seed, ids)]
            columns = [pa.array(uris)] + [
                pa.array(values[:, k].astype(np.int32) if name in whole else values[:, k])
                for k, name in enumerate(catalogue.FEATURES)
            ]
            writer.write_table(pa.table(columns, schema=schema))
    os.replace(partial, path)
    return len(known)


def _check_output(out: Path, names: set[str]) -> None:
    """Raise InputError if the directory contains slices that this run would not overwrite."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a directory", remedy="name a directory for the generated data")
    foreign = sorted(p.name for p in out.glob("*.json") if _SLICE_NAME.fullmatch(p.name) and p.name not in names)
    if foreign:
        raise InputError(
            f"{out} contains {len(foreign)} slice(s) of another dataset, such as {foreign[0]}",
            remedy="choose an empty directory, or delete the old slices first",
        )


def _in_processes(out: Path, seed: int, slices: int, playlists: int, processes: int) -> Iterator[_Written]:
    """Yield slices as they are written; only a few are in progress at a time."""
    if processes == 1 or slices == 1:
        for index in range(slices):
            yield _write_slice(out, seed, index, playlists)
        return
    # Spawned, not forked: the caller may have threads (a JVM gateway, pyarrow).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=min(processes, slices), mp_context=context) as pool:
        pending: set[Future[_Written]] = set()
        following = 0
        try:
            while pending or following < slices:
                while following < slices and len(pending) < 2 * processes:
                    # the first one starts the processes
                    with interrupts.children_ignore_sigint():
                        pending.add(pool.submit(_write_slice, out, seed, following, playlists))
                    following += 1
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            for future in pending:
                future.cancel()


def generate(
    out: Path,
    playlists: int,
    *,
    seed: int = 42,
    coverage: float = 0.9,
    processes: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> GenerateSummary:
    """Write ``playlists`` generated playlists to ``out``.

    Writes ``out/mpd.slice.0-999.json`` and so on, 1,000 playlists each (the last slice may be shorter), and
    ``out/features/audio_features.parquet`` with ``track_uri`` and the eleven audio features for a share ``coverage`` of
    the tracks that occur. Files are written atomically.

    Args:
        out: directory, created if missing.
        playlists: number of playlists, at least 1; 1,000,000 are about 33 GB.
        seed: any integer from 0 to 2**63 - 1; the same seed gives the same data.
        coverage: share of the tracks that have audio features, 0 to 1.
        processes: number of worker processes; by default the number of CPUs.
        on_progress: called after each slice with the playlists and bytes written so far.

    Raises:
        InputError: an argument is out of range, ``out`` cannot be written, or it contains slices that this run would
            not overwrite.
    """
    started = time.perf_counter()
    if playlists < 1:
        raise InputError(f"cannot generate {playlists} playlists", remedy="request at least 1 playlist")
    if not 0.0 <= coverage <= 1.0:
        raise InputError(f"coverage {coverage} is out of range", remedy="choose a coverage from 0 to 1")
    if not 0 <= seed < 1 << 63:
        raise InputError(f"seed {seed} is out of range", remedy="choose a seed from 0 to 2**63 - 1")
    if processes is not None and processes < 1:
        raise InputError(f"cannot work with {processes} processes", remedy="use at least 1 process")
    slices = -(-playlists // SLICE_PLAYLISTS)
    _check_output(out, {slice_name(i, playlists) for i in range(slices)})
    try:
        (out / "features").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}", remedy="choose another folder") from error

    done = rows = size = 0
    distinct = DistinctIds()
    for written in _in_processes(out, seed, slices, playlists, processes or os.cpu_count() or 1):
        done += written.playlists
        rows += written.rows
        size += written.bytes
        distinct.add(written.tracks)
        if on_progress is not None:
            on_progress(done, size)
    feature_rows = _write_features(out / "features" / FEATURES_FILE, seed, distinct.values(), coverage)
    return GenerateSummary(
        playlists=done,
        rows=rows,
        bytes=size,
        files=slices + 1,
        feature_rows=feature_rows,
        tracks=distinct.values(),
        seconds=time.perf_counter() - started,
    )
