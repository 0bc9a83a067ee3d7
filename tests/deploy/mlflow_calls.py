"""All calls that jobs make to MLflow, by the code that makes them, without Spark and without a lake."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from encore.config import Config
from encore.lake.tables import TRACKS
from encore.runtime.fingerprint import source_of
from encore.runtime.model_registry import BUNDLE, CHALLENGER, CHAMPION, PREVIOUS, ModelRegistry, ModelVersion, Package
from encore.runtime.result import JobResult
from encore.runtime.tracking import FINGERPRINT, InputTable, Tracking
from encore.serving.portable import write_package
from tests.unit.serving.bundles import URIS, small_bundle

MODEL = "ranker"


def track(config: Config, run_id: str, folder: Path) -> str:
    """Make every call of `Tracking`; returns the run of the model that was logged. AssertionError if one failed."""
    tracking = Tracking(config, run_id)
    assert tracking.check() is None
    tracking.prepare()
    read = InputTable(TRACKS, "s3://lake/tracks", "01234567-89ab", 7, 42)
    result = JobResult("evaluate", "done", 1.5, {"metrics": 3, "quarantine": 1}, {"playlists": 4}, {"tasks": 2.0})
    tracking.log_job(result, {"metrics": 3}, [read])
    tracking.log_step("als", 1, {"loss": 0.5})
    run = tracking.log_model(MODEL, {"ndcg": 0.25}, {"tracks": 7}, [read], {"ranks": Figure()}, fitted="of-1")
    assert tracking.log_model(MODEL, {"ndcg": 0.25}, {"tracks": 7}, [read], {}, fitted="of-1") == run
    file = folder / "report.html"
    file.write_text("<html></html>")
    tracking.log_file(str(file), "report")
    tracking.log_text("name: value", "settings/all.yaml")
    tracking.finish(["evaluate"], "report", 2.0)
    tracking.finish(["report"], None, 3.0)
    references = tracking.references()
    assert tracking.failed is None
    assert run is not None
    assert references is not None
    assert references.versions["tracks"] >= {7}
    found = tracking.client.get_run(run)
    assert found.data.metrics["ndcg"] == 0.25
    assert found.inputs.dataset_inputs[0].dataset.digest == "01234567@7"
    parent = tracking.client.get_run(tracking.parent())
    assert (parent.info.status, parent.data.tags["encore.failed.report"]) == ("FINISHED", "false")

    study = Tracking(config, f"{run_id}-study")
    assert study.begin_study("study", MODEL, {"tracks": 7}) is not None
    study.log_trial(1, {"k": 3}, {"ndcg": 0.5}, (1_000, 2_000))
    study.finish_study({"ndcg": 0.5}, "FINISHED")
    assert Tracking(config, f"{run_id}-study").begin_study("study", MODEL, {"tracks": 7}) == {1}
    assert study.failed is None
    return run


def register(config: Config, run_id: str, run: str | None, folder: Path) -> ModelVersion:
    """Make every call of `ModelRegistry`; returns the version that was registered and is now the champion."""
    registry = ModelRegistry(Tracking(config, run_id))
    before = registry.aliases(MODEL)
    code, evaluation = folder / f"code-{run_id}", folder / f"evaluation-{run_id}"
    evaluation.mkdir()
    (evaluation / "evaluation.json").write_text("{}")
    package = Package(
        small_bundle(), evaluation, source_of("encore.serving.pyfunc"), code, write_package(code), tuple(URIS[:3])
    )
    made = registry.register(MODEL, package, run, {FINGERPRINT: "of-1", "version.tracks": "7"})
    registry.set_tags(MODEL, made.version, {"encore.verdict": "champion"})
    registry.set_alias(MODEL, CHALLENGER, made.version)
    registry.delete_alias(MODEL, CHALLENGER)
    registry.promote(MODEL, made.version)
    expected = {CHAMPION: made.version}
    if CHAMPION in before:
        expected[PREVIOUS] = before[CHAMPION]
    assert registry.aliases(MODEL) == expected
    assert MODEL in registry.models()
    found = registry.version(MODEL, made.version)
    assert found is not None
    assert (found.tags["encore.verdict"], found.aliases) == ("champion", (CHAMPION,))
    assert (registry.folder(found, BUNDLE) / "manifest.json").is_file()
    if run is not None:
        assert registry.evaluation_run(MODEL, "of-1") is not None
        assert registry._client.get_run(run).outputs.model_outputs
    references = Tracking(config, run_id).references()
    assert references is not None
    assert "of-1" in references.fitted
    return found
