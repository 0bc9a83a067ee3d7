"""Ids as numbers and tables of ids, compared with plain Python."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encore.arrays.track_keys import URI_PREFIX, BestRecords, KeyTable, id_words
from encore.mpd.parse import TRACK_URI

LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
IDS = st.text(LETTERS, min_size=22, max_size=22) | st.sampled_from([c * 21 + d for c in "0Zz" for d in "0Zz"])
NEARLY = st.sampled_from(
    ["", "x", URI_PREFIX, URI_PREFIX + "a" * 21, URI_PREFIX + "a" * 23, "Spotify:track:" + "a" * 22]
    + [URI_PREFIX + "a" * 11 + sign + "a" * 10 for sign in "/:@[`{ -_\0é\x7f"]
    + [URI_PREFIX + "a" * 20 + "é"]
)


def words_of(ids: list[str]) -> np.ndarray:
    words = id_words(pa.array(ids, pa.string()), "")
    assert words is not None
    return words


@given(st.lists(IDS.map(URI_PREFIX.__add__) | NEARLY, max_size=6))
def test_strings_are_accepted_if_the_pattern_matches_all_of_them(texts: list[str]) -> None:
    all_match = all(TRACK_URI.fullmatch(text) for text in texts)
    assert (id_words(pa.array(texts, pa.string())) is not None) == all_match


@given(st.lists(IDS, max_size=20), st.integers(0, 5), st.integers(0, 5))
def test_words_compare_like_the_ids(ids: list[str], before: int, after: int) -> None:
    padded = pa.array([URI_PREFIX + "A" * 22] * before + [URI_PREFIX + i for i in ids] + ["x"] * after, pa.string())
    for array in (padded.slice(before, len(ids)), pa.chunked_array([padded.slice(before, len(ids))])):
        words = id_words(array)
        assert words is not None
        assert words.tolist() == words_of(ids).tolist()
        keys = [tuple(row) for row in words.tolist()]
        assert sorted(range(len(ids)), key=keys.__getitem__) == sorted(range(len(ids)), key=ids.__getitem__)
        assert len(set(keys)) == len(set(ids))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_every_string_type_is_accepted_and_nulls_are_not(kind: pa.DataType) -> None:
    whole = pa.chunked_array([[URI_PREFIX + "a" * 22], [URI_PREFIX + "b" * 22]], kind)
    words = id_words(whole)
    assert words is not None
    assert words.tolist() == words_of(["a" * 22, "b" * 22]).tolist()
    assert id_words(pa.array([URI_PREFIX + "a" * 22, None], kind)) is None
    assert id_words(pa.chunked_array([], kind)).tolist() == []  # type: ignore[union-attr]


@given(st.lists(st.lists(st.integers(0, 40), max_size=30), max_size=6), st.lists(st.integers(0, 60), max_size=10))
def test_codes_match_a_dictionary(batches: list[list[int]], wanted: list[int]) -> None:
    table, expected = KeyTable(), dict[str, int]()
    for batch in batches:
        ids = [f"{n:022d}" for n in batch]
        codes = table.add(words_of(ids))
        assert codes.tolist() == [expected.setdefault(i, len(expected)) for i in ids]
    assert len(table) == len(expected)
    assert table.words.tolist() == words_of(list(expected)).tolist()
    found = table.find(words_of([f"{n:022d}" for n in wanted]))
    assert found.tolist() == [expected.get(f"{n:022d}", -1) for n in wanted]
    assert len(table) == len(expected), "find must not add ids"


def test_a_table_grows_over_many_batches_and_finds_every_id() -> None:
    generator = np.random.default_rng(0)
    # each id is zero in two of the three words, so every word must be compared
    words = np.zeros((30_000, 3), np.uint64)
    words[np.arange(30_000), np.arange(30_000) % 3] = generator.permutation(30_000).astype(np.uint64) + np.uint64(1)
    table = KeyTable()
    codes = np.concatenate([table.add(part) for part in np.array_split(words, 37)])
    assert codes.tolist() == list(range(30_000))
    assert table.find(words[::-1]).tolist() == codes[::-1].tolist()


RECORDS = st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 4), st.integers(0, 3))


@given(st.lists(st.lists(RECORDS, max_size=12), max_size=5))
def test_the_best_record_matches_a_linear_search(batches: list[list[tuple[int, int, int, int]]]) -> None:
    best, seen = BestRecords(), list[tuple[int, int, int, int]]()
    for batch in batches:
        ids, missing, pids, counts = (list(column) for column in zip(*batch, strict=True)) if batch else ([],) * 4
        best.add(
            words_of([f"{n:022d}" for n in ids]),
            np.array(missing, np.int8),
            np.array(pids, np.int64),
            np.array(counts, np.int32),
        )
        seen += batch
    distinct = list(dict.fromkeys(record[0] for record in seen))
    expected = [min((m, pid, row) for row, (i, m, pid, _) in enumerate(seen) if i == n) for n in distinct]
    columns = (best.column(name).tolist() for name in ("missing", "pid", "row"))
    assert list(zip(*columns, strict=True)) == expected
    assert best.column("n_rows").tolist() == [sum(c for i, _, _, c in seen if i == n) for n in distinct]
    assert best.n_records == len(seen)
