"""Playlists that several files have: the first by name of the files that are there has it, whatever was before."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from encore.mpd.ownership import Claims, settle

NAMES = ["a", "b", "c", "d"]
Claim = tuple[int, str] | tuple[int, str, str]


def claims(*rows: Claim) -> Claims:
    """Claims of a pid by a file, and the file that the lake has it from where that is another."""
    pids = np.array([row[0] for row in rows], np.int64)
    files, taken_from = ([row[min(i, len(row) - 1)] for row in rows] for i in (1, 2))
    return Claims.of(NAMES, pids, pa.array(files, pa.string()), pa.array(taken_from, pa.string()))


@pytest.mark.parametrize(
    ("read", "taken"),
    [
        ([], {}),
        ([(1, "a"), (2, "b")], {}),
        ([(1, "b"), (1, "a")], {"b": {1: "a"}}),
        ([(1, "c"), (1, "b"), (1, "a"), (2, "c")], {"b": {1: "a"}, "c": {1: "a"}}),
        ([(1, "c"), (2, "b"), (1, "b"), (2, "c"), (3, "c")], {"c": {1: "b", 2: "b"}}),
    ],
)
def test_the_first_file_by_name_has_a_playlist(read: list[Claim], taken: dict[str, dict[int, str]]) -> None:
    for seed in range(3):
        assert settle(NAMES, claims(*random.Random(seed).sample(read, len(read))), claims()) == (taken, set())


@pytest.mark.parametrize(
    ("read", "held", "taken", "others"),
    [
        ([(1, "b")], [(2, "a")], {}, set()),
        ([(1, "b")], [(1, "a")], {"b": {1: "a"}}, set()),
        ([(1, "a")], [(1, "b"), (2, "c")], {}, {"b"}),
        ([], [(1, "a"), (1, "b", "a"), (1, "d", "a")], {}, set()),
        # who has it now is not who had it when the others were refused
        ([(1, "a")], [(1, "b"), (1, "c", "b")], {}, {"b", "c"}),
        # the one that had it let it go, or is gone
        ([(2, "a")], [(1, "b", "a"), (1, "c", "a")], {}, {"b", "c"}),
        ([], [(1, "b", "gone"), (2, "c")], {}, {"b"}),
        # files that are gone claim nothing
        ([(1, "c")], [(1, "gone")], {}, set()),
    ],
)
def test_files_of_which_the_lake_says_something_else_have_to_be_read(
    read: list[Claim], held: list[Claim], taken: dict[str, dict[int, str]], others: set[str]
) -> None:
    assert settle(NAMES, claims(*read), claims(*held)) == (taken, others)
