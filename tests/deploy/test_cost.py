"""What a run costs: the sum by hand, the file of prices, and what the command says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from encore.aws.cost import Node, Nodes, Prices, Serverless, Waits, Workers, estimate, prices_of, workers_of
from encore.cli.app import app
from encore.config import load_config
from encore.errors import ConfigError

PRICES = Prices(
    region="here",
    date="today",
    serverless=Serverless(vcpu_hour=0.05, gb_hour=0.01),
    ec2=Nodes(
        driver=Node(type="small", vcpu=4, hour=0.2, emr_hour=0.05),
        worker=Node(type="large", vcpu=8, hour=0.4, emr_hour=0.1),
    ),
    s3_gb_month=0.02,
    seconds=Waits(worker_start=60, worker_idle=30, cluster_start=400, cluster_idle=500),
)
WORKERS = Workers(executors=3, driver_vcpu=4, driver_gb=14, executor_vcpu=4, executor_gb=10)


def row(seconds: float, run_seconds: float, job: str = "recommend") -> dict[str, Any]:
    return {"job": job, "seconds": seconds, "run_seconds": run_seconds}


def test_the_sum_by_hand() -> None:
    """100 s on 2 cores with 160 s of tasks: 20 s the driver's own. Ten times the playlists, 12 vCPU of executors."""
    made = estimate([row(100, 160)], 2, 10, 3_000_000_000, PRICES, WORKERS)
    spread = 1600 / 12
    there = 60 + 200 + spread
    (job,) = made.jobs
    assert job.there == pytest.approx(there)
    driver, executor = 4 * 0.05 + 14 * 0.01, 4 * 0.05 + 10 * 0.01
    assert job.serverless == pytest.approx((driver * there + 3 * executor * (60 + spread + 30)) / 3600)
    # 12 vCPU are two nodes of eight
    hour = 0.25 + 2 * 0.5
    assert job.ec2 == pytest.approx(hour * (there - 60) / 3600)
    assert made.waiting_ec2 == pytest.approx(hour * 900 / 3600)
    assert made.ec2 == pytest.approx(job.ec2 + made.waiting_ec2)
    assert made.lake_gb == pytest.approx(30)


def test_a_job_without_tasks_takes_no_executors() -> None:
    (job,) = estimate([row(30, 0)], 2, 1, 0, PRICES, WORKERS).jobs
    assert job.serverless == pytest.approx((4 * 0.05 + 14 * 0.01) * 90 / 3600)


def test_more_executors_are_faster_and_cost_their_waiting() -> None:
    """Their work costs the same however many share it; each one's start and idle time comes on top."""
    few, many = (estimate([row(100, 160)], 2, 100, 0, PRICES, replace(WORKERS, executors=n)).jobs[0] for n in (2, 20))
    assert many.there < few.there
    driver, executor = 4 * 0.05 + 14 * 0.01, 4 * 0.05 + 10 * 0.01
    executors = [job.serverless - driver * job.there / 3600 for job in (few, many)]
    assert executors[1] - executors[0] == pytest.approx(18 * executor * (60 + 30) / 3600)


def test_prices_of_a_region_have_a_date_and_sizes_are_those_of_the_environment() -> None:
    prices = prices_of("us-east-1")
    assert prices.region == "us-east-1"
    assert prices.date >= "2025"
    emr = load_config("emr", ["lake.path=s3://x", "raw.playlists=s3://x"])
    assert workers_of(emr.spark.settings, emr.spark.driver_memory, 4) == Workers(4, 4, 14, 4, 14)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("region: mars\n", "mars.yaml: date: field required"),
        ("- a list\n", "a mapping of settings expected, a list found"),
        ("region: [\n", "not YAML settings"),
    ],
)
def test_a_file_of_prices_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    (tmp_path / "prices").mkdir()
    (tmp_path / "base.yaml").write_text("")
    (tmp_path / "prices" / "mars.yaml").write_text(text)
    monkeypatch.setenv("ENCORE_CONF_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=expected):
        prices_of("mars")
    with pytest.raises(ConfigError, match="no prices for moon") as caught:
        prices_of("moon")
    assert "there are: mars" in str(caught.value.remedy)


def test_a_size_that_is_not_gigabytes() -> None:
    with pytest.raises(ConfigError, match=r"spark\.executor\.memory=512m: gigabytes such as 4g expected"):
        workers_of({"spark.executor.memory": "512m"}, None, 4)


def test_without_a_run_there_is_nothing_to_go_by(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["cost", "--set", f"lake.path={tmp_path}/lake"])
    assert done.exit_code == 5
    assert "no tables in the lake" in done.stderr
