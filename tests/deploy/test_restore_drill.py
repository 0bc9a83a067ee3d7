"""The restore drill as `make restore-drill` runs it, on few playlists."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import restore_drill


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_lake_is_brought_back_from_each_loss(verified: Callable[[str], None]) -> None:
    said: list[str] = []
    done = restore_drill.run(300, said.append)
    assert said[-1] == "The lake has the rows that it had, and nothing is stale."
    assert sum("encore run has nothing to do" in line for line in said) == 3
    assert {"encore backup create", "encore backup restore: the whole lake"} <= done.seconds.keys()
    verified("restore drill: deleted objects, emptied tables and a lost bucket, on an S3 server")
