"""The command line: what is wrong ends with one sentence and its exit code, before any Spark session starts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from typer.testing import CliRunner, Result

from encore import __version__
from encore.cli import app as cli
from encore.config import load_config
from encore.errors import TransientError
from encore.lake.lock import LakeLock
from encore.runtime import registry
from encore.runtime.graph import mermaid
from tests.unit.tuning.lakes import make_lake

REPOSITORY = Path(__file__).resolve().parents[3]

Encore = Callable[..., Result]


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Java and a working folder without anything: whatever asks for Spark ends with code 4."""
    monkeypatch.setenv("ENCORE_CONF_DIR", str(REPOSITORY / "conf"))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "no-java"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION", "ENCORE_LAKE", "ENCORE_RAW", "PYSPARK_GATEWAY_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def encore(monkeypatch: pytest.MonkeyPatch) -> Encore:
    """Call a command in this process, as from a shell."""

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["encore", *arguments])
        return CliRunner().invoke(cli.app, list(arguments))

    return call


@pytest.fixture
def slices(tmp_path: Path) -> str:
    folder = tmp_path / "mpd"
    folder.mkdir()
    playlist = {"pid": 0, "tracks": [{"track_uri": "spotify:track:" + "a" * 22}]}
    (folder / "mpd.slice.0-0.json").write_text(json.dumps({"playlists": [playlist]}))
    return f"raw.playlists={folder}"


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    return tmp_path / "lake"


def refused(result: Result, code: int) -> str:
    """The one sentence of a command that did not do its work; a remedy may follow it."""
    lines = result.stderr.splitlines()
    assert result.exit_code == code, (result.exit_code, result.stderr, result.exception)
    assert "Traceback" not in result.output
    assert lines[0].startswith("encore: ")
    assert all(line.startswith("        ") for line in lines[1:])
    assert len(lines) <= 2
    return lines[0].removeprefix("encore: ")


# wrong usage and settings: 2 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--set", "recommend.kk=3"], "--set recommend.kk=3: recommend.kk: unknown key"),
        (["run", "--set", "recommend.k=0"], "recommend.k: input should be greater than or equal to 1, found 0"),
        (["run", "--set", "recommend.k"], "--set recommend.k: expected a.b=value"),
        (["run", "--set", "recommend.models=[nosuch]"], "no model 'nosuch'"),
        (["run", "--set", "recommend.models=[nosuch]", "--dry-run"], "no model 'nosuch'"),
        (["run", "--env", "nosuch"], "no environment 'nosuch' in "),
        (["run", "--env", "emr"], "lake.path: the environment variable ENCORE_LAKE is not set"),
        (["run", "--only", "nosuch"], "no job 'nosuch'"),
        (["run", "--from", "nosuch"], "no job 'nosuch'"),
        (["run", "--from", "evaluate", "--to", "recommend"], "--from evaluate comes after --to recommend"),
        (["run", "--only", "report", "--from", "evaluate"], "--only names jobs by themselves"),
        (["run", "--set", "raw.playlists=s3://b/x", "--set", "s3.endpoint=host:1"], "s3.endpoint: an address such as"),
        (["tables", "--set", "lake.path=[1]"], "lake.path: input should be a valid string, found [1]"),
        (["show", "--env", "nosuch"], "no environment 'nosuch' in "),
        (["sql", "SELECT 1", "--set", "nosuch=1"], "nosuch: unknown key"),
        (["doctor", "--set", "nosuch=1"], "nosuch: unknown key"),
        (["config", "--set", "nosuch=1"], "nosuch: unknown key"),
    ],
)
def test_a_wrong_setting_is_refused(encore: Encore, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    assert sentence in refused(encore(*arguments), 2)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["nosuch"], "No such command 'nosuch'"),
        (["run", "--nosuch"], "No such option: --nosuch"),
        (["run", "--from"], "requires an argument"),
        (["generate"], "Missing option '--out'"),
        (["generate", "--out", "x", "--playlists", "0"], "greater than or equal to 1"),
        (["generate", "--out", "x", "--coverage", "1.5"], "less than or equal to 1"),
        (["sql", "SELECT 1", "--limit", "0"], "greater than or equal to 1"),
    ],
)
def test_wrong_usage_is_refused(encore: Encore, tmp_path: Path, arguments: list[str], what: str) -> None:
    result = encore(*arguments)
    assert result.exit_code == 2
    assert what in re.sub(r"[\s│]+", " ", result.stderr)
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


