"""Who may import what: arrays know no Spark, one module knows each outside thing, and imports go one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

LIB = Path(__file__).resolve().parents[2] / "lib"
PACKAGE = LIB / "encore"

SPARK = ("pyspark", "py4j", "delta")
WITHOUT_SPARK = (
    "encore.config",
    "encore.errors",
    "encore.evaluation.metrics",
    "encore.features",
    "encore.files",
    "encore.graph",
    "encore.hashing",
    "encore.mpd.generate",
    "encore.mpd.parse",
    "encore.ragged",
    "encore.recommenders",
    "encore.serving",
    "encore.similarity.kernel",
    "encore.splits",
    "encore.tables",
)
"""Modules, and packages with all that is in them, that work where no Spark is installed."""

DOMAIN = ("mpd", "features", "splits", "similarity", "recommenders", "evaluation", "reports", "serving")
ABOVE = ("encore.job", "encore.jobs", "encore.cli", "encore.pipeline", "encore.sql")


def module_of(path: Path) -> str:
    parts = path.relative_to(LIB).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def is_within(module: str, *roots: str) -> bool:
    return any(module == root or module.startswith(root + ".") for root in roots)


def statements(tree: ast.AST, *, run_at_import: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports of a module: all of them, or those that importing it runs (none in functions or for type checkers)."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif run_at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        elif run_at_import and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield from statements(other, run_at_import=True)
        else:
            yield from statements(node, run_at_import=run_at_import)


@cache
def imports(module: str, *, run_at_import: bool = False) -> frozenset[str]:
    """Full names of what a module imports; `from a import b` gives a and a.b."""
    path = FILES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in statements(ast.parse(path.read_text()), run_at_import=run_at_import):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        else:
            above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (above, node.module or "") if part)
            found.add(source)
            found.update(f"{source}.{alias.name}" for alias in node.names)
    return frozenset(found)


def reached(module: str) -> dict[str, tuple[str, ...]]:
    """Everything that importing a module imports, each with the way to it; packages on the way count."""
    ways: dict[str, tuple[str, ...]] = {}
    todo = [(module, (module,))]
    while todo:
        name, way = todo.pop()
        if name in ways:
            continue
        ways[name] = way
        parts = name.split(".")
        parents = [".".join(parts[:i]) for i in range(1, len(parts))]
        own = imports(name, run_at_import=True) if name in FILES else ()
        todo += [(other, (*way, other)) for other in (*parents, *own)]
    return ways


def importers(*roots: str) -> set[str]:
    """Modules of the package that import one of `roots` or something in it, wherever the statement stands."""
    return {module for module in FILES if any(is_within(name, *roots) for name in imports(module))}


def clean_modules() -> list[str]:
    return [module for module in FILES if is_within(module, *WITHOUT_SPARK)]


def test_the_reader_of_imports_sees_them() -> None:
    assert "pyspark.errors" in imports("encore.store")
    assert not any(is_within(name, "pyspark") for name in imports("encore.store", run_at_import=True))
    assert "encore.ragged.Ragged" in imports("encore.similarity.kernel", run_at_import=True)
    assert "encore.mpd" in reached("encore.mpd.parse")


@pytest.mark.parametrize("module", clean_modules())
def test_arrays_know_no_spark(module: str) -> None:
    """Not even inside a function, and nothing that is imported on the way imports it either."""
    assert [name for name in imports(module) if is_within(name, *SPARK)] == []
    assert [way for name, way in reached(module).items() if is_within(name, *SPARK)] == []


def test_importing_them_loads_no_spark_and_no_mlflow() -> None:
    modules = clean_modules()
    code = (
        "import importlib, sys\n"
        f"for name in {[m for m in modules if not is_within(m, 'encore.serving')]!r}:\n"
        "    importlib.import_module(name)\n"
        "    loaded = {'pyspark', 'py4j', 'delta', 'mlflow'} & set(sys.modules)\n"
        "    assert not loaded, (name, loaded)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert len(modules) > 15


def test_the_command_line_starts_without_spark() -> None:
    """`encore --help` and the graph of jobs take no second for what they do not need."""
    code = (
        "import sys, encore.cli, encore.pipeline, encore.show, encore.doctor\n"
        "encore.pipeline.plan()\n"
        "sys.exit(', '.join({'pyspark', 'py4j', 'mlflow'} & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_only_tracking_and_serving_know_mlflow() -> None:
    found = {module for module in importers("mlflow") if not is_within(module, "encore.serving")}
    assert found == {"encore.tracking"}


def test_only_the_configuration_knows_yaml() -> None:
    assert importers("yaml", "omegaconf", "ruamel") == {"encore.config"}


def test_only_the_store_knows_delta() -> None:
    assert importers("delta", "deltalake") == {"encore.store"}


def test_only_who_speaks_to_aws_knows_boto() -> None:
    own = {"encore.aws.account", "encore.aws.deployment", "encore.aws.submit"}
    assert importers("boto3", "botocore") == {"encore.files", "encore.doctor", "encore.tracking", *own}


def test_the_store_alone_makes_paths_of_tables() -> None:
    """No module but the store reads or writes Delta by path: the formats of Spark and of delta-rs stand there alone."""
    found = {module for module, path in FILES.items() if 'format("delta")' in path.read_text()}
    assert found == {"encore.store"}


@pytest.mark.parametrize("module", [m for m in FILES if m.split(".")[1:2] and m.split(".")[1] in DOMAIN])
def test_domain_folders_do_not_look_up(module: str) -> None:
    assert [name for name in imports(module) if is_within(name, *ABOVE)] == []


@pytest.mark.parametrize("module", ["encore.tables", "encore.errors", "encore.commit"])
def test_declarations_import_nothing_of_encore(module: str) -> None:
    assert [name for name in imports(module) if is_within(name, "encore")] == []


def test_jobs_do_not_import_each_other() -> None:
    for module in (m for m in FILES if m.startswith("encore.jobs.")):
        assert [name for name in imports(module) if is_within(name, "encore.jobs", "encore.cli")] == []


def test_imports_have_no_cycle() -> None:
    needs = {
        module: {name for name in imports(module, run_at_import=True) if name in FILES and name != module}
        for module in FILES
    }
    done: set[str] = set()
    while ready := {module for module in needs if module not in done and needs[module] <= done}:
        done |= ready
    assert set(needs) - done == set()


def test_nobody_imports_lib() -> None:
    roots = [PACKAGE, LIB.parent / "jobs", LIB.parent / "tests"]
    for path in (path for root in roots for path in root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(is_within(name, "lib") for name in names), path


def test_nothing_prints() -> None:
    for module, path in FILES.items():
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        lines = [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
        assert lines == [], module
