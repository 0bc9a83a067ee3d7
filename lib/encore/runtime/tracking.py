"""MLflow's runs. Only this module, `model_registry` and the code that is stored with models import MLflow.

A pipeline run is a parent run, identified by the tag `encore.run_id`, so that jobs in separate processes share it; each
evaluated model is a child run with the tag `model`. If the server does not respond, jobs continue: their metrics are in
the Delta tables, and a warning says that they are not in MLflow.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog

from encore import temporary
from encore.config import Config
from encore.lake.tables import QUARANTINE, Column, Table
from encore.log import redact
from encore.runtime.provenance import commit_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from encore.runtime.result import JobResult

log = structlog.get_logger("encore.runtime.tracking")

# MLflow reads these when it is imported, which happens below on first use
MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    # its log records are handled like all others: log.py
    "MLFLOW_CONFIGURE_LOGGING": "false",
    # do not print the URLs of runs either: the server's address may come from a secret
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # report an unreachable server within seconds; the metrics are in Delta
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}

SERVERS = ("http", "https", "databricks", "arn")
"""Schemes of stores that are servers; `arn`: a server managed by SageMaker. Other stores are opened directly."""
MANAGED = re.compile(r"arn:aws(-us-gov)?:sagemaker:[a-z0-9-]+:\d{12}:mlflow-(tracking-server|app)/[A-Za-z0-9-]+")
"""ARNs of what SageMaker runs MLflow as: a tracking server, or an app, which has no instance of its own."""

OWNER, LAKE = "encore.owner", "encore.lake"
"""Tags of a parent run: the process that created it, identified as in `temporary`, and the lake that it works on."""

FITTED = "encore.fitted"
"""Tag of a model's run: the fingerprint of the fitted model that was evaluated."""

REGISTERED = "encore-"
"""Prefix of the names of registered models; the rest is the name of the model."""

FINGERPRINT = "encore.fingerprint"
"""Tag of a registered version: the fingerprint of its model."""

CHECKED = "encore.checks."
"""Prefix of the tags of a parent run that say which expectations were not met, by job; `ok`: all were."""

CHECK_VERDICTS = ("fail", "warn", "accepted")
"""The verdicts of `checks` that such a tag names, the worst first."""

STUDY, TRIAL = "encore.study", "encore.trial"
"""Tags of the runs of a tuning study: its name, on the parent run, and the number of a trial, on each child run."""

KILLED_SECONDS = 2.0
"""How long an interrupted run waits for its parent run to be created, in order to mark it as killed."""

PARAM_LENGTH = 6000
"""Characters of a parameter that MLflow accepts; a longer one would be an error, or cut without a word."""

FAILED = "encore.failed."
"""Prefix of the tags of a parent run that name its failed jobs: `true` until a later attempt of the job succeeds."""


EXPERIMENT_TAGS = {
    # determines on which page the experiment opens, except in newer versions of the open-source UI: there a switch in
    # the browser does, which defaults to GenAI, whose page shows no runs, only this description
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "The runs are under **Model training** (top left). Encore continues playlists. Each run "
    "without a parent is a run of the pipeline, with its settings, what each job took and the tables that were read. "
    "It has a child run for each evaluated model, with metrics and plots; select several of them to compare them.",
}


@dataclass(frozen=True)
class References:
    """What MLflow's runs, and registered versions with an alias, refer to: `versions` of Delta tables, by table, and
    `fitted`: the fingerprints of fitted models. Deleting a run or an alias releases what it refers to."""

    versions: Mapping[str, Set[int]]
    fitted: Set[str]


@dataclass(frozen=True)
class InputTable:
    """A table as a job read it: its URL, its Delta id and version, and its number of rows."""

    table: Table
    url: str
    id: str
    version: int
    rows: int


def shortened(text: str, length: int = PARAM_LENGTH) -> str:
    """A text of at most `length` characters; one that is cut says so and how long it was. config.yaml has all of it."""
    if len(text) <= length:
        return text
    mark = f"\N{HORIZONTAL ELLIPSIS} (cut: {len(text):,} characters in all)"
    return text[: length - len(mark)] + mark


def folder_of(name: str) -> str | None:
    """The folder part of an artefact's name; None if it has none."""
    return str(Path(name).parent) if "/" in name else None


