"""Fitted models: each is fitted when its fingerprint is new, stored with a row, and used without fitting again."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console

from encore.cli.challenge import make_submission
from encore.cli.recommend import print_recommendations
from encore.config import Config
from encore.errors import InputError, LakeError
from encore.jobs import maintain
from encore.lake.model_arrays import ModelArrays
from encore.runtime.pipeline import plan, run_pipeline
from encore.runtime.runner import run_job
from encore.runtime.tracking import FITTED as FITTED_TAG
from encore.runtime.tracking import Tracking
from encore.spark.session import Session
from tests import recompute
from tests.conftest import settings
from tests.unit.cli.test_startup import installed_packages_of

MODELS = "recommend.models=[artist,adjacency,popularity]"
FITTED = {"artist", "adjacency", "popularity", "interactions"}


def configured(lake: Path, raw: Path, *more: str) -> Config:
    own = (f"raw.playlists={raw}", f"raw.features={raw}/features", "recommend.k=30", MODELS)
    return settings(lake, *own, *more)


@pytest.fixture(scope="module")
def made(session: Session, generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake on which the pipeline has run up to `recommend`."""
    lake = tmp_path_factory.mktemp("models") / "lake"
    run_pipeline(configured(lake, generated), plan(last="recommend"), session=session, run_id="first")
    return lake


@pytest.fixture
def lake(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "lake")
    # making an MLflow store takes seconds
    shutil.copy(f"{made}-mlflow.db", tmp_path / "lake-mlflow.db")
    return tmp_path / "lake"


def fit(config: Config, session: Session, run_id: str) -> tuple[str, set[str]]:
    """Run the job; returns its status, and the models that it fitted."""
    status = run_job("fit_models", config, session, Tracking(config, run_id)).status
    rows = recompute.table(Path(config.lake.path), "models")
    return status, {row["model"] for row in rows if row["run_id"] == run_id}


def test_each_model_and_part_has_a_row_and_its_arrays(made: Path, generated: Path) -> None:
    rows = {row["model"]: row for row in recompute.table(made, "models")}
    assert set(rows) == FITTED
    stored = ModelArrays.of(configured(made, generated))
    assert stored.fitted() == {(name, row["fingerprint"]) for name, row in rows.items()}
    for name, row in rows.items():
        arrays = stored.open(name, row["fingerprint"])
        assert row["size_bytes"] == sum(array.nbytes for array in arrays.values()) > 0
        assert dict(row["arrays"]) == {key: f"{array.dtype} {array.shape}" for key, array in arrays.items()}
        assert dict(row["inputs"])["holdout"] == recompute.versions(made)["holdout"]
    assert dict(rows["adjacency"]["parts"]) == {"interactions": rows["interactions"]["fingerprint"]}
    assert json.loads(rows["adjacency"]["settings"])["adjacency"]["reach"] == 20


def test_a_setting_of_a_model_fits_that_model_alone(lake: Path, generated: Path, session: Session) -> None:
    config = configured(lake, generated)
    assert fit(config, session, "again") == ("up_to_date", set())
    changed = configured(lake, generated, "recommend.adjacency.reach=3")
    assert fit(changed, session, "changed") == ("done", {"adjacency"})
    assert fit(changed, session, "again") == ("up_to_date", set())
    # both versions are stored, so nothing is fitted to go back
    assert fit(config, session, "back") == ("done", set())
    assert len(ModelArrays.of(config).fitted()) == len(FITTED) + 1


def test_arrays_that_were_deleted_are_fitted_again(lake: Path, generated: Path, session: Session) -> None:
    config = configured(lake, generated)
    before = recompute.table(lake, "models")
    shutil.rmtree(lake / "_models" / "artist")
    assert fit(config, session, "again") == ("done", {"artist"})
    assert fit(config, session, "last") == ("up_to_date", set())
    after = {row["model"]: row["digest"] for row in recompute.table(lake, "models")}
    assert after == {row["model"]: row["digest"] for row in before}


def test_recommend_fits_nothing(lake: Path, generated: Path, session: Session) -> None:
    config = configured(lake, generated)
    before = recompute.table(lake, "recommendations")
    run_job("recommend", config, session, Tracking(config, "forced"), force=True)
    assert recompute.table(lake, "recommendations") == before
    shutil.rmtree(lake / "_models" / "artist")
    with pytest.raises(LakeError, match="no arrays of a fitted model") as caught:
        run_job("recommend", config, session, Tracking(config, "broken"), force=True)
    assert caught.value.remedy == "run fit_models first"


