"""Normalised titles, and the words and character n-grams by which they are compared.

Playlist titles are written carelessly: `Work Out!!`, `workout 💪🏽` and `W O R K O U T` mean the same. The steps follow
those that teams of the RecSys Challenge 2018 published (lower case, no punctuation, spaced letters joined), with the
emoji, which are often all that a title has, kept as words.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_SIZES: Final = (3, 4)
"""Lengths of the character n-grams."""

_APOSTROPHES = re.compile(r"(?<=\w)['’ʼ`´](?=\w)")
_ACCENTS = re.compile("[\u0300-\u036f]")
_STRETCHED = re.compile(r"([^\W\d_])\1{2,}")
_SPACED = re.compile(r"(?<![^ ])[^\W\d_](?: [^\W\d_])+(?![^ ])")
_MODIFIERS = re.compile("[\u200b-\u200f\u2060\ufe00-\ufe0f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")
"""Invisible joiners, variation selectors, and skin tones: they vary the look of the emoji before them."""


def normalised(title: str) -> str:
    """The words of a title, separated by single spaces; empty if it has neither letters, digits nor symbols.

    Compatibility forms are replaced (NFKC), letters are folded to lower case without accents, apostrophes within words
    are dropped, and other punctuation becomes a space. Letters repeated three times or more are reduced to two, and
    letters that are written one by one are joined. Each emoji or other symbol is a word, regardless of its skin tone.
    Normalising twice changes nothing.
    """
    text = unicodedata.normalize("NFKD", _MODIFIERS.sub("", title)).casefold()
    text = unicodedata.normalize("NFKC", _ACCENTS.sub("", text))
    text = _APOSTROPHES.sub("", text)
    text = " ".join("".join(map(_spaced, text)).split())
    text = _SPACED.sub(lambda match: match[0].replace(" ", ""), text)
    return _STRETCHED.sub(r"\1\1", text)


def _spaced(character: str) -> str:
    category = unicodedata.category(character)
    # letters, the marks that some scripts write vowels with, and numbers
    if category[0] in "LMN":
        return character
    # So: emoji and other pictures; + and $ and their like carry no meaning of their own
    return f" {character} " if category == "So" else " "


def grams(title: str) -> list[str]:
    """The words of a normalised title, each after `=`, and the 3- and 4-grams of each word; repeats are kept.

    A word is padded with a space at each end, so that n-grams at its ends differ from those inside. Words without
    letters or digits (emoji) and words shorter than two characters have no n-grams.
    """
    found = []
    for word in normalised(title).split():
        found.append(f"={word}")
        if len(word) > 1 and unicodedata.category(word[0]) != "So":
            padded = f" {word} "
            found += [padded[i : i + size] for size in _SIZES for i in range(len(padded) - size + 1)]
    return found
