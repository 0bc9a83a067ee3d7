"""The models that count in which playlists tracks occur, against their formulas in plain Python."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encore.arrays.ragged import Ragged
from encore.config import RecommendConfig
from encore.recommenders.base import NO_PID, recommend
from encore.recommenders.interactions import Interactions, load_loops, powers
from encore.recommenders.titles import grams, normalised
from tests.unit.recommenders.cases import CONFIG, N_TRACKS, TITLES, TRAIN, Query, fitted, queries, rows

Scores = Mapping[int, float]
Others = dict[int, list[int]]
"""The lists of the other playlists, by pid."""


def others(pid: int) -> Others:
    return {p: TRAIN.lists[i].tolist() for i, p in enumerate(TRAIN.pids.tolist()) if p != pid}


def popularity(lists: Others) -> Counter[int]:
    return Counter(track for row in lists.values() for track in row)


def sampled(playlists: list[int], most: int) -> tuple[list[int], float]:
    """Evenly spaced ones of a list, and how many each of them stands for."""
    taken = min(len(playlists), most)
    return [playlists[i * len(playlists) // taken] for i in range(taken)], len(playlists) / max(taken, 1)


def postings(seed: int, lists: Others, most: int) -> tuple[list[int], float]:
    return sampled([pid for pid, row in lists.items() if seed in row], most)


def damped(scores: Scores, pop: Counter[int], exponent: float) -> Scores:
    return {track: score * pop[track] ** -exponent for track, score in scores.items()}


def adjacency(config: RecommendConfig, pid: int, seeds: set[int], title: str | None) -> Scores:
    own, lists = config.adjacency, others(pid)
    pop, scores = popularity(lists), defaultdict[int, float](float)
    for i in seeds:
        chosen, each = postings(i, lists, own.postings)
        for u in chosen:
            for at, j in enumerate(lists[u]):
                distance = abs(lists[u].index(i) - at)
                if distance <= own.reach:
                    scores[j] += each * pop[i] ** -own.seed_damping / (1 + distance)
    return damped(scores, pop, own.track_damping)


def item_knn(config: RecommendConfig, pid: int, seeds: set[int], title: str | None) -> Scores:
    own, lists = config.item_knn, others(pid)
    pop, scores = popularity(lists), defaultdict[int, float](float)
    for i in seeds:
        chosen, each = postings(i, lists, own.postings)
        for u in chosen:
            for j in lists[u]:
                scores[j] += each * pop[i] ** -own.seed_damping
    return damped(scores, pop, own.track_damping)


def playlist_knn(config: RecommendConfig, pid: int, seeds: set[int], title: str | None) -> Scores:
    own, lists = config.playlist_knn, others(pid)
    pop, scores, similar = popularity(lists), defaultdict[int, float](float), defaultdict[int, float](float)
    for i in seeds:
        chosen, each = postings(i, lists, own.postings)
        for u in chosen:
            idf = 1 / ((pop[i] - 1) ** own.idf_power + 1)
            similar[u] += each * idf / len(lists[u]) ** own.length_damping
    # sums in another order differ in the last bits: equal similarities must be equal here too
    best = sorted(similar, key=lambda u: (-float(f"{similar[u]:.5g}"), u))[: own.neighbours]
    for u in best:
        for j in lists[u]:
            scores[j] += similar[u] ** own.similarity_power
    return damped(scores, pop, own.track_damping)


def artist(config: RecommendConfig, pid: int, seeds: set[int], title: str | None) -> Scores:
    own, lists, artist_of = config.artist, others(pid), TRAIN.artist_of.tolist()
    pop = popularity(lists)
    n_seeds = Counter(artist_of[i] for i in seeds if artist_of[i] >= 0)
    n_rows = Counter(artist_of[track] for row in lists.values() for track in row)
    return {
        j: n_seeds[artist_of[j]] ** own.seeds_power
        * n_rows[artist_of[j]] ** -own.rows_damping
        * pop[j] ** own.popularity_power
        for j in pop
        if n_seeds[artist_of[j]]
    }


def title(config: RecommendConfig, pid: int, seeds: set[int], title: str | None) -> Scores:
    own, lists = config.title, others(pid)
    texts = {p: normalised(text) for p, text in zip(TRAIN.pids.tolist(), TRAIN.titles, strict=True) if text}
    df = Counter(gram for text in texts.values() for gram in set(grams(text)))
    idf = {gram: math.log((1 + len(texts)) / (1 + n)) + 1 for gram, n in df.items()}

    def vector(text: str) -> dict[str, float]:
        raw = {gram: tf * idf[gram] for gram, tf in Counter(grams(text)).items() if gram in idf}
        norm = math.sqrt(sum(x * x for x in raw.values()))
        return {gram: x / norm for gram, x in raw.items()}

    asked = vector(title or "")
    similar = {
        text: sum(x * asked.get(gram, 0) for gram, x in vector(text).items()) for text in sorted(set(texts.values()))
    }
    pop, scores, left = popularity(lists), defaultdict[int, float](float), own.neighbours
    for text in sorted(similar, key=lambda text: -similar[text]):
        chosen, each = sampled([p for p in lists if texts.get(p) == text], left)
        for u in chosen if similar[text] > 0 else ():
            for j in lists[u]:
                scores[j] += each * similar[text] ** own.similarity_power / len(lists[u]) ** own.length_damping
        left -= len(chosen) if similar[text] > 0 else 0
        if not left:
            break
    return damped(scores, pop, own.track_damping)


FORMULAS: dict[str, Callable[[RecommendConfig, int, set[int], str | None], Scores]] = {
    "adjacency": adjacency,
    "artist": artist,
    "item_knn": item_knn,
    "playlist_knn": playlist_knn,
    "title": title,
}


def with_settings(name: str, **values: Any) -> RecommendConfig:
    return CONFIG.model_copy(update={name: getattr(CONFIG, name).model_copy(update=values)})


CONFIGS = [
    *((name, CONFIG) for name in FORMULAS),
    ("adjacency", with_settings("adjacency", postings=3)),
    ("adjacency", with_settings("adjacency", reach=2, seed_damping=0.9, track_damping=0.0)),
    ("artist", with_settings("artist", seeds_power=0.0, rows_damping=1.0, popularity_power=0.9)),
    ("item_knn", with_settings("item_knn", postings=3)),
    ("item_knn", with_settings("item_knn", seed_damping=0.1, track_damping=0.9)),
    ("playlist_knn", with_settings("playlist_knn", neighbours=4)),
    ("playlist_knn", with_settings("playlist_knn", postings=2)),
    ("playlist_knn", with_settings("playlist_knn", idf_power=1.0, length_damping=0.0, similarity_power=1)),
    ("title", with_settings("title", neighbours=3)),
    ("title", with_settings("title", similarity_power=0, length_damping=0.5, track_damping=0.2)),
]
CASES = st.lists(
    st.tuples(
        st.sampled_from([NO_PID, 8, *TRAIN.pids.tolist()]),
        st.lists(st.integers(0, N_TRACKS - 1), max_size=12),
        st.sampled_from([*TITLES, "sum of gyms", "mer", "zzz"]),
    ),
    max_size=4,
)


@pytest.mark.parametrize(("name", "config"), CONFIGS)
@settings(max_examples=20)
@given(cases=CASES)
def test_scores_follow_the_formula(name: str, config: RecommendConfig, cases: list[Query]) -> None:
    found = rows(recommend(fitted(name, TRAIN, config), queries(cases), N_TRACKS))
    for (pid, seeds, text), row in zip(cases, found, strict=True):
        expected = FORMULAS[name](config, pid, set(seeds), text)
        assert dict(row) == pytest.approx({j: s for j, s in expected.items() if s > 0 and j not in seeds}, rel=1e-4)


@pytest.mark.parametrize("name", ["adjacency", "item_knn"])
def test_a_sample_of_the_playlists_stands_for_all_of_them(name: str) -> None:
    """A popular seed counts as much with few of its playlists visited as with all of them."""
    companions = np.random.default_rng(0).integers(1, 4, 300).tolist()
    lists = Ragged.from_lists([[0, companion] for companion in companions])
    train = replace(TRAIN, n_tracks=4, pids=np.arange(300), lists=lists, titles=[None] * 300)
    whole, few = (
        recommend(fitted(name, train, with_settings(name, postings=n, track_damping=0.0)), queries([(8, [0], None)]), 5)
        for n in (1000, 30)
    )
    assert len(whole.scores) == len(few.scores) == 3
    assert few.scores.sum() == pytest.approx(whole.scores.sum(), rel=1e-5)
    assert few.scores.tolist() != whole.scores.tolist()


def test_tracks_of_the_own_playlist_do_not_hide_others_by_the_artist() -> None:
    """Without its own playlist, track 3 is the most popular one, although three tracks are before it with it."""
    lists = Ragged.from_lists([[0, 1, 2], [0, 1, 2, 3, 4], [3, 4]])
    train = replace(
        TRAIN, n_tracks=5, pids=np.arange(3), lists=lists, titles=[None] * 3, artist_of=np.zeros(5, np.int32)
    )
    there = fitted("artist", train)
    assert [track for track, _ in rows(there.candidates(queries([(0, [4], None)]), np.array([1])))[0]] == [3]


def test_interactions_are_the_lists_both_ways() -> None:
    there: Any = fitted("item_knn")
    found: Interactions = there._of
    assert found.lists.tolist() == TRAIN.lists.tolist()
    by_track = Ragged(found.arrays["track_offsets"], found.arrays["rows"]).tolist()
    assert by_track == [[i for i, row in enumerate(TRAIN.lists.tolist()) if j in row] for j in range(N_TRACKS)]
    places = Ragged(found.arrays["track_offsets"], found.arrays["places"]).tolist()
    lists = TRAIN.lists.tolist()
    assert places == [[lists[i].index(j) for i in row] for j, row in enumerate(by_track)]
    asked = np.array([NO_PID, int(TRAIN.pids[4]), 4, 2**62])
    assert found.rows_of(asked).tolist() == [-1, 4, -1, -1]


def test_powers() -> None:
    assert powers(4, -0.5).tolist() == pytest.approx([0, 1, 2**-0.5, 3**-0.5, 0.5])
    assert powers(0, 2).tolist() == [0]


@given(
    st.lists(st.sampled_from([0.0, 1e-30, 1.0, 1.0000001, 2.5, 3e38]) | st.floats(0, 10, width=32), max_size=60),
    st.integers(0, 70),
)
def test_the_best_are_selected_in_order(values: list[float], n: int) -> None:
    scores = np.array(values, np.float32)
    order = np.random.default_rng(len(values)).permutation(len(values)).astype(np.int32)
    counts = np.zeros(1 << 15, np.int32)
    ids, best = np.empty(n, np.int32), np.empty(n, np.float32)
    found = load_loops().select(scores[order], order, len(order), n, counts, ids, best)
    expected = sorted((-float(s), i) for i, s in enumerate(scores.tolist()) if s > 0)[:n]
    assert [(-float(best[i]), int(ids[i])) for i in range(found)] == expected
    assert not counts.any()
