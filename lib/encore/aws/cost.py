"""What a run costs on AWS, from the seconds that the last run took here and a table of prices.

For each job `job_costs` has its seconds and those of all its tasks together. With n cores, seconds - tasks / n were
spent in the driver while executors waited. For N playlists both parts are taken in proportion to the playlists, so

    there = start + N/n0 (driver + tasks / (executors x cores of one))

EMR Serverless: the driver is paid for all of it, executors until the tasks are done and an idle time after it. EMR on
EC2: all nodes, from their start until the cluster ends itself. A core here counts as a vCPU there. Jobs are counted one
after the other: what the state machine runs side by side costs the same and ends earlier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from encore.config import conf_dir, read_yaml
from encore.errors import ConfigError

FAR = 4
"""Up to so many times the playlists of the run that was measured an estimate is called one."""


class _Prices(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Serverless(_Prices):
    """EMR Serverless, dollars."""

    vcpu_hour: float = Field(gt=0)
    gb_hour: float = Field(gt=0)


class Node(_Prices):
    """A node of a cluster: its type, vCPUs, and dollars an hour of EC2 and of EMR."""

    type: str
    vcpu: int = Field(gt=0)
    hour: float = Field(gt=0)
    emr_hour: float = Field(ge=0)


class Nodes(_Prices):
    """The nodes of the optional cluster."""

    driver: Node
    worker: Node


class Waits(_Prices):
    """Seconds that are paid and not worked."""

    worker_start: float = Field(ge=0)
    worker_idle: float = Field(ge=0)
    cluster_start: float = Field(ge=0)
    cluster_idle: float = Field(ge=0)


class Prices(_Prices):
    """`conf/prices/<region>.yaml`."""

    region: str
    date: str
    serverless: Serverless
    ec2: Nodes
    s3_gb_month: float = Field(gt=0)
    seconds: Waits


def prices_of(region: str) -> Prices:
    """The prices of a region. ConfigError where there are none, or where the file is wrong."""
    folder = conf_dir() / "prices"
    path = folder / f"{region}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in folder.glob("*.yaml"))) or "none"
        raise ConfigError(f"no prices for {region}: {path} is not there", remedy=f"write it; there are: {known}")
    try:
        return Prices.model_validate(read_yaml(path))
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(str(part) for part in wrong["loc"])
        raise ConfigError(f"{path}: {where}: {wrong['msg'].lower()}, {wrong['input']!r} found") from error


@dataclass(frozen=True)
class Workers:
    """What a run takes on EMR Serverless: vCPUs and GB of the driver and of an executor, and how many of these."""

    executors: int
    driver_vcpu: int
    driver_gb: int
    executor_vcpu: int
    executor_gb: int


def workers_of(spark: Mapping[str, str], driver_memory: str | None, executors: int) -> Workers:
    """The sizes that the settings of an environment name. ConfigError for one that is not whole gigabytes."""
    driver = _gb("spark.driver.memory", driver_memory or spark.get("spark.driver.memory", "14g"))
    return Workers(
        executors,
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
class JobCost:
    """A job: seconds that it took here, seconds that it would take there, dollars on EMR Serverless and on EC2."""

    job: str
    here: float
    there: float
    serverless: float
    ec2: float


@dataclass(frozen=True)
class Estimate:
    """What a run of N playlists costs; `scale` is N over the playlists that were measured."""

    jobs: tuple[JobCost, ...]
    waiting_ec2: float
    """Dollars of a cluster's nodes while they start, and while they wait for their end."""
    lake_gb: float
    scale: float

    @property
    def serverless(self) -> float:
        """Dollars on EMR Serverless."""
        return sum(job.serverless for job in self.jobs)

    @property
    def ec2(self) -> float:
        """Dollars on a cluster of EC2, that is started for the run."""
        return sum(job.ec2 for job in self.jobs) + self.waiting_ec2

    @property
    def seconds(self) -> float:
        """Of all jobs, one after the other."""
        return sum(job.there for job in self.jobs)


def estimate(
    rows: Sequence[Mapping[str, Any]], cores: int, scale: float, lake_bytes: int, prices: Prices, workers: Workers
) -> Estimate:
    """What a run costs: `rows` of `job_costs`, one a job, measured with `cores`; `scale` times as many playlists.

    `lake_bytes`: the lake's size as measured.
    """
    jobs = tuple(_job(row, cores, scale, prices, workers) for row in rows)
    hours = (prices.seconds.cluster_start + prices.seconds.cluster_idle) / 3600
    return Estimate(jobs, hours * _cluster_hour(prices, workers), lake_bytes * scale / 1e9, scale)


def _job(row: Mapping[str, Any], cores: int, scale: float, prices: Prices, workers: Workers) -> JobCost:
    here, tasks = float(row["seconds"]), float(row["run_seconds"])
    alone = max(0.0, here - tasks / cores)
    waits, price = prices.seconds, prices.serverless
    spread = tasks * scale / (workers.executors * workers.executor_vcpu)
    there = waits.worker_start + alone * scale + spread
    # a job without tasks lets its executors go, or never gets any
    busy = waits.worker_start + spread + waits.worker_idle if tasks else 0.0
    driver = workers.driver_vcpu * price.vcpu_hour + workers.driver_gb * price.gb_hour
    executor = workers.executor_vcpu * price.vcpu_hour + workers.executor_gb * price.gb_hour
    serverless = driver * max(there, 60) / 3600 + workers.executors * executor * busy / 3600
    # steps of one cluster begin at once
    on_cluster = (there - waits.worker_start) / 3600 * _cluster_hour(prices, workers)
    return JobCost(str(row["job"]), here, there, serverless, on_cluster)


def _cluster_hour(prices: Prices, workers: Workers) -> float:
    """Dollars of an hour of a cluster with as many cores in workers as the executors have."""
    one, many = prices.ec2.driver, prices.ec2.worker
    nodes = -(-workers.executors * workers.executor_vcpu // many.vcpu)
    return one.hour + one.emr_hour + nodes * (many.hour + many.emr_hour)
