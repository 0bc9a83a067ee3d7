"""MLflow's own scoring server with the model of a bundle, as it is registered."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from encore.runtime.fingerprint import source_of
from encore.serving.portable import write_package
from tests.serving.process import Running, free_port, started


def save_model(bundle: Path, folder: Path) -> Path:
    """The folder of an MLflow model of a bundle, with the signature and the code of a registered version."""
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    code = folder / "code"
    code.mkdir(parents=True)
    package = write_package(code)
    # the arrays are linked to afterwards, since MLflow would copy them, and follows no symbolic links
    stand_in = folder / "bundle"
    stand_in.mkdir()
    shutil.copyfile(bundle / "manifest.json", stand_in / "manifest.json")
    tracks = ColSpec(Array(DataType.string), "tracks")
    pyfunc.save_model(
        path=str(folder / "model"),
        python_model=str(source_of("encore.serving.pyfunc")),
        artifacts={"bundle": str(stand_in)},
        code_paths=[str(code / package)],
        signature=ModelSignature(
            inputs=Schema([tracks, ColSpec(DataType.string, "title", required=False)]),
            outputs=Schema([tracks, ColSpec(Array(DataType.double), "scores")]),
            params=ParamSchema([ParamSpec("k", DataType.long, 500)]),
        ),
        pip_requirements=["numpy"],
        model_config={"package": package},
    )
    shutil.copytree(bundle, folder / "model/artifacts/bundle", copy_function=_link, dirs_exist_ok=True)
    return folder / "model"


def _link(source: str, target: str) -> None:
    Path(target).unlink(missing_ok=True)
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def mlflow_server(model: Path, log: Path | None = None) -> Iterator[Running]:
    """MLflow's scoring server, with one process, as `mlflow models serve --env-manager local` starts it."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("mlflow")), "models", "serve", "-m", str(model)]
    command += ["--env-manager", "local", "--port", str(port), "--workers", "1"]
    # the first request compiles the loops, for which its 60 seconds are too short
    environment = {"OPENBLAS_NUM_THREADS": "1", "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": "300"}
    with started(command, port, environment, log=log) as running:
        yield running
