"""The whole pipeline on 300 generated playlists: correct, repeatable, resumable, and independent of partitioning."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from mlflow import MlflowClient
from rich.console import Console

from encore.cli.show import print_last_run
from encore.config import Config
from encore.errors import LakeError, TransientError
from encore.evaluation.metrics import MEAN_METRICS
from encore.features import vectors
from encore.lake.delta import Interval, changes
from encore.lake.lock import LakeLock
from encore.lake.scan import KeyRange
from encore.lake.store import Store
from encore.lake.tables import AUDIO_FEATURES, CHECKS, HOLDOUT, PLAYLISTS, RECOMMENDATIONS, TRACKS, Table, arrow_schema
from encore.lake.transaction import Transaction
from encore.runtime.pipeline import plan, run_pipeline
from encore.runtime.registry import JOBS, job_module
from encore.runtime.runner import run_job
from encore.runtime.tracking import Tracking
from encore.spark.session import Session
from tests import recompute
from tests.conftest import settings, write_slice

K = 100


def line(config: Config, session: Session, **options: Any) -> list[str]:
    """Run all jobs; returns the status of each."""
    return [result.status for result in run_pipeline(config, plan(), session=session, **options)]


def configured(lake: Path, raw: Path, *more: str) -> Config:
    own = (f"raw.playlists={raw}", f"raw.features={raw}/features", f"recommend.k={K}")
    return settings(lake, *own, *more)


@pytest.fixture(scope="module")
def made(session: Session, generated: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A lake on which the pipeline has run once."""
    lake = tmp_path_factory.mktemp("line") / "lake"
    config = configured(lake, generated)
    assert line(config, session) == ["done"] * len(JOBS)
    return lake, config


def test_every_table_is_what_follows_from_the_raw_files(made: tuple[Path, Config], generated: Path) -> None:
    assert recompute.problems(made[0], generated, k=K) == []


def test_ndcg_by_its_definition(made: tuple[Path, Config]) -> None:
    lake, _ = made
    holdout = {row["pid"]: row["test"] for row in recompute.table(lake, "holdout")}
    ranked = {(row["model"], row["pid"]): row["track_ids"] for row in recompute.table(lake, "recommendations")}
    for row in recompute.table(lake, "playlist_metrics"):
        found = ranked.get((row["model"], row["pid"]), [])
        assert row["ndcg"] == pytest.approx(recompute.ndcg_of(found, holdout[row["pid"]], K), abs=1e-12)


def test_mlflow_has_a_parent_run_and_a_child_for_each_model_with_the_means(made: tuple[Path, Config]) -> None:
    lake, config = made
    client = MlflowClient(tracking_uri=config.tracking.uri)
    experiment = client.get_experiment_by_name("encore")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if run.data.tags["encore.kind"] == "pipeline"]
    children = {run.data.tags["model"]: run for run in runs if "model" in run.data.tags}
    assert len(parents) == 1
    assert set(children) == set(config.recommend.models)
    parent = parents[0]
    assert parent.info.status == "FINISHED"
    assert {f"seconds.{job}" for job in JOBS} <= set(parent.data.metrics)
    assert parent.data.metrics["rows.playlists"] == 300
    assert parent.data.params["split.seed"] == "42"
    assert parent.data.tags["version.tracks"] == str(recompute.versions(lake)["tracks"])
    assert parent.data.tags["mlflow.source.git.commit"]
    rows = recompute.table(lake, "playlist_metrics")
    for model, run in children.items():
        own = [row for row in rows if row["model"] == model]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.metrics["n_playlists"] == len(own)
        for name in MEAN_METRICS:
            assert run.data.metrics[name] == pytest.approx(sum(row[name] for row in own) / len(own), abs=1e-10)
        assert any(name.startswith("train_") and name.endswith("/ndcg") for name in run.data.metrics)
        plots = [item.path for item in client.list_artifacts(run.info.run_id, "plots")]
        assert len(plots) >= 2
    assert children["cosine"].data.metrics["r_precision"] > 2 * children["random"].data.metrics["r_precision"]
    for model, run in children.items():
        assert {"coverage", "gini", "novelty", "artist_diversity", "popularity_head/recall"} <= set(run.data.metrics), (
            model
        )
    assert children["popularity"].data.metrics["novelty"] < children["random"].data.metrics["novelty"]
    assert children["popularity"].data.metrics["gini"] > children["random"].data.metrics["gini"]