def read_secret(name: str, region: str | None) -> dict[str, str]:
    """The values of a secret in AWS Secrets Manager: `uri`, and `username` and `password` if a login is needed.

    `uri` is an address, or the ARN of a server managed by SageMaker, which authenticates with the caller's role.
    Raises boto's errors if the secret cannot be read, ValueError if it does not have this form.
    """
    import boto3
    from botocore.config import Config as BotoConfig

    quick = BotoConfig(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "max_attempts": 3})
    # an ARN contains the region
    own = name.split(":")[3] if name.startswith("arn:") and name.count(":") > 3 else None
    client = boto3.client("secretsmanager", region_name=own or region, config=quick)
    # an unexpected value is not shown in the message, since it may be a password
    try:
        found = json.loads(client.get_secret_value(SecretId=name).get("SecretString", ""))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("uri"), str):
        raise ValueError(f'the secret {name}: {{"uri": ..., "username": ..., "password": ...}} expected')
    if found["uri"].startswith("arn:"):
        if not MANAGED.fullmatch(found["uri"]):
            raise ValueError(f"the secret {name}: `uri` is an ARN, but not of an MLflow server of SageMaker's")
    elif not _is_address(found["uri"]):
        raise ValueError(f"the secret {name}: `uri` is no address such as https://host:port")
    return {key: str(value) for key, value in found.items()}


