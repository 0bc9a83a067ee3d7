"""The dashboard and the rules, without a Prometheus."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from encore.serving.metrics import REQUEST_BUCKETS, Metrics, Version

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deploy" / "monitoring"
sys.path.insert(0, str(FOLDER))

import dashboard  # noqa: E402
import monitor  # noqa: E402


def rules(kind: str) -> list[dict[str, Any]]:
    """The rules of a kind: record or alert."""
    files = [yaml.safe_load((FOLDER / "rules" / name).read_text()) for name in ("recording.yml", "alerts.yml")]
    return [rule for file in files for group in file["groups"] for rule in group["rules"] if kind in rule]


def test_the_file_is_what_the_code_makes() -> None:
    assert dashboard.OUTPUT.read_text() == dashboard.text(), "call python deploy/monitoring/dashboard.py"


def test_panels_lie_beside_each_other() -> None:
    made = dashboard.dashboard()
    panels = made["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 30
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        own = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert max(x for x, _ in own) < dashboard.WIDTH
        assert not own & cells, panel["title"]
        cells |= own
    shown = [panel for panel in panels if panel["type"] != "row"]
    assert all(panel["description"] and panel["targets"] and panel["options"] for panel in shown)
    assert [target["expr"] for panel in shown for target in panel["targets"]] == dashboard.expressions()


def test_the_scorer_has_every_metric_that_is_asked_for() -> None:
    metrics = Metrics()
    metrics.set_versions([Version("ranker", "3", "champion", "digest", 1.0)])
    metrics.set_registry_up(True)
    metrics.request("/api/recommend", 200, 0.002, ("ranker", "3", "champion"))
    own = set(re.findall(r"^(\w+)", metrics.render()[1].decode(), re.MULTILINE))
    recorded = {rule["record"] for rule in rules("record")}
    asked = "\n".join([*dashboard.expressions(), *(rule["expr"] for rule in (*rules("record"), *rules("alert")))])
    names = set(re.findall(r"\b(encore[a-z_]*:[\w:]+|(?:encore|process)_\w+)\b", asked))
    of_jobs = r"encore_(job|lake|quarantine|check|model_ndcg|model_r_precision)"
    jobs = {name for name in names if re.match(of_jobs, name)}
    assert names - own - recorded - jobs == set()
    assert recorded - names == set(), "recorded, but not used"


def test_objectives_are_bounds_of_the_histogram() -> None:
    """A bound that is no bucket selects nothing."""
    asked = " ".join([*dashboard.expressions(), *(rule["expr"] for rule in rules("record"))])
    assert {float(bound) for bound in re.findall(r'le="([\d.]+)"', asked)} <= set(REQUEST_BUCKETS)


def test_each_alert_is_shown_to_fire_and_to_be_silent() -> None:
    tests = [yaml.safe_load((FOLDER / "rules" / name).read_text()) for name in ("tests.yml", "tests-days.yml")]
    cases = [case for file in tests for test in file["tests"] for case in test.get("alert_rule_test", ())]
    names = {rule["alert"] for rule in rules("alert")}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


def test_each_alert_is_documented() -> None:
    page = (ROOT / "deploy" / "docs" / "monitoring.md").read_text()
    documented = set(re.findall(r"^\| `(Encore\w+)` \|", page, re.MULTILINE))
    assert documented == {rule["alert"] for rule in rules("alert")}
    assert all(rule["labels"]["severity"] in ("page", "ticket") for rule in rules("alert"))


def test_the_configuration_gets_the_addresses(tmp_path: Path) -> None:
    path = monitor.configured(tmp_path / "data", scorer="127.0.0.1:7", jobs_port=8, interval="1s")
    found = yaml.safe_load(path.read_text())
    targets = [job["static_configs"][0]["targets"] for job in found["scrape_configs"]]
    assert targets == [["127.0.0.1:7"], ["127.0.0.1:8"]]
    assert all(Path(file).is_file() for file in found["rule_files"])
    assert found["global"] == {"scrape_interval": "1s", "evaluation_interval": "1s"}


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        monitor.main([])
    assert caught.value.code == 4
    told = capsys.readouterr().err
    assert "not installed: prometheus, prometheus-node-exporter" in told
    assert "sudo apt-get install -y --no-install-recommends prometheus prometheus-node-exporter" in told
