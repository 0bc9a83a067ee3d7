"""How runs end that cannot continue: the right error, from whichever process, and the right last lines of output."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from encore.cli.log_run import log_run
from encore.config import Config
from encore.errors import EnvironmentMissing, InputError, LakeError, TransientError
from encore.lake.delta import data_files
from encore.lake.store import Store
from encore.lake.tables import HOLDOUT, PLAYLISTS
from encore.runtime.pipeline import run_pipeline
from encore.spark.session import Session
from tests.conftest import write_slice
from tests.s3server import s3_server


def file_of(store: Store) -> Path:
    path = data_files(store.there(PLAYLISTS))[0]["path"]
    return Path(store.root) / "playlists" / path


@pytest.mark.parametrize("how", ["cut", *(pytest.param(how, marks=pytest.mark.slow) for how in ("gone", "empty"))])
def test_a_broken_data_file_is_named(
    session: Session, generated: Path, lake_settings: Callable[..., Config], how: str
) -> None:
    config = lake_settings(f"raw.playlists={generated}")
    run_pipeline(config, ["ingest_playlists"], session=session)
    file = file_of(Store(config, session))
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: 0 if how == "empty" else 1000])
    with pytest.raises(LakeError, match=file.name) as caught:
        run_pipeline(config, ["split_holdout"], session=session)
    assert ("no such file" if how == "gone" else "a damaged data file") in str(caught.value)
    assert "restore the file" in str(caught.value.remedy)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_something_that_is_missing(
    session: Session, generated: Path, lake_settings: Callable[..., Config], small_disk: Path
) -> None:
    config = lake_settings(f"raw.playlists={generated}", f"lake.path={small_disk}/lake")
    (small_disk / "fill").write_bytes(b"x" * 2_800_000)
    with pytest.raises(EnvironmentMissing, match="no space left on device") as caught:
        run_pipeline(config, ["ingest_playlists"], session=session)
    assert caught.value.exit_code == 4
    assert str(small_disk) in str(caught.value)
    assert "org.apache" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.parametrize("after", ["", "ingest_playlists ", "ingest_features ", "build_centroids "])
def test_a_server_that_goes_away_is_a_transient_failure(generated: Path, tmp_path: Path, after: str) -> None:
    """At the start, and while some job is running: the server is stopped `after` the result of the preceding job."""
    settings = [f"raw.playlists={generated}", f"raw.features={generated}/features", "lake.path=s3://away/lake"]
    settings += [f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", "s3.path_style=true", "spark.driver_memory=1g"]
    options = [part for setting in settings for part in ("--set", setting)]
    # Spark itself does not access the lake in these jobs, so its jars for S3 need not be installed
    begin = (
        "from encore.cli.entry import main; from encore.spark import session; session.is_s3 = lambda _: False; main()"
    )
    command = [sys.executable, "-c", begin, "run", *options]
    err = tmp_path / "err"
    with ExitStack() as stack:
        server = stack.enter_context(s3_server())
        server.client().create_bucket(Bucket="away")
        environment = {**os.environ, **server.environment()}
        if not after:
            stack.close()
        with err.open("wb") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process:
            while process.poll() is None and after not in err.read_text():
                time.sleep(0.05)
            stack.close()
            code = process.wait(300)
    assert code == 75, err.read_text()
    assert "Traceback" not in err.read_text()
    assert "\tat org.apache" not in err.read_text()


def slices(folder: Path, *numbers: int, bad: bool) -> Path:
    folder.mkdir(exist_ok=True)
    track = {
        "pos": 0,
        "artist_name": "a",
        "track_uri": "spotify:track:0000000000000000000001",
        "artist_uri": "spotify:artist:0000000000000000000001",
        "track_name": "t",
        "album_uri": "spotify:album:0000000000000000000001",
        "duration_ms": 1,
        "album_name": "b",
    }
    about = {"collaborative": "false", "modified_at": 1, "num_albums": 1, "num_tracks": 1, "num_followers": 1}
    about |= {"num_edits": 1, "duration_ms": 1, "num_artists": 1}
    for number in numbers:
        own = {"name": "n", "pid": "none" if bad else number, **about, "tracks": [track]}
        write_slice(folder / f"mpd.slice.{number}-{number}.json", [own])
    return folder


def test_a_run_whose_input_was_all_refused_says_so(
    session: Session, tmp_path: Path, lake_settings: Callable[..., Config]
) -> None:
    config = lake_settings(f"raw.playlists={slices(tmp_path / 'bad', 0, 1, bad=True)}")
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"no usable playlist in 2 file\(s\): 2 record\(s\) were refused"
        ) as caught:
            run_pipeline(config, ["ingest_playlists", "split_holdout"], session=session)
        assert "mpd.slice.0-0.json: " in str(caught.value)
        assert "FROM quarantine" in str(caught.value.remedy)


def test_a_run_that_refused_records_says_how_many(
    session: Session, tmp_path: Path, lake_settings: Callable[..., Config]
) -> None:
    folder = slices(tmp_path / "mixed", 0, bad=False)
    slices(folder, 1, 2, bad=True)
    config, notes = lake_settings(f"raw.playlists={folder}"), list[str]()
    run_pipeline(config, ["ingest_playlists"], session=session, on_note=notes.append)
    assert [note for note in notes if "refused" in note] == [
        '2 record(s) were refused: `encore sql "SELECT source, reason, detail FROM quarantine"` shows them'
    ]
    # count only the rejected records of this run, not all of those in the table
    slices(folder, 3, bad=True)
    notes.clear()
    run_pipeline(config, ["ingest_playlists"], session=session, on_note=notes.append)
    assert [note[:9] for note in notes if "refused" in note] == ["1 record("]
    notes.clear()
    run_pipeline(config, ["ingest_playlists"], session=session, on_note=notes.append)
    assert notes == []


@pytest.mark.slow
def test_the_last_line_says_where_metrics_are_that_mlflow_did_not_take(
    session: Session, generated: Path, tmp_path: Path, lake_settings: Callable[..., Config]
) -> None:
    from mlflow import MlflowClient
    from rich.console import Console

    (tmp_path / "file").touch()
    settings = [f"raw.playlists={generated}", f"raw.features={generated}/features", "recommend.models=[popularity]"]
    broken = lake_settings(*settings, f"tracking.uri=sqlite:///{tmp_path}/file/no.db")
    jobs = [
        "ingest_playlists",
        "ingest_features",
        "build_track_vectors",
        "split_holdout",
        "fit_models",
        "recommend",
        "evaluate",
    ]
    notes = list[str]()
    run_pipeline(broken, jobs, run_id="later", session=session, on_note=notes.append)
    assert notes[-1].startswith("MLflow: nothing was logged: ")
    assert "in the tables playlist_metrics and model_metrics; `encore log later` logs them later" in notes[-1]
    with pytest.raises(TransientError, match="MLflow does not take run later"):
        log_run(broken, None, Console(quiet=True))

    config = lake_settings(*settings)
    for _ in range(2):
        log_run(config, "later", Console(quiet=True))
    client = MlflowClient(config.tracking.uri)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if run.data.tags["encore.kind"] == "pipeline"]
    models = [run for run in runs if run.data.tags["encore.kind"] == "model"]
    assert [run.info.status for run in (*parents, *models)] == ["FINISHED", "FINISHED"]
    assert parents[0].data.metrics["rows.playlists"] == 300
    assert parents[0].data.tags["version.holdout"].isdigit()
    assert parents[0].info.end_time - parents[0].info.start_time < 600_000
    assert 0 < models[0].data.metrics["ndcg"] < 1
    assert models[0].data.params["version.holdout"].isdigit()
    assert {file.path for file in client.list_artifacts(models[0].info.run_id, "plots")} == {
        "plots/precision_by_known.png",
        "plots/clicks_distribution.png",
    }
    with pytest.raises(InputError, match="has no run nosuch"):
        log_run(config, "nosuch", Console(quiet=True))


def test_the_lake_that_was_dropped_in_between_is_no_defect(
    session: Session, generated: Path, lake_settings: Callable[..., Config]
) -> None:
    config = lake_settings(f"raw.playlists={generated}")
    run_pipeline(config, ["ingest_playlists", "split_holdout"], session=session)
    shutil.rmtree(Path(config.lake.path) / "playlists")
    with pytest.raises(LakeError):
        run_pipeline(config, ["split_holdout"], session=session)
    assert Store(config, session).exists(HOLDOUT)
