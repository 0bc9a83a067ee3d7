"""The registry of models in MLflow: registered versions, their tags and aliases, and the files of each version.

The registered model of a model is `encore-<model>`. Its version refers to a logged model, whose folder MLflow can load
(`mlflow.pyfunc.load_model`, `mlflow models serve`), and in which `artifacts/bundle` is what the scorer needs.

Every method raises TransientError if the store fails.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from encore import temporary
from encore.errors import TransientError
from encore.runtime.tracking import FINGERPRINT, FITTED, REGISTERED, Tracking, failures

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
"""Aliases: the version in use, the one that is being tried on a part of the requests, and the champion before."""

BUNDLE: Final = "artifacts/bundle"
EVALUATION: Final = "artifacts/evaluation"
"""Folders within that of a version."""

REQUIREMENTS: Final = ("numba", "numpy", "orjson", "xxhash")
"""Packages that the code of a logged model needs besides MLflow; their installed versions are required."""

DEFAULT_K: Final = 500


@dataclass(frozen=True)
class ModelVersion:
    """A registered version. `created_ms`: ms since 1970; `run`: the MLflow run with its metrics."""

    model: str
    version: int
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    created_ms: int = 0
    run: str | None = None

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model; empty if it was registered by something else."""
        return self.tags.get(FINGERPRINT, "")


@dataclass(frozen=True)
class Package:
    """What is logged as a model version.

    `bundle`: a folder, whose files may be symbolic links; `evaluation`: a folder; `model_code`: the file that MLflow
    runs; `code`: a folder with the Python package `package`, which that file imports; `example`: tracks of a playlist.
    """

    bundle: Path
    evaluation: Path
    model_code: Path
    code: Path
    package: str
    example: tuple[str, ...]


class ModelRegistry:
    """The registered models of a store."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking

    @cached_property
    def _client(self) -> Any:
        return self._tracking.client

    @contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        if self._tracking.failed is not None:
            raise TransientError(f"MLflow: {what}: {self._tracking.place}: {self._tracking.failed}")
        try:
            yield
        except failures() as error:
            raise TransientError(
                f"MLflow: {what}: {self._tracking.place}: {self._tracking.shown(error)}",
                remedy="fix tracking.uri or tracking.login, or wait until the server answers, and try again",
            ) from error

    # reading -------------------------------------------------------------------------------------------------------

    def models(self) -> list[str]:
        """The names of the models that have a registered version, without their prefix, sorted."""
        with self._reported("registered models"):
            found: list[str] = []
            token = None
            while True:
                page = self._client.search_registered_models(f"name LIKE '{REGISTERED}%'", 100, page_token=token)
                found += [model.name.removeprefix(REGISTERED) for model in page]
                token = page.token
                if not token:
                    return sorted(found)

    def versions(self, model: str) -> list[ModelVersion]:
        """The registered versions of a model, the newest first; empty if there is none."""
        aliases: dict[int, list[str]] = {}
        for alias, version in self.aliases(model).items():
            aliases.setdefault(version, []).append(alias)
        with self._reported(f"versions of {model}"):
            found, token = [], None
            while True:
                page = self._client.search_model_versions(
                    f"name = '{REGISTERED}{model}'", max_results=1000, page_token=token
                )
                found += [_version(one, aliases.get(int(one.version), ())) for one in page]
                token = page.token
                if not token:
                    return sorted(found, key=lambda version: -version.version)

    def aliases(self, model: str) -> dict[str, int]:
        """The aliases of a model and the versions that they refer to."""
        from mlflow.exceptions import MlflowException

        with self._reported(f"aliases of {model}"):
            try:
                found = self._client.get_registered_model(f"{REGISTERED}{model}")
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return {}
                raise
            return {alias: int(version) for alias, version in found.aliases.items()}

    def version(self, model: str, version: int) -> ModelVersion | None:
        """A version of a model; None if there is no such one."""
        return next((one for one in self.versions(model) if one.version == version), None)

    def folder(self, version: ModelVersion, part: str) -> Path:
        """The folder BUNDLE or EVALUATION of a version: in place if the store's artefacts are on this machine,
        otherwise a temporary copy."""
        with self._reported(f"files of {version.model} {version.version}"):
            location = self._location(version)
            local = _local(location)
            if local is not None:
                return local / part
            from mlflow.artifacts import download_artifacts

            return Path(
                download_artifacts(
                    artifact_uri=f"{location}/{part}",
                    dst_path=temporary.new_folder("registered"),
                    tracking_uri=self._tracking.uri,
                )
            )

    def _location(self, version: ModelVersion) -> str:
        return str(self._client.get_model_version_download_uri(f"{REGISTERED}{version.model}", str(version.version)))

    def evaluation_run(self, model: str, fingerprint: str) -> str | None:
        """The newest MLflow run that has the metrics of a fitted model; None if there is none."""
        with self._reported(f"evaluation of {model}"):
            found = self._client.search_runs(
                [self._tracking.experiment_id()],
                f"tags.`{FITTED}` = '{fingerprint}' AND tags.model = '{model}'",
                max_results=1,
                order_by=["attributes.start_time DESC"],
            )
            return str(found[0].info.run_id) if found else None

    # writing -------------------------------------------------------------------------------------------------------

    def register(self, model: str, package: Package, run: str | None, tags: Mapping[str, str]) -> ModelVersion:
        """Log a model and register it as a new version. `run`: the MLflow run with its metrics, if there is one.

        In a store on this machine, the files of the bundle are hard links to the original ones where possible.
        """
        from mlflow.entities import LoggedModelOutput

        name = f"{REGISTERED}{model}"
        with self._reported(f"register {model}"):
            self._ensure(name, model)
            made = self._client.create_logged_model(
                self._tracking.experiment_id(), name=name, source_run_id=run, tags=dict(tags), model_type="encore"
            )
            try:
                folder = _save(package, made, run)
                local = _local(made.artifact_location)
                if local is None:
                    shutil.rmtree(folder / BUNDLE)
                    shutil.copytree(package.bundle, folder / BUNDLE, symlinks=True)
                    self._client.log_model_artifacts(made.model_id, str(folder))
                else:
                    shutil.copytree(folder, local, dirs_exist_ok=True)
                    shutil.copytree(package.bundle, local / BUNDLE, copy_function=_link, dirs_exist_ok=True)
                shutil.rmtree(folder)
            except BaseException:
                self._client.finalize_logged_model(made.model_id, "FAILED")
                raise
            self._client.finalize_logged_model(made.model_id, "READY")
            if run is not None:
                self._client.log_outputs(run, [LoggedModelOutput(made.model_id, 0)])
            with _default_store(self._tracking.uri):
                found = self._client.create_model_version(
                    name, f"models:/{made.model_id}", run_id=run, tags=dict(tags), model_id=made.model_id
                )
            return _version(found, ())

    def _ensure(self, name: str, model: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name, description=f"The model `{model}` of Encore.")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def set_tags(self, model: str, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with self._reported(f"tags of {model} {version}"):
            for name, value in tags.items():
                self._client.set_model_version_tag(f"{REGISTERED}{model}", str(version), name, value)

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """Point an alias to a version. Raises TransientError if another process changes it at the same time."""
        with self._reported(f"alias {alias} of {model}"):
            self._client.set_registered_model_alias(f"{REGISTERED}{model}", alias, str(version))
        # the registry has no compare-and-swap
        found = self.aliases(model).get(alias)
        if found != version:
            raise TransientError(
                f"{REGISTERED}{model}: {alias} was set to {version}, and is now {found}: another process set it",
                remedy="promote by one process at a time",
            )

    def delete_alias(self, model: str, alias: str) -> None:
        """Remove an alias, if it is there."""
        with self._reported(f"alias {alias} of {model}"):
            self._client.delete_registered_model_alias(f"{REGISTERED}{model}", alias)

    def promote(self, model: str, version: int) -> int | None:
        """Make a version the champion, and the champion `previous`; returns the version that was champion before."""
        before = self.aliases(model).get(CHAMPION)
        if before == version:
            return before
        if before is not None:
            self.set_alias(model, PREVIOUS, before)
        self.set_alias(model, CHAMPION, version)
        return before


@contextmanager
def _default_store(uri: str) -> Iterator[None]:
    """Make a store MLflow's default one within the block: some calls to a database look a model up in that store,
    instead of in the client's own."""
    from mlflow import set_tracking_uri

    name = "MLFLOW_TRACKING_URI"
    before = os.environ.get(name)
    set_tracking_uri(uri)
    try:
        yield
    finally:
        set_tracking_uri(None)
        if before is not None:
            os.environ[name] = before