# bad input: 3 -------------------------------------------------------------------------------------------------------


def test_no_such_folder_of_playlists(encore: Encore, tmp_path: Path, lake: Path) -> None:
    result = encore("run", "--set", f"raw.playlists={tmp_path}/nosuch", "--set", f"lake.path={lake}")
    assert refused(result, 3) == f"no such file or folder: {tmp_path}/nosuch"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_slices(encore: Encore, tmp_path: Path, lake: Path) -> None:
    (tmp_path / "mpd").mkdir()
    (tmp_path / "mpd" / "stats.txt").touch()
    result = encore("run", "--set", "raw.playlists=mpd", "--set", f"lake.path={lake}")
    assert refused(result, 3) == "no slices (.json or .json.gz) in mpd, only 1 .txt"
    assert "encore generate" in result.stderr
    assert not lake.exists()


def test_a_folder_of_tables_of_playlists(encore: Encore, tmp_path: Path, lake: Path) -> None:
    (tmp_path / "mpd").mkdir()
    (tmp_path / "mpd" / "my_playlist.csv").touch()
    result = encore("run", "--set", "raw.playlists=mpd", "--set", f"lake.path={lake}")
    assert refused(result, 3) == "no slices (.json or .json.gz) in mpd, only 1 .csv"
    assert "encore import" in result.stderr
    assert not lake.exists()


