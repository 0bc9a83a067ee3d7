"""What commands import: `encore --help` little more than typer, and commands that only look nothing that they lack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from encore.config import Config
from encore.lake.store import Store
from encore.lake.tables import JOB_COSTS, JOB_RUNS, MODEL_METRICS, PLAYLIST_METRICS, arrow_schema
from encore.lake.transaction import append_small
from tests.conftest import settings

LIB = Path(__file__).resolve().parents[3] / "lib"

HELP = {
    *("annotated_doc", "shellingham", "typer", "typing_extensions"),
    *("attr", "markdown_it", "mdurl", "pygments", "rich"),
    *("annotated_types", "pydantic", "pydantic_core", "typing_inspection"),
}
"""Installed packages that `encore --help` may import: typer, and what it prints help and reads options with."""

CONFIGURATION = {"omegaconf", "yaml"}
LAKE = {"arro3", "botocore", "cloudpickle", "dateutil", "deltalake", "numpy", "pyarrow", "six"}
"""botocore is there for its exceptions alone: boto3, which takes four times as long, is for lakes in S3."""


def installed_packages_of(*command: str) -> set[str]:
    """Installed packages, by their top-level name, that a command imports; it must end well."""
    code = (
        "import json, sys\n"
        "from encore.cli.app import main\n"
        f"sys.argv = {['encore', *command]!r}\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as ended:\n"
        "    assert not ended.code, ended.code\n"
        "files = (name for name, module in sys.modules.items() if getattr(module, '__file__', None))\n"
        "found = {name.split('.')[0] for name in files} - set(sys.stdlib_module_names)\n"
        "print(json.dumps(sorted(found)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(LIB), "ENCORE_CONF_DIR": str(LIB.parent / "conf")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return {name for name in json.loads(done.stderr.splitlines()[-1]) if not name.startswith("_")}


@pytest.fixture
def lake(tmp_path: Path) -> Config:
    """A lake in which one job has run, and from which a model has metrics."""
    config = settings(tmp_path / "lake")
    store = Store(config, lambda: pytest.fail("Spark is not needed"))
    now = datetime(2026, 1, 2, tzinfo=UTC)
    record = {"run_id": "run-1", "job": "evaluate", "started_at": now, "seconds": 1.5, "status": "done"}
    append_small(store, JOB_RUNS, [{**record, "inputs": [], "outputs": [], "rows": [("playlist_metrics", 1)]}])
    append_small(store, JOB_COSTS, [{column.name: record.get(column.name, 0) for column in JOB_COSTS.columns}])
    mean = {"model": "cosine", "bucket": "all", "metric": "ndcg", "value": 0.25, "n_playlists": 1, "evaluated_at": now}
    for table, row in ((PLAYLIST_METRICS, {"model": "cosine", "pid": 7}), (MODEL_METRICS, {"run_id": "run-1", **mean})):
        rows = pa.Table.from_pylist([row], arrow_schema(table))
        write_deltalake(store.url(table), rows, partition_by=list(table.partition_by))
    return config


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["--version"]], ids=" ".join)
def test_help_imports_typer_and_what_typer_needs(command: list[str]) -> None:
    assert installed_packages_of(*command) - HELP == {"encore"}


@pytest.mark.parametrize("command", ["show", "tables"])
def test_commands_that_look_import_configuration_and_lake(command: str, lake: Config) -> None:
    """No pandas, which pyarrow imports for many a small call; no structlog, MLflow, Spark, numba, matplotlib, boto3."""
    found = installed_packages_of(command, "--set", f"lake.path={lake.lake.path}")
    assert found - HELP - CONFIGURATION - LAKE == {"encore"}
    assert {"deltalake", "omegaconf"} <= found, "what is imported is seen"
