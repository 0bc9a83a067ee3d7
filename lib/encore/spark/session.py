"""The Spark session: created once, on first use, with the settings that Delta and S3 need."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encore import interrupts, temporary
from encore.config import Config
from encore.errors import EnvironmentMissing
from encore.lake.filesystem import is_s3
from encore.spark.stage_metrics import SETTINGS as COST_SETTINGS

if TYPE_CHECKING:
    from pyspark import SparkConf, SparkContext
    from pyspark.sql import SparkSession as Spark

DELTA_SETTINGS = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}


def find_java() -> str | None:
    """The `java` that Spark will run: from JAVA_HOME if it is set, otherwise from the PATH; None if there is none."""
    home = os.environ.get("JAVA_HOME")
    if home:
        own = Path(home) / "bin" / "java"
        return str(own) if own.is_file() else None
    return shutil.which("java")


def jars_folder() -> Path | None:
    """Where Spark's jars are: in SPARK_HOME if it is set, otherwise in the installed pyspark; None if there is none."""
    home = os.environ.get("SPARK_HOME")
    if home:
        return Path(home) / "jars"
    spec = find_spec("pyspark")
    return Path(spec.origin).parent / "jars" if spec and spec.origin else None


def spark_settings(config: Config) -> dict[str, str]:
    """All settings of the session except master and memory, by full name."""
    settings = {
        **DELTA_SETTINGS,
        **COST_SETTINGS,
        "spark.sql.session.timeZone": "UTC",
        "spark.python.daemon.module": "encore.spark.worker_daemon",
        "spark.sql.shuffle.partitions": str(config.spark.shuffle_partitions),
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.databricks.delta.properties.defaults.dataSkippingNumIndexedCols": "2",
        # otherwise BLAS and Arrow would start one thread per core in each worker, and there is one worker per core
        "spark.executorEnv.OMP_NUM_THREADS": "1",
        "spark.executorEnv.OPENBLAS_NUM_THREADS": "1",
    }
    if is_s3(config.lake.path):
        settings["spark.hadoop.fs.s3a.path.style.access"] = str(config.s3.path_style).lower()
        # a table's log consists of many small files, which are read over parallel connections
        settings["spark.hadoop.fs.s3a.connection.maximum"] = "64"
        if config.s3.endpoint:
            settings["spark.hadoop.fs.s3a.endpoint"] = config.s3.endpoint
            settings["spark.hadoop.fs.s3a.connection.ssl.enabled"] = str(config.s3.endpoint.startswith("https")).lower()
        if config.s3.region:
            settings["spark.hadoop.fs.s3a.endpoint.region"] = config.s3.region
    settings.update(config.spark.settings)
    return settings


def start_session(config: Config, app: str) -> Any:
    """Create a SparkSession. Options given to `spark-submit` take precedence over the configuration.

    Raises EnvironmentMissing if Java, pyspark or the Delta or S3 jars are missing, or if Spark does not start.
    """
    if find_spec("pyspark") is None:
        raise EnvironmentMissing("pyspark is not installed", remedy="run `make setup`, or install encore[spark]")
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    if not submitted:
        if find_java() is None:
            raise EnvironmentMissing(
                "Java is missing" + (f" (JAVA_HOME is {os.environ['JAVA_HOME']})" if "JAVA_HOME" in os.environ else ""),
                remedy="install Java 17 and put it on the PATH or in JAVA_HOME",
            )
        folder = jars_folder()
        if folder and not any(folder.glob("delta-spark*.jar")) and "spark.jars" not in config.spark.settings:
            raise EnvironmentMissing(f"no Delta jars in {folder}", remedy="run `make setup`")
        if folder and is_s3(config.lake.path) and not any(folder.glob("hadoop-aws*.jar")):
            raise EnvironmentMissing(f"no S3 jars in {folder}", remedy="run `make s3`")
    from pyspark import SparkConf, SparkContext
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        # local workers inherit the driver's environment, not spark.executorEnv
        os.environ.setdefault(name, "1")
    conf = SparkConf()
    conf.setAppName(app)
    for name, value in spark_settings(config).items():
        if not conf.contains(name):
            conf.set(name, value)
    if config.spark.master and not conf.contains("spark.master"):
        conf.setMaster(config.spark.master)
    if config.spark.driver_memory and not conf.contains("spark.driver.memory"):
        conf.set("spark.driver.memory", config.spark.driver_memory)
    own = _temporary_files(conf)
    quiet = Path(__file__).with_name("log4j2.properties")
    if not submitted:
        given = conf.get("spark.driver.extraJavaOptions", "") or ""
        # for libraries that the JVM unpacks, and files that Spark creates before it has read its settings
        place = f"-Djava.io.tmpdir={own}" if own and "java.io.tmpdir" not in given else ""
        options = f"-Dlog4j2.configurationFile=file:{quiet} {place} {given}"
        conf.set("spark.driver.extraJavaOptions", " ".join(options.split()))
        conf.set("spark.ui.showConsoleProgress", "false")
    try:
        context = SparkContext.getOrCreate(conf)
        # pyspark has replaced our SIGINT handler with its own, which calls the JVM amid another call
        interrupts.restore_handlers()
        spark = SparkSession.builder.config(conf=conf).getOrCreate()
    except (PySparkException, OSError, RuntimeError) as error:
        raise EnvironmentMissing(
            f"Spark did not start: {' '.join(str(error).split())[:300]}", remedy="run `encore doctor`"
        ) from error
    _expect_the_end_of_the_jvm(context)
    context.setLogLevel("ERROR")
    return spark


def _temporary_files(conf: SparkConf) -> str | None:
    """Make a local Spark put its temporary files into a folder of this process, so that a later run can remove them if
    this process is killed; None if the location is set elsewhere or Spark is not local."""
    is_elsewhere = "SPARK_LOCAL_DIRS" in os.environ or conf.contains("spark.local.dir")
    if is_elsewhere or not (conf.get("spark.master", "") or "").startswith("local"):
        return None
    folder = temporary.new_folder("spark")
    conf.set("spark.local.dir", folder)
    return folder


def _expect_the_end_of_the_jvm(context: SparkContext) -> None:
    """Let pyspark's server of accumulators print no traceback when a signal has ended the JVM that it listens to."""
    server: Any = context._accumulatorServer
    say = server.handle_error

    def handle_error(*connection: Any) -> None:
        if interrupts.received() is None:
            say(*connection)

    server.handle_error = handle_error


class Session:
    """The Spark session of a process: started on first use, stopped once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._spark: Spark | None = None

    def __call__(self) -> Spark:
        """The session."""
        if self._spark is None:
            self._spark = start_session(self._config, "encore")
        return self._spark

    @property
    def started(self) -> bool:
        """Whether the session was started."""
        return self._spark is not None

    def stop(self) -> None:
        """Stop the session if it was started. After a signal the JVM is already ending, so nothing is sent to it."""
        if self._spark is not None:
            if interrupts.received() is None:
                self._spark.stop()
            self._spark = None
