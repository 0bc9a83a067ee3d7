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

LAYERS: tuple[tuple[str, ...], ...] = (
    ("config", "errors", "findings", "interrupts", "log", "progress", "temporary", "vocabulary"),
    ("arrays",),
    ("lake",),
    ("spark",),
    ("runtime",),
    ("evaluation", "features", "mpd", "search", "splits"),
    ("importing", "recommenders", "reports", "synthetic"),
    ("serving",),
    ("jobs", "tuning"),
    ("aws",),
    ("cli",),
)
"""The package from its foundation up: a module imports modules of its own part and of lower layers."""

LAYER_OF = {part: number for number, parts in enumerate(LAYERS) for part in parts}

WITHOUT_SPARK = (
    *(f"encore.{part}" for part in LAYERS[0]),
    "encore.arrays",
    "encore.evaluation",
    "encore.features",
    "encore.importing",
    "encore.lake.filesystem",
    "encore.lake.schema",
    "encore.lake.tables",
    "encore.mpd.parse",
    "encore.mpd.published",
    "encore.mpd.shapes",
    "encore.mpd.tracks",
    "encore.recommenders",
    "encore.runtime.graph",
    "encore.runtime.provenance",
    "encore.search",
    "encore.serving",
    "encore.splits",
    "encore.synthetic",
)
"""Modules, and packages with all that is in them, that work where no Spark is installed."""


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
    todo: list[tuple[str, tuple[str, ...]]] = [(module, (module,))]
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
    assert "pyspark.errors" in imports("encore.lake.store")
    assert not any(is_within(name, "pyspark") for name in imports("encore.lake.store", run_at_import=True))
    assert "encore.arrays.ragged.Ragged" in imports("encore.search.kernel", run_at_import=True)
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
        "import sys, encore.cli.app, encore.runtime.pipeline, encore.cli.show, encore.cli.doctor\n"
        "encore.runtime.pipeline.plan()\n"
        "sys.exit(', '.join({'pyspark', 'py4j', 'mlflow'} & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_only_tracking_and_the_registry_know_mlflow() -> None:
    """Besides the code that is stored with each registered model, which MLflow imports, and nothing else does."""
    logged = "encore.serving.pyfunc"
    assert importers("mlflow") == {"encore.runtime.tracking", "encore.runtime.model_registry", logged}
    assert importers(logged) == set()


def test_only_the_configuration_knows_yaml() -> None:
    assert importers("yaml", "omegaconf", "ruamel") == {"encore.config"}


def test_only_the_lake_knows_delta() -> None:
    found = importers("delta", "deltalake")
    assert found
    assert [module for module in found if not is_within(module, "encore.lake")] == []


def test_only_who_speaks_to_aws_knows_boto() -> None:
    own = {"encore.aws.account", "encore.aws.readiness", "encore.aws.submit"}
    lake = {"encore.lake.credentials", "encore.lake.failures", "encore.lake.filesystem"}
    found = {*lake, "encore.cli.doctor", "encore.runtime.tracking", *own}
    assert importers("boto3", "botocore") == found


def test_only_models_of_vectors_search() -> None:
    found = {module for module in importers("encore.search") if not is_within(module, "encore.search")}
    # centroids are a function of the kernel, and the workers' daemon loads its compiled loops
    assert found <= {"encore.recommenders.cosine", "encore.recommenders.ials", "encore.jobs.build_centroids"}


def test_nothing_but_the_command_line_imports_the_generator() -> None:
    found = {module for module in importers("encore.synthetic") if not is_within(module, "encore.synthetic")}
    assert found == {"encore.cli.app"}


def test_the_store_alone_reads_tables_with_spark() -> None:
    """No other module reads or writes Delta by path."""
    found = {module for module, path in FILES.items() if 'format("delta")' in path.read_text()}
    assert found == {"encore.lake.store"}


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_part_has_a_layer() -> None:
    assert {part_of(module) for module in FILES} - {""} == set(LAYER_OF)


@pytest.mark.parametrize("module", [module for module in FILES if part_of(module)])
def test_imports_go_down(module: str) -> None:
    """Wherever the statement stands, in a function too."""
    own = part_of(module)
    others = {part_of(name) for name in imports(module) if name in FILES and part_of(name)} - {own}
    assert [name for name in sorted(others) if LAYER_OF[name] >= LAYER_OF[own] and LAYER_OF[own] > 0] == []
    assert LAYER_OF[own] > 0 or others <= set(LAYERS[0])


def test_no_two_modules_import_each_other() -> None:
    """Not even one of them in a function, or for type checkers alone."""
    needs = {module: imports(module) & set(FILES) - {module} for module in FILES}
    assert [(one, two) for one in FILES for two in needs[one] if one < two and one in needs[two]] == []


def test_jobs_do_not_import_each_other() -> None:
    for module in (m for m in FILES if m.startswith("encore.jobs.")):
        assert [name for name in imports(module) if is_within(name, "encore.jobs", "encore.cli.app")] == []


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