def test_maintain_removes_arrays_without_a_row(lake: Path, generated: Path, session: Session) -> None:
    config = configured(lake, generated)
    stored = ModelArrays.of(config)
    before = stored.fitted()
    (lake / "_models" / "ials" / "abc.checkpoints").mkdir(parents=True)
    (lake / "_models" / "ials" / "abc.checkpoints" / "items.npy").write_bytes(b"of a fit that was killed")
    assert stored.fitted() > before
    result = run_job("maintain", config, session, Tracking(config, "maintain"))
    assert result.facts["models_removed"] == 1
    assert stored.fitted() == before
    assert maintain.UPKEEP


class TestRecommendations:
    """`encore recommend`, without Spark."""

    @pytest.fixture
    def ask(self, made: Path, generated: Path) -> Callable[..., str]:
        def ask(
            *tracks: str, title: str | None = None, source: Path | None = None, model: str | None = None, k: int = 5
        ) -> str:
            out, err = (Console(file=io.StringIO(), width=200) for _ in range(2))
            config = configured(made, generated)
            print_recommendations(config, tracks, title, source, model, k, as_json=True, out=out, err=err)
            text = out.file.getvalue() + err.file.getvalue()  # type: ignore[attr-defined]
            return str(text)

        return ask

    @pytest.fixture
    def uris(self, made: Path) -> list[str]:
        """The tracks of a playlist of some length."""
        named = {row["track_id"]: row["track_uri"] for row in recompute.table(made, "tracks")}
        row = max(recompute.table(made, "holdout"), key=lambda row: len(row["train"]))
        return [named[track] for track in row["train"]]

    def test_tracks_have_names_scores_and_reasons(self, ask: Callable[..., str], uris: list[str]) -> None:
        found = json.loads(ask(",".join(uris[:4]), uris[4]))
        assert found["model"] == "artist", "the first of recommend.models"
        rows = found["recommendations"]
        assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
        assert not {row["track_uri"] for row in rows} & set(uris[:5])
        assert all(row["track_name"] and row["artist_name"] for row in rows)
        assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
        # the model recommends by artist, so the reason is a track by the same one
        assert all(row["reason"].endswith(f" by {row['artist_name']}") for row in rows)

    def test_a_file_that_import_reads_is_a_playlist(
        self, ask: Callable[..., str], uris: list[str], tmp_path: Path
    ) -> None:
        (tmp_path / "mine.m3u").write_text("\n".join(["#EXTM3U", *uris[:5]]))
        assert ask(source=tmp_path / "mine.m3u") == ask(*uris[:5])

    def test_it_imports_nothing_that_takes_long(self, made: Path, uris: list[str]) -> None:
        given = ["--tracks", ",".join(uris[:3]), "--title", "rock", "--set", f"lake.path={made}", "--set", MODELS]
        found = installed_packages_of("recommend", *given)
        assert {"numba", "pyarrow"} <= found
        assert not found & {"pandas", "pyspark", "mlflow", "matplotlib", "boto3", "optuna"}

    def test_what_is_unknown_is_said(self, ask: Callable[..., str], uris: list[str]) -> None:
        assert "1 of 2 tracks are in no playlist of the lake" in ask(uris[0], "z" * 22)
        with pytest.raises(InputError, match="none of the tracks is in the lake"):
            ask("z" * 22)
        with pytest.raises(InputError, match="no playlist is given"):
            ask()
        with pytest.raises(InputError, match="expected URIs, links or ids of Spotify tracks, found 'x'"):
            ask("x")
        with pytest.raises(LakeError, match="has no fitted model ials"):
            ask(uris[0], model="ials")


