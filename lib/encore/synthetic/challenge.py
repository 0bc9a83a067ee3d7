"""Generates a challenge set: playlists of which only the title, or some tracks, or both are given.

Its format is that of `challenge_set.json` of the RecSys Challenge 2018: playlists have ``num_holdouts`` and
``num_samples`` besides ``num_tracks``, positions of random tracks have gaps, and titles that a kind withholds are left
out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from encore.errors import InputError
from encore.synthetic.catalogue import I64, U64
from encore.synthetic.generate import SLICE_PLAYLISTS, draw_slice, track_texts
from encore.vocabulary import KINDS, Kind

CHALLENGE_FILE: Final = "challenge_set.json"
FIRST_PID: Final = 1_000_000
"""The first pid of a challenge set: those of the dataset are smaller."""
_MOST_SLICES: Final = 300


class _Given(NamedTuple):
    """A playlist of the set: its tracks that the generated dataset has, and the positions of those that are given."""

    pid: int
    title: str
    tracks: U64
    positions: I64
    kind: Kind


def write_challenge(out: Path, n: int, *, seed: int, tracks: U64) -> None:
    """Write ``out/challenge_set.json``: n playlists, a tenth of each kind, atomically.

    ``tracks`` uint64, ascending: those that occur in the generated playlists; as in the official set, no other is given
    or withheld. Playlists are the generator's with pids from 1,000,000. Raises InputError if the generated dataset is
    too small to have playlists of all kinds.
    """
    found = sorted(_draw(n, seed, tracks), key=lambda given: given.pid)
    distinct = np.unique(np.concatenate([given.tracks[given.positions] for given in found]))
    texts, _ = track_texts(seed, distinct)
    records: list[dict[str, Any]] = []
    for given in found:
        at = np.searchsorted(distinct, given.tracks[given.positions]).tolist()
        items = [
            json.loads(f'{{"pos": {pos}, {texts[t]}}}') for pos, t in zip(given.positions.tolist(), at, strict=True)
        ]
        records.append(
            {
                **({"name": given.title} if given.kind.has_title else {}),
                "num_holdouts": len(given.tracks) - len(items),
                "pid": given.pid,
                "num_tracks": len(given.tracks),
                "tracks": items,
                "num_samples": len(items),
            }
        )
    content = {"date": "2018-01-16 08:47:28.198015", "version": "v1", "name": "challenge set", "playlists": records}
    partial = out / f"{CHALLENGE_FILE}.partial"
    partial.write_text(json.dumps(content, indent=4), encoding="ascii")
    os.replace(partial, out / CHALLENGE_FILE)


def _draw(n: int, seed: int, tracks: U64) -> Iterator[_Given]:
    """Draw playlists until each kind has its share of n, the longest kinds first, of which there are fewest."""
    missing = {i: n // len(KINDS) + (i < n % len(KINDS)) for i in reversed(range(len(KINDS)))}
    for index in range(FIRST_PID // SLICE_PLAYLISTS, FIRST_PID // SLICE_PLAYLISTS + _MOST_SLICES):
        drawn = draw_slice(seed, index)
        chosen = np.random.Generator(np.random.Philox(key=[seed, index + (1 << 32)]))
        for i in range(SLICE_PLAYLISTS):
            rows = drawn.tracks[drawn.offsets[i] : drawn.offsets[i + 1]]
            rows = rows[np.sort(np.unique(rows, return_index=True)[1])]
            at = np.minimum(np.searchsorted(tracks, rows), len(tracks) - 1)
            own = rows[tracks[at] == rows]
            suits = [k for k, left in missing.items() if left and KINDS[k].low <= len(own) <= KINDS[k].high]
            if not suits:
                continue
            kind = KINDS[suits[0]]
            missing[suits[0]] -= 1
            positions = np.arange(kind.n_seeds)
            if kind.is_random:
                positions = np.sort(chosen.permutation(len(own))[: kind.n_seeds])
            yield _Given(index * SLICE_PLAYLISTS + i, drawn.titles[i], own, positions, kind)
        if not any(missing.values()):
            return
    raise InputError(
        f"a challenge set of {n:,} playlists cannot be drawn: too few have "
        + ", ".join(f"{KINDS[k].low} to {KINDS[k].high}" for k, left in missing.items() if left)
        + " tracks that the generated playlists have",
        remedy="generate more playlists, or a smaller challenge set",
    )
