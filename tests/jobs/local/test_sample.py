"""evaluate.sample: only some playlists are treated, the same ones for all models, and going back leaves nothing."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from encore.config import Config
from encore.lake.scan import Scan
from encore.lake.store import open_store
from encore.lake.tables import HOLDOUT
from encore.runtime.pipeline import plan, run_pipeline
from encore.spark.row_map import RowMap
from encore.spark.session import Session
from tests import recompute
from tests.conftest import settings

TABLES = ("recommendations", "playlist_metrics")


def configured(lake: Path, raw: Path, sample: int | None = None, *more: str) -> Config:
    own = (f"raw.playlists={raw}", f"raw.features={raw}/features", "recommend.k=20")
    limit = "null" if sample is None else str(sample)
    return settings(lake, *own, "recommend.models=[cosine,popularity]", f"evaluate.sample={limit}", *more)


def rows(lake: Path, table: str) -> dict[tuple[str, int], Mapping[str, Any]]:
    found = recompute.table(lake, table)
    by_key: dict[tuple[str, int], Mapping[str, Any]] = {(row["model"], row["pid"]): row for row in found}
    assert len(by_key) == len(found)
    return by_key


def newest_means(lake: Path) -> dict[tuple[str, str, str], tuple[float, int]]:
    found = sorted(recompute.table(lake, "model_metrics"), key=lambda row: row["evaluated_at"])
    return {(row["model"], row["bucket"], row["metric"]): (row["value"], row["n_playlists"]) for row in found}


@pytest.fixture(scope="module")
def whole(session: Session, generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with all playlists evaluated."""
    lake = tmp_path_factory.mktemp("whole") / "lake"
    run_pipeline(configured(lake, generated), plan(last="evaluate"), session=session)
    return lake


def run(lake: Path, raw: Path, session: Session, sample: int | None, *more: str) -> dict[str, str]:
    results = run_pipeline(configured(lake, raw, sample, *more), plan(last="evaluate"), session=session)
    return {result.name: result.status for result in results}


@pytest.mark.slow
def test_any_order_of_samples_gives_the_rows_of_a_fresh_run(
    whole: Path, generated: Path, session: Session, tmp_path: Path
) -> None:
    every = {table: rows(whole, table) for table in TABLES}
    means = newest_means(whole)
    order = [7, 40, None, 7, 1000, None, 120]
    samples: dict[int, set[int]] = {}
    for sample in order:
        # chunks of other sizes than before, and more than one in the larger samples
        chunk = f"run.chunk_playlists={random.Random(sample or 0).choice([30, 1000])}"
        assert run(tmp_path / "lake", generated, session, sample, chunk)["evaluate"] == "done"
        assert set(run(tmp_path / "lake", generated, session, sample).values()) == {"up_to_date"}
        lists, metrics = rows(tmp_path / "lake", "recommendations"), rows(tmp_path / "lake", "playlist_metrics")
        if sample is None:
            assert lists == every["recommendations"]
            assert metrics == every["playlist_metrics"]
            assert newest_means(tmp_path / "lake") == means
            continue
        pids = samples.setdefault(sample, {pid for _, pid in metrics})
        assert len(pids) == min(sample, len(every["playlist_metrics"]) // 2)
        assert {pid for _, pid in metrics} == pids
        assert lists == {key: row for key, row in every["recommendations"].items() if key[1] in pids}
        assert metrics == {key: row for key, row in every["playlist_metrics"].items() if key[1] in pids}
        found = newest_means(tmp_path / "lake")
        for model in ("cosine", "popularity"):
            assert {n for (name, bucket, _), (_, n) in found.items() if (name, bucket) == (model, "all")} == {len(pids)}
            unserved = sum(("cosine", pid) not in lists for pid in pids) if model == "cosine" else 0
            assert found[model, "all", "share_unserved"][0] == pytest.approx(unserved / len(pids))
    assert samples[7] < samples[40]


@pytest.mark.slow
def test_only_playlists_with_test_tracks_are_sampled(generated: Path, session: Session, tmp_path: Path) -> None:
    own = ("split.protocol=challenge", "split.challenge_playlists=60")
    run(tmp_path / "lake", generated, session, 1000, *own)
    tested = {row["pid"] for row in recompute.table(tmp_path / "lake", "holdout") if row["test"]}
    assert {pid for _, pid in rows(tmp_path / "lake", "playlist_metrics")} == tested
    assert {pid for model, pid in rows(tmp_path / "lake", "recommendations") if model == "popularity"} == tested
    run(tmp_path / "lake", generated, session, 20, *own)
    assert len(rows(tmp_path / "lake", "playlist_metrics")) == 2 * 20


@pytest.mark.slow
def test_models_read_only_the_rows_of_the_sample(
    whole: Path, generated: Path, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counted(scan: Scan, *args: Any, **named: Any) -> RowMap:
        sizes.append(scan.rows)
        return RowMap(scan, *args, **named)

    monkeypatch.setattr("encore.jobs.recommend.RowMap", counted)
    run(tmp_path / "lake", generated, session, 10)
    assert sizes == [10, 10]
    store = open_store(configured(whole, generated))
    assert store.scan(HOLDOUT, ["pid"]).rows == 300
    assert not list((tmp_path / "lake").glob("**/sample-*"))
