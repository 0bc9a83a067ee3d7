"""What makes a result stale and what does not: each change affects what depends on it, and nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from encore.config import Config
from encore.errors import TransientError
from encore.lake.delta import Change, changes
from encore.lake.parquet import REPORT, Writer
from encore.lake.scan import KeyRange
from encore.lake.store import Store
from encore.lake.tables import HOLDOUT, MODEL_METRICS, PLAYLIST_METRICS, RECOMMENDATIONS, Table
from encore.lake.transaction import Transaction
from encore.runtime.pipeline import plan, run_pipeline
from encore.runtime.runner import run_job
from encore.runtime.tracking import Tracking
from encore.spark.session import Session
from tests import recompute
from tests.conftest import settings

K = 20
MODELS = "recommend.models=[popularity,random]"
DERIVED = ("track_vectors", "vector_parameters", "holdout", "playlist_centroids", "recommendations", "playlist_metrics")


@pytest.fixture(scope="module")
def made(session: Session, generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake on which the pipeline has run once, with two models."""
    lake = tmp_path_factory.mktemp("stale") / "lake"
    run(session, configured(lake, generated, MODELS), "first")
    return lake


@pytest.fixture
def lake(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `made`, whose runs are logged to the same MLflow store."""
    shutil.copytree(made, tmp_path / "lake")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{made}-mlflow.db")
    return tmp_path / "lake"


def configured(lake: Path, raw: Path, *more: str) -> Config:
    own = (f"raw.playlists={raw}", f"raw.features={raw}/features", f"recommend.k={K}")
    store = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{lake}-mlflow.db")
    return settings(lake, f"tracking.uri={store}", *own, *more)


def run(session: Session, config: Config, run_id: str) -> dict[str, str]:
    results = run_pipeline(config, plan(last="evaluate"), session=session, run_id=run_id)
    return {result.name: result.status for result in results}


def written_by(config: Config, table: Table, run_id: str) -> list[Change]:
    store = Store(config, lambda: pytest.fail("no Spark is needed"))
    return [c for c in changes(store.there(table)) if c.commit and c.commit.run_id == run_id]


def models_in(found: Sequence[Change]) -> set[str]:
    return {dict(change.commit.partition)["model"] for change in found if change.commit}


class TestModels:
    """Adding, dropping or changing one model affects only that model."""

    def touched(self, session: Session, config: Config, run_id: str) -> list[set[str]]:
        run(session, config, run_id)
        tables = (RECOMMENDATIONS, PLAYLIST_METRICS, MODEL_METRICS)
        return [models_in(written_by(config, table, run_id)) for table in tables]

    @pytest.mark.slow
    def test_a_model_more_one_less_and_one_that_is_set_otherwise(
        self, session: Session, lake: Path, generated: Path
    ) -> None:
        more = configured(lake, generated, "recommend.models=[popularity,cosine,random]")
        assert self.touched(session, more, "more") == [{"cosine"}] * 3
        assert set(run(session, more, "again").values()) == {"up_to_date"}
        assert recompute.problems(lake, generated, k=K) == []

        reordered = configured(lake, generated, "recommend.models=[random,popularity,cosine]")
        assert self.touched(session, reordered, "reordered") == [set()] * 3

        seed = ("recommend.models=[popularity,cosine,random]", "recommend.seed=7")
        assert self.touched(session, configured(lake, generated, *seed), "seed") == [{"random"}] * 3

        vectors = configured(lake, generated, *seed, "vectors.transform=raw")
        assert self.touched(session, vectors, "vectors") == [{"cosine"}] * 3

        less = configured(lake, generated, "recommend.models=[popularity,random]", "recommend.seed=7")
        run(session, less, "less")
        assert [len(written_by(less, table, "less")) for table in (RECOMMENDATIONS, PLAYLIST_METRICS)] == [1, 1]
        assert {row["model"] for row in recompute.table(lake, "recommendations")} == {"popularity", "random"}

    def test_blocks_that_bound_memory_change_nothing(self, session: Session, lake: Path, generated: Path) -> None:
        blocks = ("recommend.query_block=7", "recommend.item_block=100", "run.chunk_playlists=77")
        statuses = run(session, configured(lake, generated, MODELS, *blocks), "blocks")
        assert set(statuses.values()) == {"up_to_date"}

    def test_a_forced_run_is_up_to_date_afterwards(self, session: Session, lake: Path, generated: Path) -> None:
        config = configured(lake, generated, MODELS)
        for job in ("split_holdout", "fit_models", "recommend"):
            assert run_job(job, config, session, Tracking(config, "forced"), force=True).status == "done"
            assert run_job(job, config, session, Tracking(config, "next")).status == "up_to_date"
        assert models_in(written_by(config, RECOMMENDATIONS, "forced")) == {"popularity", "random"}


class TestDroppedTables:
    @pytest.mark.parametrize(
        "name",
        [
            name if name == "holdout" else pytest.param(name, marks=pytest.mark.slow)
            for name in (*DERIVED, "audio_features", "model_metrics", "job_runs")
        ],
    )
    def test_a_dropped_table_is_made_again(self, session: Session, lake: Path, generated: Path, name: str) -> None:
        config = configured(lake, generated, "recommend.models=[popularity,random]")
        before = recompute.contents(lake)
        shutil.rmtree(lake / name)
        run(session, config, "after")
        after = recompute.contents(lake)
        assert after == before
        assert set(run(session, config, "again").values()) == {"up_to_date"}

    @pytest.mark.slow
    def test_versions_of_a_table_made_anew_are_not_those_of_the_old_one(
        self, session: Session, lake: Path, generated: Path
    ) -> None:
        """The new holdout has the same version numbers as the old one."""
        shutil.rmtree(lake / "holdout")
        statuses = run(session, configured(lake, generated, MODELS, "split.seed=1"), "other")
        assert statuses["recommend"] == statuses["evaluate"] == "done"
        rows = {(row["model"], row["pid"]): row["track_ids"] for row in recompute.table(lake, "recommendations")}
        for row in recompute.table(lake, "holdout"):
            assert not set(rows["popularity", row["pid"]]) & set(row["train"])


class TestInterleavedRuns:
    """Concurrent runs with different settings on one lake: the table comes from one run, and the other detects it."""

    def test_a_run_whose_rows_another_one_replaced_is_refused(
        self, session: Session, lake: Path, generated: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, two = (configured(lake, generated, MODELS, f"split.seed={n}", "run.chunk_playlists=100") for n in (1, 2))
        real, calls = Transaction.commit, []

        def commit(self: Transaction, *given: Any, **options: Any) -> int:
            version = real(self, *given, **options)
            calls.append(version)
            if len(calls) == 1:
                run_job("split_holdout", two, session, Tracking(two, "two"))
            return version

        monkeypatch.setattr(Transaction, "commit", commit)
        with pytest.raises(TransientError, match="the run two committed version"):
            run_job("split_holdout", one, session, Tracking(one, "one"))
        monkeypatch.setattr(Transaction, "commit", real)
        assert run_job("split_holdout", two, session, Tracking(two, "later")).status == "up_to_date"
        assert run_job("split_holdout", one, session, Tracking(one, "again")).status == "done"
        assert run_job("split_holdout", one, session, Tracking(one, "last")).status == "up_to_date"

    def test_rows_of_other_work_make_a_table_stale(
        self, session: Session, lake: Path, generated: Path, rows_of: Callable[[Path], dict[int, Any]]
    ) -> None:
        """However they were written: here by a commit to a range that is not in the record of the last run."""
        one, two = (configured(lake, generated, MODELS, f"split.seed={n}") for n in (1, 2))
        assert run_job("split_holdout", one, session, Tracking(one, "one")).status == "done"
        expected = rows_of(lake)
        store = Store(two, session)
        transaction = Transaction(store, HOLDOUT, store.there(HOLDOUT))
        newest = next(changes(store.there(HOLDOUT)))
        assert newest.commit is not None
        part = store.scan(HOLDOUT, HOLDOUT.names, where=KeyRange((), "pid", 10, 20)).whole()
        writer = Writer(HOLDOUT, store.location(HOLDOUT))
        writer.write(part.set_column(1, "train", part["test"]).set_column(2, "test", part["train"]))
        other = replace(newest.commit, fingerprint="of other work")
        transaction.commit(pa.Table.from_batches([writer.close()], REPORT), other, KeyRange((), "pid", 10, 20))
        assert rows_of(lake) != expected
        assert run_job("split_holdout", one, session, Tracking(one, "again")).status == "done"
        assert rows_of(lake) == expected
        again = written_by(one, HOLDOUT, "again")
        assert [change.commit.rows for change in again if change.commit] == [(10, 20)], "the rest is as it should be"


@pytest.fixture
def rows_of() -> Callable[[Path], dict[int, Any]]:
    return lambda lake: {row["pid"]: (row["train"], row["test"]) for row in recompute.table(lake, "holdout")}