def test_a_submission_needs_a_challenge_set(made: Path, generated: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no challenge playlists in the lake"):
        make_submission(
            configured(made, generated), "artist", tmp_path / "s.gz", "t", "a@b.c", Console(file=io.StringIO())
        )


class TestMaintain:
    """Which fitted models `maintain` removes, with their rows."""

    @pytest.fixture(autouse=True)
    def in_two_months(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Everything that is fitted in these tests is older than maintain.retention_days."""

        class Later(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Later:
                return super().now(tz) + timedelta(days=60)

        monkeypatch.setattr(maintain, "datetime", Later)

    @pytest.fixture
    def reach(self, lake: Path, generated: Path, session: Session) -> Callable[..., str]:
        """Run jobs with another reach of `adjacency`; returns the fingerprint of the model."""

        def reach(value: int, last: str = "fit_models") -> str:
            config = configured(lake, generated, f"recommend.adjacency.reach={value}")
            run_pipeline(config, plan(first="fit_models", last=last), session=session)
            rows = [row for row in recompute.table(lake, "models") if row["model"] == "adjacency"]
            found = {json.loads(row["settings"])["adjacency"]["reach"]: row["fingerprint"] for row in rows}
            return str(found[value])

        return reach

    @pytest.fixture
    def left(self, lake: Path, generated: Path, session: Session) -> Callable[..., set[str]]:
        """Maintain the lake; returns the fingerprints of `adjacency` that are left, after comparing rows and arrays."""

        def left(*more: str) -> set[str]:
            config = configured(lake, generated, *more)
            run_job("maintain", config, session, Tracking(config, "maintain"), force=True)
            rows = {(row["model"], row["fingerprint"]) for row in recompute.table(lake, "models")}
            assert ModelArrays.of(config).fitted() == rows
            assert {name for name, _ in rows} == FITTED, "the others have been fitted once"
            return {fingerprint for name, fingerprint in rows if name == "adjacency"}

        return left

    def test_fits_that_nothing_refers_to_are_removed(
        self, reach: Callable[..., str], left: Callable[..., set[str]], lake: Path, generated: Path, session: Session
    ) -> None:
        default, _, newest = reach(20), reach(3), reach(5)
        # `recommendations` come from the first
        assert left() == {default, newest}
        assert fit(configured(lake, generated), session, "again") == ("done", set())
        assert fit(configured(lake, generated, "recommend.adjacency.reach=3"), session, "3") == ("done", {"adjacency"})

    def test_what_the_configuration_uses_is_kept(
        self, reach: Callable[..., str], left: Callable[..., set[str]]
    ) -> None:
        default, used, newest = reach(20), reach(3), reach(5)
        assert left("recommend.adjacency.reach=3") == {default, used, newest}

    @pytest.mark.slow
    def test_what_recommendations_come_from_is_kept(
        self, reach: Callable[..., str], left: Callable[..., set[str]]
    ) -> None:
        default, recommended, newest = reach(20), reach(3, "recommend"), reach(5)
        assert left() == {default, recommended, newest}
        assert left("recommend.adjacency.reach=5") == {recommended, newest}

    @pytest.mark.slow
    def test_what_newest_metrics_and_mlflow_runs_are_of_is_kept(
        self,
        reach: Callable[..., str],
        left: Callable[..., set[str]],
        lake: Path,
        generated: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # drawing takes the most time
        monkeypatch.setattr(MlflowClient, "log_figure", lambda *_: None)
        logged, evaluated = reach(7, "evaluate"), reach(3, "evaluate")
        default, newest = reach(20, "recommend"), reach(5)
        rows = [row for row in recompute.table(lake, "model_metrics") if row["model"] == "adjacency"]
        assert {row["fitted"] for row in rows} == {logged, evaluated}
        client = MlflowClient(tracking_uri=configured(lake, generated).tracking.uri)
        experiment = client.get_experiment_by_name("encore")
        assert experiment is not None
        runs = {}
        for fitted in (logged, evaluated):
            (run,) = client.search_runs([experiment.experiment_id], f"tags.`{FITTED_TAG}` = '{fitted}'")
            assert run.data.tags["model"] == "adjacency"
            runs[fitted] = run.info.run_id
        client.delete_run(runs[evaluated])
        assert left() == {default, logged, evaluated, newest}
        client.delete_run(runs[logged])
        assert left() == {default, evaluated, newest}
        reach(20, "evaluate")
        assert left() == {default, newest}

    @pytest.mark.slow
    def test_recent_fits_are_kept(
        self, reach: Callable[..., str], left: Callable[..., set[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        every = {reach(20), reach(3), reach(5)}
        monkeypatch.setattr(maintain, "datetime", datetime)
        assert left() == every

    @pytest.mark.slow
    def test_parts_of_what_is_kept_are_kept(
        self, reach: Callable[..., str], left: Callable[..., set[str]], lake: Path, generated: Path, session: Session
    ) -> None:
        # other lists, so another fit of all, while `recommendations` come from the first fits
        before = {(row["model"], row["fingerprint"]) for row in recompute.table(lake, "models")}
        for trial in (8, 9):
            config = configured(lake, generated, f"recommend.trial_playlists={trial}")
            run_pipeline(config, plan(first="fit_models", last="fit_models"), session=session)
        left(f"recommend.trial_playlists={trial}")
        found = {(row["model"], row["fingerprint"]) for row in recompute.table(lake, "models")}
        assert before <= found
        for name in ("interactions", "adjacency"):
            assert sum(model == name for model, _ in found) == 2
