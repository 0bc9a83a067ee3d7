"""An estimate of what a run costs on AWS, from the durations measured in the last run and a table of prices.

For each job, `job_costs` holds its duration and the total duration of its tasks. On n cores, seconds - tasks / n were
spent in the driver while executors waited. Both are scaled linearly from the n0 playlists measured to N playlists:

    seconds on AWS = start + compile + N/n0 (driver + tasks / (executors x cores per executor))

Each job gets new workers, in which loops have to be compiled: on a worker one process compiles while the others wait.
On EMR Serverless the driver is billed for all of that time, executors until the tasks are done plus an idle time. On
EC2 all nodes are billed, from their start until the cluster terminates itself. A local core counts as one vCPU. Jobs
are added up as if they ran one after the other: those that the state machine runs in parallel cost the same, and end
earlier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from encore.aws.serving import RULES, TASK_GB, TASK_VCPU
from encore.config import conf_dir, read_yaml
from encore.errors import ConfigError

HOURS_A_MONTH = 730

MAX_EXECUTORS = "spark.dynamicAllocation.maxExecutors"
PARALLELISM = "spark.default.parallelism"

RELIABLE_SCALE = 4
"""Beyond this many times (or below one such fraction of) the measured playlists, an estimate is called unreliable."""


class _Prices(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Serverless(_Prices):
    """Prices of EMR Serverless, in dollars."""

    vcpu_hour: float = Field(gt=0)
    gb_hour: float = Field(gt=0)


class Node(_Prices):
    """A cluster node: its type, vCPUs, and the hourly prices of EC2 and of EMR, in dollars."""

    type: str
    vcpu: int = Field(gt=0)
    hour: float = Field(gt=0)
    emr_hour: float = Field(ge=0)


class Nodes(_Prices):
    """The nodes of the optional cluster."""

    driver: Node
    worker: Node


class Serving(_Prices):
    """Prices of what the scorer runs on, in dollars: Fargate, load balancer, firewall, an instance of SageMaker."""

    fargate_vcpu_hour: float = Field(gt=0)
    fargate_gb_hour: float = Field(gt=0)
    balancer_hour: float = Field(gt=0)
    balancer_unit_hour: float = Field(gt=0)
    firewall_month: float = Field(ge=0)
    firewall_rule_month: float = Field(ge=0)
    firewall_million_requests: float = Field(ge=0)
    instance_hour: float = Field(gt=0)


class Compile(_Prices):
    """Seconds in which the loops of a job are compiled, by job: in its driver, and in each executor."""

    driver: dict[str, float] = Field(default_factory=dict)
    executor: dict[str, float] = Field(default_factory=dict)


class Standing(_Prices):
    """Prices of what a stage has while nothing runs, in dollars, and of what its use adds to them."""

    nat_hour: float = Field(gt=0)
    nat_gb: float = Field(gt=0)
    ipv4_hour: float = Field(gt=0)
    endpoint_hour: float = Field(gt=0)
    database_hour: dict[str, float]
    database_gb_month: float = Field(gt=0)
    key_month: float = Field(gt=0)
    key_requests: float = Field(gt=0)
    replica_gb_month: float = Field(gt=0)
    replica_transfer_gb: float = Field(gt=0)
    replica_puts: float = Field(gt=0)
    secret_month: float = Field(gt=0)
    zone_month: float = Field(gt=0)
    alarm_month: float = Field(gt=0)
    dashboard_month: float = Field(gt=0)
    log_gb: float = Field(gt=0)
    mlflow_server_hour: float = Field(gt=0)
    athena_tb: float = Field(gt=0)
    build_minute: float = Field(gt=0)
    pipeline_minute: float = Field(gt=0)


class Overheads(_Prices):
    """Seconds that are billed but in which no work is done."""

    worker_start: float = Field(ge=0)
    worker_idle: float = Field(ge=0)
    cluster_start: float = Field(ge=0)
    cluster_idle: float = Field(ge=0)
    compile: Compile


class Prices(_Prices):
    """The prices of a region: `conf/prices/<region>.yaml`."""

    region: str
    date: str
    serverless: Serverless
    ec2: Nodes
    s3_gb_month: float = Field(gt=0)
    serving: Serving
    standing: Standing
    seconds: Overheads


def load_prices(region: str) -> Prices:
    """The prices of a region. ConfigError if there are none or the file is invalid."""
    folder = conf_dir() / "prices"
    path = folder / f"{region}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in folder.glob("*.yaml"))) or "none"
        raise ConfigError(
            f"no prices for {region}: {path} does not exist", remedy=f"create it; regions with prices: {known}"
        )
    try:
        return Prices.model_validate(read_yaml(path))
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(str(part) for part in wrong["loc"])
        raise ConfigError(f"{path}: {where}: {wrong['msg'].lower()}, {wrong['input']!r} found") from error


@dataclass(frozen=True)
class Workers:
    """The workers of a run on EMR Serverless: how many executors, and vCPUs and GB of the driver and of an executor."""

    executors: int
    driver_vcpu: int
    driver_gb: int
    executor_vcpu: int
    executor_gb: int


def worker_sizes(spark: Mapping[str, str], driver_memory: str | None, executors: int | None = None) -> Workers:
    """Worker sizes from an environment's Spark settings. `executors`: None for as many as the settings allow.

    ConfigError for a memory size that is not whole gigabytes, and for fewer tasks than the executors have cores.
    """
    driver = _gb("spark.driver.memory", driver_memory or spark.get("spark.driver.memory", "14g"))
    most, tasks = int(spark.get(MAX_EXECUTORS, 4)), spark.get(PARALLELISM)
    cores = most * int(spark.get("spark.executor.cores", 4))
    if tasks is not None and int(tasks) < cores:
        raise ConfigError(
            f"{PARALLELISM}={tasks}: at least {cores} expected, the cores of {MAX_EXECUTORS}={most} executors",
            remedy="set it to the number of executors times their cores, or cores would be idle",
        )
    return Workers(
        most if executors is None else executors,
        int(spark.get("spark.driver.cores", 4)),
        driver + _gb("spark.driver.memoryOverhead", spark.get("spark.driver.memoryOverhead", "2g")),
        int(spark.get("spark.executor.cores", 4)),
        _gb("spark.executor.memory", spark.get("spark.executor.memory", "14g"))
        + _gb("spark.executor.memoryOverhead", spark.get("spark.executor.memoryOverhead", "2g")),
    )


def _gb(name: str, text: str) -> int:
    if not text.endswith("g") or not text[:-1].isdigit():
        raise ConfigError(f"{name}={text}: gigabytes such as 4g expected")
    return int(text[:-1])


@dataclass(frozen=True)
class JobEstimate:
    """The estimate for a job: seconds measured, seconds expected on AWS, and dollars on EMR Serverless and on EC2."""

    job: str
    measured_seconds: float
    seconds: float
    serverless: float
    ec2: float


@dataclass(frozen=True)
class Estimate:
    """The estimate for a run of N playlists; `scale` is N divided by the number of playlists measured."""

    jobs: tuple[JobEstimate, ...]
    cluster_overhead: float
    """Dollars for the cluster's nodes while they start, and while they are idle before termination."""
    lake_gb: float
    scale: float

    @property
    def serverless(self) -> float:
        """Dollars on EMR Serverless."""
        return sum(job.serverless for job in self.jobs)

    @property
    def ec2(self) -> float:
        """Dollars on an EC2 cluster started for this run."""
        return sum(job.ec2 for job in self.jobs) + self.cluster_overhead

    @property
    def seconds(self) -> float:
        """Seconds of all jobs, run one after the other."""
        return sum(job.seconds for job in self.jobs)