def test_the_differences_between_models_are_an_artefact_of_the_parent_run(made: tuple[Path, Config]) -> None:
    lake, config = made
    client = MlflowClient(tracking_uri=config.tracking.uri)
    experiment = client.get_experiment_by_name("encore")
    parent = next(r for r in client.search_runs([experiment.experiment_id]) if r.data.tags["encore.kind"] == "pipeline")
    file = Path(client.download_artifacts(parent.info.run_id, "report/intervals.csv"))
    table = list(csv.DictReader(file.read_text().splitlines()))
    rows = {(row["model"], row["pid"]): row for row in recompute.table(lake, "playlist_metrics")}
    pids = {pid for _, pid in rows}
    best = max(config.recommend.models, key=lambda model: sum(rows[model, pid]["ndcg"] for pid in pids))
    others = set(config.recommend.models) - {best}
    assert {(row["model"], row["compared_with"]) for row in table} == {(other, best) for other in others}
    for row in table:
        name = row["metric"]
        mean = sum(rows[row["model"], pid][name] - rows[best, pid][name] for pid in pids) / len(pids)
        assert float(row["difference"]) == pytest.approx(mean, abs=1e-8)
        assert float(row["low"]) <= mean <= float(row["high"])
        assert int(row["n_playlists"]) == len(pids)


def test_tracks_in_no_training_playlist_are_recommended_by_their_features_only(made: tuple[Path, Config]) -> None:
    lake, _ = made
    trained = {track for row in recompute.table(lake, "holdout") for track in row["train"]}
    with_vectors = {row["track_id"] for row in recompute.table(lake, "track_vectors")}
    found: dict[str, set[int]] = {}
    for row in recompute.table(lake, "recommendations"):
        found.setdefault(row["model"], set()).update(set(row["track_ids"]) - trained)
    assert found["cosine"]
    assert found["cosine"] <= with_vectors
    assert not found["popularity"]


def test_running_again_changes_no_table_and_starts_no_spark(made: tuple[Path, Config]) -> None:
    lake, config = made
    before = recompute.versions(lake)
    unused = Session(config)
    assert line(config, unused) == ["up_to_date"] * len(JOBS)
    assert not unused.started
    assert recompute.versions(lake) == before


LOGS_READ = {
    "ingest_playlists": 6,
    "ingest_features": 5,
    "check": 7,
    "build_track_vectors": 5,
    "split_holdout": 3,
    "build_centroids": 5,
    "fit_models": 6,
    "recommend": 7,
    "evaluate": 6,
    "check_results": 4,
    "register_models": 9,
    "report": 13,
}
"""A job with nothing to do opens once the log of each table that it reads or writes, and that of `job_runs`."""


