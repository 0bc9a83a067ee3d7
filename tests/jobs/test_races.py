"""One race of each kind between two processes, with and without the lake's lock; `tests.races` runs many."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.races import KINDS, Kind, Races, Tally, races

FEW = ("two first ingests", "two splits, other chunks", "two splits, other seeds")


@pytest.fixture(scope="module")
def made() -> Iterator[Races]:
    with races(s3=False) as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("locked", [True, False], ids=["lock", "no lock"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.name in FEW], ids=lambda kind: kind.name)
def test_nothing_is_doubled_lost_or_mixed(made: Races, kind: Kind, locked: bool) -> None:
    tally = Tally()
    made.pair(kind, tally, locked=locked)
    assert tally.wrong == []