def estimate(
    rows: Sequence[Mapping[str, Any]], cores: int, scale: float, lake_bytes: int, prices: Prices, workers: Workers
) -> Estimate:
    """Estimate the cost of a run with `scale` times as many playlists.

    `rows`: rows of `job_costs`, one per job, measured on `cores` cores; `lake_bytes`: the size of the lake as measured.
    """
    jobs = tuple(_job(row, cores, scale, prices, workers) for row in rows)
    hours = (prices.seconds.cluster_start + prices.seconds.cluster_idle) / 3600
    return Estimate(jobs, hours * _cluster_hour(prices, workers), lake_bytes * scale / 1e9, scale)


def _job(row: Mapping[str, Any], cores: int, scale: float, prices: Prices, workers: Workers) -> JobEstimate:
    measured, tasks = float(row["seconds"]), float(row["run_seconds"])
    driver_only = max(0.0, measured - tasks / cores)
    overheads, price = prices.seconds, prices.serverless
    parallel = tasks * scale / (workers.executors * workers.executor_vcpu)
    name = str(row["job"])
    in_executor = overheads.compile.executor.get(name, 0.0) if tasks else 0.0
    compiling = overheads.compile.driver.get(name, 0.0) + in_executor
    seconds = overheads.worker_start + compiling + driver_only * scale + parallel
    # a job without tasks releases its executors, or never gets any
    executor_seconds = overheads.worker_start + in_executor + parallel + overheads.worker_idle if tasks else 0.0
    driver = workers.driver_vcpu * price.vcpu_hour + workers.driver_gb * price.gb_hour
    executor = workers.executor_vcpu * price.vcpu_hour + workers.executor_gb * price.gb_hour
    serverless = driver * max(seconds, 60) / 3600 + workers.executors * executor * executor_seconds / 3600
    # a step on a running cluster starts at once
    on_cluster = (seconds - overheads.worker_start) / 3600 * _cluster_hour(prices, workers)
    return JobEstimate(name, measured, seconds, serverless, on_cluster)


@dataclass(frozen=True)
class ServingMonth:
    """Dollars a month for the scorer.

    On Fargate: `front`, the load balancer with one capacity unit, and the firewall; `task`, for each task that runs all
    month; `million_requests`, through the firewall. On SageMaker: `instance`, for each instance.
    """

    front: float
    task: float
    million_requests: float
    instance: float


def serving_month(prices: Serving) -> ServingMonth:
    """What the scorer costs with the sizes of its stack, without logs and traffic."""
    task = TASK_VCPU * prices.fargate_vcpu_hour + TASK_GB * prices.fargate_gb_hour
    firewall = prices.firewall_month + RULES * prices.firewall_rule_month
    return ServingMonth(
        HOURS_A_MONTH * (prices.balancer_hour + prices.balancer_unit_hour) + firewall,
        HOURS_A_MONTH * task,
        prices.firewall_million_requests,
        HOURS_A_MONTH * prices.instance_hour,
    )


def _cluster_hour(prices: Prices, workers: Workers) -> float:
    """Dollars per hour for a cluster whose worker nodes have at least as many cores as the executors."""
    driver, worker = prices.ec2.driver, prices.ec2.worker
    nodes = -(-workers.executors * workers.executor_vcpu // worker.vcpu)
    return driver.hour + driver.emr_hour + nodes * (worker.hour + worker.emr_hour)
