"""Fitted models: each is fitted when its fingerprint is new, stored with a row, and used without fitting again."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from encore.cli.challenge import make_submission
from encore.cli.recommend import print_recommendations
from encore.config import Config
from encore.errors import InputError, LakeError
from encore.jobs import maintain
from encore.lake.model_arrays import ModelArrays
from encore.runtime.pipeline import plan, run_pipeline
from encore.runtime.runner import run_job
from encore.runtime.tracking import Tracking
from encore.spark.session import Session
from tests import recompute
from tests.conftest import settings
from tests.local_spark import LocalSession

MODELS = "recommend.models=[artist,adjacency,popularity]"
FITTED = {"artist", "adjacency", "popularity", "interactions"}


def configured(lake: Path, raw: Path, *more: str) -> Config:
    own = (f"raw.playlists={raw}", f"raw.features={raw}/features", "recommend.k=30", MODELS)
    return settings(lake, *own, *more)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Runs tasks in this process, because what they compute is tested elsewhere."""
    folder = tmp_path_factory.mktemp("tasks")
    return LocalSession(settings(folder / "lake"), folder / "files")


@pytest.fixture(scope="module")
def made(session: Session, generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake on which the pipeline has run up to `recommend`."""
    lake = tmp_path_factory.mktemp("models") / "lake"
    run_pipeline(configured(lake, generated), plan(last="recommend"), session=session, run_id="first")
    return lake


@pytest.fixture
def lake(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "lake")
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
