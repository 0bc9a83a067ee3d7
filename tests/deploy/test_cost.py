"""Cost estimates: a hand calculation, the price file, and the command's errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from encore.aws.cost import (
    Compile,
    Node,
    Nodes,
    Overheads,
    Prices,
    Serverless,
    Serving,
    Standing,
    Workers,
    estimate,
    load_prices,
    serving_month,
    worker_sizes,
)
from encore.cli.app import app
from encore.cli.aws import _notes
from encore.config import load_config
from encore.errors import ConfigError
from encore.runtime.registry import JOBS

PRICES = Prices(
    region="here",
    date="today",
    serverless=Serverless(vcpu_hour=0.05, gb_hour=0.01),
    ec2=Nodes(
        driver=Node(type="small", vcpu=4, hour=0.2, emr_hour=0.05),
        worker=Node(type="large", vcpu=8, hour=0.4, emr_hour=0.1),
    ),
    s3_gb_month=0.02,
    serving=Serving(
        fargate_vcpu_hour=0.04,
        fargate_gb_hour=0.005,
        balancer_hour=0.02,
        balancer_unit_hour=0.01,
        firewall_month=5,
        firewall_rule_month=1,
        firewall_million_requests=0.6,
        instance_hour=0.1,
    ),
    standing=Standing(
        nat_hour=0.05,
        nat_gb=0.04,
        ipv4_hour=0.01,
        endpoint_hour=0.02,
        database_hour={"db.small": 0.03},
        database_gb_month=0.1,
        key_month=1,
        key_requests=0.03,
        replica_gb_month=0.01,
        replica_transfer_gb=0.02,
        replica_puts=0.01,
        secret_month=0.5,
        zone_month=0.25,
        alarm_month=0.1,
        dashboard_month=3,
        log_gb=0.5,
        mlflow_server_hour=0.6,
        athena_tb=5,
        build_minute=0.02,
        pipeline_minute=0.002,
    ),
    seconds=Overheads(
        worker_start=60,
        worker_idle=30,
        cluster_start=400,
        cluster_idle=500,
        compile=Compile(driver={"fit_models": 7}, executor={"fit_models": 11, "report": 9}),
    ),
)
WORKERS = Workers(executors=3, driver_vcpu=4, driver_gb=14, executor_vcpu=4, executor_gb=10)


def row(seconds: float, run_seconds: float, job: str = "recommend") -> dict[str, Any]:
    return {"job": job, "seconds": seconds, "run_seconds": run_seconds}


def test_an_estimate_worked_out_by_hand() -> None:
    """100 s on 2 cores with 160 s of tasks: 20 s are driver only. Ten times the playlists, 12 vCPU of executors."""
    made = estimate([row(100, 160)], 2, 10, 3_000_000_000, PRICES, WORKERS)
    spread = 1600 / 12
    there = 60 + 200 + spread
    (job,) = made.jobs
    assert job.seconds == pytest.approx(there)
    driver, executor = 4 * 0.05 + 14 * 0.01, 4 * 0.05 + 10 * 0.01
    assert job.serverless == pytest.approx((driver * there + 3 * executor * (60 + spread + 30)) / 3600)
    # 12 vCPU take two nodes of eight
    hour = 0.25 + 2 * 0.5
    assert job.ec2 == pytest.approx(hour * (there - 60) / 3600)
    assert made.cluster_overhead == pytest.approx(hour * 900 / 3600)
    assert made.ec2 == pytest.approx(job.ec2 + made.cluster_overhead)
    assert made.lake_gb == pytest.approx(30)


def test_a_job_without_tasks_is_not_billed_for_executors() -> None:
    (job,) = estimate([row(30, 0)], 2, 1, 0, PRICES, WORKERS).jobs
    assert job.serverless == pytest.approx((4 * 0.05 + 14 * 0.01) * 90 / 3600)


def test_every_new_worker_compiles() -> None:
    """The driver for 7 s, then each of three executors for 11 s; a job without tasks has no executors."""
    job, same = (estimate([row(100, 160, name)], 2, 1, 0, PRICES, WORKERS).jobs[0] for name in ("fit_models", "other"))
    assert job.seconds - same.seconds == pytest.approx(18)
    driver, executor = 4 * 0.05 + 14 * 0.01, 4 * 0.05 + 10 * 0.01
    assert job.serverless - same.serverless == pytest.approx((18 * driver + 3 * 11 * executor) / 3600)
    assert job.ec2 > same.ec2
    (without,) = estimate([row(30, 0, "report")], 2, 1, 0, PRICES, WORKERS).jobs
    assert without.seconds == pytest.approx(90)


def test_compiling_is_measured_for_jobs_that_exist() -> None:
    compiling = load_prices("us-east-1").seconds.compile
    assert {*compiling.driver, *compiling.executor} <= set(JOBS)
    assert {"recommend", "fit_models"} <= set(compiling.executor)


def test_more_executors_are_faster_but_add_start_and_idle_time() -> None:
    """The work costs the same however many share it; the start and idle time of each executor comes on top."""
    few, many = (estimate([row(100, 160)], 2, 100, 0, PRICES, replace(WORKERS, executors=n)).jobs[0] for n in (2, 20))
    assert many.seconds < few.seconds
    driver, executor = 4 * 0.05 + 14 * 0.01, 4 * 0.05 + 10 * 0.01
    executors = [job.serverless - driver * job.seconds / 3600 for job in (few, many)]
    assert executors[1] - executors[0] == pytest.approx(18 * executor * (60 + 30) / 3600)


def test_a_month_of_serving_worked_out_by_hand() -> None:
    """A task of 1 vCPU and 6 GB; a load balancer with one unit; a firewall with three rules; 730 hours."""
    month = serving_month(PRICES.serving)
    assert month.task == pytest.approx(730 * (0.04 + 6 * 0.005))
    assert month.front == pytest.approx(730 * 0.03 + 5 + 3)
    assert month.million_requests == 0.6
    assert month.instance == pytest.approx(73)


def test_the_estimate_says_what_the_scorer_costs() -> None:
    workers = worker_sizes({}, "4g", 4)
    cost = estimate([row(10, 10)], 2, 1, 0, load_prices("us-east-1"), workers)
    (text,) = [note for note in _notes(cost, load_prices("us-east-1"), workers, 1, 2) if note.startswith("The scorer")]
    assert "on Fargate 30, and 49 for each task of 1 vCPU and 6 GB, 0.60 for a million requests" in text
    assert "on SageMaker 84 for each ml.m5.large" in text


def test_the_estimate_says_what_a_copy_and_a_key_cost() -> None:
    workers = worker_sizes({}, "4g", 4)
    prices = load_prices("us-east-1")
    cost = estimate([row(10, 10)], 2, 10, 20_000_000_000, prices, workers)
    (text,) = [note for note in _notes(cost, prices, workers, 1, 2) if note.startswith("A copy")]
    assert cost.lake_gb == 200
    assert "2.50 a month, and 4.00 each time that all of it is written" in text
    assert "1.00 a month" in text


def test_prices_have_a_date_and_worker_sizes_come_from_the_environment() -> None:
    prices = load_prices("us-east-1")
    assert prices.region == "us-east-1"
    assert prices.date >= "2025"
    emr = load_config("emr", ["lake.path=s3://x", "raw.playlists=s3://x"])
    assert worker_sizes(emr.spark.settings, emr.spark.driver_memory) == Workers(4, 4, 14, 4, 14)
    more = {"spark.dynamicAllocation.maxExecutors": "6", "spark.default.parallelism": "24"}
    assert worker_sizes({**emr.spark.settings, **more}, emr.spark.driver_memory).executors == 6


def test_fewer_tasks_than_cores_are_refused() -> None:
    """The executors of a job come one by one, so it is cut for all of them from the start, or some would be idle."""
    settings = {"spark.dynamicAllocation.maxExecutors": "8", "spark.default.parallelism": "16"}
    with pytest.raises(ConfigError, match=r"spark\.default\.parallelism=16: at least 32 expected, the cores of .*=8"):
        worker_sizes(settings, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("region: mars\n", "mars.yaml: date: field required"),
        ("- a list\n", "expected a mapping of settings, found a list"),
        ("region: [\n", "not YAML settings"),
    ],
)
def test_an_invalid_price_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str) -> None:
    (tmp_path / "prices").mkdir()
    (tmp_path / "base.yaml").write_text("")
    (tmp_path / "prices" / "mars.yaml").write_text(text)
    monkeypatch.setenv("ENCORE_CONF_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=expected):
        load_prices("mars")
    with pytest.raises(ConfigError, match="no prices for moon") as caught:
        load_prices("moon")
    assert "regions with prices: mars" in str(caught.value.remedy)


def test_a_memory_size_that_is_not_in_gigabytes() -> None:
    with pytest.raises(ConfigError, match=r"spark\.executor\.memory=512m: gigabytes such as 4g expected"):
        worker_sizes({"spark.executor.memory": "512m"}, None, 4)


def test_without_a_run_there_is_nothing_to_estimate_from(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["cost", "--set", f"lake.path={tmp_path}/lake"])
    assert done.exit_code == 5
    assert "no tables in the lake" in done.stderr