def test_a_job_with_nothing_to_do_opens_each_log_once(
    made: tuple[Path, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config = made
    opened: dict[str, list[str]] = {}
    real, job = Store.open, ""

    def delta(self: Store, table: Table) -> Any:
        opened.setdefault(job, []).append(table.name)
        return real(self, table)

    monkeypatch.setattr(Store, "open", delta)
    unused, tracking = Session(config), Tracking(config, "again")
    for job in JOBS:
        assert run_job(job, config, unused, tracking).status == "up_to_date"
    assert {name: len(tables) for name, tables in opened.items()} == LOGS_READ
    assert all(len(set(tables)) == len(tables) for tables in opened.values())


class TestCosts:
    """The recorded cost of each job: amounts of work, which do not depend on the load of the machine."""

    @pytest.fixture(scope="class")
    def costs(self, made: tuple[Path, Config]) -> dict[str, dict[str, Any]]:
        return {row["job"]: row for row in recompute.table(made[0], "job_costs")}

    def test_every_job_has_a_row_with_time_and_memory(self, costs: dict[str, dict[str, Any]]) -> None:
        assert set(costs) == set(JOBS)
        for row in costs.values():
            assert row["seconds"] > 0
            assert 50e6 < row["driver_bytes"] < 10e9
        # memory is sampled once a second, so a job with short stages may have no figure
        assert max(row["jvm_bytes"] for row in costs.values()) > 50e6
        assert max(row["python_bytes"] for row in costs.values()) > 50e6
        assert 0 < costs["recommend"]["run_seconds"] < 2 * costs["recommend"]["seconds"]

    def test_nothing_is_shuffled_or_spilled(self, costs: dict[str, dict[str, Any]]) -> None:
        for row in costs.values():
            assert (row["shuffled_rows"], row["shuffled_bytes"], row["spilled_bytes"]) == (0, 0, 0)

    def test_tasks(self, costs: dict[str, dict[str, Any]]) -> None:
        # two cores: one task per core in each pass of ingest, then two per core and chunk; one chunk, three models
        expected = {"ingest_playlists": 4, "split_holdout": 4, "build_centroids": 4, "recommend": 12, "evaluate": 4}
        assert {job: row["tasks"] for job, row in costs.items() if row["tasks"]} == expected

    def test_rows_and_bytes_are_those_of_the_files(
        self, made: tuple[Path, Config], costs: dict[str, dict[str, Any]], generated: Path
    ) -> None:
        store = Store(made[1], Session(made[1]))
        for job, row in costs.items():
            written = [state for table in job_module(job).WRITES if (state := store.state(table))]
            if CHECKS in job_module(job).WRITES:
                # two jobs write it, each of them a partition
                own = [row for row in recompute.table(made[0], "checks") if row["job"] == job]
                assert row["written_rows"] == len(own) > 5, job
                continue
            assert row["written_bytes"] == sum(state.bytes for state in written), job
            assert row["written_rows"] == sum(state.rows for state in written), job
        size = sum(path.stat().st_size for path in generated.glob("*.json"))
        assert size <= costs["ingest_playlists"]["read_bytes"]
        assert costs["ingest_playlists"]["read_rows"] == 300
        assert costs["split_holdout"]["read_rows"] == 2 * 300, "once for the pids, once for the lists"
        # rows read: artists of the tracks, training tracks to count them, pids, held-out tracks, three lists per
        # playlist, the metrics for the means;
        # bytes written: for two models, K ids and K scores of four bytes each; the third model's lists are almost
        # the same for all playlists, so they compress well
        n_tracks = len(recompute.table(made[0], "tracks"))
        assert costs["evaluate"]["read_rows"] == n_tracks + 3 * 300 + 3 * 300 + 3 * 300
        assert costs["recommend"]["written_bytes"] < 300 * (2 * 1.1 * 8 * K + 100)

    def test_they_are_in_mlflow_and_in_the_report(self, made: tuple[Path, Config]) -> None:
        lake, config = made
        client = MlflowClient(tracking_uri=config.tracking.uri)
        runs = client.search_runs([client.get_experiment_by_name("encore").experiment_id])
        (parent,) = [run for run in runs if run.data.tags["encore.kind"] == "pipeline"][-1:]
        (row,) = [row for row in recompute.table(lake, "job_costs") if row["job"] == "recommend"]
        assert parent.data.metrics["cost.recommend.tasks"] == row["tasks"]
        assert parent.data.metrics["cost.recommend.written_bytes"] == row["written_bytes"]
        page = (Path(config.report.path) / "report.html").read_text()
        assert "What the jobs cost" in page or "job_costs" in page
        assert page.count('<div class="playlist">') == config.report.compare_playlists
        out = Console(record=True, width=250, file=io.StringIO())
        print_last_run(config, out)
        assert "what they cost" in out.export_text()


@pytest.mark.slow
def test_every_job_again_with_other_tasks_chunks_and_blocks_gives_the_same_rows(
    made: tuple[Path, Config], session: Session, tmp_path: Path
) -> None:
    lake, config = made
    shutil.copytree(lake, tmp_path / "lake")
    other = configured(
        tmp_path / "lake",
        Path(config.raw.playlists),
        "ingest.slices_per_task=2",
        "run.chunk_playlists=160",
        "recommend.query_block=7",
        "recommend.item_block=1000",
        "recommend.index_items=5000",
    )
    results = run_pipeline(other, plan(last="evaluate"), session=session, force=True)
    assert {result.status for result in results} == {"done"}
    ours, theirs = recompute.contents(tmp_path / "lake"), recompute.contents(lake)
    for found in (ours, theirs):
        # without a digest: the arrays of its index are laid out in blocks
        found["models"] = ["cosine" if text.startswith("cosine ") else text for text in found["models"]]
    assert ours == theirs
    commits = [change.commit for change in changes(Store(other, session).there(RECOMMENDATIONS))]
    assert {(commit.partition[0][1], commit.rows) for commit in commits[:6] if commit} == {
        (model, rows) for model in other.recommend.models for rows in ((None, 160), (160, None))
    }


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [40, 1000])
def test_a_run_that_broke_off_goes_on_where_it_was_however_it_is_cut(
    made: tuple[Path, Config], session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    lake, config = made
    shutil.copytree(lake, tmp_path / "lake")
    raw = Path(config.raw.playlists)
    own = configured(tmp_path / "lake", raw, "split.seed=1", "run.chunk_playlists=100")
    written: list[Interval | None] = []
    real = Transaction.commit

    def commit(self: Transaction, reports: Any, commit: Any, where: Any, **options: Any) -> int:
        if len(written) == 2:
            raise LakeError("the power went")
        version = real(self, reports, commit, where, **options)
        written.append((where.low, where.high))
        return version

    job = "split_holdout"
    monkeypatch.setattr(Transaction, "commit", commit)
    with pytest.raises(LakeError, match="the power went"):
        run_job(job, own, session, Tracking(own, "broken"))
    assert written == [(None, 100), (100, 200)]

    monkeypatch.setattr(Transaction, "commit", real)
    again = configured(tmp_path / "lake", raw, "split.seed=1", f"run.chunk_playlists={chunk}")
    assert run_job(job, again, session, Tracking(own, "again")).status == "done"
    assert run_job(job, again, session, Tracking(own, "once more")).status == "up_to_date"
    log = Store(own, session).there(HOLDOUT)
    later = [change.commit for change in changes(log) if change.commit and change.commit.run_id == "again"]
    assert min(commit.rows[0] for commit in later if commit.rows and commit.rows[0] is not None) == 200
    rows = {row["pid"]: row["test"] for row in recompute.table(tmp_path / "lake", "holdout")}
    assert len(rows) == 300
    assert rows != {row["pid"]: row["test"] for row in recompute.table(lake, "holdout")}


@pytest.mark.slow
def test_an_evaluation_that_broke_off_counts_every_list_once(
    made: tuple[Path, Config], session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, config = made
    shutil.copytree(lake, tmp_path / "lake")
    for name in ("playlist_metrics", "model_metrics"):
        shutil.rmtree(tmp_path / "lake" / name)
    own = configured(tmp_path / "lake", Path(config.raw.playlists), "run.chunk_playlists=100")
    written: list[str] = []
    real = Transaction.commit

    def commit(self: Transaction, reports: Any, commit: Any, where: Any, **options: Any) -> int:
        # the first range of all models, and the second one of one model
        if len(written) == 4:
            raise LakeError("the power went")
        written.append(commit.part)
        return real(self, reports, commit, where, **options)

    monkeypatch.setattr(Transaction, "commit", commit)
    with pytest.raises(LakeError, match="the power went"):
        run_job("evaluate", own, session, Tracking(own, "broken"))
    assert len({part.split(":")[0] for part in written}) == 3
    monkeypatch.setattr(Transaction, "commit", real)
    assert run_job("evaluate", own, session, Tracking(own, "again")).status == "done"
    assert recompute.beyond_accuracy_problems(tmp_path / "lake", K) == []


@pytest.mark.slow
class TestInputThatIsNotWhole:
    """A truncated slice, a reduced one, an empty file, bad playlists, half of the features: the run does not stop."""

    @pytest.fixture(scope="class")
    def mixed(self, session: Session, generated: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
        raw, lake = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("mixed") / "lake"
        shutil.copytree(generated, raw, dirs_exist_ok=True)
        slices = sorted(raw.glob("*.json"), key=lambda path: int(path.name.split(".")[2].split("-")[0]))
        cut, reduced, other = slices[1], slices[2], slices[3]
        cut.write_bytes(cut.read_bytes()[:20_000])
        playlists = json.loads(reduced.read_text())["playlists"]
        small = [{"pid": p["pid"], "tracks": [{"track_uri": t["track_uri"]} for t in p["tracks"]]} for p in playlists]
        write_slice(reduced, small)
        (raw / "mpd.slice.300-349.json").write_bytes(b"")
        playlists = json.loads(other.read_text())["playlists"]
        # a duplicate pid from the first slice, whose track is in no other playlist, and a playlist of a local file
        playlists.append({"pid": 3, "tracks": [{"track_uri": "spotify:track:" + "Z" * 22}]})
        playlists.append({"pid": 900, "tracks": [{"track_uri": "spotify:local:x"}]})
        write_slice(other, playlists)
        config = configured(lake, raw)
        results = run_pipeline(config, plan(last="evaluate"), session=session)
        assert {result.status for result in results} == {"done"}
        return lake, raw

    def test_the_rest_goes_in(self, mixed: tuple[Path, Path]) -> None:
        lake, _ = mixed
        rows = recompute.table(lake, "playlists")
        assert len(rows) == 251
        assert [row["track_ids"] for row in rows if row["pid"] == 900] == [[]]
        assert {row["name"] for row in rows if row["slice"] == "mpd.slice.100-149.json"} == {None}
        assert "spotify:track:" + "Z" * 22 not in {row["track_uri"] for row in recompute.table(lake, "tracks")}

    def test_each_refusal_is_explained(self, mixed: tuple[Path, Path]) -> None:
        found = {(row["source"], row["reason"]): row for row in recompute.table(mixed[0], "quarantine")}
        assert set(found) == {
            ("mpd.slice.50-99.json", "not_json"),
            ("mpd.slice.300-349.json", "not_json"),
            ("mpd.slice.150-199.json", "pid_duplicate"),
            ("mpd.slice.150-199.json", "item_local"),
        }
        assert "is taken from mpd.slice." in found["mpd.slice.150-199.json", "pid_duplicate"]["detail"]
        ledger = {row["slice"]: row for row in recompute.table(mixed[0], "ingest_ledger")}
        assert ledger["mpd.slice.50-99.json"]["status"] == "refused"
        assert ledger["mpd.slice.150-199.json"]["n_quarantined"] == 2

    def test_names_come_from_the_records_that_have_them(self, mixed: tuple[Path, Path]) -> None:
        rows = recompute.table(mixed[0], "tracks")
        full = [row for row in rows if row["track_name"] is not None]
        assert 0 < len(full) < len(rows)

    def test_a_file_that_is_mended_and_one_that_changes_replace_their_playlists(
        self, mixed: tuple[Path, Path], session: Session, generated: Path, tmp_path: Path
    ) -> None:
        lake, raw = mixed
        own_raw, own_lake = tmp_path / "raw", tmp_path / "lake"
        shutil.copytree(raw, own_raw)
        shutil.copytree(lake, own_lake)
        before = {row["track_uri"]: row["track_id"] for row in recompute.table(own_lake, "tracks")}
        shutil.copy(generated / "mpd.slice.50-99.json", own_raw / "mpd.slice.50-99.json")
        first = own_raw / "mpd.slice.0-49.json"
        playlists = json.loads(first.read_text())["playlists"]
        playlists[0]["tracks"] = playlists[0]["tracks"][:3]
        write_slice(first, playlists[:-1])
        config = configured(own_lake, own_raw)
        results = run_pipeline(config, plan(only=["ingest_playlists"]), session=session)
        # of the other files, only those are read that contain tracks whose metadata came from the changed playlists
        assert results[0].facts["files_read"] > 2
        rows = {row["pid"]: row for row in recompute.table(own_lake, "playlists")}
        assert len(rows) == 300
        assert len(rows[0]["track_ids"]) == 3
        assert playlists[-1]["pid"] not in rows
        after = {row["track_uri"]: row["track_id"] for row in recompute.table(own_lake, "tracks")}
        assert {uri: after[uri] for uri in before} == before
        assert sorted(after.values()) == list(range(len(after)))
        refused = recompute.table(own_lake, "quarantine")
        assert {row["source"] for row in refused} == {"mpd.slice.300-349.json", "mpd.slice.150-199.json"}
        assert results[0].rows["quarantine"] < len(refused), "what the run before refused is not counted again"


def test_a_job_may_only_touch_what_it_declares(made: tuple[Path, Config], session: Session) -> None:
    from encore.runtime.context import JobContext

    _, config = made
    module = job_module("split_holdout")
    store = Store(config, session)
    ctx = JobContext("x", config, session, store, Tracking(config, "x"), "x", module.READS, module.WRITES)
    with pytest.raises(LakeError, match="reads tracks, which it does not declare"):
        ctx.scan(TRACKS, ["track_id"])
    with pytest.raises(LakeError, match="writes playlists, which it does not declare"):
        ctx.write(PLAYLISTS, [], KeyRange())


def test_a_missing_table_names_the_job_that_makes_it(session: Session, lake_settings: Callable[..., Config]) -> None:
    with pytest.raises(LakeError, match="has no table playlists yet") as caught:
        run_pipeline(lake_settings(), ["split_holdout"], session=session)
    assert caught.value.remedy == "run ingest_playlists first"


@pytest.mark.slow
def test_the_views_unfold_the_arrays(made: tuple[Path, Config], session: Session) -> None:
    lake, config = made
    store = Store(config, session)
    assert {"playlist_tracks", "holdout_tracks", "recommended_tracks"} <= set(store.register_views())
    spark = session()
    playlists = recompute.table(lake, "playlists")
    assert spark.sql("SELECT count(*) FROM playlist_tracks").first()[0] == sum(len(p["track_ids"]) for p in playlists)
    first = (
        spark.sql("SELECT track_id FROM playlist_tracks WHERE pid = 0 ORDER BY pos").toArrow()["track_id"].to_pylist()
    )
    assert first == next(p["track_ids"] for p in playlists if p["pid"] == 0)
    best = spark.sql("SELECT rank, score FROM recommended_tracks WHERE model = 'cosine' AND pid = 0 ORDER BY rank")
    rows = best.toArrow().to_pylist()
    assert [row["rank"] for row in rows] == list(range(1, K + 1))
    hits = spark.sql("SELECT count(*) FROM recommended_tracks WHERE hit").first()[0]
    assert hits == sum(row["n_hits"] for row in recompute.table(lake, "playlist_metrics"))


def test_a_run_whose_lock_was_taken_over_commits_nothing_more(
    made: tuple[Path, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, config = made
    shutil.copytree(lake, tmp_path / "lake")
    own = configured(tmp_path / "lake", Path(config.raw.playlists), "vectors.transform=zscore")
    mine, other = LakeLock(own, "mine"), LakeLock(own, "other", take_over=True)
    real = vectors.fit

    def fit(*arguments: Any) -> Any:
        other.take()
        return real(*arguments)

    monkeypatch.setattr(vectors, "fit", fit)
    before = recompute.versions(tmp_path / "lake")
    with pytest.raises(TransientError, match="the lock of run mine was taken over by run other"):
        run_job("build_track_vectors", own, Session(own), Tracking(own, "mine"), lock=mine)
    mine.release()
    other.release()
    after = recompute.versions(tmp_path / "lake")
    assert {name for name in after if after[name] != before[name]} == {"job_runs"}


class TestForeignRows:
    """Rows that another program added and that violate what jobs rely on: the job that reads them fails."""

    @staticmethod
    def append(lake: Path, table: Table, rows: pa.Table) -> None:
        write_deltalake(lake / table.name, rows.cast(arrow_schema(table)), mode="append")

    @staticmethod
    def rows(lake: Path, table: Table, n: int | None = None, **changes: Any) -> pa.Table:
        found = pa.Table.from_pylist(recompute.table(lake, table.name)[:n], schema=arrow_schema(table))
        for name, value in changes.items():
            place = found.schema.get_field_index(name)
            values = pa.array([value] * len(found), found.schema.field(name).type)
            found = found.set_column(place, name, values)
        return found

    @pytest.mark.parametrize(
        ("table", "n", "changes", "jobs"),
        [
            (TRACKS, None, {}, ("ingest_features", "build_track_vectors")),
            (TRACKS, 1, {"track_id": 10**8}, ("ingest_features", "build_track_vectors")),
            (AUDIO_FEATURES, 5, {}, ("build_track_vectors",)),
            (PLAYLISTS, 1, {"pid": 10**6, "track_ids": [10**8]}, ("ingest_features",)),
            (PLAYLISTS, 1, {}, ("split_holdout",)),
        ],
        ids=["tracks twice", "a track out of range", "features twice", "a playlist out of range", "a playlist twice"],
    )
    def test_they_are_refused(
        self,
        made: tuple[Path, Config],
        tmp_path: Path,
        table: Table,
        n: int | None,
        changes: dict[str, Any],
        jobs: tuple[str, ...],
    ) -> None:
        lake, config = made
        shutil.copytree(lake, tmp_path / "lake")
        self.append(tmp_path / "lake", table, self.rows(lake, table, n, **changes))
        own = configured(tmp_path / "lake", Path(config.raw.playlists))
        unused = Session(own)
        for job in jobs:
            with pytest.raises(LakeError, match=rf"^{table.name}: .*: broken, such as by ") as caught:
                run_job(job, own, unused, Tracking(own, "foreign"), force=True)
            assert "encore doctor --lake" in str(caught.value.remedy)
        assert not unused.started
