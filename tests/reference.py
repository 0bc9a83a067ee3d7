"""Slow reference implementations of the kernels in plain Python."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MASK = 2**64 - 1


def splitmix(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def mix_slow(seed: int, *keys: int) -> int:
    state = splitmix(seed & MASK)
    for key in keys:
        state = splitmix(state ^ (key & MASK))
    return state


def split_slow(pid: int, tracks: Sequence[int], seed: int, fraction: float) -> tuple[list[int], list[int]]:
    distinct = list(dict.fromkeys(tracks))
    n = len(distinct)
    size = max(0, min(math.ceil(fraction * n - 1e-9), n - 1))
    test = set(sorted(distinct, key=lambda track: (mix_slow(seed, pid, track), track))[:size])
    return [t for t in distinct if t not in test], [t for t in distinct if t in test]


def float32(x: float) -> float:
    return struct.unpack("f", struct.pack("f", x))[0]


def cosine_slow(q: Sequence[float], c: Sequence[float]) -> float:
    dot = qq = cc = 0.0
    for a, b in zip(q, c, strict=True):
        dot += a * b
        qq += a * a
        cc += b * b
    return float32(dot / (math.sqrt(qq) * math.sqrt(cc))) if qq and cc else 0.0


def top_k_slow(
    queries: Sequence[Sequence[float]], items: Sequence[Sequence[float]], ids: Sequence[int], k: Sequence[int]
) -> list[list[tuple[int, float]]]:
    """Brute force: for each query (id, score), best first."""
    found = []
    for query, n in zip(queries, k, strict=True):
        scored = [(i, cosine_slow(query, item)) for i, item in zip(ids, items, strict=True)]
        found.append(sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:n])
    return found


def top_k_float64(queries: np.ndarray, items: np.ndarray, ids: np.ndarray, k: int) -> tuple[list, list]:
    """Like `top_k_slow`, but with float64 arrays, for sizes for which plain Python is too slow."""
    wide = items.astype(np.float64)
    norms = np.sqrt(np.add.accumulate(wide * wide, axis=1)[:, -1])
    best_ids, best_scores = [], []
    for query in queries.astype(np.float64):
        norm = np.sqrt(np.add.accumulate(query * query)[-1])
        dot = np.add.accumulate(wide * query, axis=1)[:, -1]
        scores = np.divide(dot, norm * norms, out=np.zeros_like(dot), where=norm * norms > 0)
        rounded = scores.astype(np.float32)
        order = np.lexsort((ids, -rounded))[:k]
        best_ids.append(ids[order].tolist())
        best_scores.append(rounded[order].tolist())
    return best_ids, best_scores


def centroid_slow(tracks: Sequence[int], vectors: dict[int, Sequence[float]], d: int) -> tuple[list[float], int]:
    known = [vectors[t] for t in tracks if t in vectors]
    total = [0.0] * d
    for vector in known:
        total = [a + b for a, b in zip(total, vector, strict=True)]
    return [float32(x / len(known)) if known else 0.0 for x in total], len(known)


class MetricsSlow(NamedTuple):
    n_test: int
    n_hits: int
    r_precision: float
    ndcg: float
    clicks: int
    r_precision_artist: float


def metrics_slow(recommended: Sequence[int], truth: Sequence[int], k: int, artist_of: dict[int, int]) -> MetricsSlow:
    """The definitions of the RecSys Challenge 2018, implemented literally."""
    ranked, wanted = list(recommended)[:k], set(truth)
    first = ranked[: len(wanted)]
    precision = len(wanted & set(first)) / len(wanted)
    open_artists = {artist_of[t] for t in wanted if t in artist_of}
    credit = 0.0
    for track in first:
        if track not in wanted and artist_of.get(track) in open_artists:
            credit += 0.25
            open_artists.remove(artist_of[track])
    dcg = sum(1 / math.log2(i + 1) for i, track in enumerate(ranked, start=1) if track in wanted)
    idcg = sum(1 / math.log2(i + 1) for i in range(1, min(len(wanted), k) + 1))
    hits = [i for i, track in enumerate(ranked, start=1) if track in wanted]
    clicks = (hits[0] - 1) // 10 if hits and hits[0] <= 500 else 51
    return MetricsSlow(len(wanted), len(hits), precision, dcg / idcg, clicks, precision + credit / len(wanted))
