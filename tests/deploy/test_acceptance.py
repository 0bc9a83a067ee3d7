"""What a run has to leave in a stage, and what opens the gate to production."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from encore.aws.acceptance import FILLED, Facts, accepted, facts_of, gate
from encore.cli.app import app
from encore.config import Config
from encore.errors import ConfigError, InputError
from encore.runtime.registry import JOBS

GOOD = {"r_precision": 0.2, "ndcg": 0.4, "clicks": 2.0, "coverage": 0.5}
STAGING = Facts(
    "staging", "run-1", {}, sorted(JOBS), {table.name: 1000 for table in FILLED}, {"ranker": GOOD, "ials": GOOD}
)
PROD = replace(STAGING, stage="prod")


def measured(**changed: float) -> Facts:
    """Staging with other metrics of one model."""
    return replace(STAGING, metrics={"ranker": {**GOOD, **changed}, "ials": GOOD})


def problems(facts: Facts, playlists: int | None = None) -> dict[str, str]:
    return {one.what: one.fact for one in accepted(facts, playlists) if one.remedy}


class TestAccepted:
    def test_a_complete_run(self) -> None:
        assert problems(STAGING, 1000) == {}

    def test_a_lake_without_a_run(self) -> None:
        assert problems(Facts("sandbox")) == {"run": "none in the lake of sandbox"}

    def test_a_job_that_failed_and_those_after_it(self) -> None:
        done = [job for job in JOBS if job not in ("evaluate", "report")]
        found = problems(replace(STAGING, failed={"evaluate": "no memory"}, done=done))
        assert found == {"evaluate": "no memory", "jobs": "never done: report"}

    def test_tables_without_rows(self) -> None:
        rows = {**STAGING.rows, "recommendations": 0}
        del rows["models"]
        assert problems(replace(STAGING, rows=rows)) == {"tables": "without rows: models, recommendations"}

    def test_other_playlists_than_were_uploaded(self) -> None:
        assert problems(STAGING, 1001) == {"playlists": "1,000 of 1,001 that were uploaded"}

    @pytest.mark.parametrize(
        ("changed", "expected"),
        [
            ({"ndcg": float("nan")}, "ranker: ndcg nan"),
            ({"ndcg": 1.01}, "ranker: ndcg 1.01"),
            ({"r_precision": -0.1}, "ranker: r_precision -0.1"),
            ({"clicks": 51.5}, "ranker: clicks 51.5"),
        ],
    )
    def test_metrics_out_of_range(self, changed: dict[str, float], expected: str) -> None:
        assert problems(measured(**changed)) == {"metrics": expected}

    def test_a_model_without_a_metric(self) -> None:
        assert problems(replace(STAGING, metrics={"ranker": {"ndcg": 0.1, "clicks": 1}})) == {
            "metrics": "ranker: r_precision nan"
        }

    def test_no_metrics_at_all(self) -> None:
        assert problems(replace(STAGING, metrics={})) == {"metrics": "none"}


class TestGate:
    def closed(self, candidate: Facts, production: Facts = PROD, tolerance: float = 0.05) -> dict[str, str]:
        return {one.what: one.fact for one in gate(candidate, production, tolerance) if one.remedy}

    def test_the_same_metrics_pass(self) -> None:
        assert self.closed(STAGING) == {}

    @pytest.mark.parametrize("changed", [{"ndcg": 0.381}, {"clicks": 2.09}, {"r_precision": 0.3}, {"clicks": 0.0}])
    def test_better_and_slightly_worse_metrics_pass(self, changed: dict[str, float]) -> None:
        assert self.closed(measured(**changed)) == {}

    @pytest.mark.parametrize(
        ("changed", "expected"),
        [
            ({"ndcg": 0.379}, "worse: ndcg 0.3790, in prod 0.4000"),
            ({"clicks": 2.11}, "worse: clicks 2.1100, in prod 2.0000"),
        ],
    )
    def test_metrics_that_are_worse_close_it(self, changed: dict[str, float], expected: str) -> None:
        assert self.closed(measured(**changed)) == {"ranker": expected}

    def test_a_tolerance_of_nothing(self) -> None:
        assert self.closed(measured(ndcg=0.3999), tolerance=0) != {}
        with pytest.raises(ConfigError, match=r"--tolerance 5: a share from 0 to 1"):
            self.closed(STAGING, tolerance=5)

    def test_metrics_that_are_no_numbers_close_it(self) -> None:
        assert set(self.closed(measured(ndcg=float("nan")))) == {"metrics", "ranker"}

    def test_a_model_that_is_missing_closes_it(self) -> None:
        assert self.closed(replace(STAGING, metrics={"ials": GOOD})) == {"ranker": "not evaluated in staging"}

    def test_an_incomplete_run_closes_it_whatever_the_metrics(self) -> None:
        assert self.closed(replace(STAGING, failed={"report": "disk full"})) == {"report": "disk full"}

    def test_before_the_first_run_of_production_a_complete_run_is_enough(self) -> None:
        assert self.closed(STAGING, Facts("prod")) == {}
        assert self.closed(Facts("staging"), Facts("prod")) != {}

    def test_metrics_on_other_data_are_not_compared(self) -> None:
        small = replace(STAGING, rows={**STAGING.rows, "playlists": 499})
        assert "499 playlists and prod 1,000" in self.closed(small)["comparison"]


class TestFacts:
    def test_they_survive_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "staging.json"
        STAGING.write(path)
        assert Facts.read(path) == STAGING

    @pytest.mark.parametrize("text", ["", "{", "[1]", '{"stage": "x", "more": 1}', "{}"])
    def test_a_file_that_is_something_else(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "facts.json").write_text(text)
        with pytest.raises(InputError, match="not the facts about a stage"):
            Facts.read(tmp_path / "facts.json")

    def test_a_file_that_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="does not exist"):
            Facts.read(tmp_path / "facts.json")

    def test_a_lake_without_tables_has_none(self, lake_settings: Callable[..., Config]) -> None:
        assert facts_of("dev", lake_settings()) == Facts("dev")


class TestCommand:
    def test_the_exit_code_opens_or_closes_the_gate(self, tmp_path: Path) -> None:
        PROD.write(tmp_path / "prod.json")
        for facts, code in ((STAGING, 0), (measured(ndcg=0.1), 3)):
            facts.write(tmp_path / "staging.json")
            done = CliRunner().invoke(
                app, ["deploy", "gate", str(tmp_path / "staging.json"), str(tmp_path / "prod.json")]
            )
            assert done.exit_code == code, done.output

    def test_facts_are_json(self, tmp_path: Path) -> None:
        STAGING.write(tmp_path / "facts.json")
        assert json.loads((tmp_path / "facts.json").read_text())["rows"]["playlists"] == 1000