def _version(found: Any, aliases: Any) -> ModelVersion:
    return ModelVersion(
        model=found.name.removeprefix(REGISTERED),
        version=int(found.version),
        aliases=tuple(sorted(aliases)),
        tags=dict(found.tags),
        created_ms=int(found.creation_timestamp or 0),
        run=found.run_id or None,
    )


def _local(location: str) -> Path | None:
    """A location of artefacts as a folder of this machine; None if it is elsewhere."""
    parts = urlsplit(location)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(location) if not parts.scheme else None


def _link(source: str, target: str) -> str:
    real = os.path.realpath(source)
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)
    return target


def _save(package: Package, made: Any, run: str | None) -> Path:
    """Write the folder of a logged model in MLflow's format, in which the bundle has only its manifest yet."""
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    stand_in = Path(temporary.new_folder("manifest")) / "bundle"
    stand_in.mkdir()
    shutil.copyfile(package.bundle / "manifest.json", stand_in / "manifest.json")
    tracks, k = ColSpec(Array(DataType.string), "tracks"), ParamSpec("k", DataType.long, DEFAULT_K)
    signature = ModelSignature(
        inputs=Schema([tracks, ColSpec(DataType.string, "title", required=False)]),
        outputs=Schema([tracks, ColSpec(Array(DataType.double), "scores")]),
        params=ParamSchema([k]),
    )
    folder = Path(temporary.new_folder("logged")) / "model"
    model = Model(artifact_path=made.artifact_location, run_id=run, model_uuid=made.model_id, model_id=made.model_id)
    pyfunc.save_model(
        path=str(folder),
        python_model=str(package.model_code),
        artifacts={"bundle": str(stand_in), "evaluation": str(package.evaluation)},
        code_paths=[str(package.code / package.package)],
        signature=signature,
        input_example=(pd.DataFrame({"tracks": [list(package.example)], "title": ["example"]}), {"k": 10}),
        pip_requirements=[f"{name}=={installed(name)}" for name in REQUIREMENTS],
        model_config={"package": package.package},
        mlflow_model=model,
    )
    shutil.rmtree(stand_in.parent)
    model.model_size_bytes = sum(os.stat(path).st_size for root in (folder, package.bundle) for path in _files(root))
    model.save(str(folder / "MLmodel"))
    return folder


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
