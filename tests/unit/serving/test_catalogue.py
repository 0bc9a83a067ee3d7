"""Tracks are found by the starts of words, as a plain search over all of them finds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from encore.arrays.mapped import open_mapped
from encore.errors import LakeError
from encore.lake.track_arrays import text_rows
from encore.serving import catalogue
from encore.serving.catalogue import Catalogue, Track, build, query_words, words_of
from tests.unit.serving.bundles import texts


def uris(n: int) -> list[str]:
    """Distinct URIs whose order is not that of the tracks."""
    return [f"spotify:track:{i * 7919 % 10007:022d}" for i in range(n)]


def catalogue_of(*tracks: tuple[str, str, int]) -> Catalogue:
    """A catalogue of names, artists and popularities."""
    names, artists, counts = zip(*tracks, strict=True) if tracks else ((), (), ())
    return Catalogue(build(texts(uris(len(tracks))), texts(names), texts(artists), np.array(counts, np.int64)))


def slow_search(tracks: list[tuple[str, str, int]], text: str, n: int) -> list[int]:
    """The definition of a search."""
    wanted = query_words(text)
    found = [
        i
        for i, (name, artist, _) in enumerate(tracks)
        if wanted and all(any(w.startswith(q) for w in words_of(name) | words_of(artist)) for q in wanted)
    ]
    return sorted(found, key=lambda i: (-tracks[i][2], i))[:n]


WORDS = st.sampled_from(["a", "ab", "abc", "b", "ba", "Á", "ß", "don't", "AC/DC", "(b)", "\n", "\0", "東京", "東"])
TEXTS = st.lists(WORDS | st.text(max_size=3), max_size=4).map(" ".join)
TRACKS = st.lists(st.tuples(TEXTS, TEXTS, st.integers(0, 3)), max_size=40)


@given(TRACKS, TEXTS, st.integers(1, 12))
def test_a_search_finds_what_its_definition_says(tracks: list[tuple[str, str, int]], text: str, n: int) -> None:
    assert catalogue_of(*tracks).search(text, n) == slow_search(tracks, text, n)


@pytest.fixture(scope="module")
def searches() -> tuple[list[tuple[str, str, int]], dict[str, list[int]]]:
    """Many tracks, and by text what a plain search finds among them, which takes long."""
    draw = np.random.default_rng(3)
    some = ["".join(draw.choice(list("abc"), 1 + i % 4)) for i in range(60)]
    tracks = [(" ".join(draw.choice(some, 3)), str(draw.choice(some)), int(draw.integers(9))) for _ in range(20_000)]
    wanted = ["a", "ab", "a b", "a b c", "abc a", "abca", "cab b ac", "zz", "a zz", some[0], f"{some[1]} a"]
    return tracks, {text: slow_search(tracks, text, 10) for text in wanted}


@pytest.mark.parametrize("few", [0, 1 << 20])
@pytest.mark.parametrize("share", [1, 16, 1 << 20])
def test_lists_and_bitmaps_find_the_same(
    few: int,
    share: int,
    searches: tuple[list[tuple[str, str, int]], dict[str, list[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogue, "BITMAP_SHARE", share)
    monkeypatch.setattr(catalogue, "_FEW", few)
    tracks, expected = searches
    searched = catalogue_of(*tracks)
    for text, found in expected.items():
        assert searched.search(text, 10) == found, text


def test_case_accents_and_punctuation_do_not_matter() -> None:
    found = catalogue_of(
        ("Déjà Vu", "Beyoncé", 1),
        ("Don't Stop", "Sigur Rós", 2),
        ("T.N.T. (Live)", "AC/DC", 3),
        ("Straße", "ØRSTED", 4),
        ("夜に駆ける", "ヨアソビ", 5),
        ("Ｆｕｌｌ width", "", 6),
    )
    for text, track in {
        "deja BEYON": 0,
        "dont": 1,
        "don't stop": 1,
        "rós": 1,
        "ros sigur": 1,
        "acdc tnt": 2,
        "ac/dc": 2,
        "(live": 2,
        "STRASSE": 3,
        "夜": 4,
        "full": 5,
    }.items():
        assert found.search(text, 5) == [track], text


def test_what_has_no_words_finds_nothing() -> None:
    found = catalogue_of(("", "", 5), ("?!", "Rock", 7))
    for text in ["", "  ", "?", "!!!", "\0", "\n", "́"]:
        assert found.search(text, 5) == [], text
    assert found.search("rock", 5) == [1]
    assert found[0] == Track(uris(1)[0], None, None, 5)
    assert found.popular(5) == [1, 0]


def test_a_long_query_is_cut() -> None:
    name = " ".join(f"w{i}" for i in range(catalogue.MAX_WORDS))
    found = catalogue_of((name, "", 1))
    assert found.search(f"{name} other", 1) == [0]
    assert found.search(f"other {name}", 1) == []


def test_an_empty_catalogue_answers() -> None:
    empty = catalogue_of()
    assert empty.search("a", 5) == []
    assert empty.popular(5) == []
    assert empty.ids_of(["x", uris(1)[0]]).tolist() == [-1, -1]


@given(st.lists(st.text(max_size=25), max_size=5))
def test_ids_are_those_of_known_tracks(others: list[str]) -> None:
    found = catalogue_of(*[(f"Track {i}", "", 0) for i in range(30)])
    known = uris(30)
    wanted = [known[7], *others, known[3].removeprefix("spotify:track:"), known[7]]
    assert found.ids_of(wanted).tolist() == [7, *[-1] * len(others), 3, 7]
    assert found.uris(np.array([7, 3])) == [known[7], known[3]]


@pytest.mark.parametrize(
    "wrong",
    [
        "spotify:track:" + "a" * 21,
        "spotify:track:" + "a" * 21 + "\0",
        "spotify:track:" + "a" * 23,
        "a" * 21 + "é",
        "spotify:album:" + "0" * 22,
        "spotify:track:spotify:track:" + "0" * 22,
        "",
    ],
)
def test_what_is_no_track_is_unknown(wrong: str) -> None:
    found = Catalogue(build(texts(["spotify:track:" + "0" * 22]), texts([""]), texts([""]), np.array([0])))
    assert found.ids_of([wrong]).tolist() == [-1]


@pytest.mark.parametrize("uri", ["spotify:album:" + "0" * 22, "spotify:track:" + "0" * 21, ""])
def test_a_wrong_uri_is_refused(uri: str) -> None:
    good = "spotify:track:" + "1" * 22
    with pytest.raises(ValueError, match="row 1"):
        build(texts([good, uri]), texts(["", ""]), texts(["", ""]), np.zeros(2, np.int64))


def test_arrays_can_be_mapped(tmp_path: Path) -> None:
    arrays = build(texts(uris(3)), texts(["a b", "b", ""]), texts(["c", "c", ""]), np.array([1, 2, 3]))
    mapped: dict[str, NDArray[np.int32]] = {}
    for name, array in arrays.items():
        np.save(tmp_path / name, array, allow_pickle=False)
        mapped[name] = open_mapped(tmp_path / f"{name}.npy")
    assert Catalogue(mapped).search("c b", 9) == [1, 0]


def test_texts_of_tracks_are_read_in_the_order_of_ids() -> None:
    part = pa.table({"track_id": pa.array([2, 0, 9, 1], pa.int32()), "track_name": ["é", None, "x", "one"]})
    parts = [part.slice(0, 2), part.slice(3, 1)]
    rows = text_rows(parts, "track_name", 3)
    assert [bytes(rows[i]).decode() for i in range(3)] == ["", "one", "é"]
    assert len(text_rows([], "track_name", 0)) == 0
    with pytest.raises(LakeError, match="4 tracks"):
        text_rows(parts, "track_name", 4)
