"""A live scorer, a live Prometheus and the metrics of a lake: every expression of dashboard and rules finds a value."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from encore.runtime.textfile import write_textfile
from tests.conftest import settings
from tests.serving.environments import answer, interpreter
from tests.serving.process import Running, free_port, started
from tests.unit.runtime.recorded import recorded_lake
from tests.unit.serving.bundles import URIS, small_bundle

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "monitoring"
sys.path.insert(0, str(FOLDER))

import dashboard  # noqa: E402
import monitor  # noqa: E402

SECONDS = 60.0
"""How long a test waits for samples, which are collected each second."""


@dataclass(frozen=True)
class Live:
    """A Prometheus that scrapes a scorer and the metrics of a lake."""

    url: str
    scorer: Running
    traffic: threading.Thread
    quiet: threading.Event
    """Ends the traffic."""

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of Prometheus' API."""
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=30) as content:
            found = json.load(content)
        assert found["status"] == "success", found
        return found["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The samples of an expression now."""
        found: list[dict[str, Any]] = self.get("query", query=expr)["result"]
        return found

    def empty(self, expressions: Iterable[str]) -> list[str]:
        """Those of some expressions that find nothing, or only values that are no numbers."""
        return [
            expr for expr in expressions if not any(float(sample["value"][1]) < 1e300 for sample in self.query(expr))
        ]

    def wait(self, expressions: Iterable[str]) -> list[str]:
        """As `empty`, but asked until there are none, or it took too long."""
        left, end = list(dict.fromkeys(expressions)), time.monotonic() + SECONDS
        while (left := self.empty(left)) and time.monotonic() < end:
            time.sleep(0.5)
        return left


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """Debian's packages, which `make serve-check` installs where that is possible."""
    if lacking := monitor.missing():
        pytest.skip(f"not installed: {', '.join(lacking)}: apt-get install {' '.join(lacking)}")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("monitoring")
    write_textfile(
        recorded_lake(settings(folder / "lake")), folder / monitor.TEXTFILES / "encore.prom", ["split_holdout"]
    )
    prometheus, jobs, scorer_port = free_port(), free_port(), free_port()
    configuration = monitor.configured(folder, scorer=f"127.0.0.1:{scorer_port}", jobs_port=jobs, interval="1s")
    programs = [monitor.prometheus(folder, prometheus, configuration), monitor.node_exporter(folder, jobs)]
    environment = {
        "ENCORE_SERVE_PORT": str(scorer_port),
        "ENCORE_SERVE_MODEL": str(small_bundle()),
        "ENCORE_SERVE_THREADS": "1",
        "ENCORE_SERVE_MAX_WAITING": "0",
    }
    command = [sys.executable, "-m", "tests.serving.two_versions"]
    with (
        started(command, scorer_port, environment, log=folder / "scorer.log") as scorer,
        monitor.running(programs),
    ):
        quiet = threading.Event()
        traffic = threading.Thread(target=_send, args=(scorer, quiet))
        found = Live(f"http://127.0.0.1:{prometheus}", scorer, traffic, quiet)
        _until(lambda: _answers(found), "Prometheus does not answer")
        traffic.start()
        try:
            yield found
        finally:
            quiet.set()
            traffic.join()


def _answers(found: Live) -> bool:
    with contextlib.suppress(OSError):
        return bool(found.query("up"))
    return False


def _until(holds: Callable[[], bool], otherwise: str) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, otherwise
        time.sleep(0.2)


def _send(scorer: Running, stop: threading.Event) -> None:
    """Requests of every kind, until it is told to stop."""

    def burst(n: int) -> None:
        threads = [threading.Thread(target=_recommend, args=(scorer, f"burst {i}")) for i in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    i = 0
    while not stop.is_set():
        i += 1
        _recommend(scorer, f"title {i}")
        playlist = {"tracks": [*URIS[:5], f"spotify:track:{'9' * 22}"]}
        scorer.post("/invocations", json.dumps({"instances": [playlist], "params": {"k": 10}}).encode())
        scorer.post("/v1/models/ranker:predict", json.dumps({"instances": [playlist]}).encode())
        tensor = {"name": "tracks", "datatype": "BYTES", "shape": [1], "data": [json.dumps(URIS[:3])]}
        scorer.post("/v2/models/ranker/infer", json.dumps({"inputs": [tensor]}).encode())
        for body in (b"{", b'{"tracks": [7]}', b'{"k": 0, "tracks": []}', b"x" * 2_000_000):
            scorer.post("/api/recommend", body)
        for path in ("/", "/ping", "/health", "/api/tracks?q=track", "/api/models", f"/nosuch/{i}", f"/page/{i}"):
            scorer.status(path)
        if i % 5 == 0:
            burst(8)
        stop.wait(0.05)


def _recommend(scorer: Running, title: str) -> None:
    body = {"tracks": URIS[:20], "title": title, "k": 50, "explain": True}
    scorer.post("/api/recommend", json.dumps(body).encode())


def rules(kind: str) -> list[dict[str, Any]]:
    files = [yaml.safe_load((FOLDER / "rules" / name).read_text()) for name in ("recording.yml", "alerts.yml")]
    return [rule for file in files for group in file["groups"] for rule in group["rules"] if kind in rule]


def selectors(expr: str) -> list[str]:
    """The series that an expression reads, without labels that it does not need to have."""
    return re.findall(r"(?:\b(?:encore|process|node)\w*[\w:]*|\bup\b)(?:\{[^}]*\})?", expr)


def test_rules_are_valid_and_their_tests_pass() -> None:
    for command in (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "rules/recording.yml", "rules/alerts.yml"],
        ["test", "rules", "rules/tests.yml", "rules/tests-days.yml"],
    ):
        done = subprocess.run(["promtool", *command], cwd=FOLDER, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_both_targets_are_scraped(live: Live) -> None:
    assert live.wait(['up{job="encore"} == 1', 'up{job="encore-jobs"} == 1']) == []


def test_no_expression_of_the_dashboard_is_empty(live: Live) -> None:
    assert len(dashboard.expressions()) > 40
    assert live.wait(dashboard.expressions()) == []


def test_every_recording_rule_records(live: Live) -> None:
    assert live.wait([rule["record"] for rule in rules("record")]) == []


def test_alerts_read_series_that_exist(live: Live) -> None:
    """An alert on a misspelt series never fires."""
    read = [selector for rule in rules("alert") for selector in selectors(rule["expr"])]
    assert len(set(read)) > 25
    assert live.wait(read) == []


def test_prometheus_evaluates_every_rule_and_nobody_is_woken_up_in_vain(live: Live) -> None:
    live.wait(["encore:requests:rate5m"])
    found = {rule["name"]: rule for group in live.get("rules")["groups"] for rule in group["rules"]}
    assert found.keys() == {rule.get("record") or rule["alert"] for rule in (*rules("record"), *rules("alert"))}
    _until(lambda: all(rule["health"] != "unknown" for rule in _rules(live)), "a rule is not evaluated")
    assert [rule for rule in _rules(live) if rule["health"] != "ok"] == []
    # requests are refused on purpose, and the runs of the lake are from long ago
    quiet = ("EncoreDown", "EncoreNoTarget", "EncoreNoChampion", "EncoreRegistryDown", "EncoreModelLoadFailed")
    active = {alert["labels"]["alertname"] for alert in live.get("alerts")["alerts"]}
    assert not active & set(quiet)


def _rules(live: Live) -> list[dict[str, Any]]:
    return [rule for group in live.get("rules")["groups"] for rule in group["rules"]]


def test_traffic_was_of_every_kind(live: Live) -> None:
    wanted = [
        *(f'encore_requests_total{{role="{role}",code="200"}} > 0' for role in ("champion", "challenger")),
        *(f'sum(encore_requests_total{{code="{code}"}}) > 0' for code in ("400", "404", "413", "503")),
        *(f'encore_rejected_total{{reason="{reason}"}} > 0' for reason in ("busy", "too_large")),
        "sum(encore_request_errors_total) > 0",
        "encore_unknown_tracks_total > 0",
        'sum(encore_requests_total{route="/v2/models/{model}/infer",code="200"}) > 0',
        'sum(encore_requests_total{route="/v1/models/{model}:predict",code="200"}) > 0',
        'encore_model_info{role="challenger"} == 1',
    ]
    assert live.wait(wanted) == []


def test_a_scorer_has_at_most_200_series(live: Live) -> None:
    """With all routes, both roles, and as many paths as there were requests for files that do not exist."""
    live.wait(['sum(encore_requests_total{code="404"}) > 10'])
    (scraped,) = live.query('max_over_time(scrape_samples_scraped{job="encore"}[1h])')
    assert 100 < float(scraped["value"][1]) <= 200
    routes = {sample["metric"]["route"] for sample in live.query("encore_requests_total")}
    assert not any("nosuch" in route or re.search(r"\d{2}", route) for route in routes)


def test_a_scorer_that_is_gone_raises_an_alert(live: Live) -> None:
    """The last of these tests, because it ends the scorer."""
    live.quiet.set()
    live.traffic.join()
    live.scorer.process.kill()
    _until(lambda: live.query('ALERTS{alertname="EncoreDown"}') != [], "no alert")


def test_make_monitor_runs_until_ctrl_c(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(3)]
    options = zip(("--prometheus-port", "--jobs-port", "--grafana-port"), map(str, ports), strict=True)
    command = [
        sys.executable,
        str(FOLDER / "monitor.py"),
        "--data",
        str(tmp_path),
        *(word for o in options for word in o),
    ]
    with started(command, ports[0], {}, path="/-/ready") as running:
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(30) == 0
        assert running.status("/-/ready") == 0
        assert {path.name for path in tmp_path.iterdir()} >= {"prometheus", "prometheus.yml", monitor.TEXTFILES}


def test_a_port_in_use_is_named(tmp_path: Path, live: Live) -> None:
    port = live.url.rpartition(":")[2]
    command = [sys.executable, str(FOLDER / "monitor.py"), "--data", str(tmp_path), "--prometheus-port", port]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 4
    assert f"port {port} is in use" in done.stderr
    assert "--prometheus-port" in done.stderr


def test_the_types_of_grafana_hold_the_whole_dashboard() -> None:
    """A misspelt field, or one of another panel, would be dropped."""
    script = Path(__file__).with_name("grafana_sdk.py")
    given = json.loads(dashboard.text())
    found = answer(interpreter("grafana"), script, asked=given)
    assert list(lost(given, found)) == []
    given["panels"][1]["options"]["misspelt"] = True
    assert list(lost(given, answer(interpreter("grafana"), script, asked=given))) == [".panels.1.options.misspelt"]


def lost(given: Any, found: Any, path: str = "") -> Iterator[str]:
    """The places of JSON that differ in other JSON, or are missing there."""
    if isinstance(given, dict) and isinstance(found, dict):
        for name, value in given.items():
            yield from lost(value, found.get(name), f"{path}.{name}")
    elif isinstance(given, list) and isinstance(found, list) and len(given) == len(found):
        for i, (one, other) in enumerate(zip(given, found, strict=True)):
            yield from lost(one, other, f"{path}.{i}")
    elif given != found:
        yield path


def test_grafana_gets_the_dashboard_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/sbin/{name}" if name == "grafana-server" else None)
    program = monitor.grafana(tmp_path, 9192, 9190)
    assert program is not None
    assert program.command[0] == "/usr/sbin/grafana-server"
    provisioning = Path(program.environment["GF_PATHS_PROVISIONING"])
    (source,) = yaml.safe_load((provisioning / "datasources" / "encore.yml").read_text())["datasources"]
    assert source["url"] == "$ENCORE_PROMETHEUS_URL"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "encore.yml").read_text())["providers"]
    assert provider["options"]["path"] == "$ENCORE_DASHBOARDS"
    folder = Path(program.environment["ENCORE_DASHBOARDS"])
    assert [path.name for path in folder.iterdir()] == ["encore.json"]
    assert program.environment["ENCORE_PROMETHEUS_URL"] == "http://127.0.0.1:9190"