def test_generating_into_a_file(encore: Encore, tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert "x" in refused(encore("generate", "--out", "x", "--playlists", "3"), 3)


def test_generating_where_nothing_can_be_written(encore: Encore) -> None:
    assert "/proc/mpd" in refused(encore("generate", "--out", "/proc/mpd", "--playlists", "3"), 3)


# something is missing: 4 --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_java_home_without_java(encore: Encore, tmp_path: Path, slices: str, lake: Path) -> None:
    result = encore("run", "--set", slices, "--set", f"lake.path={lake}")
    assert refused(result, 4) == f"Java is missing (JAVA_HOME is {tmp_path}/no-java)"
    assert "install Java 17" in result.stderr


def test_no_java_at_all(encore: Encore, slices: str, lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", "/nowhere")
    assert refused(encore("run", "--set", slices, "--set", f"lake.path={lake}"), 4) == "Java is missing"


def test_a_failed_run_is_in_the_record(encore: Encore, slices: str, lake: Path) -> None:
    encore("run", "--set", slices, "--set", f"lake.path={lake}")
    shown = encore("show", "--set", f"lake.path={lake}")
    assert shown.exit_code == 0
    assert re.search(r"ingest_playlists.*failed.*Java is missing", shown.stdout)


def test_the_doctor_says_that_java_is_missing(encore: Encore, lake: Path) -> None:
    result = encore("doctor", "--set", f"lake.path={lake}")
    assert result.exit_code == 4
    assert re.search(r"FAIL +Java +none found; JAVA_HOME is .*/no-java\n +install Java 17", result.stdout)
    assert re.search(r"ok +Python +3\.11", result.stdout)


# another run is at work: 75 ----------------------------------------------------------------------------------------


@pytest.fixture
def held(lake: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LakeLock]:
    """The lock of the lake, which another run has. No store of MLflow is made: that takes seconds."""
    monkeypatch.setattr("encore.runtime.tracking.Tracking.prepare", lambda self: None)
    lock = LakeLock(load_config("local", [f"lake.path={lake}"]), "the-other")
    lock.take()
    yield lock
    lock.release()


def test_a_lake_that_another_run_writes(encore: Encore, slices: str, lake: Path, held: LakeLock) -> None:
    result = encore("run", "--set", slices, "--set", f"lake.path={lake}")
    assert refused(result, 75).startswith(f"the lake {lake} is in use by run the-other on ")
    assert "--take-over" in result.stderr
    held.check()
    assert sorted(path.name for path in lake.iterdir()) == ["_lock"]


def test_a_lock_that_is_taken_over_is_given_back_by_a_run_that_fails(
    encore: Encore, slices: str, lake: Path, held: LakeLock
) -> None:
    result = encore("run", "--take-over", "--set", slices, "--set", f"lake.path={lake}")
    assert result.exit_code == 4
    (line,) = [line for line in result.stderr.splitlines() if "lock_taken_over" in line]
    assert "run the-other" in line
    with pytest.raises(TransientError, match="the lock of run the-other was taken over"):
        held.check()
    assert json.loads((lake / "_lock").read_text()) == {"holders": []}


def test_a_run_of_the_same_id_shares_the_lock(encore: Encore, slices: str, lake: Path, held: LakeLock) -> None:
    refused(encore("run", "--run-id", "the-other", "--set", slices, "--set", f"lake.path={lake}"), 4)
    held.check()


# the lake refuses: 5 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["tables"], ["show"], ["sql", "SELECT 1"]], ids=lambda command: command[0])
def test_an_empty_lake_has_nothing_to_show(encore: Encore, lake: Path, command: list[str]) -> None:
    result = encore(*command, "--set", f"lake.path={lake}")
    assert refused(result, 5) == f"no tables in the lake {lake}"
    assert "encore run" in result.stderr
    assert not lake.exists(), "looking makes nothing"


def test_a_lake_that_cannot_be_written(encore: Encore, slices: str) -> None:
    result = encore("run", "--set", slices, "--set", "lake.path=/proc/lake")
    assert refused(result, 5).startswith("the lake /proc/lake cannot be written: ")


def test_a_lake_that_is_a_file(encore: Encore, slices: str, lake: Path) -> None:
    lake.touch()
    result = encore("run", "--set", slices, "--set", f"lake.path={lake}")
    assert refused(result, 5).startswith(f"the lake {lake} cannot be written: ")


def test_a_lake_of_another_schema(encore: Encore, slices: str, lake: Path) -> None:
    write_deltalake(str(lake / "playlists"), pa.table({"pid": ["a"], "title": ["b"]}))
    result = encore("run", "--set", slices, "--set", f"lake.path={lake}")
    sentence = refused(result, 5)
    assert sentence.startswith(f"the lake {lake} has another schema: playlists: ")
    assert "column pid: bigint expected, string found" in sentence
    assert "column track_ids array<int> is missing" in sentence
    assert "another lake.path" in result.stderr


@pytest.mark.parametrize("command", [["tables"], ["show"], ["run"]], ids=lambda command: command[0])
def test_a_lake_with_a_damaged_table(encore: Encore, slices: str, lake: Path, command: list[str]) -> None:
    log = lake / "playlists" / "_delta_log"
    log.mkdir(parents=True)
    (log / f"{0:020}.json").write_text("damaged")
    result = encore(*command, "--set", slices, "--set", f"lake.path={lake}")
    assert refused(result, 5).startswith(f"{lake}/playlists: cannot be read: ")


@pytest.mark.parametrize("command", [["show"], ["run"]], ids=lambda command: command[0])
def test_a_lake_whose_record_of_jobs_is_of_another_schema(
    encore: Encore, slices: str, lake: Path, command: list[str]
) -> None:
    write_deltalake(str(lake / "job_runs"), pa.table({"id": ["a"]}))
    assert "job_runs" in refused(encore(*command, "--set", slices, "--set", f"lake.path={lake}"), 5)


def test_a_lake_in_which_no_job_has_run(encore: Encore, lake: Path) -> None:
    write_deltalake(str(lake / "playlists"), pa.table({"pid": ["a"]}))
    assert refused(encore("show", "--set", f"lake.path={lake}"), 5) == "no job has run in this lake yet"


# defects, interrupts, traces ----------------------------------------------------------------------------------------


def test_debug_shows_the_trace_of_an_expected_failure(encore: Encore, lake: Path) -> None:
    result = encore("show", "--debug", "--set", f"lake.path={lake}")
    assert result.exit_code == 5
    assert "Traceback" in result.stderr
    assert "open_store" in result.stderr
    assert f"encore: no tables in the lake {lake}" in result.stderr


def test_a_defect_is_not_hidden(encore: Encore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("encore.runtime.pipeline.check", fail)
    result = encore("run", "--dry-run")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_an_interrupt_ends_with_130(encore: Encore, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("encore.runtime.pipeline.check", interrupt)
    result = encore("run", "--dry-run")
    assert (result.exit_code, result.stderr) == (130, "encore: interrupted\n")


# what needs no lake -------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_runs_nothing(encore: Encore, tmp_path: Path) -> None:
    result = encore("run", "--dry-run", "--from", "split_holdout", "--to", "recommend")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "split_holdout: playlists -> holdout",
        "build_centroids: tracks, holdout, track_vectors -> playlist_centroids",
        "fit_models: tracks, holdout, challenge_playlists, track_vectors, models -> models",
        "recommend: tracks, holdout, challenge_playlists, track_vectors, models -> recommendations",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_everything_has_every_job(encore: Encore) -> None:
    lines = encore("run", "--dry-run").stdout.splitlines()
    assert sorted(line.split(":")[0] for line in lines) == sorted(registry.JOBS)


def test_the_version_the_graph_and_the_help_are_printed(encore: Encore) -> None:
    assert encore("--version").stdout == f"{__version__}\n"
    assert encore("graph").stdout == mermaid(registry.nodes()) + "\n"
    assert "Exit codes: 0 done" in re.sub(r"\s+", " ", encore("--help").stdout)


def test_the_configuration_is_printed_and_explained(encore: Encore) -> None:
    assert "\n  k: 7\n" in encore("config", "--set", "recommend.k=7").stdout
    explained = encore("config", "--describe").stdout
    assert re.search(r"recommend\.k .*500 .*Recommended tracks per playlist", explained)


def test_playlists_are_generated_once(encore: Encore, tmp_path: Path) -> None:
    arguments = ("generate", "--out", "mpd", "--playlists", "3", "--processes", "1", "--if-missing")
    first = encore(*arguments)
    assert (first.exit_code, first.stdout.split(",")[0]) == (0, "3 playlists")
    (file,) = (tmp_path / "mpd").glob("*.json")
    before = file.stat().st_mtime_ns
    again = encore(*arguments)
    assert (again.exit_code, again.stdout) == (0, "")
    assert "mpd is there already" in again.stderr
    assert file.stat().st_mtime_ns == before


# as processes -------------------------------------------------------------------------------------------------------


def shell(*command: str) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))
    assert "Traceback" not in found.stderr
    return found


def test_the_command_ends_its_process_with_the_code(tmp_path: Path) -> None:
    code = "from encore.cli.app import main; main()"
    found = shell(sys.executable, "-c", code, "run", "--set", f"raw.playlists={tmp_path}/nosuch")
    assert (found.returncode, found.stdout) == (3, "")
    assert found.stderr == f"encore: no such file or folder: {tmp_path}/nosuch\n"


def test_an_entry_point_ends_its_process_with_the_code() -> None:
    found = shell(sys.executable, str(REPOSITORY / "jobs" / "recommend.py"), "--set", "recommend.k=0")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("encore: --set recommend.k=0: recommend.k: ")
    assert len(found.stderr.splitlines()) == 1


def test_the_settings_are_printed_without_their_secrets(encore: Encore) -> None:
    settings = ["tracking.uri=http://me:hush@127.0.0.1:5000", "spark.settings={spark.hadoop.fs.s3a.secret.key: hush}"]
    result = encore("config", *(part for setting in settings for part in ("--set", setting)))
    assert result.exit_code == 0
    assert "127.0.0.1:5000" in result.stdout
    assert "hush" not in result.stdout


@pytest.mark.slow
def test_tune_prints_and_saves_what_it_found_and_ends_with_130_if_interrupted(
    encore: Encore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(REPOSITORY / "conf", conf)
    monkeypatch.setenv("ENCORE_CONF_DIR", str(conf))
    own = ["--set", "lake.path=lake", "--set", "recommend.item_knn.track_damping=0.0", "--set", "recommend.k=20"]
    make_lake(load_config("local", ["lake.path=lake"]), n=100)
    done = encore("tune", "item_knn", "--trials", "3", "--save", "good", *own)
    assert done.exit_code == 0, done.output
    assert "trial 2: ndcg " in done.output
    assert "recommend:\n  item_knn:\n    seed_damping: " in done.output
    found = load_config("good")
    assert found.spark == load_config("local").spark
    assert f"track_damping: {found.recommend.item_knn.track_damping}" in done.output
    assert found.recommend.item_knn.track_damping > 0
    again = encore("tune", "item_knn", "--trials", "3", "--save", "good", *own)
    assert again.exit_code == 0, again.output
    assert "continues after 3 trials" in again.output
    assert "trial 2: ndcg " not in again.output
    refused = encore("tune", "item_knn", "--save", "emr", *own)
    assert (refused.exit_code, "emr.yaml exists already" in refused.output) == (2, True)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("encore.tuning.study.recommend", interrupted)
    assert encore("tune", "item_knn", "--trials", "4", *own).exit_code == 130
