"""The scorer answers what the models answer, and a damaged bundle is not opened."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from encore.arrays.ragged import NamedArrays, Ragged
from encore.arrays.ranked import Ranked
from encore.errors import InputError
from encore.recommenders.base import Queries, recommend
from encore.recommenders.reasons import TITLE
from encore.serving.bundle import Bundle, verify
from encore.serving.scorer import Playlist, Scorer
from tests.unit.recommenders.cases import fitted
from tests.unit.serving.bundles import URIS, small_bundle


@pytest.mark.parametrize("model", ["ranker", "fusion", "ials", "adjacency"])
def test_rows_are_those_of_the_model(model: str) -> None:
    scorer = Scorer.open(small_bundle())
    (row,) = scorer.recommend([Playlist([URIS[3], URIS[17], "spotify:track:" + "z" * 22], "Rock")], 10, model)
    expected = recommend(fitted(model), Queries.of(Ragged.from_lists([[3, 17]]), titles=["Rock"]), 10)
    assert row.ids.tolist() == expected.ids[0].tolist()
    assert row.scores.tolist() == expected.scores.tolist()
    assert row.unknown == 1


class Helper(ThreadPoolExecutor):
    """A thread, the names of those that have computed something, and how many parts it was given."""

    def __init__(self) -> None:
        super().__init__(1, "helper")
        self.threads: set[str] = set()
        self.given = 0

    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        def noted() -> Any:
            self.threads.add(threading.current_thread().name)
            return work(*args, **options)

        self.given += 1
        return super().submit(noted)


@pytest.mark.parametrize("model", ["ranker", "fusion"])
def test_rows_are_the_same_with_the_help_of_another_thread(model: str) -> None:
    playlists = [Playlist(URIS[i : i + 3], title) for i in range(0, 30, 3) for title in ("Rock", None)]
    alone = Scorer.open(small_bundle()).recommend(playlists, 20, model)
    with Helper() as helper:
        scorer = Scorer.open(small_bundle(), helper)
        # which thread computes what is not always the same
        for playlist, expected in zip(playlists * 5, alone * 5, strict=True):
            (row,) = scorer.recommend([playlist], 20, model)
            assert row.ids.tolist() == expected.ids.tolist()
            assert row.scores.tolist() == expected.scores.tolist()
    assert helper.threads == {"helper_0"}


class Waiting:
    """A model that waits."""

    def __init__(self) -> None:
        self.arrays: NamedArrays = {}
        self.asked, self.go = threading.Event(), threading.Event()

    def candidates(self, queries: Queries, n: NDArray[np.int64]) -> Ranked:
        """Nothing, some time later."""
        self.asked.set()
        assert self.go.wait(60)
        return Ranked.empty(len(queries))


def test_there_is_help_only_while_there_is_no_other_request() -> None:
    waiting, playlist = Waiting(), Playlist(URIS[:3], "Rock")
    with Helper() as helper, ThreadPoolExecutor(1) as other:
        scorer = Scorer.open(small_bundle(), helper)
        scorer.models["waiting"] = waiting
        running = other.submit(scorer.recommend, [playlist], 5, "waiting")
        assert waiting.asked.wait(60)
        scorer.recommend([playlist], 5, "fusion")
        assert helper.given == 0
        waiting.go.set()
        assert not len(running.result()[0].ids)
        with pytest.raises(KeyError):
            scorer.recommend([playlist], 5, "unknown")
        scorer.recommend([playlist], 5, "fusion")
        assert helper.given > 0


def test_a_track_is_explained_by_a_seed_or_else_by_the_title() -> None:
    scorer = Scorer.open(small_bundle())
    with_title = Playlist([URIS[3]], "Rock")
    (row,) = scorer.recommend([with_title], 40)
    found = scorer.explain(with_title, row.ids)
    assert {reason.seed for reason in found if reason} == {3, TITLE}
    assert found[0] is not None
    assert scorer.explain(Playlist([URIS[3]]), row.ids)[0] == found[0]
    (row,) = scorer.recommend([Playlist([], "Rock")], 5)
    assert {reason.seed for reason in scorer.explain(Playlist([], "Rock"), row.ids) if reason} == {TITLE}
    assert scorer.explain(Playlist([]), row.ids) == [None] * 5


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(small_bundle(), folder)
    verify(folder)
    path = folder / "models" / "ials" / "vectors.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"ials/vectors\.npy"):
        verify(folder)
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match="bytes, found"):
        Bundle(folder)
