from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encore.arrays.ragged import Ragged
from encore.evaluation import summary as summary_module
from encore.evaluation.beyond_accuracy import PAGE_METRICS, POPULARITY, BeyondAccuracy, beyond_accuracy, track_facts
from encore.evaluation.metrics import MEAN_METRICS, Metrics, find_hits, score
from encore.evaluation.summary import BUCKETS, Summary

TRACKS = 40
ARTISTS = np.array([(t * 7) % 9 - 1 for t in range(TRACKS)], dtype=np.int32)
COUNTS = np.array([max(0, 30 - t) for t in range(TRACKS)])


def exposure_of(recommended: Ragged) -> np.ndarray:
    return np.bincount(recommended.values, minlength=TRACKS)


Many = tuple[Metrics, BeyondAccuracy, np.ndarray, Ragged]


def many(n: int, seed: int = 0) -> Many:
    rng = np.random.default_rng(seed)
    recommended = Ragged.from_lengths(
        lengths := rng.integers(0, 9, n), rng.integers(0, TRACKS - 1, lengths.sum()).astype(np.int32)
    ).distinct()
    truth = Ragged.from_lengths(
        lengths := rng.integers(1, 9, n), rng.integers(0, TRACKS, lengths.sum()).astype(np.int32)
    ).distinct()
    hits = find_hits(recommended, truth, k=500)
    found = score(hits, truth, k=500, artist_of=ARTISTS)
    beyond = beyond_accuracy(hits, truth, track_facts(ARTISTS, COUNTS, 50))
    return found, beyond, rng.integers(0, 150, n).astype(np.int32), recommended


def summarised(found: Many, start: int = 0, stop: int | None = None) -> Summary:
    metrics, beyond, n_train, recommended = found
    rows = slice(start, len(n_train) if stop is None else stop)
    own = recommended.slice(rows.start, rows.stop)
    return Summary.of(
        Metrics._make(column[rows] for column in metrics),
        BeyondAccuracy._make(column[rows] for column in beyond),
        n_train[rows],
        own.lengths,
        exposure_of(own),
    )


def same(left: Summary, right: Summary) -> bool:
    return all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
        for a, b in ((getattr(left, f.name), getattr(right, f.name)) for f in fields(Summary))
    )


@given(st.integers(0, 60), st.integers(0, 5), st.data())
def test_merging_does_not_depend_on_order_or_partition(n: int, seed: int, data: st.DataObject) -> None:
    found = many(n, seed)
    whole = summarised(found)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=5)))
    parts = [summarised(found, a, b) for a, b in zip([0, *cuts], [*cuts, n], strict=True)]
    merged = Summary.empty(TRACKS)
    for part in data.draw(st.permutations(parts)):
        merged = merged.merge(part)
    assert same(merged, whole)
    assert merged.figures() == whole.figures()


def test_figures_are_the_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary_module, "_MAX_ROWS", 100)
    found, beyond, n_train, recommended = every = many(5000)
    summary = summarised(every)
    figures = summary.figures()
    assert figures["n_playlists"] == 5000
    for name in MEAN_METRICS:
        assert figures[name] == pytest.approx(getattr(found, name).mean(), rel=0, abs=1e-10)
    for name in PAGE_METRICS:
        values = getattr(beyond, name)
        assert np.isnan(values).any()
        assert figures[name] == pytest.approx(np.nanmean(values), rel=0, abs=1e-10)
    for bucket in BUCKETS:
        of_bucket = (n_train >= bucket.low) & (n_train <= (math.inf if bucket.high is None else bucket.high))
        assert figures[f"{bucket.label}/n_playlists"] == of_bucket.sum()
        for name in MEAN_METRICS:
            mean = getattr(found, name)[of_bucket].mean()
            assert figures[f"{bucket.label}/{name}"] == pytest.approx(mean, rel=0, abs=1e-10)
    for p, name in enumerate(POPULARITY):
        test = beyond.popularity_test[:, p]
        assert figures[f"popularity_{name}/n_playlists"] == (test > 0).sum() > 0
        assert figures[f"popularity_{name}/recall"] == beyond.popularity_hits[:, p].sum() / test.sum()
        assert figures[f"popularity_{name}/r_recall"] == beyond.popularity_early[:, p].sum() / test.sum()
    assert summary.clicks == tuple(int((found.clicks == c).sum()) for c in range(52))
    assert summary.share_unserved == (recommended.lengths == 0).mean() > 0
    assert figures["share_unserved"] == summary.share_unserved
    assert figures["coverage"] == summary.coverage == len(set(recommended.values.tolist())) / TRACKS < 1


def test_buckets_partition_all_sizes() -> None:
    assert [b.low for b in BUCKETS[1:]] == [b.high + 1 for b in BUCKETS[:-1] if b.high is not None]
    assert (BUCKETS[0].low, BUCKETS[-1].high) == (0, None)


def test_the_empty_summary() -> None:
    assert Summary.empty(0).figures() == {"n_playlists": 0.0, "share_unserved": 0.0, "coverage": 0.0}


def test_summaries_that_do_not_fit_raise() -> None:
    metrics, beyond, n_train, recommended = many(5)
    with pytest.raises(ValueError, match="do not fit"):
        Summary.of(metrics, beyond, n_train[:4], recommended.lengths, exposure_of(recommended))
    with pytest.raises(ValueError, match="cannot merge"):
        Summary.empty(3).merge(Summary.empty(4))
