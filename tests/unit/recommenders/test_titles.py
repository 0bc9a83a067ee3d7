"""Normalised titles and their n-grams."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encore.recommenders.titles import grams, normalised


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Work Out!!", "work out"),
        ("  W O R K   O U T  ", "workout"),
        ("R&B", "rb"),
        ("80's & 90’s", "80s 90s"),
        ("'quoted'", "quoted"),
        ("chilllllll 2000", "chill 2000"),
        ("Música ÉTÉ", "musica ete"),
        ("ﬁtness ²", "fitness 2"),
        ("workout\U0001f4aa\U0001f3fd", "workout \U0001f4aa"),
        ("❤️❤", "❤ ❤"),
        ("A1 B2 3 4", "a1 b2 3 4"),
        ("한국 노래", "한국 노래"),
        ("がんばれ", "がんばれ"),
        ("$$$ ...", ""),
        ("", ""),
    ],
)
def test_titles_are_normalised(title: str, expected: str) -> None:
    assert normalised(title) == expected


@given(st.text(max_size=30))
def test_normalised_titles_are_words_of_letters_numbers_and_symbols(title: str) -> None:
    words = normalised(title)
    assert words == " ".join(words.split())
    assert normalised(words) == words
    assert {unicodedata.category(c)[0] for c in words.replace(" ", "")} <= set("LMNS")


def test_grams_are_words_and_padded_ngrams() -> None:
    assert grams("Rap \U0001f525 x") == ["=rap", " ra", "rap", "ap ", " rap", "rap ", "=\U0001f525", "=x"]
    # the word `rap` is another feature than the n-gram inside of `trap`, and repeats count
    assert "=rap" not in grams("trap")
    assert grams("la la").count("=la") == 2
    assert grams("?!") == []