def _is_address(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
        return parts.scheme in SERVERS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def failures() -> tuple[type[Exception], ...]:
    """The exceptions that a failing store may raise, for all kinds of stores that the installed packages support."""
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    found = (MlflowException, RequestException, BotoCoreError, ClientError, OSError, ValueError)
    if find_spec("sqlalchemy") is None:
        return found
    from sqlalchemy.exc import SQLAlchemyError

    return (*found, SQLAlchemyError)


class Tracking:
    """The MLflow runs of one pipeline run. They are created when first needed."""

    def __init__(self, config: Config, run_id: str, *, times: tuple[int, int] | None = None) -> None:
        """`times`: when a past run started and ended, in ms since 1970; None: now."""
        self.run_id = run_id
        self._began = times[0] if times else None
        self._ended = times[1] if times else None
        self.failed: str | None = None
        self.abandoned = 0
        """The number of parent runs of this lake marked as killed because their processes did not end them."""
        self._config = config
        self._parent: str | None = None
        self._preparing: threading.Thread | None = None

    @cached_property
    def _client(self) -> Any:
        from mlflow import MlflowClient, set_tracking_uri

        uri = self._uri
        scheme = urlsplit(uri).scheme
        if scheme not in SERVERS and find_spec("sqlalchemy") is None:
            raise ValueError("only a server can be spoken to from here: mlflow-skinny is installed, and mlflow is not")
        if scheme == "arn":
            # the code that signs requests to SageMaker takes the server only from there
            set_tracking_uri(uri)
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        return MlflowClient(tracking_uri=uri)

    @property
    def client(self) -> Any:
        """The client of the store, for `model_registry`. Raises one of `failures()` if it cannot be made."""
        for name, value in MLFLOW_SETTINGS.items():
            os.environ.setdefault(name, value)
        return self._client

    @property
    def uri(self) -> str:
        """The address of the store, which may come from a secret and is not to be shown: see `place`."""
        return self._uri

    def experiment_id(self) -> str:
        """The id of the experiment, which is created if it does not exist. Raises one of `failures()`."""
        return self._experiment()

    @cached_property
    def _uri(self) -> str:
        """The address of the store. User and password, if a secret has them, are set where MLflow reads them: in
        environment variables of this process, which no command line, log or Spark plan shows."""
        login = self._config.tracking.login
        if login is None:
            return self._config.tracking.uri
        found = read_secret(login, self._config.s3.region)
        for name in ("username", "password"):
            if name in found:
                os.environ[f"MLFLOW_TRACKING_{name.upper()}"] = found[name]
        return found["uri"]

    @property
    def place(self) -> str:
        """A description of the store that may be shown: its address without login, or the name of the secret that
        contains both."""
        tracking = self._config.tracking
        return redact(tracking.uri) if tracking.login is None else f"of the secret {tracking.login}"

    def shown(self, error: Exception) -> str:
        """The message of an error of the store, without logins, and without the store's address if that is secret."""
        return self._without_address(redact(" ".join(str(error).split())))[:300]

    def _without_address(self, text: str) -> str:
        """Mask the address of the store in a text if it comes from a secret."""
        uri = self.__dict__.get("_uri")
        if uri is None or self._config.tracking.login is None:
            return text
        parts = urlsplit(uri)
        for part in (uri, parts.netloc, parts.hostname, f"port={parts.port}"):
            if part:
                text = text.replace(part, "...")
        return text

    def _try(self, what: str, work: Callable[[], Any]) -> Any:
        """Call MLflow; a failure is logged once and remembered, never ends a job, and prevents further calls."""
        if self.failed is not None:
            return None
        for name, value in MLFLOW_SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            return work()
        except failures() as error:
            self.failed = self.shown(error)
            log.warning("mlflow_failed", what=what, uri=self.place, error=self.failed)
            return None

    def check(self) -> str | None:
        """None if the store responds, otherwise the reason why not."""
        self._try("check", lambda: self._client.search_experiments(max_results=1))
        return self.failed

    def _experiment(self) -> str:
        name = self._config.tracking.experiment
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            for tag in EXPERIMENT_TAGS.keys() - found.tags.keys():
                self._client.set_experiment_tag(found.experiment_id, tag, EXPERIMENT_TAGS[tag])
            return str(found.experiment_id)
        place = self._config.tracking.artifacts
        local = urlsplit(self._uri).scheme not in SERVERS
        location = (
            Path(place).absolute().as_uri() if place and local and "://" not in place else (place if local else None)
        )
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS))
        except MlflowException as error:
            # a job that started at the same time may have created it
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise error
            return str(found.experiment_id)

    def prepare(self) -> None:
        """Create the parent run in the background: creating a store takes seconds, during which the first job can
        start."""
        if self._parent is None and self._preparing is None:
            self._preparing = threading.Thread(target=self._prepare, daemon=True)
            self._preparing.start()

    def _prepare(self) -> None:
        self._parent = self._try("parent run", self._find_or_make_parent)
        if self._parent is not None:
            self._try("abandoned runs", self._end_abandoned)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of this run has been logged to MLflow."""
        return self._parent is None

    @property
    def experiment(self) -> str:
        """The name of the experiment."""
        return self._config.tracking.experiment

    def _end_abandoned(self) -> None:
        """Mark as killed those parent runs of this lake, of pipelines and studies, whose processes ran on this machine
        and are gone."""
        found = self._client.search_runs(
            [self._experiment()],
            f"attributes.status = 'RUNNING' AND tags.`{LAKE}` = '{self._lake}'",
            max_results=1000,
        )
        for run in found:
            owner = run.data.tags.get(OWNER, "").split()
            if run.info.run_id == self._parent or len(owner) != 3 or owner[0] != temporary.machine():
                continue
            if not temporary.is_running(int(owner[1]), int(owner[2])):
                self._client.set_terminated(run.info.run_id, "KILLED")
                self.abandoned += 1

    @property
    def _owner(self) -> str:
        return f"{temporary.machine()} {os.getpid()} {temporary.start_of(os.getpid())}"

    @property
    def _lake(self) -> str:
        path = self._config.lake.path
        return path if "://" in path else str(Path(path).absolute())

    def parent(self) -> str | None:
        """The id of the parent run, created on first use; None if MLflow fails."""
        if self._preparing is not None:
            self._preparing.join()
        if self._parent is None:
            self._parent = self._try("parent run", self._find_or_make_parent)
        return self._parent

    def _find_or_make_parent(self) -> str:
        """The id of the parent run. Jobs that start at the same time create one each; all of them use the oldest."""
        experiment = self._experiment()
        found = self._oldest_parent(experiment)
        if found is not None:
            return found
        own_tags = {"encore.run_id": self.run_id, "encore.kind": "pipeline", LAKE: self._lake, OWNER: self._owner}
        tags = {**own_tags, **self._common_tags()}
        made = self._client.create_run(experiment, start_time=self._began, run_name=self.run_id, tags=tags)
        own = str(made.info.run_id)
        oldest = self._oldest_parent(experiment) or own
        if oldest != own:
            self._client.set_tag(own, "encore.kind", "superseded")
            self._client.set_terminated(own, "KILLED")
            return oldest
        self._log_params(own, self._config.flat())
        self._client.log_text(own, self._config.yaml(redact), "config.yaml")
        return own

    def _oldest_parent(self, experiment: str) -> str | None:
        found = self._client.search_runs(
            [experiment],
            f"tags.`encore.run_id` = '{self.run_id}' AND tags.`encore.kind` = 'pipeline'",
            max_results=1,
            order_by=["attributes.start_time ASC"],
        )
        return str(found[0].info.run_id) if found else None

    def _common_tags(self) -> dict[str, str]:
        return {
            "mlflow.source.git.commit": commit_of(),
            "mlflow.source.name": "encore",
            "mlflow.source.type": "JOB",
        }

    def _log_params(self, run: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        shown = redact({name: "null" if value is None else value for name, value in params.items()})
        items = [Param(name, shortened(str(value))) for name, value in shown.items()]
        for i in range(0, len(items), 100):
            self._client.log_batch(run, params=items[i : i + 100])

    def _log_metrics(self, run: str, metrics: Mapping[str, float], step: int = 0) -> None:
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        items = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        for i in range(0, len(items), 500):
            self._client.log_batch(run, metrics=items[i : i + 500])

    def _log_inputs(self, run: str, inputs: Sequence[InputTable], context: str) -> None:
        """Log the tables that were read as MLflow datasets, built from entities since mlflow.data imports pandas."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        datasets = []
        for read in inputs:
            source = {"path": read.url, "delta_table_version": read.version, "delta_table_id": read.id}
            dataset = Dataset(
                name=read.table.name,
                # MLflow allows 36 characters, the length of the id alone; the full id is in the source
                digest=f"{read.id[:8]}@{read.version}",
                source_type="delta_table",
                source=json.dumps(source),
                schema=json.dumps({"mlflow_colspec": [_colspec(column) for column in read.table.columns]}),
                profile=json.dumps({"num_rows": read.rows}),
            )
            datasets.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
        if datasets:
            self._client.log_inputs(run, datasets)

    def log_job(self, result: JobResult, versions: Mapping[str, int], inputs: Sequence[InputTable]) -> None:
        """Log a job's seconds, rows, cost and facts, and the tables that it read with their versions."""
        parent = self.parent()
        if parent is None:
            return
        metrics = {f"seconds.{result.name}": result.seconds}
        # several jobs of a run write quarantine, so each has its own metric
        metrics |= {
            f"refused.{result.name}" if table == QUARANTINE.name else f"rows.{table}": float(n)
            for table, n in result.rows.items()
        }
        metrics |= {f"cost.{result.name}.{name}": float(value) for name, value in result.cost.items()}
        metrics |= {
            f"{result.name}.{name}": float(value)
            for name, value in result.facts.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        self._try("job metrics", lambda: self._log_metrics(parent, metrics))

        def tag_versions() -> None:
            from mlflow.entities import RunTag

            tags = [RunTag(f"version.{table}", str(version)) for table, version in versions.items()]
            if tags:
                self._client.log_batch(parent, tags=tags)

        self._try("versions", tag_versions)
        self._try("inputs", lambda: self._log_inputs(parent, inputs, result.name))

    def log_checks(self, job: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log rows of `checks`: values as metrics check.NAME or check.NAME.MODEL, and what was not met as a tag."""
        parent = self.parent()
        if parent is None:
            return
        metrics = {".".join(("check", *filter(None, (row["name"], row["subject"])))): row["value"] for row in rows}
        self._try("checks", lambda: self._log_metrics(parent, metrics))
        by_verdict: dict[str, list[str]] = {}
        for row in rows:
            name = "/".join(filter(None, (row["name"], row["subject"])))
            by_verdict.setdefault(row["verdict"], []).append(name)
        told = [f"{verdict}: {', '.join(by_verdict[verdict])}" for verdict in CHECK_VERDICTS if verdict in by_verdict]
        self._try("checks", lambda: self._client.set_tag(parent, f"{CHECKED}{job}", shortened("; ".join(told) or "ok")))

    def log_step(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of a step of a long computation to the parent run, as `name`.`metric`."""
        parent = self.parent()
        if parent is None:
            return

        named = {f"{name}.{metric}": value for metric, value in metrics.items()}
        self._try("step metrics", lambda: self._log_metrics(parent, named, step))

    def log_model(
        self,
        model: str,
        metrics: Mapping[str, float],
        versions: Mapping[str, int],
        inputs: Sequence[InputTable],
        figures: Mapping[str, Figure],
        fitted: str | None = None,
    ) -> str | None:
        """Log a model's evaluation as a child run, which is reused if the same pipeline run evaluates it again; returns
        the child run's id, None if MLflow fails. `fitted`: the fingerprint of the fitted model, None if unknown."""
        parent = self.parent()
        if parent is None:
            return None

        def work() -> str:
            experiment = self._experiment()
            found = self._client.search_runs(
                [experiment],
                f"tags.`mlflow.parentRunId` = '{parent}' AND tags.model = '{model}'",
                max_results=1,
            )
            if found:
                run = str(found[0].info.run_id)
            else:
                own = {
                    "mlflow.parentRunId": parent,
                    "model": model,
                    "encore.run_id": self.run_id,
                    "encore.kind": "model",
                }
                made = self._client.create_run(
                    experiment,
                    run_name=f"{model} {self.run_id}",
                    tags={**own, **self._common_tags()},
                )
                run = str(made.info.run_id)
                # the settings are logged here too, so that comparing the runs of two models shows their differences
                self._log_params(run, {"model": model, **self._config.flat()})
                self._log_params(run, {f"version.{table}": version for table, version in versions.items()})
            if fitted is not None:
                self._client.set_tag(run, FITTED, fitted)
            self._log_metrics(run, metrics)
            self._log_inputs(run, inputs, "evaluate")
            for name, figure in figures.items():
                self._client.log_figure(run, figure, f"plots/{name}.png")
            self._client.set_terminated(run, "FINISHED")
            return run

        found: str | None = self._try(f"model {model}", work)
        return found

    def references(self) -> References | None:
        """What the runs of the experiment, and aliases of registered models, refer to, and what therefore has to be
        kept; None if MLflow fails."""
        if self.parent() is None:
            return None

        def work() -> References:
            experiment, token = self._experiment(), None
            versions: dict[str, set[int]] = {}
            fitted: set[str] = set()
            while True:
                page = self._client.search_runs([experiment], max_results=1000, page_token=token)
                for run in page:
                    for name, value in {**run.data.params, **run.data.tags}.items():
                        if name.startswith("version.") and value.isdigit():
                            versions.setdefault(name.removeprefix("version."), set()).add(int(value))
                    if FITTED in run.data.tags:
                        fitted.add(run.data.tags[FITTED])
                token = page.token
                if not token:
                    break
            for tags in self._aliased():
                for name, value in tags.items():
                    if name.startswith("version.") and value.isdigit():
                        versions.setdefault(name.removeprefix("version."), set()).add(int(value))
                if FINGERPRINT in tags:
                    fitted.add(tags[FINGERPRINT])
            return References(versions, fitted)

        found: References | None = self._try("references of runs", work)
        return found

    def _aliased(self) -> Iterator[dict[str, str]]:
        """The tags of the versions of Encore's registered models that an alias refers to."""
        token = None
        while True:
            page = self._client.search_registered_models(f"name LIKE '{REGISTERED}%'", 100, page_token=token)
            for model in page:
                for version in set(model.aliases.values()):
                    yield self._client.get_model_version(model.name, version).tags
            token = page.token
            if not token:
                return

    def begin_study(self, study: str, model: str, versions: Mapping[str, int]) -> set[int] | None:
        """Create the parent run of a tuning study, or reopen it, as this object's parent run.

        Returns the numbers of the trials that it has; None if MLflow fails. `versions`: of the tables that are read.
        """

        def work() -> set[int]:
            experiment = self._experiment()
            found = self._client.search_runs([experiment], f"tags.`{STUDY}` = '{study}'", max_results=1)
            if found:
                self._parent = str(found[0].info.run_id)
                self._client.update_run(self._parent, status="RUNNING")
                self._client.set_tag(self._parent, OWNER, self._owner)
            else:
                tags = {STUDY: study, "encore.kind": "study", "encore.model": model}
                tags |= {LAKE: self._lake, OWNER: self._owner, **self._common_tags()}
                tags |= {f"version.{table}": str(version) for table, version in versions.items()}
                made = self._client.create_run(experiment, run_name=f"tune {study}", tags=tags)
                self._parent = str(made.info.run_id)
                self._log_params(self._parent, {"model": model, **self._config.flat()})
            logged: set[int] = set()
            for run in self._trials(experiment):
                number = run.data.tags.get(TRIAL, "")
                if run.info.status == "FINISHED" and number.isdigit():
                    logged.add(int(number))
                else:
                    # its process was killed while it was logging
                    self._client.delete_run(run.info.run_id)
            return logged

        found: set[int] | None = self._try("study", work)
        return found

    def _trials(self, experiment: str) -> list[Any]:
        found: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs(
                [experiment], f"tags.`mlflow.parentRunId` = '{self._parent}'", max_results=1000, page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found

    def log_trial(
        self, number: int, params: Mapping[str, Any], metrics: Mapping[str, float], times: tuple[int, int]
    ) -> None:
        """Log a finished trial of the study as a child run; `times`: when it started and ended, in ms since 1970."""
        if self._parent is None:
            return

        def work() -> None:
            own = {"mlflow.parentRunId": str(self._parent), "encore.kind": "trial", TRIAL: str(number)}
            made = self._client.create_run(
                self._experiment(),
                start_time=times[0],
                run_name=f"trial {number}",
                tags={**own, **self._common_tags()},
            )
            run, status = str(made.info.run_id), "KILLED"
            try:
                self._log_params(run, params)
                self._log_metrics(run, metrics)
                status = "FINISHED"
            finally:
                self._client.set_terminated(run, status, end_time=times[1])

        self._try("trial", work)

    def finish_study(self, metrics: Mapping[str, float], status: str) -> None:
        """End the parent run of the study, with metrics of its best trial; `status`: FINISHED, FAILED or KILLED."""
        parent = self._parent
        if parent is None:
            return

        def work() -> None:
            self._log_metrics(parent, metrics)
            self._client.set_terminated(parent, status)

        self._try("finish", work)

    def log_file(self, path: str, folder: str | None = None) -> None:
        """Log a file as an artefact of the parent run."""
        parent = self.parent()
        if parent is not None:
            self._try("artefact", lambda: self._client.log_artifact(parent, path, folder))

    def log_text(self, text: str, name: str) -> None:
        """Log a text as an artefact of the parent run."""
        parent = self.parent()
        if parent is not None:
            with tempfile.TemporaryDirectory(prefix="encore-") as folder:
                path = Path(folder) / Path(name).name
                path.write_text(text, encoding="utf-8")
                self._try("artefact", lambda: self._client.log_artifact(parent, str(path), folder_of(name)))

    def finish(
        self, done: Sequence[str], failed: str | None, seconds: float | None = None, *, killed: bool = False
    ) -> None:
        """Record how jobs of the parent run ended, if there is one: those that are `done`, and one that `failed`.

        The run is FAILED as long as any of its jobs is, including jobs of other processes; `seconds` is the total time.
        `killed`: a signal has interrupted the run, and there is little time left.
        """
        if killed and self._preparing is not None:
            self._preparing.join(KILLED_SECONDS)
            if self._preparing.is_alive():
                # the next run of this lake finds the parent run without an owner
                return
        parent = self.parent() if self._preparing is not None else self._parent
        if parent is None:
            return
        if seconds is not None:
            self._try("seconds", lambda: self._log_metrics(parent, {"seconds": seconds}))

        def end() -> None:
            if failed is not None:
                self._client.set_tag(parent, f"{FAILED}{failed}", "true")
            tags = self._client.get_run(parent).data.tags
            marked = {name for name, value in tags.items() if name.startswith(FAILED) and value == "true"}
            failing = {name.removeprefix(FAILED) for name in marked}
            for name in failing & set(done):
                self._client.set_tag(parent, f"{FAILED}{name}", "false")
            status = "KILLED" if killed else "FAILED" if failing - set(done) else "FINISHED"
            self._client.set_terminated(parent, status, end_time=self._ended)

        self._try("finish", end)


def _colspec(column: Column) -> dict[str, Any]:
    """A column in the form of MLflow's dataset schemas; types that MLflow lacks are given by Spark's name."""
    types = {"bigint": "long", "int": "integer", "timestamp": "datetime"}
    return {"name": column.name, "type": types.get(column.type, column.type), "required": not column.nullable}
